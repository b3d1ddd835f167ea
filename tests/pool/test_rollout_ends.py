"""Where whole rollouts end: calls counted as an edge counts them, guards and policy as they are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edge.watch import RolloutWatch
from pool.rollouts.evidence import EvidenceBook
from pool.rollouts.guards import Guards
from pool.rollouts.policy import move
from pool.rollouts.signals import ArmCounts, Verdict
from registry_sync.rollout_terms import Guard, RolloutState
from tests.support.rollouts import ROLLOUT, look_at, spec_of

ARMS = ("stable", "canary")
DEFAULT_STEPS = (1.0, 5.0, 25.0, 50.0, 100.0)


def _end(
    status: Callable[[float, int, float], int],
    steps: tuple[float, ...] = DEFAULT_STEPS,
    hold_s: float = 60.0,
    per_s: int = 20,
    seed: int = 1,
    until_s: int = 3000,
) -> tuple[str, int, int]:
    """Return how a rollout ends ("running": not), after how many seconds and failed calls of it.

    Args:
        status: of a call at a time, by an arm, given a number in [0, 1) that is drawn for it.
        steps: weights.
        hold_s: of every step.
        per_s: calls every second, of both arms.
        seed: of chance.
        until_s: when the test ends.
    """
    rng = np.random.default_rng(seed)
    spec, state = spec_of(*steps, hold_s=hold_s), RolloutState(ROLLOUT)
    watch, book = RolloutWatch("e", ROLLOUT, "salt"), EvidenceBook()
    segment, guards, verdict = watch.segment(0, ARMS), None, Verdict()
    book.follow("e", ROLLOUT, 0)
    weight, held_s, failed = 0.0, 0.0, 0
    counts: dict[str, ArmCounts] = {}
    for now_s in range(until_s):
        drawn = rng.random((per_s, 2))
        for index in range(per_s):
            arm = int(100.0 * drawn[index, 0] < weight)
            code = status(float(now_s), arm, drawn[index, 1])
            segment.arms[ARMS[arm]].requests += 1
            segment.arms[ARMS[arm]].observe(None, code, 0.01, float(now_s))
            failed += arm and code >= 500
        book.report("edge", watch.evidence())
        counts = book.counts("e")
        if guards is not None:
            guards.look(float(now_s), *(counts.get(name, ArmCounts()) for name in ARMS))
            verdict = guards.verdict()
        held_s += 1.0
        look = look_at(spec, state, weight, verdict, counts=counts, held_s=held_s)
        found = move(look)
        if found is None:
            continue
        if found.state.state != "running":
            return found.state.state, now_s, failed
        state, weight, held_s = found.state, found.weights["canary"], 0.0
        book.follow("e", ROLLOUT, state.segment)
        segment = watch.segment(state.segment, ARMS)
        guards = Guards(
            Guard(),
            share=weight / 100.0,
            past=state.segments,
            steps=len(steps),
            cached=False,
        )
        verdict = guards.verdict()
    return state.state, until_s, failed


def _fails(rate: float, code: int = 500, from_s: float = 0.0) -> Callable[[float, int, float], int]:
    """Return calls of which 1 % fail, and that part of the candidate's from some time on."""

    def status(now_s: float, arm: int, drawn: float) -> int:
        return code if drawn < (rate if arm and now_s >= from_s else 0.01) else 200

    return status


def test_an_equal_candidate_is_promoted() -> None:
    state, _, _ = _end(_fails(0.01), hold_s=10.0, per_s=50)
    assert state == "promoted"


@pytest.mark.parametrize("part", [0.2, 1.0])
def test_a_candidate_whose_calls_run_out_of_time_is_rolled_back(part: float) -> None:
    state, after_s, failed = _end(_fails(part, 504))
    print(f"\n{part:.0%} of the candidate's calls 504: {state}, {after_s} s, {failed} failed calls")
    assert state == "rolled_back"
    assert failed <= 20


def test_a_rollout_of_one_step_is_not_blind() -> None:
    """Nobody has seen a baseline: it is warm at once."""
    state, after_s, failed = _end(_fails(1.0), steps=(100.0,))
    print(f"\none step, every call fails: {state}, {after_s} s, {failed} failed calls")
    assert state == "rolled_back"
    assert after_s <= 60


def test_a_candidate_that_begins_to_fail_at_the_last_step_is_not_promoted() -> None:
    state, after_s, failed = _end(_fails(0.2, from_s=70.0), steps=(50.0, 100.0))
    print(f"\n20 % of the calls fail from second 10 of the last step on: {state}, {after_s} s")
    print(f"{failed} failed calls")
    assert state == "rolled_back"
    assert after_s <= 180
