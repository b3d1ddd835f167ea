"""The last minute of what edges count."""

from __future__ import annotations

from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool.recent import WINDOW_S, Rates, Recent
from pool.wire.control import VariantCount
from pool.wire.histogram import BOUNDS_S, BUCKETS

ARM = ("e", "a", "1")


def count(
    requests: int, *, failed: int = 0, hits: int = 0, took_s: float = 0.003, revision: int = 1
) -> VariantCount:
    seconds = [0] * BUCKETS
    seconds[bisect_left(BOUNDS_S, took_s)] = requests
    return VariantCount("e", revision, "a", "1", requests, 0, hits, failed, tuple(seconds))


def test_rate_is_what_came_since_the_first_look() -> None:
    recent = Recent()
    for second in range(21):
        recent.report("e1/i1", [count(100 + 5 * second, failed=second, hits=2 * second)], second)
    shown = recent.rates(20.0)[ARM].shown()
    assert shown["requests_per_s"] == 5.0
    assert (shown["failed_share"], shown["hit_share"]) == (0.2, 0.4)
    assert 2 <= (shown["p50_ms"] or 0) <= (shown["p99_ms"] or 0) <= 5


def test_history_that_a_new_controller_hears_of_is_no_peak() -> None:
    recent = Recent()
    recent.report("e1/i1", [count(1_000_000)], 100.0)
    assert recent.rates(101.0)[ARM].ended_per_s == 0.0


def test_edges_add_up() -> None:
    recent = Recent()
    for second in range(11):
        recent.report("e1/i1", [count(2 * second)], second)
        recent.report("e2/i1", [count(3 * second, took_s=8.0)], second)
    rates = recent.rates(10.0)[ARM]
    assert rates.ended_per_s == pytest.approx(5.0)
    assert sum(rates.seconds) == 50
    p50_ms, p99_ms = rates.shown()["p50_ms"], rates.shown()["p99_ms"]
    assert p50_ms is not None
    assert p99_ms is not None
    assert 5000 <= p50_ms <= p99_ms <= 10_000, "of the merged counts: most took 8 s"


def test_what_was_longer_ago_than_the_window_is_forgotten() -> None:
    recent = Recent()
    for second in range(300):
        recent.report("e1/i1", [count(min(second, 100) * 10)], second)
    assert recent.rates(299.0)[ARM] == Rates(seconds=[0] * BUCKETS)
    assert all(len(looks) <= 20 for looks in recent._looks.values())


def test_edge_that_is_silent_is_forgotten() -> None:
    recent = Recent()
    recent.report("e1/i1", [count(0)], 0.0)
    recent.report("e1/i1", [count(60)], 6.0)
    assert recent.rates(30.0)[ARM].ended_per_s == 2.0
    assert recent.rates(7.0 + WINDOW_S) == {}
    assert not recent._looks


def test_new_revision_of_an_arm_counts_from_nothing() -> None:
    recent = Recent()
    recent.report("e1/i1", [count(500)], 0.0)
    recent.report("e1/i1", [count(500), count(30, revision=2)], 10.0)
    assert recent.rates(10.0)[ARM].ended_per_s == 3.0


@pytest.mark.parametrize("before", [(), (1, 2, 3)])
def test_counts_by_other_bounds_are_left_out(before: tuple[int, ...]) -> None:
    recent = Recent()
    odd = VariantCount("e", 1, "a", "1", 9, 0, 3, 0, (1, 2, 3))
    recent.report("e1/i1", [VariantCount("e", 1, "a", "1", 0, 0, 0, 0, before)], 0.0)
    recent.report("e1/i1", [odd], 6.0)
    recent.report("e2/i1", [count(0)], 0.0)
    recent.report("e2/i1", [count(6)], 6.0)
    rates = recent.rates(6.0)[ARM]
    assert (rates.ended_per_s, rates.answered) == (1.0, 15)


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0.1, 4.0)), min_size=2, max_size=40))
def test_nothing_within_the_window_is_lost(steps: list[tuple[int, float]]) -> None:
    recent, now_s, total = Recent(), 0.0, 7
    recent.report("e1/i1", [count(total)], now_s)
    for more, pause_s in steps:
        now_s, total = now_s + pause_s, total + more
        recent.report("e1/i1", [count(total)], now_s)
    counted = sum(recent.rates(now_s)[ARM].seconds)
    if now_s <= WINDOW_S:
        assert counted == total - 7
    else:
        assert counted <= total - 7
