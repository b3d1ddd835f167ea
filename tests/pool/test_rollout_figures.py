"""How often the guards are wrong, and how fast they are right: measured, in many rollouts at once.

The guards that are measured are the controller's own; only the counts are made up, as an edge would
count them.  The default run has a tenth of the runs.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.rollout_runs import (
    Traffic,
    peeked_at,
    rolled_back_at,
    traffic_of,
)

RUNS, FULL_RUNS = 200, 2000
BATCH_RUNS = 200  # at once, so that the counts of all runs need not fit the memory
HALF = ((0.5, 40_000),)
RAMP = ((0.01, 10_000), (0.05, 10_000), (0.25, 10_000), (0.5, 10_000))
COLD_CACHE = (0.8, 0.2)  # the candidate's is still empty

# By name: who calls, and the steps.
SCENARIOS = {
    "iid": (Traffic(), HALF),
    "iid, at 5 %": (Traffic(), ((0.05, 40_000),)),
    "iid, in steps": (Traffic(), RAMP),
    "cold cache": (Traffic(hits=COLD_CACHE), HALF),
    "cold cache, in steps": (Traffic(hits=COLD_CACHE), RAMP),
}
SHORT = ("iid", "cold cache")


def _rates(name: str, runs: int) -> tuple[float, float]:
    """Return the share of runs that are rolled back: by the guards, and by a naive one."""
    traffic, steps = SCENARIOS[name]
    found, naive = [], []
    for seed in range(0, runs, BATCH_RUNS):
        segments = traffic_of(traffic, steps, min(BATCH_RUNS, runs - seed), seed)
        cached = traffic.hits != (0.0, 0.0)
        found.append(np.isfinite(rolled_back_at(segments, cached=cached)))
        naive.append(peeked_at(segments[-1]))
    rates = float(np.mean(np.concatenate(found))), float(np.mean(np.concatenate(naive)))
    print(f"\n{name}: identical arms rolled back in {rates[0]:.2%} of {runs} runs", end="")
    print(f", by a z-test at every look in {rates[1]:.2%}")
    return rates


@pytest.mark.parametrize("name", SHORT)
def test_identical_arms_are_rarely_rolled_back(name: str) -> None:
    found, naive = _rates(name, RUNS)
    assert found <= 0.06
    assert naive > 0.15


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_identical_arms_are_rarely_rolled_back_in_all_traffics(name: str) -> None:
    found, _ = _rates(name, FULL_RUNS)
    assert found <= 0.06


# By the candidate's errors and share: how many calls it may be given until it is rolled back.
DETECTIONS = {(0.05, 0.5): 300, (0.03, 0.5): 900, (0.05, 0.05): 300, (0.03, 0.05): 900}


def _median_calls(errors: float, share: float, runs: int) -> float:
    traffic, steps = Traffic(errors=(0.01, errors)), ((share, round(4000 / share)),)
    calls = rolled_back_at(traffic_of(traffic, steps, runs, seed=1))
    median = float(np.median(calls))
    print(
        f"\n1 % against {errors:.0%}, share {share:.0%}: rolled back after {median:.0f} calls",
        end="",
    )
    print(f" (median of {runs} runs; {np.quantile(calls, 0.9):.0f} at the 90th percentile)")
    return median


@pytest.mark.parametrize(("errors", "share"), [(0.05, 0.5), (0.03, 0.5)])
def test_a_worse_candidate_is_soon_rolled_back(errors: float, share: float) -> None:
    assert _median_calls(errors, share, runs=60) <= DETECTIONS[errors, share]


@pytest.mark.slow
@pytest.mark.parametrize(("errors", "share"), DETECTIONS)
def test_a_worse_candidate_is_soon_rolled_back_in_most_runs(errors: float, share: float) -> None:
    assert _median_calls(errors, share, runs=400) <= DETECTIONS[errors, share]
