"""Which requests are suspected, and which end in quarantine."""

from __future__ import annotations

import random

import numpy as np
import pytest

from edge.dispatching.quarantine import (
    QUARANTINE_S,
    QUARANTINED_MAX,
    SUSPECT_S,
    SUSPECTS_MAX,
    Loss,
    Quarantine,
    Row,
    fingerprint_of,
)
from pool.wire.data import Tensor

pytestmark = pytest.mark.rule("F20")

REF = ("m", "1")
A, B, C = (Loss(name, f"{name}1") for name in "abc")
ONE, TWO = b"one", b"two"


def made(*losses: Loss) -> Quarantine:
    """A quarantine in which ONE was in flight at these losses, alone but for the first."""
    known = Quarantine()
    for index, loss in enumerate(losses):
        known.blame(ONE, REF, loss, 0.0, was_only=index > 0)
    return known


def test_nobody_is_suspected_at_first() -> None:
    known = Quarantine()
    assert known.verdict(ONE, 0.0) == "clear"
    assert not known.watched


def test_one_loss_makes_a_suspect() -> None:
    known = made(A)
    assert known.verdict(ONE, 0.0) == "suspect"
    assert known.verdict(TWO, 0.0) == "clear"
    assert dict(known.watched) == {REF: 1}


def test_two_losses_are_open_until_both_were_deaths() -> None:
    known = made(A, B)
    assert known.verdict(ONE, 0.0) == "open"
    assert known.heard("b", "b2", 1.0) == []
    assert known.verdict(ONE, 1.0) == "open"
    assert known.heard("a", "a2", 2.0) == [ONE]
    assert known.verdict(ONE, 2.0) == "guilty"
    assert known.left_s(ONE, 2.0) == QUARANTINE_S


def test_quarantine_ends() -> None:
    known = made(A, B)
    known.heard("b", "b2", 1.0)
    known.heard("a", "a2", 2.0)
    assert known.left_s(ONE, 2.0 + QUARANTINE_S - 1) == 1.0
    assert known.verdict(ONE, 2.0 + QUARANTINE_S) == "clear"
    known.tidy(2.0 + QUARANTINE_S)
    assert not known.watched
    assert known.rows(2.0 + QUARANTINE_S) == []


def test_two_deaths_of_one_worker_count_as_two() -> None:
    known = made(Loss("a", "a1"))
    known.heard("a", "a2", 1.0)
    known.blame(ONE, REF, Loss("a", "a2"), 2.0, was_only=True)
    assert known.heard("a", "a3", 3.0) == [ONE]


def test_a_process_that_still_speaks_has_not_died() -> None:
    known = made(A, B)
    assert known.heard("b", "b1", 1.0) == []
    assert known.verdict(ONE, 1.0) == "suspect"
    assert known.heard("a", "a1", 1.0) == []
    assert known.verdict(ONE, 1.0) == "clear"
    assert not known.watched


def test_who_had_not_begun_when_another_worker_died_is_not_blamed() -> None:
    known = made(A)
    known.blame(ONE, REF, B, 0.0, was_only=False)
    known.heard("a", "a2", 1.0)
    known.heard("b", "b2", 1.0)
    assert known.verdict(ONE, 1.0) == "suspect"


def test_a_run_to_the_end_shows_innocence() -> None:
    known = made(A)
    known.ran(ONE)
    assert known.verdict(ONE, 0.0) == "clear"
    known.blame(ONE, REF, B, 0.0, was_only=False)
    known.heard("a", "a2", 1.0)
    known.heard("b", "b2", 1.0)
    assert known.verdict(ONE, 1.0) == "suspect"


def test_losses_of_which_nobody_knows_are_let_go() -> None:
    known = made(A, B)
    known.heard("a", "a2", 1.0)
    known.give_up(ONE)
    assert known.verdict(ONE, 1.0) == "suspect"
    known = made(A, B)
    known.give_up(ONE)
    assert known.verdict(ONE, 1.0) == "clear"
    known.give_up(TWO)


