"""Many rollouts at once: traffic for both arms, counted as an edge counts it, look by look.

Counts are arrays of shape (looks, runs), cumulative over one segment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


def rolled_back_at(
    segments: Sequence[Segments],
    *,
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
        found[run] = _decided_at(segments, int(run), looks, guard, cached)
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
    cached: bool,
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
            cached=cached,
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
