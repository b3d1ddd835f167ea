"""Which replicas are left alone because they do worse than the others."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.dispatching.outliers import (
    CALM_S,
    ERRORS,
    IN_A_ROW_MAX,
    OUT_S,
    OUT_S_MAX,
    SLOW,
    STALE_S,
    TRIAL_S_MAX,
    TRIALS,
    Outliers,
)
from edge.dispatching.replicas import Replicas
from edge.dispatching.worker_conn import WorkerConn
from pool.wire.control import EngineRoute

ENDS_BAD = 8  # of a replica that only fails, beside two others: then it is out
ENDS_SLOW = 16  # and of one that is ten times as slow
LIVES = 60

pytestmark = pytest.mark.rule("F30")


@dataclass
class Worker:
    id: str
    load: float = 0.0


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
            self.now_s += 0.001
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
    assert engine.rounds(ENDS_BAD - 1, bad="b") == ""
    assert engine.rounds(1, bad="b") == "b"
    assert (engine.allowed(), engine.outliers.away) == ("ac", {"b": ERRORS})


def test_replica_that_takes_ten_times_as_long_is_put_out() -> None:
    engine = Engine()
    assert engine.rounds(ENDS_SLOW - 1, slow="c") == ""
    assert engine.rounds(1, slow="c") == "c"
    assert (engine.allowed(), engine.outliers.away) == ("ab", {"c": SLOW})


def test_nobody_is_put_out_before_the_others_have_had_calls() -> None:
    engine = Engine()
    assert not any(engine.end("a", failed=True) for _ in range(50))
    assert not any(engine.end("a", run_s=9.0) for _ in range(50))


def test_what_fails_everywhere_puts_nobody_out() -> None:
    assert Engine().rounds(50, bad="abc") == ""


@pytest.mark.parametrize("bad_share", [0.02, 0.1, 0.3, 0.7])
def test_bad_requests_that_come_to_anybody_put_nobody_out(bad_share: float) -> None:
    engine, dice = Engine(), random.Random(7)
    for _ in range(2000):
        for name in "abc":
            assert not engine.end(name, failed=dice.random() < bad_share)


Input = tuple[bool, float]  # it fails everywhere; seconds it takes


def live(seed: int, inputs: Callable[[int], Input], names: str = "ab", sick: str = "") -> int:
    """Return after how many calls of one client a replica was put out; 0: after 300 none.

    `sick` is "half": the last replica fails half of its calls; "all": all; "slow": it takes ten
    times as long.
    """
    random.seed(seed)
    engine = Engine(names)
    replicas = Replicas(EngineRoute("m", "1", tuple(names), ()))
    workers = [cast(WorkerConn, Worker(name)) for name in names]
    for n in range(300):
        engine.now_s += 0.05
        name = replicas.choose(workers, engine.now_s).id
        failed, run_s = inputs(n)
        if name == names[-1]:
            failed |= sick == "all" or (sick == "half" and random.random() < 0.5)
            run_s *= 10 if sick == "slow" else 1
        if engine.end(name, failed=failed, run_s=run_s * random.lognormvariate(0.0, 0.3)):
            assert engine.outliers.away.keys() == {names[-1]} or not sick
            return n + 1
    return 0


def some_fail(n: int) -> Input:
    return random.random() < 0.3, 0.01


def some_take_long(n: int) -> Input:
    return False, 0.2 if random.random() < 0.3 else 0.01


def every_second_fails(n: int) -> Input:
    return n % 2 == 0, 0.01


def every_second_takes_long(n: int) -> Input:
    return False, 0.2 if n % 2 else 0.01


def alike(n: int) -> Input:
    return False, 0.01


@pytest.mark.parametrize("names", ["ab", "abcd"])
@pytest.mark.parametrize(
    "inputs", [some_fail, some_take_long, every_second_fails, every_second_takes_long]
)
def test_what_the_requests_of_a_client_are_puts_nobody_out(
    inputs: Callable[[int], Input], names: str
) -> None:
    assert sum(live(seed, inputs, names) > 0 for seed in range(LIVES)) <= 0.02 * LIVES


@pytest.mark.parametrize(
    ("sick", "inputs", "calls_max"),
    [
        ("all", alike, 60),
        ("half", alike, 160),
        ("slow", alike, 90),
        ("all", some_fail, 160),
        ("all", some_take_long, 60),
        ("slow", some_fail, 130),
        ("slow", some_take_long, 300),
    ],
)
def test_replica_that_is_sick_is_found_soon_whatever_the_requests_are(
    sick: str, inputs: Callable[[int], Input], calls_max: int
) -> None:
    found = [live(seed, inputs, sick=sick) or 301 for seed in range(LIVES)]
    assert sum(calls > calls_max for calls in found) <= 0.05 * LIVES


def test_what_comes_to_one_while_the_other_is_busy_says_little() -> None:
    engine = Engine("ab")
    assert engine.rounds(50) == ""
    for _ in range(3):
        assert not any(engine.end("b", failed=True) for _ in range(200))
        engine.end("a", run_s=1.0)
    assert IN_A_ROW_MAX == 2
    four = Engine("abcd")
    assert four.rounds(50) == ""
    four.now_s += 1.0
    for _ in range(200):  # a and d are busy
        assert not four.end("b", failed=True)
        assert not four.end("c", failed=True)


def test_good_replica_that_turns_bad_is_put_out_soon() -> None:
    failing, slow = Engine(), Engine()
    assert failing.rounds(100) == slow.rounds(100) == ""
    assert failing.rounds(30, bad="a") == "a"
    assert slow.rounds(40, slow="a") == "a"


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
    assert engine.rounds(12, bad="b") == "b"
    engine.up = "b"
    assert engine.allowed() == "b"


def test_trial_is_one_call_at_a_time_and_three_good_ones_let_it_in() -> None:
    engine = Engine()
    engine.rounds(ENDS_BAD, bad="b")
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
    engine.rounds(ENDS_SLOW, slow="b")
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


def test_the_only_one_that_is_left_says_what_is_usual_on_trials() -> None:
    engine = Engine("ab")
    assert engine.rounds(32, slow="b") == "b"
    for out_s in (OUT_S, 2 * OUT_S, 4 * OUT_S, 8 * OUT_S, OUT_S_MAX):
        for _ in range(128):
            engine.now_s += out_s / 128
            engine.end("a")
        assert engine.allowed() == "b"
        engine.outliers.sent("b", engine.now_s)
        assert engine.end("b", run_s=0.2) == SLOW


def test_what_one_had_while_the_other_was_out_is_not_held_against_it() -> None:
    engine = Engine("ab")
    assert engine.rounds(12, bad="b") == "b"
    engine.now_s += OUT_S
    for _ in range(100):
        engine.end("a", failed=True)
    for _ in range(TRIALS):
        engine.end("b")
    assert engine.outliers.is_calm
    assert engine.rounds(3) == ""
    for _ in range(5):
        assert not engine.end("a", failed=True)
        assert not engine.end("b")


def test_after_a_calm_time_the_next_time_is_a_first_time() -> None:
    engine = Engine()
    for _ in range(2):
        engine.rounds(ENDS_BAD, bad="b")
        engine.now_s += OUT_S
        for _ in range(TRIALS):
            assert engine.allowed() == "b"
            engine.end("b")
        assert engine.outliers.is_calm
        engine.now_s += CALM_S


def test_trial_whose_client_left_is_made_again() -> None:
    engine = Engine()
    engine.rounds(ENDS_BAD, bad="b")
    engine.now_s += OUT_S
    assert engine.allowed() == "b"
    engine.outliers.sent("b", engine.now_s)
    engine.now_s += TRIAL_S_MAX - 0.01
    assert engine.allowed() == "ac"
    engine.now_s += 0.01
    assert engine.allowed() == "b"


def test_trial_that_fails_as_everywhere_is_no_bad_one() -> None:
    engine = Engine()
    engine.rounds(ENDS_BAD, bad="b")
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
    engine.rounds(ENDS_BAD - 1, bad="b")
    engine.now_s += STALE_S + 1
    assert engine.rounds(1, bad="b") == ""


def test_new_process_begins_anew() -> None:
    engine = Engine()
    engine.rounds(ENDS_BAD, bad="b")
    engine.outliers.keep("ac")
    assert engine.outliers.is_calm
    assert engine.rounds(ENDS_BAD - 1, bad="b") == ""
