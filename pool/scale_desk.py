"""How many replicas of each version are wanted: one policy per version, and what it goes by.

Makes `Signals` of what workers and edges say, asks the policies when something has changed or
their time has come, and remembers why they said what they said.  Decides nothing itself, knows no
clock and carries nothing out: the controller does.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median_low
from typing import Any, Final

import msgspec
import structlog

from pool.placement import Demand, Reach, Ref, WorkerView
from pool.scaling import kept
from pool.scaling.awaited import Awaited
from pool.scaling.gaps import GapPool
from pool.scaling.policy import ScalingPolicy
from pool.scaling.seen import Seen, Sightings
from pool.scaling.signals import Decision, Limits, Signals
from pool.wire.control import EngineState

LOG_MAX: Final = 32  # decisions that are remembered of each version
OBSERVE_S: Final = 1.0  # a version in use is shown to its policy so often at least
PAUSE_S: Final = 0.1  # between two decisions on a busy version
WAKE_S_UNKNOWN: Final = 1.0
# A call that an edge cannot hand over is a wake already, where the edge can dial at all; only one
# that waits for longer than that is demand for more workers.
AT_EDGES_S: Final = 2.0
# One start that took long, in a process that stood still, says nothing about the next: an estimate
# that is too long refuses who could be answered.
STARTS: Final = 5  # of which the middle one is what a start takes
FORGOTTEN_MAX: Final = 4096  # versions that no endpoint names any more, with what was learned
AWAY_S_MAX: Final = 30 * 86_400.0
BUG_S: Final = 60.0  # a version whose policies fail again and again is said so this often

REACHES: Final[tuple[Reach, ...]] = ("up", "cold", "far")  # by how long that takes

_log = structlog.get_logger()


@dataclass(slots=True)
class _Desk:
    """One version's policy and what it said last."""

    policy: ScalingPolicy
    key: object = None
    reach: Reach = "up"  # of its next replica
    limits: Limits | None = None
    signals: Signals | None = None
    decision: Decision | None = None
    observed_s: float = -math.inf
    decided_s: float = -math.inf
    log: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=LOG_MAX))


