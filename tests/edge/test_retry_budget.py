"""How many calls may be sent once more."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge.dispatching.retry_budget import RETRIES_FREE, RETRIES_SAVED_MAX, RETRY_SHARE, Budget


def taken(budget: Budget) -> int:
    count = 0
    while budget.take():
        count += 1
    return count


@given(st.lists(st.booleans(), max_size=500))
def test_extra_calls_are_a_tenth_and_three_whatever_happens_in_which_order(
    is_call: list[bool],
) -> None:
    budget, calls, extra = Budget(), 0, 0
    for is_one in is_call:
        if is_one:
            budget.pay()
            calls += 1
        else:
            extra += budget.take()
        assert extra <= RETRY_SHARE * calls + RETRIES_FREE + 1e-6


def test_first_three_are_free_and_do_not_come_again() -> None:
    budget = Budget()
    assert taken(budget) == 3
    for _ in range(9):
        budget.pay()
    assert taken(budget) == 0
    budget.pay()
    assert taken(budget) == 1


def test_a_calm_day_saves_no_more_than_a_hundred() -> None:
    budget = Budget()
    for _ in range(100_000):
        budget.pay()
    assert taken(budget) == RETRIES_SAVED_MAX
