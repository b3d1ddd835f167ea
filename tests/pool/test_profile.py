"""What an engine's profile learns, and what it says when it knows little."""

from __future__ import annotations

import random

import pytest

from pool.queueing.profile import FORGET_HALF_S, ArrivalRate, LatencyProfile


def learned(*runs: tuple[int, float], times: int = 50) -> LatencyProfile:
    profile = LatencyProfile()
    profile.record(1, 99.0, 0.0)  # cold
    for _ in range(times):
        for rows, run_s in runs:
            profile.record(rows, run_s, 0.0)
    return profile


def test_nothing_is_predicted_before_the_first_run() -> None:
    assert LatencyProfile().run_s(8) == 0.0


def test_the_first_run_after_a_load_is_not_counted() -> None:
    profile = LatencyProfile()
    profile.record(1, 99.0, 0.0)
    assert profile.run_s(1) == 0.0
    assert not profile.runs_known


def test_one_run_is_enough_for_a_prediction() -> None:
    assert learned((1, 0.010), times=1).run_s(1) == pytest.approx(0.010, rel=0.5)


def test_speed_is_the_best_that_any_size_has_shown() -> None:
    assert LatencyProfile().rows_per_s_max == 0.0
    assert learned((1, 0.010), (8, 0.020)).rows_per_s_max == pytest.approx(400, rel=1e-3)


def test_runs_of_equal_duration_are_predicted_as_they_are() -> None:
    assert learned((1, 0.010)).run_s(1) == pytest.approx(0.010, rel=1e-3)


def test_between_two_sizes_it_is_linear() -> None:
    assert learned((1, 0.010), (9, 0.026)).run_s(5) == pytest.approx(0.018, rel=1e-3)


def test_beyond_the_largest_size_it_grows_in_proportion() -> None:
    assert learned((1, 0.010), (4, 0.012)).run_s(16) == pytest.approx(0.048, rel=1e-3)


def test_below_the_smallest_size_the_smallest_holds() -> None:
    assert learned((8, 0.012)).run_s(1) == pytest.approx(0.012, rel=1e-3)


def test_a_larger_batch_is_never_predicted_to_be_faster() -> None:
    profile = learned((1, 0.010), (2, 0.004), (4, 0.011), (16, 0.005))
    predictions = [profile.run_s(rows) for rows in range(1, 64)]
    assert predictions == sorted(predictions)


def test_a_change_is_followed_within_a_few_dozen_runs() -> None:
    profile = learned((1, 0.010))
    for _ in range(48):
        profile.record(1, 0.002, 0.0)
    assert profile.run_s(1) < 0.003


def test_a_hiccup_moves_a_prediction_little() -> None:
    profile = learned((1, 0.010))
    profile.record(1, 60.0, 0.0)
    assert profile.run_s(1) < 0.025


def test_runs_that_differ_by_what_is_asked_are_not_all_taken_for_the_longest() -> None:
    profile = learned((1, 0.020))
    for _ in range(100):
        for run_s in (0.020, 0.020, 0.020, 0.200):
            profile.record(1, run_s, 0.0)
    assert 0.040 < profile.mean_s(1) < 0.110
    assert profile.run_s(1) <= 1.6 * profile.mean_s(1)


def test_a_slower_engine_is_believed_within_a_few_runs() -> None:
    profile = learned((1, 0.010))
    for _ in range(20):
        profile.record(1, 1.0, 0.0)
    assert profile.run_s(1) > 0.9


def test_a_figure_that_is_no_longer_trusted_is_replaced_by_the_next_run() -> None:
    profile = learned((1, 60.0))
    profile.record(1, 0.010, 11 * FORGET_HALF_S)
    assert profile.run_s(1) < 0.5


def test_a_size_that_looked_too_slow_is_corrected_by_the_others() -> None:
    profile = LatencyProfile()
    profile.record(1, 99.0, 0.0)
    profile.record(8, 60.0, 0.0)
    for _ in range(50):
        profile.record(1, 0.010, 0.0)
    assert profile.run_s(8) <= 2 * 8 * 0.0101


