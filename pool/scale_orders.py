"""The controller's hand on the scale desk: when it is asked, what time it is, and what is kept.

Owns the timer of the next decision, the checkpoint of what was learned, and until when endpoints
are warm by request or by the clock.  What is wanted is decided in `scaling`; where it is to be, in
`placement`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import structlog

from pool import placement
from pool.fallback import IDLE_S as FALLBACK_IDLE_S
from pool.learned import Learned
from pool.placement import Demand, Reach, Ref, WorkerView
from pool.registry_watch import Snapshot
from pool.rollouts.needs import Needs, Warmth
from pool.scale_desk import ScaleDesk
from pool.scaling.due import Ahead, timed
from pool.scaling.kept import Version
from pool.scaling.limits import helped_of, limits_of, owners_of
from pool.scaling.signals import Limits
from pool.status import zero_of
from pool.wire import control
from registry_sync.documents import EndpointSpec
from registry_sync.rollouts import effective_weights

SAVE_S: Final = 300.0
LOAD_S_MAX: Final = 5.0  # a registry that is slower loses to this node's copy
LAST_SAVE_S_MAX: Final = 2.0
SAVED_AT_ONCE: Final = 8  # versions, about 2 ms where all are busy; then others have their turn
LOOK_S_MIN: Final = 0.05  # between two looks that a policy asks for
FAR_STEP_S: Final = 6.0
LEAD_S: Final = 1.0  # before the hours of a schedule, besides the wake itself
ASKED_S: Final = 600.0  # `warm` alone, where a learned policy decides afterwards

_log = structlog.get_logger()


class ScaleOrders:
    """What is wanted, for one controller.

    Args:
        act: called when a policy's time has come.
        learned: where it is kept what was learned; None: nowhere.
        time_scale: see `ScaleDesk`.
    """

    def __init__(
        self, act: Callable[[], None], learned: Learned | None = None, *, time_scale: float = 1.0
    ) -> None:
        self._act = act
        self._learned = learned
        self._time_scale = time_scale
        # The whole mutable state: the desk, what is under way, and what was made of which snapshot.
        self._desk = ScaleDesk(time_scale=time_scale)
        self._asked_s: dict[str, float] = {}  # endpoint → warm until then, by request
        self._timer: asyncio.TimerHandle | None = None
        self._loading: asyncio.Task[None] | None = None
        self._saving: asyncio.Task[None] | None = None
        self._saved_s: float | None = None  # None: nothing is restored yet
        self._snapshot: Snapshot | None = None
        self._timed: Mapping[str, tuple[str, float]] = {}
        self._due: dict[str, str] = {}
        self._limits: Mapping[Ref, Limits] = {}
        self._owners: Mapping[Ref, str] = {}
        self._far_s = 0.0
        self._ahead = Ahead()
        self._helped: set[Ref] = set()  # fallback workers may answer for these
        self._needs = Needs()
        self._rollouts: Mapping[str, EndpointSpec] = {}  # the specs that have one
        self._kept: Mapping[Ref, int] = {}
        self._wanted: dict[Ref, Demand] = {}

    # members

    def join(self, register: control.RegisterWorker, *, is_new: bool = True) -> None:
        """Take note of a worker; one that is not new has dialled again, and did not start again."""
        if is_new and not register.is_fallback:
            self._desk.started(register.phases)
        self.count(register, register.engines)

    def count(
        self, register: control.RegisterWorker, engines: Iterable[control.EngineState]
    ) -> None:
        """Take note of a heartbeat."""
        self._desk.count(
            register.id, register.incarnation, engines, is_fallback=register.is_fallback
        )

    # what is wanted

    def knows(self, workers: Iterable[WorkerView]) -> bool:
        """Tell whether `demands` can do something for a call: until then it is to be kept."""
        decides = self._desk.decides(asyncio.get_running_loop().time())
        return decides and any(not worker.is_fallback for worker in workers)

    def demands(
        self,
        snapshot: Snapshot,
        workers: Sequence[WorkerView],
        waiting: Iterable[Mapping[str, int]],
        unserved: Mapping[str, int] | None = None,
        far_s: float = 0.0,
    ) -> dict[Ref, Demand]:
        """Return what is wanted now, and see that it is asked for again in time.

        Args:
            snapshot: the documents that hold.
            workers: all of them.
            waiting: by edge: calls that no worker can be reached for, by "model/version".
            unserved: calls since the last time that were given to no worker, likewise.
            far_s: how long a machine takes to start, where some worker has one of its own.
        """
        loop = asyncio.get_running_loop()
        now_s, unix_s = loop.time(), time.time()
        if self._loading is None:
            self._loading = loop.create_task(self._restore())
        self._far_s = far_s
        self._make_limits(snapshot, workers, now_s, unix_s)
        reach, more = self._reached(workers)
        found = self._desk.round(
            self._limits,
            workers,
            now_s=now_s,
            unix_s=unix_s,
            waiting=_summed(waiting),
            owners=self._owners,
            unserved=_summed([unserved or {}]),
            reach=reach,
            reach_more=more,
            far_s=far_s,
        )
        for ref in self._helped & found.keys():
            found[ref] = msgspec.structs.replace(found[ref], fallback_idle_s=FALLBACK_IDLE_S)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        next_s = self._desk.next_s()
        if math.isfinite(next_s):
            self._timer = loop.call_at(max(next_s, now_s + LOOK_S_MIN), self._act)
        self._wanted = self._needs.demands(found)
        return dict(self._wanted)

    def _reached(self, workers: Sequence[WorkerView]) -> tuple[dict[Ref, Reach], dict[Ref, Reach]]:
        """Say of each version what has to start before it can load, and can load once more.

        It goes by what was wanted last.
        """
        wanted = {
            ref: self._wanted.get(ref, Demand(0, self._owners.get(ref, ""))) for ref in self._limits
        }
        own = placement.own_by_owner(wanted, workers, placement.owners(wanted, workers))
        reach = {owner: placement.reach(found) for owner, found in own.items()}
        loaded = {ref for worker in workers for ref in worker.engines}
        more = {
            ref: placement.reach_more(
                ref, own[demand.owner], demand.size_bytes, is_far_fleet=self._far_s > 0
            )
            if ref in loaded
            else reach[demand.owner]
            for ref, demand in wanted.items()
        }
        return {ref: reach[demand.owner] for ref, demand in wanted.items()}, more

    def _make_limits(
        self, snapshot: Snapshot, workers: Sequence[WorkerView], now_s: float, unix_s: float
    ) -> None:
        is_new = snapshot is not self._snapshot
        if is_new:
            self._timed = timed(snapshot.specs, snapshot.states)
            specs = snapshot.specs.items()
            self._rollouts = {name: spec for name, spec in specs if spec.rollout is not None}
        self._needs.look(self._rollouts, snapshot.states, workers, self._wanted, now_s)
        self._asked_s = {
            name: until_s
            for name, until_s in self._asked_s.items()
            if now_s < until_s and name in snapshot.specs
        }
        due = dict.fromkeys(self._asked_s, "request")
        due |= self._ahead.why(
            self._timed, unix_s, lambda name: LEAD_S + 1.5 * self._wake_s(snapshot.specs[name])
        )
        kept = self._needs.kept
        if is_new or due != self._due or kept != self._kept:
            self._snapshot, self._due, self._kept = snapshot, due, kept
            self._limits = limits_of(snapshot.specs.values(), weights_of(snapshot), due, kept)
            self._owners = owners_of(snapshot.specs.values())
            self._helped = helped_of(snapshot.specs.values())

    def _wake_s(self, spec: EndpointSpec) -> float:
        # A process or a machine that is up now may rest by then.
        reach: Reach = "far" if self._far_s else "cold"
        refs = [(variant.model, variant.version) for variant in spec.variants]
        return max(self._desk.wake_s(ref, reach, self._far_s) for ref in refs)

    def warm(self, spec: EndpointSpec) -> None:
        """Have an endpoint warm for a while from now on, by request."""
        idle_s = ASKED_S if spec.scale.idle_s == "auto" else float(spec.scale.idle_s)
        now_s = asyncio.get_running_loop().time()
        self._asked_s[spec.endpoint] = now_s + idle_s / self._time_scale

    def let_go(self, endpoint: str) -> None:
        """Take back what `warm` asked for."""
        self._asked_s.pop(endpoint, None)

    def warmth(self, endpoint: str) -> Warmth:
        """Return how far the candidate of an endpoint's rollout is loaded for its next step."""
        return self._needs.warmth(endpoint)

    def wake_ms(self, ref: Ref, reach: Reach, far_s: float = 0.0) -> int:
        """Return how long a call waits that finds `ref` asleep, to two digits; 0: not known.

        What is left of the start of a machine is told in tenths of a minute: edges get new routes
        whenever it changes.
        """
        far_s = FAR_STEP_S * math.ceil(far_s / FAR_STEP_S)
        return _two_digits(self._desk.wake_s(ref, reach, far_s) * 1e3)

    def fallback_wake_ms(self, ref: Ref) -> int:
        """Return how long a call waits for a fallback worker to wake `ref`; 0: not known."""
        return _two_digits(self._desk.fallback_wake_s(ref) * 1e3)

    def is_undecided(self, ref: Ref) -> bool:
        """Tell whether nothing is decided yet on a version whose sleep is learned."""
        limits = self._limits.get(ref)
        return limits is not None and limits.idle_s is None and not self._desk.has_decided(ref)

    def now_s(self) -> float:
        """Return the time by which policies go; monotonic."""
        return asyncio.get_running_loop().time() * self._time_scale

    def hold(self, for_s: float) -> None:
        """Decide nothing for a while: heartbeats have waited to be read."""
        self._desk.hold(asyncio.get_running_loop().time() + for_s)

    # why

    def wanted(self) -> dict[Ref, int]:
        """Return how many replicas were wanted last of each version that has a policy."""
        return self._desk.wanted()

    def why(
        self,
        spec: EndpointSpec,
        let_go: Container[Ref] = (),
        workers: int | None = None,
        routes: Mapping[Ref, control.EngineRoute] | None = None,
    ) -> dict[str, Any]:
        """Return what `tidepool status --why` shows of an endpoint.

        Args:
            spec: its document.
            let_go: versions that somebody had unloaded, which says more than what is wanted.
            workers: how many there are for all, with those that are cold.
            routes: what edges were told last.
        """
        found = routes or {}
        now_s = asyncio.get_running_loop().time()
        refs = dict.fromkeys((variant.model, variant.version) for variant in spec.variants)
        return {
            "endpoint": spec.endpoint,
            "due": self._due.get(spec.endpoint, ""),
            "workers": workers,
            "versions": [
                {
                    **self._desk.why(ref, now_s),
                    "owner": self._owners.get(ref, ""),
                    "unloaded": ref in let_go,
                    "fallback": ref in self._helped,
                    **zero_of(found.get(ref)),
                }
                for ref in refs
            ],
        }

    # what was learned

    async def _restore(self) -> None:
        """Take over what a predecessor had learned; until then nothing is put to sleep."""
        data: bytes | None = None
        if self._learned is not None:
            try:
                async with asyncio.timeout(LOAD_S_MAX):
                    data = await asyncio.to_thread(self._learned.load)
            except TimeoutError:
                _log.warning("learned_unreachable", error=f"not within {LOAD_S_MAX:g} s")
                data = await asyncio.to_thread(self._learned.load_local)
            except Exception:
                _log.exception("bug")  # which must not keep everything as it is for ever
        now_s = asyncio.get_running_loop().time()
        if not self._desk.restore(data, now_s, time.time()):
            _log.warning("learned_unreadable", bytes=len(data or b""))
        self._saved_s = now_s
        self._act()

    def save_if_due(self) -> None:
        """Keep what was learned, every now and then."""
        now_s = asyncio.get_running_loop().time()
        is_saving = self._saving is not None and not self._saving.done()
        if self._saved_s is None or now_s - self._saved_s < SAVE_S or is_saving:
            return
        self._save()

    def _save(self) -> None:
        if self._learned is not None:
            loop = asyncio.get_running_loop()
            self._saved_s = loop.time()
            self._saving = loop.create_task(self._keep(self._learned, self._desk))

    async def _keep(self, learned: Learned, desk: ScaleDesk) -> None:
        loop = asyncio.get_running_loop()
        found: dict[Ref, Version] = {}
        try:
            for count, ref in enumerate(desk.known(), 1):
                version = desk.learned(ref, loop.time())
                if version is not None:
                    found[ref] = version
                if not count % SAVED_AT_ONCE:
                    await asyncio.sleep(0)
            if desk is self._desk:  # else somebody else leads by now
                await asyncio.to_thread(learned.save, desk.pack(found.items(), time.time()))
        except Exception:
            _log.exception("bug")

    async def finish(self) -> None:
        """Keep what was learned, once more; a registry that hangs is not waited for."""
        if self._saved_s is not None:
            self._save()
        if self._saving is not None:
            await asyncio.wait([self._saving], timeout=LAST_SAVE_S_MAX)

    def reset(self) -> None:
        """Forget everything: somebody else leads."""
        if self._timer is not None:
            self._timer.cancel()
        if self._loading is not None:
            self._loading.cancel()
        self._timer = self._loading = self._saved_s = self._snapshot = None
        self._asked_s.clear()
        self._due.clear()
        self._ahead = Ahead()
        self._wanted.clear()
        self._needs = Needs()
        self._desk = ScaleDesk(time_scale=self._time_scale)


def _summed(counts: Iterable[Mapping[str, int]]) -> dict[Ref, int]:
    """Add up what is counted by "model/version"."""
    found: dict[Ref, int] = {}
    for each in counts:
        for name, count in each.items():
            model, _, version = name.partition("/")
            found[model, version] = found.get((model, version), 0) + count
    return found


def _two_digits(wake_ms: float) -> int:
    return math.ceil(float(f"{wake_ms:.1e}")) if wake_ms else 0


def weights_of(snapshot: Snapshot) -> dict[str, Mapping[str, float]]:
    """Return the effective weights by endpoint and variant."""
    return {
        name: effective_weights(spec, snapshot.states.get(name))
        for name, spec in snapshot.specs.items()
    }
