"""Whether the candidate is found to take longer, and a replica's ordinary stalls are not."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from edge.watch import RolloutWatch
from pool.rollouts.evidence import EvidenceBook
from pool.rollouts.guards import Guards
from pool.rollouts.signals import ArmCounts, Verdict
from pool.rollouts.unit_guard import UnitTest, lone_log_e, units_log_e
from pool.rollouts.window_guard import (
    WINDOW_S,
    WINDOWS_MIN,
    Bets,
    MeanGuard,
    Setting,
    SlowGuard,
    Windows,
    drift_log_e,
)
from registry_sync.rollout_terms import ArmSeen, Guard, Segment
from tests.support.latency_runs import (
    ALPHA,
    CALLS_PER_S,
    MARGIN,
    NAMES,
    SLOW_MS,
    Candidate,
    Latencies,
    batching,
    counts_of,
    heavy,
    slower_at_s,
    stalling,
    steady,
)

RUNS, FULL_RUNS = 200, 2000
RAMP = ((0.01, 120.0), (0.05, 120.0), (0.25, 120.0), (0.5, 120.0))
HALF = ((0.5, 300.0),)

# By name: how long calls take, and the steps.
SCENARIOS = {
    "stalls of 0.5 s a minute": (stalling(), RAMP),
    "stalls of 0.5 s a minute, at half": (stalling(), HALF),
    "stalls of 5 s in 5 minutes": (stalling(300.0, 5.0), RAMP),
    "batches": (batching(), RAMP),
    "batches that share all": (batching(1.0, 0.0), HALF),
    "heavy tails": (heavy(), RAMP),
}
SHORT = ("stalls of 0.5 s a minute", "batches")
SHORT_RAMP = ((0.05, 100.0), (0.5, 100.0))


def _rates(
    name: str, runs: int, short: Sequence[tuple[float, float]] | None = None
) -> dict[str, float]:
    """Return by guard the share of runs in which equal arms are said to be harm."""
    latencies, steps = SCENARIOS[name]
    steps = short or steps
    found = [slower_at_s(latencies, steps, seed) for seed in range(runs)]
    rates = {guard: sum(at[guard] < math.inf for at in found) / runs for guard in found[0]}
    either = sum(min(at.values()) < math.inf for at in found) / runs
    print(f"\n{name}: equal arms rolled back in {either:.2%} of {runs} runs {rates}", end="")
    return rates | {"either": either}


@pytest.mark.parametrize("name", SHORT)
def test_arms_that_are_as_fast_are_rarely_taken_for_slower(name: str) -> None:
    assert _rates(name, RUNS, SHORT_RAMP)["either"] <= 0.06


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_arms_that_are_as_fast_are_rarely_taken_for_slower_in_many_runs(name: str) -> None:
    runs = FULL_RUNS if name in SHORT else FULL_RUNS // 4
    assert _rates(name, runs)["either"] <= 0.06


def _median_s(
    guard: str,
    candidate: Candidate,
    steps: Sequence[tuple[float, float]],
    runs: int,
    latencies: Latencies | None = None,
    ratio_max: float = 1.0,
) -> float:
    made = latencies or stalling()
    found = [
        slower_at_s(made, steps, seed, ratio_max=ratio_max, candidate=candidate)[guard]
        for seed in range(runs)
    ]
    begins_s = sum(seconds for _, seconds in steps[:-1]) + candidate.from_s
    median_s = float(np.median(found)) - begins_s
    print(f"\n{candidate}, {guard}, share {steps[-1][0]:.0%}: after {median_s:.0f} s", end="")
    return median_s


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_a_candidate_all_of_whose_calls_are_slow_is_found(share: float) -> None:
    assert _median_s("slow", Candidate(slow=1.0), ((share, 200.0),), runs=10) <= 90.0


def test_a_candidate_that_becomes_slow_late_is_found() -> None:
    late = Candidate(slow=1.0, from_s=300.0)
    assert _median_s("slow", late, ((0.5, 500.0),), runs=10) <= 90.0
    assert _median_s("slow", Candidate(slow=1.0), (*RAMP, (1.0, 200.0)), runs=5) <= 60.0


def test_a_candidate_with_more_slow_calls_is_found() -> None:
    assert _median_s("slow", Candidate(slow=0.05), ((0.5, 400.0),), runs=10) <= 240.0
    assert _median_s("slow", Candidate(slow=0.2), ((0.05, 400.0),), runs=10) <= 240.0


@pytest.mark.parametrize(("share", "limit_s"), [(0.5, 120.0), (0.05, 120.0), (0.01, 300.0)])
def test_a_candidate_that_takes_longer_than_is_allowed_is_found(
    share: float, limit_s: float
) -> None:
    longer = Candidate(times=1.3)
    for latencies in (steady(), batching()):
        assert _median_s("latency", longer, ((share, 400.0),), 10, latencies, 1.1) <= limit_s


def test_a_candidate_that_takes_as_much_longer_as_is_allowed_is_none() -> None:
    found = [
        slower_at_s(steady(), ((0.5, 200.0),), seed, ratio_max=1.1, candidate=Candidate(times=1.08))
        for seed in range(20)
    ]
    assert sum(at["latency"] < math.inf for at in found) <= 1


@pytest.mark.parametrize(("from_s", "seconds", "found"), [(0, 20, 0), (60, 20, 0), (60, 80, 10)])
def test_at_full_weight_a_burst_is_none_and_what_lasts_is(
    from_s: float, seconds: float, found: int
) -> None:
    """Also where the past is so quiet that one slow call in thirty is more than was ever seen."""
    burst = Candidate(slow=0.5, from_s=from_s, until_s=from_s + seconds)
    at_s = [
        slower_at_s(steady(0.1), (*RAMP, (1.0, 200.0)), seed, candidate=burst)["slow"]
        for seed in range(10)
    ]
    assert sum(at < math.inf for at in at_s) == found


def _guards(
    *, share: float = 0.5, past: tuple[Segment, ...] = (), sticky: bool = False
) -> tuple[SlowGuard, MeanGuard]:
    now = Setting(share, past, NAMES, 5, sticky)
    return (
        SlowGuard(now, alpha=ALPHA, margin=MARGIN),
        MeanGuard(now, alpha=ALPHA, ratio_max=1.1),
    )


def _counts(
    candidate: Candidate, share: float = 0.5, seconds: float = 120.0
) -> list[tuple[ArmCounts, ArmCounts]]:
    return counts_of(steady(), share, seconds, np.random.default_rng(1), candidate)


def _verdict(guard: Guard, candidate: Candidate) -> Verdict:
    guards = Guards(guard, share=0.5, steps=5)
    guards.look(0.0, ArmCounts(), ArmCounts())
    for index, arms in enumerate(_counts(candidate), 1):
        guards.look(index * WINDOW_S, *arms)
    return guards.verdict()


def test_slow_calls_are_a_harm() -> None:
    verdict = _verdict(Guard(slower_than_ms=100), Candidate(slow=0.2))
    assert len(verdict.harms) == 1
    assert "of the candidate's calls are slow, 0.00% of the baseline's (e-value" in verdict.harms[0]
    assert not _verdict(Guard(slower_than_ms=100), Candidate()).harms
    assert not _verdict(Guard(), Candidate(slow=0.2)).harms


def test_calls_that_take_longer_are_a_harm() -> None:
    verdict = _verdict(Guard(latency_ratio_max=1.1), Candidate(times=1.3))
    assert verdict.harms[0].startswith("calls of canary take 1.3 times as long, 1.1 times are")
    assert not _verdict(Guard(latency_ratio_max=1.1), Candidate(times=1.05)).harms


def test_a_harm_is_more_than_the_margin() -> None:
    guard, _ = _guards()
    guard.look(0.0, ArmCounts(), ArmCounts())
    for index, arms in enumerate(_counts(Candidate(slow=0.2)), 1):
        guard.look(index * WINDOW_S, *arms)
    assert list(guard.harms())
    assert list(guard.worse())
    arm = ArmCounts(ArmSeen(calls=90_000, slow=9000))
    guard.look(121.0, arm, arm)  # so much more of the same that the difference is gone
    assert not list(guard.harms())
    assert not list(guard.worse())


def test_what_is_allowed_is_no_evidence() -> None:
    seen = {name: ArmSeen(calls=5000, slow=50) for name in NAMES}
    past = (Segment(1, {"stable": 50, "canary": 50}, seen, {"slow": 0.0, "latency": 0.0}),)
    halves, full = _guards(), _guards(share=1.0, past=past)
    for guards, share, slow in (halves, 0.5, MARGIN), (full, 1.0, 0.012):
        for guard in guards:
            guard.look(0.0, ArmCounts(), ArmCounts())
        counts = _counts(Candidate(slow=slow, times=1.05), share, 600.0)
        for index, arms in enumerate(counts, 1):
            for guard in guards:
                guard.look(index * WINDOW_S, *arms)
                assert max(guard.log_es().values()) < 1.0


def test_evidence_where_units_keep_their_arm_pays_for_every_step() -> None:
    for sticky, price in (False, 0.0), (True, math.log(5)):
        for guard in _guards(sticky=sticky):
            assert guard.segment_log_es()[guard.name] == pytest.approx(-price)


def test_what_was_counted_before_the_first_look_is_no_evidence() -> None:
    guard, _ = _guards()
    bad = ArmCounts(ArmSeen(calls=5000, slow=5000))
    for index in range(30):
        guard.look(index * WINDOW_S, ArmCounts(ArmSeen(calls=5000)), bad)
    assert guard.log_es()["slow"] <= 0.0


def test_few_calls_join_the_next_window() -> None:
    windows = Windows()
    windows.look(0.0, (0, 0.0), (0, 0.0))
    assert windows.look(9.9, (50, 50.0), (2, 4.0)) is None
    assert windows.look(10.0, (50, 50.0), (2, 4.0)) is None
    assert windows.look(20.0, (100, 100.0), (4, 8.0)) == (1.0, 2.0)
    assert windows.look(30.0, (150, 150.0), (6, 8.0)) is None
    assert windows.look(31.0, (160, 160.0), (8, 12.0)) == (1.0, 1.0)


def test_counts_that_are_fewer_begin_anew() -> None:
    windows = Windows()
    windows.look(0.0, (100, 0.0), (100, 0.0))
    assert windows.look(10.0, (50, 0.0), (150, 0.0)) is None
    assert windows.look(20.0, (60, 10.0), (160, 0.0)) == (1.0, 0.0)


def test_an_overruled_segment_is_no_measure() -> None:
    arms = {"stable": ArmSeen(calls=1000), "canary": ArmSeen(calls=1000, slow=1000)}
    weights = {"stable": 50.0, "canary": 50.0}
    now = ArmCounts(ArmSeen(calls=1000, slow=10))
    for log_e, is_worse in ({"slow": 5.0}, True), ({}, False):
        guard, _ = _guards(past=(Segment(1, weights, arms, log_e),))
        guard.look(0.0, now, now)
        assert bool(list(guard.worse())) is is_worse


def test_at_full_weight_that_nobody_saw_before_most_calls_must_be_slow() -> None:
    for slow, is_harm in (0.4, False), (1.0, True):
        guard, _ = _guards(share=1.0)
        guard.look(0.0, ArmCounts(), ArmCounts())
        for index, arms in enumerate(_counts(Candidate(slow=slow), 1.0, 300.0), 1):
            guard.look(index * WINDOW_S, *arms)
        assert bool(list(guard.harms())) is is_harm


def test_few_units_with_many_calls_are_few() -> None:
    for sticky, units, is_harm in (False, 20, True), (True, 20, False), (True, 2000, True):
        _, guard = _guards(sticky=sticky)
        guard.look(0.0, ArmCounts(), ArmCounts())
        for index, counted in enumerate(_counts(Candidate(times=1.3)), 1):
            arms = [_of_units(arm, units) for arm in counted]
            guard.look(index * WINDOW_S, arms[0], arms[1])
        assert bool(list(guard.harms())) is is_harm


def _of_units(arm: ArmCounts, units: int) -> ArmCounts:
    return ArmCounts(arm.seen, arm.units, 0, 0, arm.log_calls, arm.log_sum, arm.log_squares, units)


def test_slow_units_must_be_so_as_units_too() -> None:
    guard, _ = _guards(sticky=True)
    guard.look(0.0, ArmCounts(), ArmCounts())
    counts = _counts(Candidate(slow=1.0))
    for index, arms in enumerate(counts, 1):
        guard.look(index * WINDOW_S, *arms, unit_log_e=1.0)
    assert guard.log_es()["slow"] == 1.0
    assert not list(guard.harms())
    guard.look(len(counts) * WINDOW_S, *counts[-1], unit_log_e=50.0)
    assert list(guard.harms())


def test_bets_are_on_average_never_more_than_one() -> None:
    rng = np.random.default_rng(3)
    found = []
    for _ in range(2000):
        bets = Bets(1.0)
        for number in np.where(rng.random(20) < 0.9, -0.1, 0.9):
            bets.add(float(number))
        found.append(math.exp(bets.log_e))
    assert 0.9 < np.mean(found) < 1.1


def test_windows_that_differ_either_way_are_on_average_evidence_of_nothing() -> None:
    numbers = np.random.default_rng(4).normal(size=(4000, 10))
    found = [math.exp(drift_log_e(10, row.sum(), row @ row)) for row in numbers]
    assert 0.9 < np.mean(found) < 1.1


def test_evidence_of_windows_goes_by_their_own_scale() -> None:
    assert drift_log_e(20, 10.0, 20.0) == pytest.approx(drift_log_e(20, 1000.0, 200_000.0))
    assert drift_log_e(20, 10.0, 20.0) > drift_log_e(20, 8.0, 20.0) > drift_log_e(20, -8.0, 20.0)
    assert drift_log_e(WINDOWS_MIN - 1, 7.0, 7.0) == 0.0
    assert 5.0 < drift_log_e(WINDOWS_MIN, 8.0, 8.0) < 10.0
    # Only the part of the prior next to no drift at all is left.
    least = math.log(math.sqrt(2.0 / math.pi) / 2000)
    assert drift_log_e(2000, -2000.0, 2000.0) == pytest.approx(least, abs=0.01)
    assert drift_log_e(20, 0.0, 0.0) == 0.0


def test_slow_calls_without_a_unit_are_units_of_one_call() -> None:
    arms = [ArmCounts(ArmSeen(500, slow=slow), slow=slow) for slow in (5, 60)]
    test = UnitTest("slow", 0.5, steps=1, cached=False, has_lone=True)
    test.look(arms[0], arms[1])
    assert test.log_e > 10.0
    one = (1.0, 1.0)
    assert lone_log_e(0.3, 2, 5) == pytest.approx(_of_ones(0.3, 2, 5))
    assert units_log_e(0.3, [one] * 2, [one] * 5) > lone_log_e(0.3, 2, 5) - math.log(5)


def _of_ones(share: float, baseline: int, candidate: int) -> float:
    odds = [1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 1000.0, 10_000.0]
    theta = [share * ratio / (share * ratio + 1.0 - share) for ratio in odds]
    found = [
        (one / share) ** candidate * ((1.0 - one) / (1.0 - share)) ** baseline for one in theta
    ]
    return math.log(sum(found) / len(found))


def _sticky_harms(
    seed: int, *, users: int = 500, prone: float = 0.0, slow: float = 0.0, lone: float = 0.0
) -> tuple[str, ...]:
    """Return what 90 s of calls at half and half come to, counted by an edge's own class.

    Args:
        seed: of everything.
        users: how many there are, each as busy.
        prone: such a part of them has slow calls half of the time, whatever the arm.
        slow: such a part of the candidate's calls is slow.
        lone: such a part of the calls is nobody's.
    """
    rng = np.random.default_rng(seed)
    size = round(90.0 * CALLS_PER_S)
    who = rng.integers(0, users, size)
    is_lone = rng.random(size) < lone
    arms = np.where(is_lone, rng.random(size), rng.random(users)[who]) < 0.5
    is_prone = (rng.random(users) < prone)[who] & ~is_lone
    is_slow = rng.random(size) < np.where(is_prone, 0.5, np.where(arms, slow, 0.002))
    watch, book = RolloutWatch("m", "r", "salt"), EvidenceBook()
    book.follow("m", "r", 1)
    segment = watch.segment(1, NAMES, SLOW_MS / 1000.0)
    guards = Guards(
        Guard(errors=False, slower_than_ms=SLOW_MS), share=0.5, steps=5, sticky=True, cached=False
    )
    guards.look(0.0, ArmCounts(), ArmCounts())
    for at in range(size):
        unit = None if is_lone[at] else b"%d" % who[at]
        arm = segment.arms[NAMES[int(arms[at])]]
        arm.observe(unit, 200, 1.0 if is_slow[at] else 0.01, at / CALLS_PER_S)
        if (at + 1) % round(WINDOW_S * CALLS_PER_S) == 0:
            book.report("edge", watch.evidence())
            counts = book.counts("m")
            guards.look((at + 1) / CALLS_PER_S, *(counts[name] for name in NAMES))
    return guards.verdict().harms


def test_slow_units_of_both_arms_are_none_of_the_candidates_faults() -> None:
    """Windows alone cannot tell: they would roll some of these back."""
    assert not any(_sticky_harms(seed, users=20, prone=0.3, slow=0.002) for seed in range(8))


@pytest.mark.parametrize("lone", [0.0, 0.5, 1.0])
def test_a_candidate_with_slow_calls_is_found_whoever_makes_them(lone: float) -> None:
    assert all(_sticky_harms(seed, slow=0.2, lone=lone) for seed in range(2))