def test_a_prediction_is_about_the_99th_percentile() -> None:
    noise = random.Random(5)
    profile = LatencyProfile()
    late = 0
    for count in range(20_000):
        run_s = noise.gauss(0.010, 0.001)
        late += count > 100 and run_s > profile.run_s(1)
        profile.record(1, run_s, 0.0)
    assert 0.002 < late / 20_000 < 0.04


def test_sizes_that_share_a_bucket_are_not_taken_for_noise() -> None:
    dice = random.Random(3)
    profile = LatencyProfile()
    for _ in range(400):
        rows = dice.randint(1, 45)
        profile.record(rows, 0.010 + 0.002 * rows, 0.0)
    for rows in range(1, 46):
        assert profile.run_s(rows) == pytest.approx(0.010 + 0.002 * rows, rel=0.05)


def test_of_all_sizes_a_prediction_is_about_the_99th_percentile() -> None:
    dice = random.Random(4)
    profile = LatencyProfile()
    late = 0
    for count in range(20_000):
        rows = dice.randint(1, 45)
        run_s = (0.010 + 0.002 * rows) * dice.gauss(1.0, 0.05)
        late += count > 100 and run_s > profile.run_s(rows)
        profile.record(rows, run_s, 0.0)
    assert 0.002 < late / 20_000 < 0.04


def test_a_size_that_ran_once_deviates_as_the_others_do() -> None:
    profile = learned((1, 0.010), (2, 0.011))
    profile.record(4, 0.013, 0.0)
    assert profile.run_s(4) == pytest.approx(0.013, rel=0.02)


def test_beyond_the_last_bucket_the_line_goes_on_to_the_largest_size_seen() -> None:
    profile = learned((1, 0.012), (20, 0.050), (30, 0.070))
    assert profile.run_s(30) == pytest.approx(0.070, rel=0.02)
    assert profile.run_s(60) == pytest.approx(0.140, rel=0.02)


def test_a_prediction_is_fully_trusted_while_the_engine_runs() -> None:
    profile = learned((1, 0.010))
    assert profile.trust(FORGET_HALF_S) == 1.0


def test_trust_halves_while_nothing_runs() -> None:
    profile = learned((1, 0.010))
    assert profile.trust(2 * FORGET_HALF_S) == pytest.approx(0.5)
    assert profile.trust(11 * FORGET_HALF_S) < 0.001


def test_nothing_arrives_at_first() -> None:
    assert ArrivalRate().rows_per_s(5.0) == 0.0


@pytest.mark.parametrize("slo_s", [0.05, 1.0, 60.0])
def test_a_steady_rate_is_found(slo_s: float) -> None:
    rate = ArrivalRate()
    for i in range(30_000):
        rate.add(2, i / 1000, slo_s)
    assert rate.rows_per_s(30.0) == pytest.approx(2000, rel=0.05)


def test_the_rate_falls_to_zero_when_nothing_comes() -> None:
    rate = ArrivalRate()
    for i in range(1000):
        rate.add(1, i / 1000, 0.1)
    assert rate.rows_per_s(1.3) == 0.0


def test_the_rate_follows_a_change_within_two_deadlines() -> None:
    rate = ArrivalRate()
    for i in range(1000):
        rate.add(1, i / 1000, 0.1)
    for i in range(2000):
        rate.add(1, 1.0 + i / 10_000, 0.1)
    assert rate.rows_per_s(1.2) == pytest.approx(10_000, rel=0.05)


def test_a_window_that_gets_longer_or_shorter_keeps_the_rate() -> None:
    rate = ArrivalRate()
    noise = random.Random(2)
    for i in range(20_000):
        rate.add(1, i / 1000, noise.choice([0.1, 0.5, 1.0]))
        if i > 4000:
            assert rate.rows_per_s(i / 1000) == pytest.approx(1000, rel=0.25)
