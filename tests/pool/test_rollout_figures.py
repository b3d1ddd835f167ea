"""How often the guards are wrong, and how fast they are right: measured, in many rollouts at once.

The guards that are measured are the controller's own; only the counts are made up, as an edge would
count them.  The default run has a tenth of the runs.
"""

from __future__ import annotations

import numpy as np
import pytest

from edge.watch import RolloutWatch
from pool.rollouts.evidence import EvidenceBook
from tests.support.rollout_runs import (
    REQUESTS_PER_LOOK,
    Traffic,
    peeked_at,
    requests_of,
    rolled_back_at,
    sticky_run,
    traffic_of,
)

RUNS, FULL_RUNS = 200, 2000
BATCH_RUNS = 200  # at once, so that the counts of all runs need not fit the memory
HALF = ((0.5, 40_000),)
RAMP = ((0.01, 10_000), (0.05, 10_000), (0.25, 10_000), (0.5, 10_000))
COLD_CACHE = (0.8, 0.2)  # the candidate's is still empty

# By name: who calls, whether callers keep their arm, and the steps.
SCENARIOS = {
    "iid": (Traffic(), False, HALF),
    "iid, at 5 %": (Traffic(), False, ((0.05, 40_000),)),
    "iid, in steps": (Traffic(), False, RAMP),
    "sticky": (Traffic(users=2000), True, HALF),
    "sticky, in steps": (Traffic(users=2000), True, RAMP),
    "cold cache": (Traffic(hits=COLD_CACHE), False, HALF),
    "cold cache, in steps": (Traffic(hits=COLD_CACHE), False, RAMP),
    "sticky, cold cache": (Traffic(users=2000, hits=COLD_CACHE), True, HALF),
    # The baseline's failing users are all counted while the candidate's still come.
    "sticky, warmer cache": (Traffic((0.003, 0.003), (0.2, 0.8), 200, prone=0.3), True, HALF),
}
SHORT = ("iid", "sticky", "cold cache")


def _rates(name: str, runs: int) -> tuple[float, float]:
    """Return the share of runs that are rolled back: by the guards, and by a naive one."""
    traffic, sticky, steps = SCENARIOS[name]
    found, naive = [], []
    for seed in range(0, runs, BATCH_RUNS):
        segments = traffic_of(traffic, steps, min(BATCH_RUNS, runs - seed), seed)
        cached = traffic.hits != (0.0, 0.0)
        found.append(np.isfinite(rolled_back_at(segments, sticky=sticky, cached=cached)))
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


@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_measured_is_what_an_edge_counts(seed: int) -> None:
    """The same requests, counted by the edge's own class and merged by the controller's."""
    traffic = Traffic(users=60, hits=(0.5, 0.2), errors=(0.05, 0.1), requests_per_s=20.0)
    steps = ((0.1, 600), (0.5, 600))
    made = list(sticky_run(traffic, steps, np.random.default_rng(seed)))
    asked = requests_of(traffic, steps, np.random.default_rng(seed))
    watch, book = RolloutWatch("m", "r", "salt"), EvidenceBook()
    at = 0
    for number, (_, size) in enumerate(steps):
        book.follow("m", "r", number)
        segment = watch.segment(number, ("stable", "canary"))
        totals = np.cumsum(made[number], axis=2)
        for look in range(size // REQUESTS_PER_LOOK):
            for _ in range(REQUESTS_PER_LOOK):
                if asked.is_call[at]:
                    arm = segment.arms["canary" if asked.is_given[at] else "stable"]
                    unit = str(asked.users[at]).encode()
                    status = 500 if asked.is_failed[at] else 200
                    arm.observe(unit, status, 0.01, at / traffic.requests_per_s)
                at += 1
            book.report("edge", watch.evidence())
            counts = book.counts("m")
            for arm, name in enumerate(("stable", "canary")):
                _, failed, calls, units, _ = totals[:, arm, look]
                seen = counts[name].seen
                assert (seen.errors, seen.calls) == (failed, calls)
                assert (seen.units, counts[name].units) == (units, units)
    assert at == sum(size for _, size in steps)
