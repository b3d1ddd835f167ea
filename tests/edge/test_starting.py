"""Whom an edge starts for a call that nobody can take."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edge.dispatching.starting import (
    EXPECTED_S,
    START_AGAIN_S,
    START_S_MAX,
    START_S_MIN,
    are_missed,
    needs_call,
    to_start,
)

NOW_S = 100.0
LONG_S = 60.0  # left to the call


@dataclass
class Reach:
    """How a worker can be reached; the defaults are a cold one's."""

    is_up: bool = False
    is_cold: bool = True
    dialled_s: float | None = None
    failed_s: float = -math.inf


def lost(since_s: float) -> Reach:
    return Reach(is_cold=False, dialled_s=NOW_S - since_s)


def test_first_cold_one_is_started() -> None:
    first, second = Reach(), Reach()
    assert to_start([first, second], NOW_S, LONG_S) is first


def test_nobody_is_started_while_one_is_up() -> None:
    assert to_start([Reach(is_up=True), Reach()], NOW_S, LONG_S) is None


def test_who_was_lost_just_now_is_waited_for_and_who_stays_away_is_not() -> None:
    cold = Reach()
    assert to_start([lost(0.9 * EXPECTED_S), cold], NOW_S, LONG_S) is None
    assert to_start([lost(EXPECTED_S), cold], NOW_S, LONG_S) is cold


def test_who_starts_is_given_its_time() -> None:
    cold = Reach()
    assert to_start([Reach(dialled_s=NOW_S - 0.9 * START_S_MAX), cold], NOW_S, LONG_S) is None
    assert to_start([Reach(dialled_s=NOW_S - START_S_MAX), cold], NOW_S, LONG_S) is cold


def test_another_one_is_started_at_half_of_the_time_that_a_call_has() -> None:
    cold = Reach()
    assert to_start([Reach(dialled_s=NOW_S - 4.9), cold], NOW_S, 5.1) is None
    assert to_start([Reach(dialled_s=NOW_S - 5.0), cold], NOW_S, 5.0) is cold
    assert to_start([Reach(dialled_s=NOW_S - 0.9 * START_S_MIN), cold], NOW_S, 0.0) is None
    assert to_start([Reach(dialled_s=NOW_S - START_S_MIN), cold], NOW_S, 0.0) is cold


def test_who_could_not_be_reached_is_left_alone_for_a_while() -> None:
    failed, cold = Reach(failed_s=NOW_S - 0.9 * START_AGAIN_S), Reach()
    assert to_start([failed, cold], NOW_S, LONG_S) is cold
    assert to_start([failed], NOW_S, LONG_S) is None
    assert to_start([Reach(failed_s=NOW_S - START_AGAIN_S)], NOW_S, LONG_S) is not None


def test_lost_worker_is_dialled_without_a_call_while_it_is_expected_and_a_cold_one_never() -> None:
    assert not needs_call(lost(0.9 * EXPECTED_S), NOW_S)
    assert needs_call(lost(1.1 * EXPECTED_S), NOW_S)
    assert not needs_call(Reach(is_cold=False), NOW_S)
    assert needs_call(Reach(), NOW_S)
    assert needs_call(Reach(dialled_s=NOW_S), NOW_S)


def test_helper_waits_for_who_was_lost_just_now_and_for_half_of_a_calls_time_at_most() -> None:
    cold, gone = Reach(dialled_s=NOW_S), lost(EXPECTED_S)
    assert are_missed([cold, gone, lost(0.9 * EXPECTED_S)], NOW_S, LONG_S)
    assert not are_missed([], NOW_S, LONG_S)
    assert not are_missed([cold, gone, Reach(is_cold=False)], NOW_S, LONG_S)
    assert are_missed([lost(0.24)], NOW_S, 0.26)
    assert not are_missed([lost(0.25)], NOW_S, 0.25)
