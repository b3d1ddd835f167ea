"""E-values: what they are of given counts, and how often they mislead."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pool.rollouts.eprocess import (
    Excess,
    Odds,
    SplitTest,
    chained,
    exposure_lift,
    mean_log_e,
    mismatch_log_e,
    rate_bounds,
)

ONE = np.ones(1)


def _integral(events: int, of_candidate: int, share: float) -> float:
    """Return the logarithm of the formula that `Odds` cites, by a sum over many places."""
    theta = share + (1.0 - share) * (np.arange(100_000) + 0.5) / 100_000
    others = events - of_candidate
    logs = of_candidate * np.log(theta / share) + others * np.log((1 - theta) / (1 - share))
    return float(np.logaddexp.reduce(logs) - math.log(len(logs)))


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5, 0.9])
@pytest.mark.parametrize(("events", "of_candidate"), [(1, 1), (5, 0), (20, 12), (300, 30)])
def test_with_one_share_the_evidence_is_the_formula(
    events: int, of_candidate: int, share: float
) -> None:
    odds = Odds(share)
    odds.add(ONE * events, ONE * of_candidate, ONE * share)
    assert odds.log_e[0] == pytest.approx(_integral(events, of_candidate, share), abs=0.02)


@pytest.mark.parametrize("share", [0.01, 0.3])
def test_evidence_is_on_average_one_under_any_shares(share: float) -> None:
    """Exactly: summed over every way in which three events can fall in two blocks."""
    shares, total = (share, 0.6), 0.0
    for first in range(3):
        for second in range(2):
            odds = Odds(share)
            odds.add(ONE * 2, ONE * first, ONE * shares[0])
            odds.add(ONE * 1, ONE * second, ONE * shares[1])
            chance = math.comb(2, first) * shares[0] ** first * (1 - shares[0]) ** (2 - first)
            chance *= shares[1] if second else 1 - shares[1]
            total += chance * math.exp(odds.log_e[0])
    assert total == pytest.approx(1.0)


def test_a_split_other_than_the_configured_one_is_no_evidence() -> None:
    test = SplitTest(0.5)
    test.look(1000, 4000, 10, 40)
    assert test.log_e[0] < 0.0
    as_configured = SplitTest(0.5)
    as_configured.look(2500, 2500, 10, 40)
    assert as_configured.log_e[0] > 5.0


def test_every_block_has_its_own_split() -> None:
    """All errors were in the first half, when the candidate had most of the calls."""
    test = SplitTest(0.5)
    test.look(100, 900, 10, 90)
    test.look(1900, 1100, 10, 90)
    assert test.log_e[0] < 0.0


def test_events_wait_for_units_that_tell_how_they_are_split() -> None:
    test = SplitTest(0.01)
    test.look(400, 4, 0, 4)
    assert test.log_e[0] == 0.0
    test.look(495, 5, 0, 4)
    assert test.log_e[0] > math.log(20)


def test_a_look_without_events_changes_nothing() -> None:
    test = SplitTest(0.5)
    test.look(100, 100, 1, 8)
    before = test.log_e[0]
    test.look(5000, 5000, 1, 8)
    assert test.log_e[0] == before


def test_the_same_counts_again_are_no_more_evidence() -> None:
    test = SplitTest(0.5)
    for _ in range(3):
        test.look(100, 100, 1, 8)
    once = SplitTest(0.5)
    once.look(100, 100, 1, 8)
    assert test.log_e[0] == once.log_e[0]


def test_runs_do_not_touch_each_other() -> None:
    both, alone = SplitTest(0.5, runs=2), SplitTest(0.5)
    for units in (3, 10, 40, 44):
        both.look([units, 100], [units, 2 * units], [units // 4, 1], [units // 2, 1])
        alone.look(units, units, units // 4, units // 2)
    assert both.log_e[0] == alone.log_e[0] != both.log_e[1]


def test_behind_a_cache_the_smaller_evidence_counts() -> None:
    """By calls and by requests, whichever of the two explains more."""
    cold, warm = SplitTest(0.5, cached=True), SplitTest(0.5, cached=True)
    for test, candidate in ((cold, 8000), (warm, 2000)):
        test.look(0, 0, 0, 0)
        test.look(10_000 - candidate, candidate, 50, 50)
        assert test.log_e[0] < 0.0
    cold.look(4000, 16_000, 70, 280)
    assert cold.log_e[0] < 0.0
    warm.look(16_000, 4000, 70, 280)
    assert warm.log_e[0] > 50.0


def test_behind_a_cache_a_first_look_is_what_others_are_compared_with() -> None:
    test = SplitTest(0.5, cached=True)
    test.look(100, 100, 1, 40)
    assert test.log_e[0] == 0.0
    test.look(200, 200, 2, 80)
    assert test.log_e[0] > 10.0


@pytest.mark.parametrize("cap", [0.5, 100.0])
def test_evidence_of_an_excess_is_on_average_at_most_one(cap: float) -> None:
    """Exactly: summed over every way in which two windows of three calls can end."""
    limit, total = 0.3, 0.0
    chances = [math.comb(3, k) * limit**k * (1 - limit) ** (3 - k) for k in range(4)]
    for first, of_first in enumerate(chances):
        for second, of_second in enumerate(chances):
            test = Excess(limit, cap)
            test.add(3.0, first)
            test.add(3.0, second)
            total += of_first * of_second * math.exp(test.log_e)
    assert total < 1.0 if cap < 1.0 else total == pytest.approx(1.0)


def test_no_window_is_more_evidence_than_its_share() -> None:
    test = Excess(0.02, 2.0)
    for windows in range(1, 6):
        before = test.log_e
        test.add(1000.0, 1000.0)
        assert before + 1.5 < test.log_e <= before + 2.0
        assert test.log_e <= 2.0 * windows


def test_a_long_good_past_hides_no_excess() -> None:
    test = Excess(0.02, 2.0)
    for _ in range(100):
        test.add(1000.0, 10.0)
    assert test.log_e < -2.0
    for _ in range(9):
        test.add(1000.0, 200.0)
    assert test.log_e > math.log(400)


def test_windows_without_calls_are_none() -> None:
    test, other = Excess(0.02, 2.0), Excess(0.02, 2.0)
    test.add(0.0, 0.0)
    for one in (test, other):
        one.add(10.0, 5.0)
    assert test.log_e == other.log_e


def test_a_unit_of_an_arm_with_more_calls_is_exposed_more() -> None:
    assert exposure_lift(0.5, (100, 200), (100, 800)) == 4.0


def test_an_arm_with_fewer_units_than_configured_counts_as_if_it_had_them() -> None:
    assert exposure_lift(0.5, (100, 100), (25, 25)) == 4.0


def test_an_arm_that_is_exposed_less_counts_as_it_is() -> None:
    assert exposure_lift(0.5, (100, 800), (100, 200)) == 1.0


def test_segments_multiply_and_each_is_looked_at_alone_too() -> None:
    good, bad = -20.0, 10.0
    assert chained([3.0, 4.0], 1) == pytest.approx(7.0)
    assert chained([3.0, 4.0], 5) == pytest.approx(7.0 + math.log(0.8 + 0.05 * math.exp(-3)))
    assert chained([good, good, bad], 5) == pytest.approx(bad + math.log(0.05))
    assert chained([0.0] * 5, 5) == pytest.approx(0.0)  # the chances add up to one
    assert chained([0.0] * 9, 5) == pytest.approx(0.0)


def test_bounds_hold_the_rate_at_every_look() -> None:
    rng = np.random.default_rng(1)
    rate, runs, missed = 0.02, 100, 0
    failed = np.cumsum(rng.random((runs, 4000)) < rate, axis=1)
    for run in range(runs):
        bounds = [rate_bounds(float(failed[run, n - 1]), n, 0.05) for n in range(20, 4001, 200)]
        missed += any(not low <= rate <= high for low, high in bounds)
    assert missed / runs <= 0.05


def test_bounds_close_in_on_the_rate() -> None:
    assert rate_bounds(0, 0, 0.05) == (0.0, 1.0)
    low, high = rate_bounds(1000, 100_000, 0.05)
    assert 0.008 < low < 0.01 < high < 0.012
    assert rate_bounds(50, 50, 0.05)[1] == 1.0


def _split_alarms(split: float, weight: float, runs: int, units: int) -> list[float]:
    """Return by run how many units were seen when the split was found wrong; infinity if never."""
    rng = np.random.default_rng(3)
    found = []
    for _ in range(runs):
        given = np.cumsum(rng.random(units) < split)
        weights, at = {"stable": 100 - weight, "canary": weight}, math.inf
        for seen in range(100, units + 1, 100):
            of_canary = float(given[seen - 1])
            arms = {"stable": seen - of_canary, "canary": of_canary}
            if mismatch_log_e([arms], weights) >= math.log(1000):
                at = seen
                break
        found.append(at)
    return found


@pytest.mark.parametrize("weight", [1.0, 50.0])
def test_a_right_split_is_not_taken_for_wrong(weight: float) -> None:
    assert np.isfinite(_split_alarms(weight / 100, weight, runs=50, units=10_000)).sum() == 0


@pytest.mark.parametrize(("split", "weight", "units"), [(0.08, 5.0, 1500), (0.55, 50.0, 2000)])
def test_a_wrong_split_is_found(split: float, weight: float, units: int) -> None:
    median = float(np.median(_split_alarms(split, weight, runs=40, units=20_000)))
    print(f"\n{split:.0%} of the units where {weight:g} % are configured: {median:.0f} units")
    assert median <= units


def test_one_edge_of_many_with_a_wrong_split_is_found() -> None:
    weights = {"stable": 90.0, "canary": 10.0, "other": 0.0}
    right = {"stable": 900, "canary": 100}
    assert mismatch_log_e([right] * 4, weights) < 0.0
    assert mismatch_log_e([right] * 3 + [{"stable": 500, "canary": 500, "other": 3}], weights) > 100


def test_the_same_units_at_every_edge_are_counted_once() -> None:
    weights = {"stable": 90.0, "canary": 10.0}
    seen = {"stable": 870, "canary": 130}
    assert mismatch_log_e([seen] * 8, weights) == pytest.approx(mismatch_log_e([seen], weights))


def test_without_weights_or_units_no_split_is_wrong() -> None:
    assert mismatch_log_e([], {"stable": 90.0, "canary": 10.0}) == 0.0
    assert mismatch_log_e([{"stable": 5, "canary": 7}], {"stable": 100.0, "canary": 0.0}) == 0.0
    assert mismatch_log_e([{}], {"stable": 90.0, "canary": 10.0}) == 0.0


def _longer_at(ratio: float, runs: int, users: int = 0, above: float = 0.0) -> list[float]:
    """Return by run how many calls of either arm were seen when the candidate's took longer.

    Calls take mostly one of two times, which differ by four, as cold and warm ones do.  With users,
    each has a pace of its own, and calls again and again.
    """
    rng = np.random.default_rng(4)
    calls, found = 10_000, []
    for _ in range(runs):
        logs = rng.normal(0.0, 0.3, (2, calls)) + math.log(4.0) * (rng.random((2, calls)) < 0.2)
        if users:
            logs += rng.normal(0.0, 1.0, (2, users))[:, np.arange(calls) % users]
        logs[1] += math.log(ratio)
        sums, squares = np.cumsum(logs, axis=1), np.cumsum(logs**2, axis=1)
        apart = (float(users), float(users)) if users else (math.inf, math.inf)
        at = math.inf
        for seen in range(50, calls + 1, 50):
            arms = [(float(seen), sums[arm, seen - 1], squares[arm, seen - 1]) for arm in (0, 1)]
            if mean_log_e(arms[0], arms[1], above, apart) >= math.log(20):
                at = seen
                break
        found.append(at)
    return found


def _check_false_alarms(runs: int, users: int) -> None:
    rate = float(np.isfinite(_longer_at(1.0, runs, users)).mean())
    print(f"\nas fast, {users or 'no'} users: taken for slower in {rate:.2%} of {runs} runs")
    assert rate <= 0.06


@pytest.mark.parametrize("users", [0, 200])
def test_arms_that_are_as_fast_are_rarely_taken_for_slower(users: int) -> None:
    _check_false_alarms(60, users)


@pytest.mark.slow
@pytest.mark.parametrize("users", [0, 60, 200, 2000])
def test_arms_that_are_as_fast_are_rarely_taken_for_slower_in_many_runs(users: int) -> None:
    _check_false_alarms(1500, users)


def test_a_slower_candidate_is_found() -> None:
    median = float(np.median(_longer_at(1.3, 30, above=math.log(1.1))))
    print(f"\n1.3 times as slow, 1.1 allowed: {median:.0f} calls of either arm")
    assert median <= 800


def test_a_candidate_that_is_slower_by_what_is_allowed_is_none() -> None:
    assert np.isfinite(_longer_at(1.1, 30, above=math.log(1.1))).sum() <= 3


def test_a_few_calls_are_no_ground_for_a_mean() -> None:
    slow = (49.0, 490.0, 4901.0)
    assert mean_log_e((1000.0, 0.0, 10.0), slow) == 0.0
    assert mean_log_e((1000.0, 0.0, 10.0), (50.0, 500.0, 5001.0)) > 100.0


def test_only_a_candidate_that_is_slower_is_evidence() -> None:
    quick, slow = (1000.0, 0.0, 10.0), (1000.0, 100.0, 20.0)
    assert mean_log_e(quick, slow) > 10.0
    assert mean_log_e(slow, quick) < -1.0
    assert mean_log_e(quick, quick) == pytest.approx(-0.5 * math.log(11.0))