class ScaleDesk:
    """The policies of all versions.

    Args:
        time_scale: the policies see time pass so many times faster.
        make: a policy for a version that had none; by default they learn from one another.
    """

    def __init__(
        self, *, time_scale: float = 1.0, make: Callable[[], ScalingPolicy] | None = None
    ) -> None:
        self._time_scale = time_scale
        self._make = make or partial(ScalingPolicy, GapPool())
        # The whole mutable state: what is seen, the policies, what predecessors had learned, whose
        # policies failed, how long a process takes to start, since when calls wait at edges, and
        # until when nothing is decided.
        self._seen = Sightings()
        self._desks: dict[Ref, _Desk] = {}
        self._saved: dict[Ref, tuple[kept.Version, float]] = {}  # and when that was
        self._failed_s: dict[Ref, float] = {}  # when it was last said that a policy has a bug
        self._start_s = 0.0
        self._starts_s: deque[float] = deque(maxlen=STARTS)
        self._waiting_since_s: dict[Ref, float] = {}  # at edges, for want of a worker
        self._awaited = Awaited()
        self._origin: tuple[float, float] | None = None  # monotonic, unix: of the first round
        self._is_restored = False
        self._held_until_s = -math.inf

    # what is seen

    def count(
        self,
        worker: str,
        incarnation: str,
        engines: Iterable[EngineState],
        *,
        is_fallback: bool = False,
    ) -> None:
        """Take note of a worker's report."""
        self._seen.count(worker, incarnation, engines, is_fallback=is_fallback)

    def started(self, phases: Mapping[str, int]) -> None:
        """Take note of how long a worker process took to start, in microseconds by phase."""
        start_s = sum(phases.values()) / 1e6
        if 0 < start_s <= kept.WAKE_S_MAX:
            if self._start_s and not self._starts_s:
                self._starts_s.append(self._start_s)  # what a predecessor had learned
            self._starts_s.append(start_s)
            self._start_s = median_low(self._starts_s)

    def hold(self, until_s: float) -> None:
        """Decide nothing before `until_s`: what is known is older than it seems."""
        self._held_until_s = until_s

    # what is wanted

    def decides(self, now_s: float) -> bool:
        """Tell whether policies are asked now, and not kept from it by what is not known yet."""
        return self._is_restored and now_s >= self._held_until_s

    def round(
        self,
        limits: Mapping[Ref, Limits],
        workers: Sequence[WorkerView],
        *,
        now_s: float,
        unix_s: float,
        waiting: Mapping[Ref, int] | None = None,
        owners: Mapping[Ref, str] | None = None,
        unserved: Mapping[Ref, int] | None = None,
        reach: Mapping[Ref, Reach] | None = None,
        reach_more: Mapping[Ref, Reach] | None = None,
        far_s: float = 0.0,
    ) -> dict[Ref, Demand]:
        """Return what is wanted of every version that has limits.

        Args:
            limits: what the endpoints allow.
            workers: all of them, as they are now.
            now_s: monotonic.
            unix_s: wall clock.
            waiting: calls that wait at edges, because no worker can be reached.
            owners: of the versions that have workers of their own, whose.
            unserved: calls since the last round that were given to no worker.
            reach: see `placement.reach`; a version that is not named has somebody up.
            reach_more: likewise `placement.reach_more`; by default that is the same.
            far_s: how long it takes until one is up whose machine has to be started first.
        """
        self._seen.look(((w.engines, w.draining, w.is_fallback) for w in workers), now_s)
        self._origin = self._origin or (now_s, unix_s)
        for ref in [ref for ref in self._desks if ref not in limits]:
            self._put_away(ref, now_s)
        if len(self._seen.versions) > len(limits) + 2 * FORGOTTEN_MAX:
            self._seen.forget({**limits, **self._saved})
        self._awaited.keep(limits)
        demands: dict[Ref, Demand] = {}
        for ref, allowed in limits.items():
            seen = self._seen.versions.setdefault(ref, Seen())
            at_edges = self._at_edges(ref, (waiting or {}).get(ref, 0), now_s)
            if not self.decides(now_s):
                there = seen.warm + seen.loading
                replicas = max(allowed.replicas_least, there)
            else:
                at = (reach or {}).get(ref, "up")
                machine_s = far_s if at == "far" else 0.0
                came = (unserved or {}).get(ref, 0) if at == "far" else 0
                if came:
                    seen.arrived += came
                    seen.used_s = now_s
                more = self._reach_more(ref, (reach_more or {}).get(ref, at))
                start_s = self._until_up_s(more, far_s)
                signals = self._signals(ref, at_edges, now_s, unix_s, start_s)
                if self._awaited.look(ref, signals, machine_s, now_s, is_unserved=came > 0):
                    allowed = msgspec.structs.replace(allowed, is_awaited=True)
                replicas = self._ask(ref, allowed, signals, now_s, start_s)
            demands[ref] = Demand(replicas, (owners or {}).get(ref, ""), seen.size_bytes)
        return demands

    def next_s(self) -> float:
        """Return when to ask again if nothing happens before; infinite: never."""
        times_s = (desk.decision.until_s for desk in self._desks.values() if desk.decision)
        return min(times_s, default=math.inf) / self._time_scale

    def wake_s(self, ref: Ref, reach: Reach = "up", far_s: float = 0.0) -> float:
        """Return how long a call waits that finds `ref` asleep; 0: not known.

        Args:
            ref: the version.
            reach: what has to start before.
            far_s: how long a machine takes, where it is that.
        """
        seen = self._seen.versions.get(ref)
        wake_s = seen.wake_s if seen is not None else 0.0
        if reach == "far":
            return wake_s + far_s
        return wake_s + self._until_up_s(reach) if wake_s else 0.0

    def _reach_more(self, ref: Ref, reach: Reach) -> Reach:
        """Return what has to start for the next replica of `ref`.

        One that is wanted and whose process or machine has come by now is the same until it loads:
        else it would be put off for being that near, until its machine is gone again.
        """
        desk, seen = self._desks.get(ref), self._seen.versions[ref]
        if desk is None:
            return reach
        if desk.decision is not None and desk.decision.replicas > seen.warm + seen.loading:
            reach = max(reach, desk.reach, key=REACHES.index)
        desk.reach = reach
        return reach

    def _until_up_s(self, reach: Reach, far_s: float = 0.0) -> float:
        """Return how long it takes until there is a process; of a machine's start it is a part."""
        if reach == "up":
            return 0.0
        return max(self._start_s, far_s) if reach == "far" else self._start_s

    def fallback_wake_s(self, ref: Ref) -> float:
        """Return how long a call waits for a fallback worker to wake `ref`; 0: not known."""
        seen = self._seen.versions.get(ref)
        return seen.fallback_wake_s if seen is not None else 0.0

    def _at_edges(self, ref: Ref, waiting: int, now_s: float) -> int:
        if not waiting:
            self._waiting_since_s.pop(ref, None)
            return 0
        since_s = self._waiting_since_s.setdefault(ref, now_s)
        return waiting if now_s - since_s >= AT_EDGES_S else 0

    def _signals(
        self, ref: Ref, at_edges: int, now_s: float, unix_s: float, start_s: float
    ) -> Signals:
        seen, scale = self._seen.versions[ref], self._time_scale
        wake_s = seen.wake_s or WAKE_S_UNKNOWN
        if scale != 1.0:
            assert self._origin is not None
            unix_s = self._origin[1] + (now_s - self._origin[0]) * scale
        return Signals(
            now_s=now_s * scale,
            unix_s=unix_s,
            arrived=seen.arrived,
            waiting=seen.waiting + at_edges,
            running=seen.running,
            warm=seen.warm,
            loading=seen.loading,
            calls_per_s=seen.calls_per_s / scale,
            wake_s=(wake_s + start_s) * scale,
            idle_s=self._seen.idle_s(ref, now_s) * scale,
        )

    def _ask(self, ref: Ref, limits: Limits, signals: Signals, now_s: float, start_s: float) -> int:
        counts = (signals.arrived, signals.waiting, signals.running, signals.warm, signals.loading)
        key = (*counts, start_s)
        in_use = signals.waiting + signals.running > 0
        try:
            desk = self._desks.get(ref)
            if desk is None:
                desk = self._desks[ref] = _Desk(self._take_out(ref, now_s))
            was_used = desk.signals is not None and desk.signals.waiting + desk.signals.running > 0
            is_news = key != desk.key
            if is_news and in_use and was_used and now_s < desk.decided_s + PAUSE_S:
                is_news = False  # a moment later, and then all of it at once
            if is_news or (in_use and now_s >= desk.observed_s + OBSERVE_S):
                desk.policy.observe(signals)
                desk.observed_s = now_s
                is_news = True
            decision = desk.decision
            is_over = decision is None or signals.now_s >= decision.until_s
            if decision is None or is_news or is_over or limits != desk.limits:
                decision = desk.policy.decide(limits, signals)
                if math.isnan(decision.until_s):
                    raise ValueError(f"decided until no time at all: {decision}")
                self._note(desk, limits, signals, decision)
                desk.key, desk.decided_s = key, now_s
        except Exception:
            self._start_anew(ref, now_s)
            return max(limits.replicas_least, signals.warm, int(in_use))
        return decision.replicas

    def _start_anew(self, ref: Ref, now_s: float) -> None:
        """A policy has a bug, which must not take the controller away from all other versions.

        Its version gets a new one, which may do better than what was learned wrong.  Call it while
        the exception is handled.
        """
        self._desks.pop(ref, None)
        if now_s - self._failed_s.get(ref, -math.inf) < BUG_S:
            return
        _log.exception("bug", model=ref[0], version=ref[1])
        self._failed_s = {r: at_s for r, at_s in self._failed_s.items() if now_s - at_s < BUG_S}
        self._failed_s[ref] = now_s

    def _note(self, desk: _Desk, limits: Limits, signals: Signals, decision: Decision) -> None:
        before = desk.decision
        if (
            before is None
            or before.replicas != decision.replicas
            or before.reason != decision.reason
        ):
            desk.log.append(
                {
                    "unix_s": round(signals.unix_s, 3),
                    "now_s": signals.now_s,
                    "replicas": decision.replicas,
                    "before": before.replicas if before is not None else None,
                    "reason": decision.reason,
                    "terms": _plain(decision.terms),
                }
            )
        desk.limits, desk.signals, desk.decision = limits, signals, decision

    # why

    def why(self, ref: Ref, now_s: float) -> dict[str, Any]:
        """Return what is wanted of a version, what that goes by, and how it came about."""
        desk = self._desks.get(ref)
        seen = self._seen.versions.get(ref, Seen())
        found: dict[str, Any] = {"model": ref[0], "version": ref[1], "wanted": None}
        found["learned"] = {
            "rows_per_s": round(seen.rows_per_s, 3),
            "calls_per_s": round(seen.calls_per_s, 3),
            "wake_s": round(seen.wake_s, 4),
            "start_s": round(self._start_s, 4),
            "bytes": seen.size_bytes,
        }
        if desk is None or desk.decision is None or desk.signals is None:
            return {**found, "reason": "nothing is decided yet", "log": []}
        decision, now_s = desk.decision, now_s * self._time_scale
        left_s = decision.until_s - now_s
        return {
            **found,
            "wanted": decision.replicas,
            "reason": decision.reason,
            "holds_s": round(max(0.0, left_s), 3) if math.isfinite(left_s) else None,
            "terms": _plain(decision.terms),
            "demand": {
                "arrived": desk.signals.arrived,
                "waiting": desk.signals.waiting,
                "running": desk.signals.running,
                "warm": seen.warm,
                "loading": seen.loading,
                "seen_s_ago": round(max(0.0, now_s - desk.signals.now_s), 3),
            },
            "limits": msgspec.to_builtins(desk.limits),
            "log": [
                {
                    **{name: value for name, value in entry.items() if name != "now_s"},
                    "s_ago": round(now_s - entry["now_s"], 3),
                }
                for entry in desk.log
            ],
        }

    def wanted(self) -> dict[Ref, int]:
        """Return how many replicas were wanted last of each version that has a policy."""
        desks = self._desks.items()
        return {ref: desk.decision.replicas for ref, desk in desks if desk.decision is not None}

    def has_decided(self, ref: Ref) -> bool:
        """Tell whether it is known how many replicas of `ref` are wanted, if only for a bug."""
        desk = self._desks.get(ref)
        return ref in self._failed_s or (desk is not None and desk.decision is not None)

    # what was learned

    def known(self) -> list[Ref]:
        """Return the versions of which something was learned, those that are served first."""
        return list({**self._desks, **self._saved})

    def learned(self, ref: Ref, now_s: float) -> kept.Version | None:
        """Return what was learned of one version, to be packed; None: nothing."""
        desk, seen = self._desks.get(ref), self._seen.versions.get(ref, Seen())
        if desk is None:
            if ref not in self._saved:
                return None
            saved, at_s = self._saved[ref]
            age_s = max(0.0, now_s - at_s)
            idle_s = None if saved.idle_s is None else saved.idle_s + age_s - saved.age_s
            return msgspec.structs.replace(
                saved, age_s=kept.age(age_s), idle_s=None if idle_s is None else kept.age(idle_s)
            )
        try:
            policy = self._policy_of(desk, now_s)
        except Exception:
            self._start_anew(ref, now_s)
            policy = b""
        return kept.Version(
            *(policy, 0.0, seen.rows_per_s, seen.rows_per_call, seen.wake_s, seen.size_bytes),
            None if seen.used_s is None else kept.age(now_s - seen.used_s),
        )

    def pack(self, versions: Iterable[tuple[Ref, kept.Version]], unix_s: float) -> bytes:
        """Return what `restore` takes, of what `learned` returned about now."""
        return kept.pack(unix_s, self._start_s, versions)

    def restore(self, data: bytes | None, now_s: float, unix_s: float) -> bool:
        """Take over what a predecessor had learned, before which nothing is decided.

        Args:
            data: from its `pack`; None: there is nothing.
            now_s: monotonic.
            unix_s: wall clock: tells how long nobody was there to learn.

        Returns:
            False if nothing of `data` is readable; then everything is learned anew.
        """
        self._is_restored = True
        if data is None:
            return True
        found = kept.read(data)
        if found is None:
            return False
        if found.damaged:
            _log.warning("learned_damaged", versions=found.damaged)
        away_s = min(max(0.0, unix_s - found.unix_s), AWAY_S_MAX)
        self._start_s = self._start_s or found.start_s
        for ref, version in found.versions.items():
            self._saved[ref] = (version, now_s - away_s - version.age_s)
            seen = self._seen.versions.setdefault(ref, Seen())
            seen.rows_per_s = seen.rows_per_s or version.rows_per_s
            seen.rows_per_call = seen.rows_per_call or version.rows_per_call
            seen.wake_s = seen.wake_s or version.wake_s
            seen.size_bytes = seen.size_bytes or version.size_bytes
            if seen.used_s is None and version.idle_s is not None:
                seen.used_s = now_s - away_s - version.idle_s
        return True

    def _policy_of(self, desk: _Desk, now_s: float) -> bytes:
        if desk.signals is not None:  # so that its times are relative to now
            moved_s = now_s * self._time_scale - desk.signals.now_s
            unix_s = desk.signals.unix_s + moved_s
            now = msgspec.structs.replace(
                desk.signals, now_s=desk.signals.now_s + moved_s, unix_s=unix_s
            )
            desk.policy.observe(now)
        return desk.policy.save()

    def _take_out(self, ref: Ref, now_s: float) -> ScalingPolicy:
        policy = self._make()
        saved, at_s = self._saved.pop(ref, (None, now_s))
        if saved is not None and saved.policy:
            policy.restore(saved.policy, at_s * self._time_scale)
        return policy

    def _put_away(self, ref: Ref, now_s: float) -> None:
        learned = self.learned(ref, now_s)
        if learned is not None:
            self._saved[ref] = (learned, now_s)
        self._desks.pop(ref, None)
        self._waiting_since_s.pop(ref, None)
        while len(self._saved) > FORGOTTEN_MAX:
            del self._saved[next(iter(self._saved))]


def _plain(terms: Mapping[str, float]) -> dict[str, float | None]:
    return {name: round(float(v), 6) if math.isfinite(v) else None for name, v in terms.items()}
