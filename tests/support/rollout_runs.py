"""Many rollouts at once: traffic for both arms, counted as an edge counts it, look by look.

Counts are arrays of shape (looks, runs), cumulative over one segment.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from edge.watch import LOOK_S
from pool.rollouts.eprocess import SplitTest, chained
from pool.rollouts.guards import Guards
from pool.rollouts.signals import ArmCounts
from registry_sync.rollout_terms import ArmSeen, Guard, Segment

Counts = NDArray[np.int32]
REQUESTS_PER_LOOK = 10
BATCH_RUNS = 100  # at once, so that the counts of 2,000 runs fit the memory


@dataclass(frozen=True)
class Traffic:
    """Who calls, and what comes of it; pairs are the baseline's and the candidate's."""

    errors: tuple[float, float] = (0.01, 0.01)  # of dispatched calls
    hits: tuple[float, float] = (0.0, 0.0)  # of requests, out of the cache
    is_bound: bool = False  # errors are of inputs: a share of all requests, and never a hit
    users: int = 0  # with popularities by Zipf's law; 0: every request is its own unit
    prone: float = 0.05  # of the users
    prone_errors: float = 0.5  # of their dispatched calls, whatever the arm
    requests_per_s: float = 100.0


@dataclass(frozen=True)
class Segments:
    """One segment of many runs; pairs are the baseline's and the candidate's counts."""

    share: float
    requests: tuple[Counts, Counts]
    failed: tuple[Counts, Counts]  # of all requests
    calls: tuple[Counts, Counts]  # dispatched
    units: tuple[Counts, Counts]
    events: tuple[Counts, Counts]

    def arm(self, arm: int, look: int, run: int) -> ArmCounts:
        """Return what the controller would be told."""
        units, events = (int(found[arm][look, run]) for found in (self.units, self.events))
        calls, failed = (int(found[arm][look, run]) for found in (self.calls, self.failed))
        asked = int(self.requests[arm][look, run])
        seen = ArmSeen(calls, units, failed, events, requests=asked)
        return ArmCounts(seen=seen, units=units, errors=events, assigned=units, lone_calls=units)


def traffic_of(
    traffic: Traffic, steps: Sequence[tuple[float, int]], runs: int, seed: int
) -> list[Segments]:
    """Return all segments of all runs; a step is the candidate's share and its requests."""
    rng = np.random.default_rng(seed)
    if traffic.users:
        return _sticky(traffic, steps, runs, rng)
    found = []
    for share, requests in steps:
        shape = (requests // REQUESTS_PER_LOOK, runs)
        given = rng.binomial(REQUESTS_PER_LOOK, share, shape)
        asked = (REQUESTS_PER_LOOK - given, given)
        if traffic.is_bound:
            failed = [rng.binomial(asked[arm], traffic.errors[arm]) for arm in (0, 1)]
            good = [rng.binomial(asked[a] - failed[a], 1.0 - traffic.hits[a]) for a in (0, 1)]
            calls = [failed[arm] + good[arm] for arm in (0, 1)]
        else:
            calls = [rng.binomial(asked[arm], 1.0 - traffic.hits[arm]) for arm in (0, 1)]
            failed = [rng.binomial(calls[arm], traffic.errors[arm]) for arm in (0, 1)]
        sums = [_pair(counts) for counts in (asked, failed, calls, calls, failed)]
        found.append(Segments(share, *sums))
    return found


def _pair(counts: Sequence[NDArray[np.int64]]) -> tuple[Counts, Counts]:
    one, other = (np.cumsum(count, axis=0, dtype=np.int32) for count in counts)
    return one, other


def _sticky(
    traffic: Traffic, steps: Sequence[tuple[float, int]], runs: int, rng: np.random.Generator
) -> list[Segments]:
    kinds = 5
    found = [np.zeros((kinds, 2, size // REQUESTS_PER_LOOK, runs), np.int32) for _, size in steps]
    for run in range(runs):
        for index, counts in enumerate(sticky_run(traffic, steps, rng)):
            found[index][:, :, :, run] = counts
    totals = [np.cumsum(counts, axis=2, dtype=np.int32) for counts in found]
    return [
        Segments(share, *((total[kind][0], total[kind][1]) for kind in range(kinds)))
        for (share, _), total in zip(steps, totals, strict=True)
    ]


@dataclass(frozen=True)
class Requests:
    """The requests of one run with users, in their order; arrays of one length."""

    users: NDArray[np.int64]
    is_given: NDArray[np.bool_]  # to the candidate
    is_call: NDArray[np.bool_]  # dispatched
    is_failed: NDArray[np.bool_]


def requests_of(
    traffic: Traffic, steps: Sequence[tuple[float, int]], rng: np.random.Generator
) -> Requests:
    """Return what one run's users ask for; a user moves to the candidate once and stays there."""
    count = sum(size for _, size in steps)
    users = _by_popularity(traffic.users)[rng.integers(0, 1 << 16, count)]
    place = rng.random(traffic.users)  # of every user, in [0, 1): below the share is the candidate
    is_prone = rng.random(traffic.users) < traffic.prone
    share = np.repeat([share for share, _ in steps], [size for _, size in steps])
    is_given = place[users] < share
    is_call = rng.random(count) >= np.where(is_given, traffic.hits[1], traffic.hits[0])
    errors = np.where(is_given, traffic.errors[1], traffic.errors[0])
    errors = np.where(is_prone[users], np.maximum(errors, traffic.prone_errors), errors)
    return Requests(users, is_given, is_call, is_call & (rng.random(count) < errors))


@cache
def _by_popularity(users: int) -> NDArray[np.int64]:
    """Return a user for each of 65,536 equal chances, by Zipf's law."""
    popularity = np.cumsum(1.0 / np.arange(1, users + 1))
    return np.searchsorted(popularity, (np.arange(1 << 16) + 0.5) / (1 << 16) * popularity[-1])


def sticky_run(
    traffic: Traffic, steps: Sequence[tuple[float, int]], rng: np.random.Generator
) -> Iterator[NDArray[np.uint8]]:
    """Yield every segment's counts of one run, by kind (see `Segments`), arm and look."""
    asked = requests_of(traffic, steps, rng)
    windows = np.arange(len(asked.users)) // int(traffic.requests_per_s * LOOK_S)
    failures = np.flatnonzero(asked.is_failed)
    firsts = _is_first(failures, asked.users[failures], len(asked.users))
    begin = 0
    for _, size in steps:
        part = slice(begin, begin + size)
        calls = begin + np.flatnonzero(asked.is_call[part])
        names = windows[calls] * traffic.users + asked.users[calls]
        is_unit = _is_first(calls, names, len(asked.users))
        marks = np.stack((np.ones_like(is_unit), asked.is_failed, asked.is_call, is_unit, firsts))
        is_given = asked.is_given[part]
        arms = np.stack((marks[:, part] & ~is_given, marks[:, part] & is_given), axis=1)
        by_look = arms.view(np.uint8).reshape(len(marks), 2, -1, REQUESTS_PER_LOOK)
        yield np.add.reduce([by_look[..., place] for place in range(REQUESTS_PER_LOOK)])
        begin += size


def _is_first(at: NDArray[np.int64], names: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """Mark, of `count` requests, those `at` which a name is seen for the first time."""
    found = np.zeros(count, bool)
    if len(at):
        first = np.full(int(names.max()) + 1, -1)
        first[names[::-1]] = at[::-1]  # of those assigned to one place, the last one stays
        found[first[first >= 0]] = True
    return found


def rolled_back_at(
    segments: Sequence[Segments],
    *,
    sticky: bool = False,
    cached: bool = False,
    guard: Guard | None = None,
) -> NDArray[np.float64]:
    """Return by run how many calls the candidate had been given when it was found to be worse.

    Infinity where it never was.  Every look goes through `SplitTest`, all runs at once.  A run
    whose evidence is once high enough goes through `Guards` as a whole as well, which decide.
    """
    guard = guard or Guard()
    enough = Guards(guard, share=0.5, steps=len(segments)).fires_at()["errors"]
    heights = evidence_of(segments, cached=cached)
    found = np.full(heights[0].shape[1], math.inf)
    is_high = np.any([(height >= math.log(enough)).any(axis=0) for height in heights], axis=0)
    for run in np.flatnonzero(is_high):
        looks = [height[:, run] >= math.log(enough) - 1e-6 for height in heights]
        found[run] = _decided_at(segments, int(run), looks, guard, (sticky, cached))
    return found


def evidence_of(segments: Sequence[Segments], *, cached: bool) -> list[NDArray[np.float64]]:
    """Return by segment the log e-values of all segments so far, shape (looks, runs)."""
    past: list[NDArray[np.float64]] = []
    found = []
    for segment in segments:
        looks, runs = segment.units[0].shape
        test = SplitTest(segment.share, runs, cached=cached)
        heights = np.empty((looks, runs))
        for look in range(looks):
            units = [side[look] for side in segment.units]
            events = [side[look] for side in segment.events]
            test.look(*units, *events)
            heights[look] = test.log_e
        found.append(chained([*past, heights], len(segments)))
        past.append(test.log_e)
    return found


def _decided_at(
    segments: Sequence[Segments],
    run: int,
    is_high: Sequence[NDArray[np.bool_]],
    guard: Guard,
    kind: tuple[bool, bool],
) -> float:
    """Return the calls that the candidate had been given when the guards said so."""
    past: list[Segment] = []
    calls = 0.0
    for step, (segment, high) in enumerate(zip(segments, is_high, strict=True), 1):
        guards = Guards(
            guard,
            share=segment.share,
            past=past,
            steps=len(segments),
            sticky=kind[0],
            cached=kind[1],
        )
        last = len(high) - 1
        for look in range(last + 1):
            arms = [segment.arm(arm, look, run) for arm in (0, 1)]
            guards.look(0.0, *arms)
            if high[look] and guards.verdict().harms:
                return calls + arms[1].seen.calls
        calls += float(segment.calls[1][last, run])
        weights = {"stable": 100 * (1 - segment.share), "canary": 100 * segment.share}
        seen = {"stable": arms[0].seen, "canary": arms[1].seen}
        past.append(Segment(step, weights, seen, guards.verdict().segment_log_e))
    return math.inf


def peeked_at(segments: Segments, alpha: float = 0.05) -> NDArray[np.bool_]:
    """Return by run whether a naive guard ever rolls back: a z-test of all requests, every look."""
    asked = [side.astype(np.float64) for side in segments.requests]
    failed = [side.astype(np.float64) for side in segments.failed]
    pooled = (failed[0] + failed[1]) / (asked[0] + asked[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.sqrt(pooled * (1.0 - pooled) * (1.0 / asked[0] + 1.0 / asked[1]))
        z = (failed[1] / asked[1] - failed[0] / asked[0]) / error
    is_due = np.minimum(*asked) >= 20
    critical = {0.05: 1.6449}[alpha]
    return np.asarray(((z > critical) & is_due).any(axis=0))
