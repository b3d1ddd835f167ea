"""When a part that fails is left alone, and when it is tried again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge.breaker import PAUSE_S, SCORE_MAX, Breaker, ask, tell


def told(breaker: Breaker, ends: str, now_s: float = 0.0) -> Breaker:
    """Tell one end after the other: `+` a success, `-` a failure."""
    for end in ends:
        breaker = tell(breaker, end == "+", now_s)
    return breaker


def test_failures_in_a_row_open_it() -> None:
    assert not told(Breaker(), "-" * (int(SCORE_MAX) - 1)).is_open
    assert told(Breaker(), "-" * int(SCORE_MAX)).is_open


def test_rare_failures_do_not() -> None:
    assert not told(Breaker(), ("-" + "+" * 9) * 1000).is_open


def test_frequent_failures_do_though_successes_lie_between() -> None:
    breaker = Breaker()
    ends = iter("-++" * 20)
    while not breaker.is_open:
        breaker = told(breaker, next(ends))


def test_open_lets_nothing_through_for_the_pause() -> None:
    breaker = told(Breaker(), "-----", now_s=100.0)
    assert not ask(breaker, 100.0)[0]
    assert not ask(breaker, 99.9 + PAUSE_S)[0]
    assert ask(breaker, 100.0 + PAUSE_S)[0]


def test_after_the_pause_one_attempt_decides() -> None:
    tried, waiting = ask(told(Breaker(), "-----"), PAUSE_S)
    assert tried
    assert not ask(waiting, PAUSE_S + 1)[0]
    assert not told(waiting, "+", PAUSE_S + 1).is_open
    again = told(waiting, "-", PAUSE_S + 1)
    assert not ask(again, 2 * PAUSE_S + 0.9)[0]
    assert ask(again, 2 * PAUSE_S + 1)[0]


def test_attempt_that_never_ends_is_followed_by_another() -> None:
    _, waiting = ask(told(Breaker(), "-----"), PAUSE_S)
    assert ask(waiting, 2 * PAUSE_S)[0]


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 2 * PAUSE_S)), max_size=200))
def test_open_lets_one_attempt_through_in_a_pause_at_most(
    steps: list[tuple[bool, float]],
) -> None:
    breaker, now_s, tried_s = Breaker(), 0.0, -PAUSE_S
    for is_success, passed_s in steps:
        now_s += passed_s
        was_open = breaker.is_open
        allowed, breaker = ask(breaker, now_s)
        if not allowed:
            continue
        if was_open:
            assert now_s - tried_s >= PAUSE_S
        tried_s = now_s
        breaker = tell(breaker, is_success, now_s)
        assert breaker.is_open is False or not is_success
