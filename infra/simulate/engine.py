"""Runs one scaling policy over the arrivals of one model after another, in simulated time.

A replica runs one call at a time, in order of arrival; a call for a model that has none wakes
one, as the data plane does without asking anybody.  The policy is asked as the controller asks it:
when something arrived, with what else came within the round, and when the last call has ended.
Between these it holds until `Decision.until_s`, so idle time costs nothing to simulate.

What is simulated is demand and replicas: no failures, no memory limits, no batching (a batch is
calls with a shorter `exec_s`).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappush, heapreplace
from itertools import islice
from typing import Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pool.scaling.signals import Decision, Limits, Signals

# A time that a policy names is at least this far ahead: a policy may not stop the clock.
STEP_S_MIN: Final = 1e-3


class Simulated(Protocol):
    """What a policy must be to be simulated; `pool.scaling.policy.ScalingPolicy` is one."""

    def observe(self, signals: Signals) -> None:
        """Take note of what is seen."""

    def decide(self, limits: Limits, signals: Signals) -> Decision:
        """Return what is wanted until something arrives or ends, or until `until_s`."""


@dataclass(frozen=True)
class Load:
    """The calls of one model: when they arrive and how long a replica is busy with each."""

    model: str
    arrivals_s: NDArray[np.float64]  # shape (calls,); never falls
    exec_s: NDArray[np.float64]  # shape (calls,); 0 or more


@dataclass(frozen=True, kw_only=True)
class World:
    """What is the same for all models of one simulation."""

    end_s: float  # idle replicas cost until here; not before the last arrival
    wake_s: float = 3.0  # from the wish for a replica to a warm one
    round_s: float = 0.5  # of the controller: how late it sees what came
    slo_s: float = 2.0  # a call that waits no longer is on time
    start_unix_s: float = 1_767_571_200.0  # when t_s is 0: Monday, 2026-01-05 00:00 UTC
    limits: Limits = field(default_factory=lambda: Limits(replicas_max=1024))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of the calls of one model, or of several added up."""

    calls: int = 0
    cold: int = 0  # found no warm replica
    on_time: int = 0  # waited no longer than `slo_s`
    wakes: int = 0  # replicas loaded
    changes: int = 0  # decisions to have more, or fewer, than before
    busy_s: float = 0.0  # replica-seconds with a call
    waste_s: float = 0.0  # replica-seconds warm without one
    loading_s: float = 0.0

    @property
    def gpu_s(self) -> float:
        """Replica-seconds in all."""
        return self.busy_s + self.waste_s + self.loading_s

    def __add__(self, other: Outcome) -> Outcome:
        names = self.__dataclass_fields__
        return Outcome(**{name: getattr(self, name) + getattr(other, name) for name in names})


# Makes the policy of one model.  `limit` reads the load; all others may look at its name only.
Maker: TypeAlias = Callable[[Load, World], Simulated]


