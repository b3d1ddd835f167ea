"""The controller's side of builds: hears what workers want and report, sends them orders and news.

Who builds what, `build_desk` decides; what versions are to run with, `wanted`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import structlog

from pool import build_rows
from pool.build_desk import BuildDesk
from pool.build_jobs import Ask, Drop, Ref, Report, Target
from pool.registry_watch import Snapshot
from pool.wanted import wanted
from pool.wire import control
from pool.wire.peer import Peer
from pool.wish_watch import WishWatch
from registry_sync.documents import Manifest

GATHER_S: Final = 0.01  # reports of so long are answered together
SETTLE_S: Final = 3.0  # of a new controller: whoever builds already dials it and says so
WISHES_MAX: Final = 1 << 16  # of one message

_log = structlog.get_logger()


class BuildOrders:
    """Builds of all workers that know of them.

    Args:
        epoch: of the present leadership.
        may_act: tells whether orders may be given.
        wishes: the users' wishes.
    """

    def __init__(
        self, epoch: Callable[[], int], may_act: Callable[[], bool], wishes: WishWatch
    ) -> None:
        self._epoch = epoch
        self._may_act = may_act
        self._wishes = wishes
        # The whole mutable state: connections by worker, who builds what, what versions are to
        # run with as it was told last, whose wishes the desk has, and whether a round is due.
        self._peers: dict[str, Peer] = {}
        self._desk = BuildDesk()
        self._told: dict[str, bytes] | None = None  # None: nothing is known yet
        self._manifests: Mapping[Ref, Manifest] = {}
        self._digests: dict[Ref, str] = {}
        self._desk_has: tuple[int, Mapping[Ref, Manifest]] | None = None
        self._since_s: float | None = None  # when the first round was
        self._timer: asyncio.TimerHandle | None = None

    # workers

    def join(self, peer: Peer, register: control.RegisterWorker) -> None:
        """Take in a worker."""
        if not register.device_class:
            return  # of a release that knows no builds, and would not understand
        now_s = asyncio.get_running_loop().time()
        self._peers[register.id] = peer
        self._desk.join(
            *(register.id, register.incarnation, register.device_class, register.builds), now_s
        )
        self.run(register.id, register.engines)
        if self._told is not None:
            peer.send(control.encode(control.Wishes(self._epoch(), self._told)))
        self._soon()

    def leave(self, worker: str, peer: Peer, *, is_final: bool) -> None:
        """Take note that a connection is gone."""
        if self._peers.get(worker) is peer:
            del self._peers[worker]
            self._desk.leave(worker, asyncio.get_running_loop().time(), is_final=is_final)
            self._soon()

    def run(
        self, worker: str, engines: tuple[control.EngineState, ...], *, is_draining: bool = False
    ) -> None:
        """Take note of the versions that a worker runs or loads."""
        refs = ((one.model, one.version) for one in engines if one.state in ("warm", "loading"))
        self._desk.run(worker, refs, is_draining=is_draining)

    def on_report(self, worker: str, message: control.BuildReport) -> None:
        """Take what a worker says of a plan."""
        target = Target(message.model, message.version, message.engine, message.device_class)
        if message.state in ("failed", "refused"):
            _log.warning(
                f"build_{message.state}",
                worker=worker,
                **target._asdict(),
                reason=message.reason,
            )
        report = Report(target, message.state, message.key, message.reason, message.retry_ms / 1000)
        self._desk.report(worker, report, asyncio.get_running_loop().time())
        self._soon()

    # documents

    def on_documents(self, snapshot: Snapshot) -> None:
        """Tell the workers what versions are to run with now, if that is news."""
        self._manifests = snapshot.manifests
        found = wanted(snapshot.specs.values(), snapshot.manifests)
        told = {
            f"{model}/{version}": msgspec.json.encode(one)
            for (model, version), one in list(found.items())[:WISHES_MAX]
        }
        if told != self._told:
            self._told = told
            buffers = control.encode(control.Wishes(self._epoch(), told))
            for peer in self._peers.values():
                peer.send(buffers)

    def _hand_over_wishes(self) -> None:
        """Give the desk the users' wishes, if they or the manifests are others now."""
        has = (self._wishes.revision, self._manifests)
        if (
            self._desk_has is not None
            and self._desk_has[0] == has[0]
            and self._desk_has[1] is has[1]
        ):
            return
        self._desk_has = has
        self._digests = {
            ref: self._digests.get(ref) or manifest.digest
            for ref, manifest in self._manifests.items()
        }
        self._desk.wish(self._wishes.wishes, {**self._digests, **self._wishes.artifacts})

    # rounds

    def _soon(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER_S, self.round)

    def round(self) -> None:
        """Send what is to be sent now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._may_act():
            return
        now_s = asyncio.get_running_loop().time()
        if self._since_s is None:
            self._since_s = now_s
        if now_s - self._since_s < SETTLE_S:
            return
        self._hand_over_wishes()
        for order in self._desk.step(now_s):
            peer = self._peers.get(order.worker)
            if peer is None:
                continue
            target, epoch = order.target, self._epoch()
            if isinstance(order, Ask):
                _log.debug("build_asked", worker=order.worker, key=order.key, **target._asdict())
                peer.send(control.encode(control.Build(epoch, *target, order.key)))
            elif isinstance(order, Drop):
                _log.info("build_dropped", worker=order.worker, key=order.key, **target._asdict())
                peer.send(control.encode(control.Build(epoch, *target, order.key, is_over=True)))
            else:
                peer.send(control.encode(control.PlanReady(epoch, order.key, *target)))

    def reset(self) -> None:
        """Forget everything: somebody else leads."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._peers.clear()
        self._desk = BuildDesk()
        self._told = self._desk_has = self._since_s = None

    # what is shown

    def rows(self) -> list[dict[str, Any]]:
        """Return what `tidepool status` shows of builds."""
        now_s = asyncio.get_running_loop().time()
        return build_rows.rows(self._desk, now_s, self._wishes.unknown)

    @property
    def outcomes(self) -> Counter[str]:
        """How often builds were begun, and how they ended, since this controller leads."""
        return self._desk.outcomes
