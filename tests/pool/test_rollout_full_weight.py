"""What the guard of errors does at 100 %, where there is no baseline left to compare with.

Every ten seconds one look of the controller's own guards; what the arms did before is one segment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from pool.rollouts.guards import Guards
from pool.rollouts.signals import ArmCounts
from registry_sync.rollout_terms import ArmSeen, Guard, Segment

Floats = NDArray[np.float64]
Rate = Callable[[Floats], Floats]  # of every second since the segment began
RUNS, FULL_RUNS = 40, 2000
LOOK_S = 10


def _always(rate: float) -> Rate:
    return lambda at_s: np.full_like(at_s, rate)


def _bursts(rate: float, burst_s: float, every_s: float = math.inf, from_s: float = 20.0) -> Rate:
    """Half of all calls fail for a while, again and again."""
    return lambda at_s: np.where(
        (at_s >= from_s) & ((at_s - from_s) % every_s < burst_s), 0.5, rate
    )


def _drifts(before: float, after: float) -> Rate:
    return lambda at_s: before + (after - before) * np.minimum(1.0, at_s / 60.0)


def _late(rate: float, from_s: float, worse: float) -> Rate:
    return lambda at_s: np.where(at_s < from_s, rate, worse)


def _past(calls: int, errors: int, requests: int | None = None) -> list[Segment]:
    """Return a segment in which both arms did the same."""
    asked = calls if requests is None else requests
    seen = ArmSeen(calls, calls, errors, errors, requests=asked)
    return [
        Segment(1, {"stable": 50, "canary": 50}, {"stable": seen, "canary": seen}, {"errors": 0})
    ]


def found_after_s(
    rate: Rate,
    runs: int,
    *,
    past: Sequence[Segment],
    requests_per_s: float = 100.0,
    seconds: int = 120,
    hits: Rate | None = None,
    is_bound: bool = False,
    steps: int = 5,
) -> Floats:
    """Return by run after how long the candidate was found to be worse; infinity: never.

    Args:
        rate: of errors, as a share of calls, or of requests where they are bound to their inputs.
        runs: how many.
        past: what was seen before.
        requests_per_s: of the candidate.
        seconds: how long it is watched.
        hits: which share of the requests a cache answers, of those that can be.
        is_bound: whether errors are of inputs that are never in the cache.
        steps: of the rollout.
    """
    rng = np.random.default_rng(3)
    at_s = np.arange(seconds, dtype=np.float64)
    shape = (runs, seconds)
    asked = rng.poisson(requests_per_s, shape)
    missed = np.ones(seconds) if hits is None else 1.0 - hits(at_s)
    if is_bound:
        failed = rng.binomial(asked, rate(at_s))
        calls = failed + rng.binomial(asked - failed, missed)
    else:
        calls = rng.binomial(asked, missed)
        failed = rng.binomial(calls, rate(at_s))
    counts = [np.cumsum(count, axis=1) for count in (calls, failed, asked)]
    found = np.full(runs, math.inf)
    for run in range(runs):
        guards = Guards(Guard(), share=1.0, past=past, steps=steps, cached=hits is not None)
        for second in range(0, seconds, LOOK_S):
            done, bad, given = (int(count[run, second]) for count in counts)
            seen = ArmSeen(done, done, bad, bad, requests=given)
            guards.look(float(second), ArmCounts(), ArmCounts(seen, done, bad, lone_calls=done))
            if guards.verdict().harms:
                found[run] = second
                break
    return found


def _told(name: str, found: Floats) -> tuple[float, float]:
    share, median = float(np.isfinite(found).mean()), float(np.median(found))
    print(f"\nat 100 %, {name}: rolled back in {share:.2%} of {len(found)}, median {median:.0f} s")
    return share, median


SEEN = _past(10_000, 100)
BURSTS_SEEN = _past(10_000, 508)
# By name: the candidate's errors second by second, and what was seen before.
HARMLESS = {
    "as before": (_always(0.01), SEEN),
    "worse by the margin": (_always(0.015), SEEN),
    "a burst of 2 s": (_bursts(0.01, 2.0), SEEN),
    "a burst of 5 s": (_bursts(0.01, 5.0), SEEN),
    "a burst of 15 s": (_bursts(0.01, 15.0), SEEN),
    "5 s of every minute, as before": (_bursts(0.01, 5.0, 60.0), BURSTS_SEEN),
    "5 s of every minute, new": (_bursts(0.01, 5.0, 60.0), SEEN),
    "drift to 1.3 %": (_drifts(0.01, 0.013), SEEN),
    "drift to 1.6 %": (_drifts(0.01, 0.016), SEEN),
}
LONG = ("as before", "worse by the margin", "a burst of 15 s", "5 s of every minute, new")
# By name: the same, requests per second, and within how many seconds half are found.
HARMFUL = {
    "5 %": (_always(0.05), SEEN, 100.0, 60.0),
    "5 %, 10 calls a second": (_always(0.05), SEEN, 10.0, 100.0),
    "20 % from 30 s on": (_late(0.01, 30.0, 0.2), SEEN, 100.0, 110.0),
    "every call, nothing seen before": (_always(1.0), [], 100.0, 60.0),
    "every call, one a second, nothing seen before": (_always(1.0), [], 1.0, 60.0),
    "3 of 4 calls, nothing seen before": (_always(0.75), [], 10.0, 80.0),
}


def _warming(at_s: Floats) -> Floats:
    return 0.5 + 0.4 * np.minimum(1.0, at_s / 60.0)


def _cold(at_s: Floats) -> Floats:
    return 0.8 * np.minimum(1.0, at_s / 60.0)


# By name: errors, whether of inputs, the share of hits, and what was seen of 20,000 requests.
CACHED = {
    "of inputs, cache warms from 0.5 to 0.9": (True, _warming, _past(5_050, 100, 10_000)),
    "of any call, cache warms from 0.5 to 0.9": (False, _warming, _past(5_000, 50, 10_000)),
    "of any call, cache is cold after 0.8": (False, _cold, _past(2_000, 20, 10_000)),
    "of inputs, cache is cold after 0.8": (True, _cold, _past(2_080, 100, 10_000)),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_at_full_weight_what_passes_is_no_harm(name: str) -> None:
    rate, past = HARMLESS[name]
    assert _told(name, found_after_s(rate, RUNS, past=past))[0] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_at_full_weight_what_passes_is_rarely_harm(name: str) -> None:
    rate, past = HARMLESS[name]
    assert _told(name, found_after_s(rate, FULL_RUNS, past=past))[0] <= 0.01


@pytest.mark.parametrize("name", HARMFUL)
def test_at_full_weight_what_stays_is_found(name: str) -> None:
    rate, past, requests_per_s, within_s = HARMFUL[name]
    found = found_after_s(
        rate, RUNS, past=past, requests_per_s=requests_per_s, steps=5 if past else 1
    )
    assert _told(name, found)[1] <= within_s


@pytest.mark.parametrize("name", CACHED)
def test_at_full_weight_a_cache_that_changes_is_no_harm(name: str) -> None:
    is_bound, hits, past = CACHED[name]
    found = found_after_s(_always(0.01), RUNS, past=past, hits=hits, is_bound=is_bound)
    assert _told(name, found)[0] == 0.0


@pytest.mark.parametrize("is_bound", [False, True])
def test_at_full_weight_errors_are_found_behind_a_cache(is_bound: bool) -> None:
    past = CACHED[f"of {'inputs' if is_bound else 'any call'}, cache is cold after 0.8"][2]
    found = found_after_s(_always(0.1), RUNS, past=past, hits=_cold, is_bound=is_bound)
    assert _told("10 % behind a cache", found)[1] <= 100.0