class Version:
    """One model with its calls and its policy; `run_until` may be called in any steps."""

    def __init__(self, load: Load, policy: Simulated, world: World) -> None:
        self._policy = policy
        self._world = world
        self._arrivals_s: list[float] = load.arrivals_s.tolist()
        self._exec_s: list[float] = load.exec_s.tolist()
        self._work_s: list[float] = np.cumsum(load.exec_s).tolist()
        # The whole mutable state: the clock; calls [0, _started) began and [0, _arrived) came;
        # the end and length of those that run; when each warm replica is free (a heap), each
        # loading one warm, each leaving one gone.
        self._now_s = -math.inf
        self._started = 0
        self._arrived = 0
        self._open_s: list[tuple[float, float]] = []
        self._free_s: list[float] = []
        self._warm_s: deque[float] = deque()
        self._gone_s: list[float] = []
        self._decided: Decision | None = None
        # What it came to so far.
        self._cold = self._on_time = self._wakes = self._changes = 0
        self._warm_total_s = self._loading_total_s = 0.0

    def run_until(self, end_s: float) -> None:
        """Go on until this moment of simulated time."""
        while (next_s := self._next_s()) <= end_s:
            self._advance(next_s)
            self._ask()

    def finish(self) -> Outcome:
        """Run to the end of the world, and on until every call has been answered."""
        self.run_until(self._world.end_s)
        while self._started < len(self._arrivals_s):
            self.run_until(self._next_s())
        self._now_s = max(self._world.end_s, self._now_s)
        self._scale_down_to(0)
        busy_s = self._work_s[-1] if self._work_s else 0.0
        return Outcome(
            calls=self._arrived,
            cold=self._cold,
            on_time=self._on_time,
            wakes=self._wakes,
            changes=self._changes,
            busy_s=busy_s,
            waste_s=max(0.0, self._warm_total_s - busy_s),
            loading_s=self._loading_total_s,
        )

    def _next_s(self) -> float:
        """Return when the policy is to be asked next.

        A call that arrives or starts is seen with all that comes within the round.  Otherwise it
        is when a call ends, or when the last decision's time is over.
        """
        now_s, arrived = self._now_s, self._arrived
        next_s = math.inf
        if arrived < len(self._arrivals_s):
            next_s = max(self._arrivals_s[arrived], now_s) + self._world.round_s
        if self._decided is None:
            return next_s
        next_s = min(next_s, max(self._decided.until_s, now_s + STEP_S_MIN))
        if next_s <= now_s + 2 * self._world.round_s:
            return next_s  # the next call comes within a round: what ends before is seen with it
        if self._started < arrived:
            starts_s = min((*self._free_s[:1], *islice(self._warm_s, 1)))
            return min(next_s, max(now_s, starts_s) + self._world.round_s)
        for ends_s in (self._free_s, self._gone_s):
            for end_s in ends_s:
                if now_s < end_s < next_s:
                    next_s = end_s
        return next_s

    def _advance(self, to_s: float) -> None:
        """Let calls arrive, start and end, and replicas become warm, until `to_s`.

        If the last call inside ended earlier, the clock stands then: an end is seen at once.
        """
        free_s, warm_s, before = self._free_s, self._warm_s, (self._arrived, self._started)
        while True:
            if not free_s and not warm_s and not self._call_wakes(to_s):
                break
            self._run_calls(min(to_s, warm_s[0]) if warm_s else to_s)
            if not warm_s or warm_s[0] > to_s:
                break
            ready_s = warm_s.popleft()
            heappush(free_s, ready_s)
            self._loading_total_s += self._world.wake_s
            self._warm_total_s -= ready_s
        self._now_s = to_s
        if self._started == self._arrived and (self._arrived, self._started) != before:
            self._now_s = min(to_s, max(free_s))

    def _call_wakes(self, before_s: float) -> bool:
        """Load a replica for the next call, if it arrives before this; say whether it did."""
        if self._started == len(self._arrivals_s):
            return False
        at_s = max(self._arrivals_s[self._started], self._now_s)
        if at_s >= before_s:
            return False
        if self._started == self._arrived:
            self._arrived += 1
            self._cold += 1
        self._now_s = at_s
        self._load_one()
        return True

    def _run_calls(self, until_s: float) -> None:
        """Let calls arrive, and start where a replica is free, before `until_s`."""
        arrivals_s, exec_s, free_s = self._arrivals_s, self._exec_s, self._free_s
        slo_s = self._world.slo_s
        arrived = bisect_left(arrivals_s, until_s, self._arrived)
        if free_s:
            index = self._started
            while index < arrived:
                arrived_s, start_s = arrivals_s[index], free_s[0]
                if start_s < arrived_s:
                    start_s = arrived_s
                elif start_s >= until_s:
                    break
                end_s = start_s + exec_s[index]
                heapreplace(free_s, end_s)
                if end_s > until_s:
                    self._open_s.append((end_s, exec_s[index]))
                if start_s - arrived_s <= slo_s:
                    self._on_time += 1
                index += 1
            self._started = index
        else:
            self._cold += arrived - self._arrived
        self._arrived = arrived

    def _ask(self) -> None:
        """Tell the policy what is to be seen, ask it, and do as it says."""
        now_s, started, waiting = self._now_s, self._started, self._arrived - self._started
        running = sum(end_s > now_s for end_s in self._free_s)
        if self._gone_s:
            self._gone_s = [end_s for end_s in self._gone_s if end_s > now_s]
            running += len(self._gone_s)
        self._open_s = [call for call in self._open_s if call[0] > now_s]
        # What a replica can do is known of calls that have ended, as it is in production.
        ended = started - len(self._open_s)
        work_s = (
            self._work_s[started - 1] - sum(length for _, length in self._open_s) if ended else 0.0
        )
        signals = Signals(
            now_s=now_s,
            unix_s=self._world.start_unix_s + now_s,
            arrived=self._arrived,
            waiting=waiting,
            running=running,
            warm=len(self._free_s),
            loading=len(self._warm_s),
            calls_per_s=ended / work_s if work_s > 0 else 0.0,
            wake_s=self._world.wake_s,
            idle_s=now_s - self._arrivals_s[self._arrived - 1],
        )
        self._policy.observe(signals)
        decided = self._policy.decide(self._world.limits, signals)
        if self._decided is not None and decided.replicas != self._decided.replicas:
            self._changes += 1
        self._decided = decided
        # Whatever waits keeps one: a call is a wake, whether the policy wants it or not.
        wanted = max(decided.replicas, 1) if waiting else decided.replicas
        for _ in range(wanted - len(self._free_s) - len(self._warm_s)):
            self._load_one()
        self._scale_down_to(wanted)

    def _load_one(self) -> None:
        self._warm_s.append(self._now_s + self._world.wake_s)
        self._wakes += 1

    def _scale_down_to(self, wanted: int) -> None:
        """Let go of what is too much: what loads, then what idles, then what ends soonest."""
        while self._warm_s and len(self._free_s) + len(self._warm_s) > wanted:
            began_s = self._warm_s.pop() - self._world.wake_s
            self._loading_total_s += max(0.0, self._now_s - began_s)
        too_many = len(self._free_s) - wanted
        if too_many <= 0:
            return
        self._free_s.sort()
        for free_s in self._free_s[:too_many]:
            self._warm_total_s += max(self._now_s, free_s)
            if free_s > self._now_s:
                self._gone_s.append(free_s)
        del self._free_s[:too_many]


def run(load: Load, policy: Simulated, world: World) -> Outcome:
    """Run one model by itself."""
    return Version(load, policy, world).finish()


def run_all(
    loads: Sequence[Load], make: Maker, world: World, step_s: float = 3600.0
) -> list[Outcome]:
    """Run many models beside each other, for policies that learn from one another.

    They take turns of `step_s` of simulated time: what one learns from another may be ahead of
    its own time by that, and no more.
    """
    versions = [Version(load, make(load, world), world) for load in loads]
    starts_s = [float(load.arrivals_s[0]) for load in loads if len(load.arrivals_s)]
    now_s = min(starts_s, default=world.end_s)
    while now_s < world.end_s:
        now_s = min(now_s + step_s, world.end_s)
        for version in versions:
            version.run_until(now_s)
    return [version.finish() for version in versions]
