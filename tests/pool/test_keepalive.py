"""Whether a version without calls is to be warm."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from pool.scaling.gaps import BINS, EDGES, EDGES_S, WIDTHS_S, GapHistogram, GapPool, bin_of
from pool.scaling.hazard import windows
from pool.scaling.keepalive import EXPLORE_S, KeepAlive
from pool.scaling.renewal import MEMBERS, Renewal
from pool.scaling.ticks import Ticks

MINUTE_S = 60.0
HOUR_S = 3600.0
COST_S = HOUR_S
WAKE_S = 3.0


def after(gaps_s: list[float], keep: KeepAlive | None = None) -> KeepAlive:
    """Return one that has just been called again after these gaps, at the time 0."""
    keep = keep or KeepAlive()
    keep.began(0.0, 0.0)
    keep.ended(0.0)
    for gap_s in gaps_s:
        keep.began(0.0, gap_s)
        keep.ended(0.0)
    return keep


def is_warm(keep: KeepAlive, at_s: float, cost_s: float = COST_S) -> bool:
    return keep.wants(at_s, cost_s, WAKE_S)[0]


def test_version_in_use_is_warm_for_good() -> None:
    keep = after([60.0])
    keep.began(0.0, 60.0)
    assert keep.wants(5.0, COST_S, WAKE_S) == (True, math.inf)


def test_version_that_nobody_called_yet_stays_warm_for_hours() -> None:
    keep = KeepAlive()
    keep.ended(10.0)
    assert keep.wants(10.0, COST_S, WAKE_S) == (True, 10.0 + EXPLORE_S)
    assert keep.wants(10.0 + EXPLORE_S, COST_S, WAKE_S) == (False, math.inf)


def test_what_was_before_the_first_call_is_no_gap() -> None:
    late = KeepAlive()
    late.ended(0.0)
    late.began(9 * HOUR_S, 9 * HOUR_S)
    late.ended(9 * HOUR_S)
    soon = after([])
    late.wants(9 * HOUR_S, COST_S, WAKE_S)
    soon.wants(0.0, COST_S, WAKE_S)
    assert late.plan() == soon.plan()


def test_call_that_finds_others_inside_ends_no_gap() -> None:
    keep = after([HOUR_S] * 3)
    before = keep.save()
    keep.began(5.0, HOUR_S)
    known = keep.save()
    keep.began(6.0, 0.0)
    assert before != known
    assert keep.save() == known


def test_hourly_version_sleeps_between_and_is_warm_before_it_is_called() -> None:
    keep = after([HOUR_S] * 5)
    assert [is_warm(keep, at_s * MINUTE_S) for at_s in (20, 45, 59.9, 90)] == [
        *(False, False, True, False)
    ]


def test_answer_holds_until_the_time_that_it_names() -> None:
    keep = after([HOUR_S] * 3 + [200.0] * 3)
    at_s, turns = 0.0, 0
    while at_s < math.inf:
        answer, until_s = keep.wants(at_s, COST_S, WAKE_S)
        assert until_s > at_s
        for between in np.linspace(at_s, min(until_s, at_s + 1e5), 7)[:-1]:
            assert keep.wants(float(between), COST_S, WAKE_S) == (answer, until_s)
        at_s, turns = until_s, turns + 1
    assert turns >= 4, "short gaps and long ones: two windows"


def test_two_habits_make_two_windows() -> None:
    keep = after([60.0, 60.0, 2 * HOUR_S] * 8)
    assert is_warm(keep, 50.0)
    assert not is_warm(keep, HOUR_S)
    assert is_warm(keep, 2 * HOUR_S - 1)


def test_window_opens_one_wake_early() -> None:
    keep = after([HOUR_S] * 20)
    opens_s = keep.wants(20 * MINUTE_S, COST_S, 0.0)[1]
    assert keep.wants(20 * MINUTE_S, COST_S, 30.0)[1] == pytest.approx(opens_s - 30.0)


def test_dearer_cold_starts_keep_it_warm_for_longer() -> None:
    keep = after([90.0, 400.0, 2000.0, 700.0, 5000.0])
    warm = [sum(is_warm(keep, s, c) for s in range(0, 86_400, 60)) for c in (60, 600, 3600, 36_000)]
    assert warm == sorted(warm)
    assert warm[0] < warm[-1]


def test_busy_version_stays_warm_through_its_usual_gaps() -> None:
    keep = after([2.0, 5.0, 1.0, 3.0] * 10)
    assert is_warm(keep, 4.0, cost_s=60.0)


def test_habit_is_given_up_for_a_new_one() -> None:
    keep = after([HOUR_S] * 100 + [1200.0] * 30)
    assert is_warm(keep, 1199.0)
    assert not is_warm(keep, HOUR_S - 60)


def test_late_tick_makes_the_next_gap_shorter() -> None:
    moments_s = 1800.0 * np.arange(40) + np.random.RandomState(3).normal(0, 60.0, 40)
    moments_s[-2:] = 1800.0 * 38, 1800.0 * 39
    on_time = after(np.diff(moments_s).tolist())
    moments_s[-1] += 240.0
    late = after(np.diff(moments_s).tolist())
    opens_s = on_time.wants(600.0, COST_S, 0.0)[1]
    assert late.wants(600.0, COST_S, 0.0)[1] <= opens_s - 120.0


def test_new_version_profits_from_what_the_others_are_like() -> None:
    pool = GapPool()
    for _ in range(20):
        after([7200.0] * 8, KeepAlive(pool))
    alone, among = after([7200.0]), after([7200.0], KeepAlive(pool))
    assert is_warm(alone, 7200.0)
    assert is_warm(among, 7200.0)
    assert is_warm(alone, 9000.0)
    assert not is_warm(among, 9000.0), "the others are punctual"


def test_what_was_learned_outlives_a_restart() -> None:
    keep, again = after([HOUR_S, 60.0] * 9 + [3500.0]), KeepAlive()
    again.restore(keep.save())
    again.ended(7.0)
    for cost_s in (600.0, 3600.0):
        keep.wants(0.0, cost_s, WAKE_S)
        again.wants(7.0, cost_s, WAKE_S)
        assert np.array(again.plan()) == pytest.approx(np.array(keep.plan()))
    assert len(keep.save()) < 4096


@pytest.mark.parametrize("cut", [0, 1, 7, 100, 500])
def test_what_is_not_readable_is_ignored(cut: int) -> None:
    keep, fresh = KeepAlive(), KeepAlive()
    keep.restore(after([60.0]).save()[:cut])
    keep.ended(0.0)
    fresh.ended(0.0)
    assert keep.wants(0.0, COST_S, WAKE_S) == fresh.wants(0.0, COST_S, WAKE_S)


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0, 0),
        (1, {BINS: 1.0}),
        (1, {0: math.nan}),
        (1, {0: -1.0}),
        (2, [0.0]),
        (4, []),
        (0, 2**60),
        (1, {0: 1e308}),
        (2, [1.0] * 180),
        (3, [1, 1e300, 0.0, 0.0]),
        (4, [math.inf] * 4),
    ],
)
def test_what_was_saved_wrongly_is_ignored(index: int, value: object) -> None:
    saved = msgspec.msgpack.decode(after([60.0] * 3).save())
    saved[index] = value
    keep = KeepAlive()
    keep.restore(msgspec.msgpack.encode(saved))
    keep.ended(0.0)
    assert keep.wants(0.0, COST_S, WAKE_S) == (True, EXPLORE_S)


def test_trust_that_is_low_in_all_of_them_is_even_trust() -> None:
    plans = []
    for trust in (0.0, -9000.0):
        saved = msgspec.msgpack.decode(after([60.0] * 9).save())
        saved[4] = [trust] * 4
        keep = KeepAlive()
        keep.restore(msgspec.msgpack.encode(saved))
        keep.ended(0.0)
        keep.wants(0.0, COST_S, WAKE_S)
        plans.append(keep.plan())
    assert plans[0] == plans[1] != []


def test_windows_are_the_cheapest_of_all_sets_of_bins() -> None:
    draw = np.random.RandomState(1)
    shares = draw.dirichlet(np.full(BINS, 0.05))
    shares[EDGES < 4 * HOUR_S] = 0.0  # where rests could be too short to be worth the while
    shares /= shares.sum()
    ends = shares[:-1]
    outlasts = 1 - np.cumsum(ends)
    idle_s = WIDTHS_S * (outlasts + ends / 2)
    cheapest_s = np.minimum(idle_s, COST_S * ends).sum()
    warm = np.zeros(BINS - 1, bool)
    for opens_s, closes_s in windows(shares, COST_S, 0.0):
        warm[EDGES_S.index(opens_s) : EDGES_S.index(closes_s)] = True
    assert np.where(warm, idle_s, COST_S * ends).sum() == pytest.approx(cheapest_s)


def test_idling_through_half_a_bin_is_weighed_against_the_cold_start() -> None:
    shares = np.zeros(BINS)
    shares[bin_of(6 * HOUR_S)] = 1.0  # 20 minutes wide
    assert windows(shares, 590.0, 0.0) == []
    assert len(windows(shares, 610.0, 0.0)) == 1


def test_windows_with_hardly_a_rest_between_are_one() -> None:
    shares = np.zeros(BINS)
    shares[bin_of(600.0)] = shares[bin_of(900.0)] = 0.5
    apart, together = windows(shares, COST_S, 10.0), windows(shares, COST_S, 85.0)
    assert (len(apart), len(together)) == (2, 1)


def test_version_is_not_unloaded_for_a_minute() -> None:
    shares = np.zeros(BINS)
    shares[bin_of(60.0)] = 1.0
    assert windows(shares, COST_S, 1.0) == [(0.0, 120.0)]


def test_version_that_outlasted_all_its_habits_sleeps_for_good() -> None:
    keep = after([HOUR_S, 60.0] * 20)
    assert keep.wants(3 * HOUR_S, COST_S, WAKE_S) == (False, math.inf)


def test_histogram_forgets_and_never_overflows() -> None:
    histogram = GapHistogram(keep=0.5)
    for _ in range(2000):
        histogram.add(3)
    histogram.add(5)
    assert histogram.count(3) == pytest.approx(1.0)
    assert histogram.count(5) == pytest.approx(1.0)
    assert histogram.total == pytest.approx(2.0)


def test_predictors_give_probabilities() -> None:
    renewal, ticks = Renewal(GapPool().prior(MEMBERS)), Ticks()
    for gap_s in (500.0, 520.0, 480.0):
        renewal.add(bin_of(gap_s))
        ticks.add(gap_s)
    for predictor in (renewal, ticks):
        shares = predictor.shares()
        assert shares.sum() == pytest.approx(1.0)
        assert shares.min() >= 0.0
        assert [predictor.share(b) for b in range(BINS)] == pytest.approx(shares.tolist())


def test_clock_is_followed_when_its_period_drifts() -> None:
    ticks, at_s = Ticks(), 0.0
    draw = np.random.RandomState(2)
    last_s = 0.0
    for tick in range(400):
        period_s = 600.0 + 0.1 * tick
        at_s += period_s
        now_s = at_s + draw.normal(0, 10.0)
        ticks.add(now_s - last_s)
        last_s = now_s
    assert last_s + ticks.due_s == pytest.approx(at_s + 640.0, abs=25.0)


def test_every_version_weighs_the_same_in_the_pool() -> None:
    pool = GapPool()
    first, second = np.zeros(MEMBERS), np.zeros(MEMBERS)
    first[0] = second[1] = 1.0
    pool.exchange(None, first)
    pool.exchange(first, first)
    pool.exchange(None, second)
    prior = pool.prior(MEMBERS)
    assert prior[0] == pytest.approx(prior[1])
    assert prior.sum() == pytest.approx(1.0)