def test_a_death_is_held_against_a_request_for_a_while() -> None:
    known = made(A)
    assert known.verdict(ONE, SUSPECT_S - 1) == "suspect"
    assert known.verdict(ONE, SUSPECT_S) == "clear"
    known.tidy(SUSPECT_S)
    assert not known.watched


def test_what_others_know_is_taken_over_and_told() -> None:
    known = made(A)
    assert known.learn([Row(ONE, REF, 60.0), Row(TWO, REF, 30.0)], 10.0) == [ONE, TWO]
    assert known.verdict(ONE, 10.0) == "guilty"
    assert known.rows(20.0) == [Row(ONE, REF, 50.0), Row(TWO, REF, 20.0)]
    # Said again with what is left by then, it lasts no longer; nor beyond what anybody may say.
    assert known.learn([Row(ONE, REF, 40.0)], 20.0) == []
    assert known.left_s(ONE, 20.0) == 50.0
    known.learn([Row(ONE, REF, 1e9)], 20.0)
    assert known.left_s(ONE, 20.0) == QUARANTINE_S
    assert dict(known.watched) == {REF: 2}


def test_a_request_in_quarantine_is_not_suspected_again() -> None:
    known = Quarantine()
    known.learn([Row(ONE, REF, 60.0)], 0.0)
    known.blame(ONE, REF, C, 0.0, was_only=True)
    assert known.verdict(ONE, 0.0) == "guilty"
    assert dict(known.watched) == {REF: 1}


def test_all_of_it_is_bounded() -> None:
    known = Quarantine()
    for number in range(SUSPECTS_MAX + 10):
        known.blame(b"s%d" % number, REF, A, 0.0, was_only=False)
    assert known.verdict(b"s9", 0.0) == "clear"
    assert known.verdict(b"s10", 0.0) == "suspect"
    known.learn([Row(b"q%d" % n, REF, 1.0 + n / 1e4) for n in range(QUARANTINED_MAX + 10)], 0.0)
    assert known.verdict(b"q9", 0.0) == "clear"
    assert known.verdict(b"q10", 0.0) == "guilty"
    assert known.watched[REF] == SUSPECTS_MAX + QUARANTINED_MAX


def test_whatever_happens_nobody_is_guilty_without_two_deaths() -> None:
    """Random histories, beside a plain count of the deaths that each request was alone in."""
    for seed in range(200):
        draw = random.Random(seed)
        known = Quarantine()
        lives = dict.fromkeys("abc", 1)
        fates: dict[bytes, int] = {}
        for step in range(60):
            now_s = float(step)
            worker, request = draw.choice("abc"), draw.choice([ONE, TWO, b"three"])
            loss = Loss(worker, str(lives[worker]))
            if known.verdict(request, now_s) not in ("clear", "suspect"):
                continue
            died = draw.random() < 0.4
            fate = draw.choice(["ran", "lost"])
            if fate == "ran":
                known.ran(request)
                fates[request] = 0
                continue
            known.blame(request, REF, loss, now_s, was_only=True)
            lives[worker] += died
            fates[request] = fates.get(request, 0) + died
            guilty = known.heard(worker, str(lives[worker]), now_s)
            assert (request in guilty) == (fates[request] >= 2), (seed, step)
            assert set(known.watched) <= {REF}


def test_a_fingerprint_names_all_that_an_engine_sees() -> None:
    x = Tensor("x", "FP32", (2, 2), np.arange(4, dtype=np.float32).tobytes())
    other = [
        ("d2", [x], ()),
        ("d", [x], ("y",)),
        ("d", [Tensor("z", x.datatype, x.shape, x.data)], ()),
        ("d", [Tensor("x", "INT32", x.shape, x.data)], ()),
        ("d", [Tensor("x", x.datatype, (4, 1), x.data)], ()),
        ("d", [Tensor("x", x.datatype, x.shape, bytes(16))], ()),
        ("d", [x, x], ()),
        ("d", [], ()),
    ]
    found = {fingerprint_of(*one) for one in other}
    assert len(found) == len(other)
    assert fingerprint_of("d", [x], ()) not in found
    again = Tensor("x", "FP32", (2, 2), memoryview(bytes(x.data)))
    assert fingerprint_of("d", [x], ()) == fingerprint_of("d", [again], ())
