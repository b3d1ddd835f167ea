"""The controller's side of leases: hears what edge processes are asked for, sends them their parts.

Which parts, `quota_shares` decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pool.quota_shares import Ledger
from pool.wire import control
from pool.wire.control import QuotaAck, QuotaDemand, QuotaParts, QuotaShares
from pool.wire.peer import Peer

GATHER_S = 0.01  # news of so long are answered together: each may concern every process


class QuotaDesk:
    """The parts of quotas at every edge process that knows of leases.

    Args:
        epoch: of the present leadership.
    """

    def __init__(self, epoch: Callable[[], int]) -> None:
        self._epoch = epoch
        # The whole mutable state: connections by the process's name, who has which parts, and
        # whether a round is about to begin.
        self._peers: dict[str, Peer] = {}
        self._ledger = Ledger()
        self._timer: asyncio.TimerHandle | None = None

    def join(self, name: str, peer: Peer, register: control.RegisterEdge) -> None:
        """Take in an edge process; it is answered at once."""
        if not register.parts:
            return  # of a release that knows no leases, and would not understand
        self._peers[name] = peer
        used = {p.key: (p.requests, p.rows, p.concurrent) for p in register.parts}
        self._ledger.join(name, register.id, used, asyncio.get_running_loop().time())
        self.round()

    def leave(self, name: str) -> None:
        """Take note that a connection is gone."""
        if self._peers.pop(name, None) is not None:
            self._ledger.leave(name, asyncio.get_running_loop().time())

    def on_message(self, name: str, message: QuotaDemand | QuotaAck) -> None:
        """Take what an edge process says."""
        match message:
            case QuotaDemand(demands):
                now_s = asyncio.get_running_loop().time()
                found = {p.key: (p.requests, p.rows, p.concurrent) for p in demands}
                self._ledger.demand(name, found, now_s)
            case QuotaAck(epoch, seq):
                if epoch == self._epoch():
                    self._ledger.confirm(name, seq)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER_S, self.round)

    def round(self) -> None:
        """Send what is to be sent now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for name, seq, parts in self._ledger.grants(asyncio.get_running_loop().time()):
            told = tuple(QuotaParts(key, *of_key) for key, of_key in parts.items())
            self._peers[name].send(control.encode(QuotaShares(self._epoch(), seq, told)))

    def reset(self) -> None:
        """Forget everything: somebody else leads."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._peers.clear()
        self._ledger = Ledger()
