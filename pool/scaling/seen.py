"""What the workers' heartbeats say of each version, added up over all of its replicas.

A worker counts calls since its process began.  What has arrived since is the difference to its
last report, so that a lost heartbeat loses nothing.  Of a process that is heard of for the first
time only what is recent counts: it may have served for days before there was this controller.
Pure: knows no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from pool.scaling.kept import WAKE_S_MAX
from pool.wire.control import EngineState

Ref: TypeAlias = tuple[str, str]  # model, version

RECENT_S: Final = 2.0
WORKERS_MAX: Final = 4096  # whose counts are remembered
SPEED_MIN, SPEED_MAX = 1e-6, 1e9  # calls a second of one replica: one in days, one in no time
ROWS_GAIN_CALLS: Final = 32  # so many calls move the rows of a call half of the way


@dataclass(slots=True)
class Seen:
    """One version at one moment, and what was learned of it."""

    arrived: int = 0  # calls since it is known here
    # At the last look:
    waiting: int = 0
    running: int = 0
    warm: int = 0
    loading: int = 0
    idle_s: float = 0.0  # as the replicas say, which begin with their load
    used_s: float | None = None  # when the last call came, or was inside; None: not known
    is_used: bool = False  # calls have come since the last look
    # Learned, and kept while it sleeps; 0: not known.
    rows_per_s: float = 0.0  # of one replica
    rows_per_call: float = 0.0
    wake_s: float = 0.0  # on a worker that is up
    size_bytes: int = 0
    fallback_wake_s: float = 0.0  # on a fallback worker

    @property
    def calls_per_s(self) -> float:
        """How many calls a second one replica can do; 0: not known, or not to be believed."""
        calls_per_s = self.rows_per_s / self.rows_per_call if self.rows_per_call else 0.0
        return calls_per_s if SPEED_MIN <= calls_per_s <= SPEED_MAX else 0.0


@dataclass(slots=True)
class _Counted:
    incarnation: str
    totals: dict[Ref, tuple[int, int]] = field(default_factory=dict)  # calls, rows


class Sightings:
    """Adds up what the workers say."""

    def __init__(self) -> None:
        # The whole mutable state: what is known by version, and what was counted by worker.
        self.versions: dict[Ref, Seen] = {}
        self._counted: dict[str, _Counted] = {}

    def count(
        self,
        worker: str,
        incarnation: str,
        engines: Iterable[EngineState],
        *,
        is_fallback: bool = False,
    ) -> None:
        """Take a worker's report of its calls, and what it has learned.

        Calls at a fallback worker are demand as any others.  How long it takes says nothing of the
        workers that this demand is for.
        """
        counted = self._counted.get(worker)
        is_new = counted is None or counted.incarnation != incarnation
        if counted is None or is_new:
            counted = self._counted[worker] = _Counted(incarnation)
            while len(self._counted) > WORKERS_MAX:
                del self._counted[next(iter(self._counted))]
        for engine in engines:
            ref = (engine.model, engine.version)
            seen = self.versions.setdefault(ref, Seen())
            calls, rows = counted.totals.get(ref, (0, 0))
            more, more_rows = engine.arrived - calls, engine.arrived_rows - rows
            counted.totals[ref] = (engine.arrived, engine.arrived_rows)
            if more > 0:
                seen.is_used = True
                if is_new:
                    recent = 1 if engine.idle_s < RECENT_S else 0
                    seen.arrived += min(more, max(engine.calls, recent))
                else:
                    seen.arrived += more
                if more_rows > 0:
                    rows_per_call = more_rows / more
                    gain = more / (more + ROWS_GAIN_CALLS) if seen.rows_per_call else 1.0
                    seen.rows_per_call += gain * (rows_per_call - seen.rows_per_call)
            if is_fallback:
                seen.fallback_wake_s = min(engine.wake_us / 1e6, WAKE_S_MAX)
                continue
            if 0 < engine.wake_us <= WAKE_S_MAX * 1e6:
                seen.wake_s = engine.wake_us / 1e6
            if engine.bytes:
                seen.size_bytes = engine.bytes

    def look(
        self, workers: Iterable[tuple[Mapping[Ref, EngineState], bool, bool]], now_s: float
    ) -> None:
        """Take what all workers show now: their engines, whether they drain, and are fallback ones.

        Loading a version is no use of it, though its replica counts its idle time from there.  Of a
        fallback worker's calls one counts as inside: how many pile up there is its own doing.
        """
        speeds: dict[Ref, list[float]] = {}
        idles_s: dict[Ref, float] = {}
        for seen in self.versions.values():
            seen.waiting = seen.running = seen.warm = seen.loading = 0
            seen.idle_s = 0.0
        for engines, is_draining, is_fallback in workers:
            for ref, engine in engines.items():
                seen = self.versions.setdefault(ref, Seen())
                idles_s[ref] = min(engine.idle_s, idles_s.get(ref, engine.idle_s))
                if is_fallback:
                    seen.waiting += min(engine.calls, 1)
                    continue
                seen.waiting += engine.waiting
                seen.running += max(0, engine.calls - engine.waiting)
                if not is_draining:
                    seen.warm += engine.state == "warm"
                    seen.loading += engine.state == "loading"
                if engine.rows_per_s:
                    speeds.setdefault(ref, []).append(engine.rows_per_s)
        for ref, idle_s in idles_s.items():
            seen = self.versions[ref]
            seen.idle_s = idle_s
            if seen.is_used or seen.waiting or seen.running:
                came_s = now_s - idle_s
                seen.used_s = came_s if seen.used_s is None else max(came_s, seen.used_s)
                seen.is_used = False
        for ref, found in speeds.items():
            self.versions[ref].rows_per_s = sum(found) / len(found)

    def idle_s(self, ref: Ref, now_s: float) -> float:
        """Return how long ago the last call came; 0: not known."""
        seen = self.versions[ref]
        return seen.idle_s if seen.used_s is None else max(0.0, now_s - seen.used_s)

    def forget(self, known: Mapping[Ref, object]) -> None:
        """Forget every version that is not known any more."""
        self.versions = {ref: seen for ref, seen in self.versions.items() if ref in known}
