"""The demand envelope: what counts as demand, for how long, and what is chance."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pool.scaling.envelope import Envelope, Held

HOLD_S = 60.0


def look(envelope: Envelope, rates: list[float], begin_s: float = 0.0, before: int = 0) -> int:
    """Let calls come evenly, so many in each second; return how many there were in all."""
    arrived = float(before)
    for second, rate in enumerate(rates):
        for half in (0.5, 1.0):
            arrived += rate / 2
            envelope.observe(begin_s + second + half, int(arrived), int(rate > 0), HOLD_S)
    return int(arrived)


def test_steady_calls_ask_for_their_rate_less_what_may_wait() -> None:
    envelope = Envelope(wait_s=0.5)
    look(envelope, [100.0] * 120)
    assert envelope.demand() == pytest.approx(100.0 * 60 / 60.5, rel=0.01)


def test_burst_shorter_than_every_window_asks_for_what_a_window_can_take() -> None:
    envelope = Envelope(wait_s=1.0)
    look(envelope, [0.0] * 60 + [100.0] + [0.0] * 3)
    assert envelope.demand() == pytest.approx(100 / 5.0, rel=0.15)


def test_peak_counts_for_as_long_as_it_is_held() -> None:
    envelope = Envelope(wait_s=0.5)
    arrived = look(envelope, [10.0] * 60 + [100.0] * 20)
    peak, until_s = envelope.peak(80.0)
    assert peak > 80
    assert 80.0 + HOLD_S - 1 <= until_s <= 80.0 + HOLD_S
    look(envelope, [10.0] * 59, 80.0, arrived)
    assert envelope.peak(139.0)[0] > 80
    assert envelope.peak(80.0 + HOLD_S + 70.0) == (0.0, math.inf)


def test_rise_is_seen_at_once() -> None:
    envelope = Envelope(wait_s=0.5)
    arrived = look(envelope, [20.0] * 60)
    look(envelope, [200.0], 60.0, arrived)
    assert envelope.step(61.0, 40.0) == pytest.approx(200.0, rel=0.05)


def test_chance_is_no_rise() -> None:
    draw = np.random.RandomState(1)
    envelope = Envelope(wait_s=0.5)
    arrived, steps = 0, 0
    for tick in range(7200):
        arrived += int(draw.poisson(10.0))
        envelope.observe(tick / 2, arrived, 1, HOLD_S)
        steps += envelope.step(tick / 2, 20.0) > 0
    assert steps < 7200 / 100


def clumped(hours: float = 0.5, cv: float = 5.0) -> list[int]:
    """Return how many calls there were by the end of each half second: 50 a second, in clumps."""
    draw, shape = np.random.RandomState(1), 1 / cv**2
    gaps_s = draw.standard_gamma(shape, int(hours * 3600 * 50)) / shape / 50
    ends_s = np.arange(0.5, hours * 3600, 0.5)
    return [int(n) for n in np.searchsorted(np.cumsum(gaps_s), ends_s)]


def test_clumps_are_no_rise_once_they_are_known() -> None:
    envelope = Envelope(wait_s=0.5)
    steps = []
    for tick, arrived in enumerate(clumped()):
        envelope.observe(tick / 2, arrived, 1, HOLD_S)
        steps.append(envelope.step(tick / 2, 80.0) > 0)
    assert sum(steps[600:]) < len(steps[600:]) / 100


def test_rise_among_clumps_is_seen_all_the_same() -> None:
    envelope = Envelope(wait_s=0.5)
    calls = clumped()
    for tick, arrived in enumerate(calls):
        envelope.observe(tick / 2, arrived, 1, HOLD_S)
    arrived = look(envelope, [500.0] * 2, len(calls) / 2, calls[-1])
    assert envelope.step(len(calls) / 2 + 2, 80.0) > 250


def test_bursts_before_do_not_hide_the_next_one() -> None:
    envelope = Envelope(wait_s=0.5)
    arrived, begin_s = 0, 0.0
    for _ in range(5):
        arrived = look(envelope, [20.0] * 120 + [200.0] * 120, begin_s, arrived)
        begin_s += 240.0
    arrived = look(envelope, [20.0] * 120, begin_s, arrived)
    look(envelope, [100.0], begin_s + 120.0, arrived)
    assert envelope.step(begin_s + 121.0, 40.0) == pytest.approx(100.0, rel=0.05)


def test_clumps_may_queue_and_their_mean_has_room() -> None:
    envelope = Envelope(wait_s=0.5)
    assert envelope.wait_s == 0.5
    demands = []
    for tick, arrived in enumerate(clumped()):
        envelope.observe(tick / 2, arrived, 1, HOLD_S)
        demands.append(envelope.demand())
    assert envelope.wait_s == 1.5
    # By the formula, at 50 calls a second and the square of CV 5: c (c - 50) = 1.15 * 24 * 50.
    assert np.median(demands[600:]) == pytest.approx(70.0, rel=0.1)


def test_stretches_with_nothing_between_are_no_clumps() -> None:
    envelope = Envelope(wait_s=0.5)
    envelope.observe(-1.0, 0, 0, HOLD_S)
    arrived = 0
    for session in range(100):
        rate = 10.0 if session % 2 else 400.0
        arrived = look(envelope, [rate] * 4, session * 1e4, arrived)
        envelope.observe(session * 1e4 + 4.1, arrived, 0, HOLD_S)
        assert envelope.wait_s == 0.5


def test_room_for_clumps_is_small_where_calls_take_long() -> None:
    envelope = Envelope(wait_s=0.5)
    demands = []
    for tick, arrived in enumerate(clumped()):  # 2.5 a second
        envelope.observe(tick * 10.0, arrived, 1, HOLD_S, 30.0)
        demands.append(envelope.demand())
    assert envelope.wait_s > 1.0
    assert np.median(demands) < 6.0


def test_calls_before_the_first_look_are_no_burst() -> None:
    envelope = Envelope(wait_s=0.5)
    envelope.observe(1000.0, 1_000_000, 3, HOLD_S)
    assert envelope.demand() < 1
    assert envelope.step(1000.0, 0.0) < 10


def test_calls_counted_anew_are_no_burst_either() -> None:
    envelope = Envelope(wait_s=0.5)
    look(envelope, [100.0] * 10)
    envelope.observe(10.5, 500, 2, HOLD_S)
    assert envelope.demand() < 1


def test_first_calls_after_an_idle_time_came_just_now() -> None:
    envelope = Envelope(wait_s=0.5)
    envelope.observe(0.0, 0, 0, HOLD_S)
    envelope.observe(5000.0, 50, 50, HOLD_S)
    assert envelope.step(5000.0, 0.0) == pytest.approx(100.0)
    assert envelope.demand() == pytest.approx(50 / 4.5)


def test_calls_that_take_long_ask_for_no_more_replicas_than_there_are_calls() -> None:
    envelope = Envelope(wait_s=0.5)
    call_s = 30.0
    for second in range(6):
        envelope.observe(second * 1.0, min(second, 3), min(second, 3), HOLD_S, call_s)
    assert envelope.demand() * call_s == pytest.approx(3.0)
    assert envelope.step(5.0, 0.0) * call_s <= 3.0


def test_calls_that_take_longer_than_a_minute_count_while_they_run() -> None:
    envelope = Envelope(wait_s=0.5)
    call_s = 300.0
    for second in range(200):
        arrived = 1 + (second >= 100)
        envelope.observe(second * 1.0, arrived, arrived, HOLD_S, call_s)
    assert envelope.demand() * call_s == pytest.approx(2.0, rel=0.01)


def test_value_counts_until_its_time_is_over_or_a_higher_one_comes() -> None:
    held = Held()
    held.add(0.0, 5.0, 10.0)
    held.add(4.0, 3.0, 10.0)
    assert held.highest(9.0) == (5.0, 10.0)
    assert held.highest(10.0) == (3.0, 14.0)
    held.add(11.0, 4.0, 10.0)
    assert held.highest(11.0) == (4.0, 21.0)
    assert held.highest(21.0) == (0.0, math.inf)
