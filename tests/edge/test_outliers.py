"""Which replicas are left alone because they do worse than the others."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.dispatching.outliers import (
    CALLS_MIN,
    CALM_S,
    ERRORS,
    OUT_S,
    OUT_S_MAX,
    SLOW,
    STALE_S,
    TRIAL_S_MAX,
    TRIALS,
    Outliers,
)

pytestmark = pytest.mark.rule("F30")


@dataclass
class Worker:
    id: str


class Engine:
    """Replicas that are named by letters, and a clock that the test moves."""

    def __init__(self, names: str = "abc", up: str | None = None) -> None:
        self.names, self.up = names, names if up is None else up
        self.outliers = Outliers()
        self.now_s = 100.0

    def end(self, name: str, *, failed: bool = False, run_s: float | None = 0.02) -> str:
        why = self.outliers.ended(name, self.now_s, failed=failed, run_s=None if failed else run_s)
        if why and not self.outliers.put_out(name, why, self.now_s, self.names, self.up):
            return ""
        return why

    def rounds(self, count: int, bad: str = "", *, slow: str = "", times: float = 10.0) -> str:
        """End `count` calls at each; return who was put out, in this order."""
        out = ""
        for _ in range(count):
            for name in self.names:
                run_s = 0.02 * (times if name in slow else 1.0)
                if self.end(name, failed=name in bad, run_s=run_s):
                    out += name
        return out

    def allowed(self) -> str:
        found = self.outliers.allowed([Worker(name) for name in self.up], self.now_s)
        return "".join(worker.id for worker in found)


def test_replica_that_fails_where_others_answer_is_put_out() -> None:
    engine = Engine()
    assert engine.rounds(CALLS_MIN - 1, bad="b") == ""
    assert engine.rounds(1, bad="b") == "b"
    assert (engine.allowed(), engine.outliers.away) == ("ac", {"b": ERRORS})


def test_replica_that_takes_ten_times_as_long_is_put_out() -> None:
    engine = Engine()
    assert engine.rounds(CALLS_MIN, slow="c") == "c"
    assert (engine.allowed(), engine.outliers.away) == ("ab", {"c": SLOW})


def test_replica_is_put_out_before_the_others_have_had_a_call() -> None:
    engine = Engine()
    assert [engine.end("a", failed=True) for _ in range(CALLS_MIN)][-1] == ERRORS
    slow = Engine()
    assert not any(slow.end("a", run_s=9.0) for _ in range(50))  # nobody knows what is usual


def test_what_fails_everywhere_puts_nobody_out() -> None:
    assert Engine().rounds(50, bad="abc") == ""


@pytest.mark.parametrize("bad_share", [0.02, 0.1, 0.3, 0.7])
def test_bad_requests_that_come_to_anybody_put_nobody_out(bad_share: float) -> None:
    engine, dice = Engine(), random.Random(7)
    for _ in range(2000):
        for name in "abc":
            assert not engine.end(name, failed=dice.random() < bad_share)


def test_good_replica_that_turns_bad_is_put_out_soon() -> None:
    failing, slow = Engine(), Engine()
    assert failing.rounds(100) == slow.rounds(100) == ""
    assert failing.rounds(11, bad="a") == "a"
    assert slow.rounds(8, slow="a") == "a"


@pytest.mark.parametrize("times", [1.0, 2.0, 3.5])
def test_what_is_slower_by_less_than_four_times_stays(times: float) -> None:
    assert Engine().rounds(50, slow="a", times=times) == ""


def test_milliseconds_are_not_worth_it() -> None:
    engine = Engine("ab")
    for _ in range(50):
        assert not engine.end("a", run_s=0.001)
        assert not engine.end("b", run_s=0.019)


def test_single_slow_call_changes_little() -> None:
    engine = Engine()
    engine.end("a", run_s=2.0)  # the first one of a new process
    assert engine.rounds(50) == ""


@given(
    st.integers(2, 8),
    st.lists(st.tuples(st.integers(0, 7), st.booleans(), st.floats(0.001, 10.0)), max_size=300),
    st.sets(st.integers(0, 7)),
)
def test_never_are_more_than_half_out(
    count: int, ends: list[tuple[int, bool, float]], down: set[int]
) -> None:
    names = "abcdefgh"[:count]
    engine = Engine(names, "".join(n for i, n in enumerate(names) if i not in down))
    for place, failed, run_s in ends:
        engine.now_s += 0.05
        before = set(engine.outliers.away)
        engine.end(names[place % count], failed=failed, run_s=run_s)
        away = set(engine.outliers.away)
        assert away <= before or 2 * len(away | (set(names) - set(engine.up))) <= count
        assert set(engine.allowed()) <= set(engine.up)
        assert engine.allowed() or not engine.up


@pytest.mark.parametrize(
    ("up", "out"), [("abcd", "bc"), ("abc", "b"), ("ab", ""), ("abcdef", "bcd")]
)
def test_half_of_the_replicas_stay_and_those_that_are_down_are_of_the_other_half(
    up: str, out: str
) -> None:
    engine = Engine("abcdef" if len(up) > 4 else "abcd", up)
    assert "".join(name for name in "bcdef" if name in up and engine.rounds(20, bad=name)) == out


def test_one_of_one_stays() -> None:
    assert Engine("a").rounds(50, bad="a") == ""


def test_those_who_are_out_take_calls_when_nobody_else_can() -> None:
    engine = Engine("ab")
    assert engine.rounds(CALLS_MIN, bad="b") == "b"
    engine.up = "b"
    assert engine.allowed() == "b"


def test_trial_is_one_call_at_a_time_and_three_good_ones_let_it_in() -> None:
    engine = Engine()
    engine.rounds(CALLS_MIN, bad="b")
    engine.now_s += OUT_S - 0.01
    assert engine.allowed() == "ac"
    engine.now_s += 0.02
    for _ in range(TRIALS):
        assert engine.allowed() == "b"
        engine.outliers.sent("b", engine.now_s)
        assert engine.allowed() == "ac"
        assert not engine.end("b")
    assert (engine.allowed(), engine.outliers.is_calm) == ("abc", True)


def test_bad_trial_puts_it_out_for_longer() -> None:
    engine = Engine()
    engine.rounds(CALLS_MIN, slow="b")
    lasted_s = []
    for _ in range(7):
        began_s = engine.now_s
        while engine.allowed() != "b":
            engine.now_s += 0.5
        lasted_s.append(engine.now_s - began_s)
        engine.outliers.sent("b", engine.now_s)
        engine.end("a")
        assert engine.end("b", run_s=0.2) == SLOW
    assert lasted_s == [OUT_S, 2 * OUT_S, 4 * OUT_S, 8 * OUT_S, *[OUT_S_MAX] * 3]


def test_after_a_calm_time_the_next_time_is_a_first_time() -> None:
    engine = Engine()
    for _ in range(2):
        engine.rounds(CALLS_MIN, bad="b")
        engine.now_s += OUT_S
        for _ in range(TRIALS):
            assert engine.allowed() == "b"
            engine.end("b")
        assert engine.outliers.is_calm
        engine.now_s += CALM_S


def test_trial_whose_client_left_is_made_again() -> None:
    engine = Engine()
    engine.rounds(CALLS_MIN, bad="b")
    engine.now_s += OUT_S
    assert engine.allowed() == "b"
    engine.outliers.sent("b", engine.now_s)
    engine.now_s += TRIAL_S_MAX - 0.01
    assert engine.allowed() == "ac"
    engine.now_s += 0.01
    assert engine.allowed() == "b"


def test_trial_that_fails_as_everywhere_is_no_bad_one() -> None:
    engine = Engine()
    engine.rounds(CALLS_MIN, bad="b")
    engine.now_s += OUT_S
    for _ in range(20):
        engine.end("a", failed=True)
        engine.end("c", failed=True)
    for _ in range(TRIALS):
        assert engine.allowed() == "b"
        assert not engine.end("b", failed=True)
    assert engine.outliers.is_calm


def test_what_was_long_ago_says_nothing() -> None:
    engine = Engine()
    engine.rounds(CALLS_MIN - 1, bad="b")
    engine.now_s += STALE_S + 1
    assert engine.rounds(1, bad="b") == ""


def test_new_process_begins_anew() -> None:
    engine = Engine()
    engine.rounds(CALLS_MIN, bad="b")
    engine.outliers.keep("ac")
    assert engine.outliers.is_calm
    assert engine.rounds(CALLS_MIN - 1, bad="b") == ""
