"""What a key may still use: one rule after the other, by a clock that the test moves."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.quota import CONCURRENT, IDLE_S, REQUESTS, ROWS, Bucket, Meter, Refused
from pool.wire.control import QuotaParts
from registry_sync.documents import Quota

ALL = QuotaParts("", 1.0, 1.0, 1.0)
START_S = 100_000.0  # what a monotonic clock shows after a day: rounding must not matter


def part(of_all: float) -> QuotaParts:
    return QuotaParts("k", of_all, of_all, of_all)


def meter(parts: QuotaParts = ALL, **limits: float) -> Meter:
    return Meter(Quota(**limits), parts, START_S)  # type: ignore[arg-type]


def admitted(of: Meter, now_s: float, tries: int = 1000) -> int:
    """Return how many requests of many at once are let through; all of them end."""
    count = sum(of.take(now_s) is None for _ in range(tries))
    for _ in range(count):
        of.release()
    return count


def refusal(of: Meter, now_s: float) -> Refused:
    found = of.take(now_s)
    assert found is not None
    return found


# requests


def test_a_burst_is_as_many_seconds_of_the_rate_as_the_quota_says() -> None:
    assert admitted(meter(requests_per_s=10, burst_s=3), START_S) == 30


@pytest.mark.parametrize("limits", [{"requests_per_s": 10, "burst_s": 0}, {"requests_per_s": 0.1}])
def test_one_request_always_fits(limits: dict[str, float]) -> None:
    assert admitted(meter(**limits), START_S) == 1


def test_after_a_burst_requests_come_at_the_rate() -> None:
    key = meter(requests_per_s=10)
    assert admitted(key, START_S) == 10
    assert sum(admitted(key, START_S + tenth / 10) for tenth in range(1, 101)) == 100


def test_the_wait_is_exact() -> None:
    key = meter(requests_per_s=10)
    admitted(key, START_S)
    found = refusal(key, START_S + 0.03)
    assert (found.limit, found.value) == (REQUESTS, 10)
    assert found.wait_s == pytest.approx(0.07, abs=1e-5)
    assert key.take(START_S + 0.03 + found.wait_s) is None


def test_a_refused_request_costs_nothing() -> None:
    key = meter(requests_per_s=10)
    assert admitted(key, START_S, tries=100_000) == 10
    assert admitted(key, START_S + 0.1) == 1


def test_no_limit_refuses_nobody() -> None:
    key = meter()
    assert admitted(key, START_S, 10_000) == 10_000
    key.take_rows(10**9, START_S)
    assert admitted(key, START_S, 10_000) == 10_000


@settings(max_examples=200, deadline=None)
@given(
    rate=st.floats(0.5, 200),
    burst_s=st.floats(0, 5),
    steps=st.lists(st.tuples(st.floats(0, 2), st.integers(1, 300)), max_size=40),
)
def test_never_more_than_rate_and_burst(
    rate: float, burst_s: float, steps: list[tuple[float, int]]
) -> None:
    key, now_s, total = meter(requests_per_s=rate, burst_s=burst_s), START_S, 0
    for pause_s, tries in steps:
        now_s += pause_s
        total += admitted(key, now_s, tries)
        assert total <= max(1, rate * burst_s) + rate * (now_s - START_S) + 1e-3


# rows


def test_rows_are_a_debt_that_must_be_paid_off_first() -> None:
    key = meter(rows_per_s=100)
    assert key.take(START_S) is None
    key.take_rows(350, START_S)
    found = refusal(key, START_S + 1.0)
    assert (found.limit, found.value) == (ROWS, 100)
    assert found.wait_s == pytest.approx(1.5, abs=1e-5)
    assert key.take(START_S + 2.5) is None


def test_rows_within_the_burst_are_no_debt() -> None:
    key = meter(rows_per_s=100)
    for _ in range(3):
        assert key.take(START_S) is None
        key.take_rows(33, START_S)
    assert key.take(START_S) is None


def test_a_request_refused_for_its_rows_takes_no_request() -> None:
    key = meter(requests_per_s=10, rows_per_s=1)
    assert key.take(START_S) is None
    key.take_rows(3, START_S)
    assert refusal(key, START_S).limit == ROWS
    assert admitted(key, START_S + 10) == 10


# calls under way


def test_calls_under_way_are_bounded_and_each_end_lets_one_more_in() -> None:
    key = meter(concurrent=2)
    assert [key.take(START_S) for _ in range(2)] == [None, None]
    assert refusal(key, START_S).limit == CONCURRENT
    key.release()
    assert key.take(START_S) is None
    assert refusal(key, START_S).value == 2


def test_a_request_that_ends_twice_is_a_bug() -> None:
    key = meter(concurrent=2)
    key.take(START_S)
    key.release()
    with pytest.raises(AssertionError):
        key.release()


def test_a_request_refused_for_calls_under_way_takes_no_request() -> None:
    key = meter(requests_per_s=2, burst_s=1, concurrent=1)
    assert key.take(START_S) is None
    assert refusal(key, START_S).limit == CONCURRENT
    key.release()
    assert key.take(START_S) is None


@pytest.mark.parametrize(("of_all", "most"), [(1.0, 8), (0.5, 4), (0.49, 3), (0.01, 1), (0.0, 1)])
def test_each_process_lets_its_part_of_the_calls_in_and_one_at_least(
    of_all: float, most: int
) -> None:
    key = meter(part(of_all), concurrent=8)
    assert sum(key.take(START_S) is None for _ in range(20)) == most


# parts


def test_a_process_keeps_to_its_part() -> None:
    key = meter(part(0.25), requests_per_s=40)
    assert admitted(key, START_S) == 10
    assert admitted(key, START_S + 1) == 10


def test_a_part_that_grows_brings_no_burst_along() -> None:
    key = meter(part(0.1), requests_per_s=100)
    assert admitted(key, START_S) == 10
    key.change(key.quota, part(0.9), START_S)
    assert admitted(key, START_S) == 0
    assert admitted(key, START_S + 0.5) == 45


def test_a_part_that_shrinks_loses_what_it_has_no_room_for() -> None:
    key = meter(part(0.9), requests_per_s=100)
    key.change(key.quota, part(0.1), START_S)
    key.change(key.quota, part(0.9), START_S)
    assert admitted(key, START_S) == 10


def test_a_debt_moves_with_the_part() -> None:
    key = meter(part(1.0), rows_per_s=100)
    key.take(START_S)
    key.take_rows(300, START_S)  # 200 more than there were
    key.change(key.quota, part(0.5), START_S)
    assert refusal(key, START_S).wait_s == pytest.approx(4.0, abs=1e-5)


def test_moving_parts_to_and_fro_admits_no_more() -> None:
    keys = [meter(part(0.5), requests_per_s=100) for _ in range(2)]
    total = sum(admitted(key, START_S) for key in keys)
    for tenth in range(1, 101):
        shares = (0.9, 0.1) if tenth % 2 else (0.1, 0.9)
        for key, share in zip(keys, shares, strict=True):
            key.change(key.quota, part(share), START_S + tenth / 10)
        total += sum(admitted(key, START_S + tenth / 10) for key in keys)
    assert 900 <= total <= 1100


def test_no_part_at_all_lets_one_request_in_for_a_start() -> None:
    key = meter(part(0.0), requests_per_s=100)
    assert admitted(key, START_S) == 1
    assert admitted(key, START_S + 1000) == 0
    key.change(key.quota, part(1.0), START_S + 1000)
    assert admitted(key, START_S + 1001) == 100


# demand


def test_demand_counts_what_was_refused_too() -> None:
    key = meter(part(0.1), requests_per_s=100, rows_per_s=1000, concurrent=10)
    for _ in range(50):
        if key.take(START_S) is None:
            key.take_rows(8, START_S)
            key.release()
    requests, rows, concurrent = key.demand(START_S + 1)
    assert requests == pytest.approx(0.5)
    assert 0.05 < rows <= 0.4
    assert concurrent == pytest.approx(0.1)


def test_demand_is_averaged_and_what_is_more_than_chance_is_believed_at_once() -> None:
    key, found = meter(requests_per_s=100), []
    for second, tries in enumerate((60, 64, 50, 90)):
        admitted(key, START_S + second, tries)
        found.append(key.demand(START_S + second + 1)[0])
    assert found == pytest.approx([0.6, 0.62, 0.56, 0.9], abs=0.01)


def test_small_counts_are_averaged_for_longer() -> None:
    key, found = meter(requests_per_s=10), []
    for second, tries in enumerate((4, 2, 6, 0, 4)):
        admitted(key, START_S + second, tries)
        found.append(key.demand(START_S + second + 1)[0])
    assert all(0.25 <= part <= 0.45 for part in found), found


def test_two_requests_are_no_burst() -> None:
    key = meter(part(0.1), requests_per_s=10)
    admitted(key, START_S, 2)
    assert key.demand(START_S + 0.1)[0] == 0.0
    assert key.demand(START_S + 0.3)[0] <= 0.1


def test_demand_that_has_ended_is_nothing_at_once() -> None:
    key = meter(requests_per_s=100)
    admitted(key, START_S, 80)
    assert key.demand(START_S + 1)[0] == pytest.approx(0.8)
    assert key.demand(START_S + 2) == (0.0, 0.0, 0.0)


def test_a_burst_is_not_taken_for_a_rate() -> None:
    key = meter(requests_per_s=100)
    admitted(key, START_S, 10)
    assert key.demand(START_S + 0.001)[0] == pytest.approx(0.4)


def test_a_refusal_is_news_until_it_was_told() -> None:
    key = meter(part(0.25), requests_per_s=40)
    admitted(key, START_S, 40)
    assert key.is_news(REQUESTS)
    key.demand(START_S + 0.5)
    assert not key.is_news(REQUESTS)
    assert not meter(ALL, requests_per_s=40).is_news(REQUESTS)


def test_a_meter_is_idle_once_a_new_one_would_be_the_same() -> None:
    key = meter(rows_per_s=1)
    key.take(START_S)
    key.take_rows(200, START_S)
    assert not key.is_idle(START_S + IDLE_S)  # a call is under way
    key.release()
    assert not key.is_idle(START_S + IDLE_S)  # a debt is left
    assert key.is_idle(START_S + 200)


def test_tokens_are_counted_down_to_a_debt() -> None:
    bucket = Bucket(10, 1, 0, START_S)
    bucket.take(15, START_S)
    assert bucket.tokens(START_S) == pytest.approx(-5)
    assert bucket.tokens(START_S + 100) == 10
