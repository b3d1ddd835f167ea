"""The controller's side of quarantine: hears of requests that kill workers, and tells every edge.

What one edge has found out holds on all of them.  A new controller learns it from the edges that
register with it, and a new edge from the controller.  Who is guilty is decided in the edges.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from pool.wire import control
from pool.wire.control import Quarantine, Quarantined
from pool.wire.peer import Peer

ROWS_MAX = 1024  # those that end first are forgotten
LEFT_S_MAX = 3600.0


class QuarantineDesk:
    """All that is in quarantine, by fingerprint.

    Args:
        epoch: of the present leadership.
    """

    def __init__(self, epoch: Callable[[], int]) -> None:
        self._epoch = epoch
        # The whole mutable state: what is in quarantine and until when, on the loop's clock; and
        # who is told, by the process's name.
        self._until_s: dict[bytes, tuple[Quarantined, float]] = {}
        self._peers: dict[str, Peer] = {}

    def join(self, name: str, peer: Peer, register: control.RegisterEdge) -> None:
        """Take in an edge process, and what it knows."""
        if not register.quarantines:
            return  # of a release that would not understand
        self._peers[name] = peer
        if not self.learn(register.quarantined) and self._until_s:
            peer.send(control.encode(self._all()))

    def leave(self, name: str) -> None:
        """Take note that a connection is gone."""
        self._peers.pop(name, None)

    def learn(self, rows: Sequence[Quarantined]) -> bool:
        """Take in what an edge knows; tell every edge if it is news, and return whether it is."""
        now_s = asyncio.get_running_loop().time()
        is_news = False
        for row in rows:
            until_s = now_s + min(row.left_ms / 1000, LEFT_S_MAX)
            known = self._until_s.get(row.fingerprint)
            is_news |= known is None
            if known is None or known[1] < until_s:
                self._until_s[row.fingerprint] = (row, until_s)
        while len(self._until_s) > ROWS_MAX:
            del self._until_s[min(self._until_s, key=lambda one: self._until_s[one][1])]
        if is_news:
            buffers = control.encode(self._all())
            for peer in self._peers.values():
                peer.send(buffers)
        return is_news

    def rows(self) -> list[dict[str, object]]:
        """Return what `tidepool status` shows."""
        return [
            {
                "model": row.model,
                "version": row.version,
                "fingerprint": row.fingerprint.hex(),
                "left_s": row.left_ms / 1000,
            }
            for row in self._all().quarantined
        ]

    def reset(self) -> None:
        """Forget everything: somebody else leads."""
        self._until_s.clear()
        self._peers.clear()

    def _all(self) -> Quarantine:
        now_s = asyncio.get_running_loop().time()
        self._until_s = {name: one for name, one in self._until_s.items() if one[1] > now_s}
        rows = [
            Quarantined(row.fingerprint, row.model, row.version, int((until_s - now_s) * 1000))
            for row, until_s in self._until_s.values()
        ]
        return Quarantine(self._epoch(), tuple(rows))
