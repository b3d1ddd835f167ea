"""What follows from a look at a rollout."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from pool.rollouts.policy import FAILED_S_MAX, LOG_E_MAX, finite, move, waits_for
from pool.rollouts.signals import Look, Move, Verdict
from registry_sync.documents import EndpointState, read_state, write
from registry_sync.rollout_terms import SEGMENTS_MAX, ArmSeen, Guard, RolloutState, Segment
from tests.support.rollouts import ENOUGH, ROLLOUT, counts, look_at, spec_of

STEP_1 = RolloutState(ROLLOUT, step=1, segment=1)
WORSE = "errors: 20 % instead of 1 %"
HARM = Verdict(harms=(WORSE,), is_enough=True, segment_log_e={"errors": 4.0})
PAUSES = Guard(then="pause")


def weights(found: Move | None) -> dict[str, float]:
    assert found is not None
    return dict(found.weights)


def test_begins_with_the_baseline_at_all_weight() -> None:
    found = move(look_at(spec_of(revision=7), None))
    assert found is not None
    assert (found.state.state, found.state.step, found.state.segment) == ("running", 0, 0)
    assert (found.state.id, found.state.revision) == (ROLLOUT, 7)
    assert weights(found) == {"stable": 100.0, "canary": 0.0}


def test_first_step_waits_for_a_warm_candidate_only() -> None:
    begun = RolloutState(ROLLOUT)
    cold = look_at(spec_of(), begun, verdict=Verdict(), warm=0, held_s=0.0)
    assert move(cold) is None
    assert waits_for(cold) == "0 of 1 replicas of canary are warm"
    found = move(replace(cold, warm=1))
    assert weights(found) == {"stable": 90.0, "canary": 10.0}
    assert found is not None
    assert (found.state.step, found.state.segment) == (1, 1)
    assert found.state.segments == ()  # nothing was compared before


def test_step_after_step_until_the_last_has_held() -> None:
    spec = spec_of(1.0, 5.0, 100.0)
    state, canary, seen = RolloutState(ROLLOUT), 0.0, []
    while found := move(look_at(spec, state, canary)):
        state, canary = found.state, found.weights["canary"]
        seen.append((state.state, state.step, state.segment, canary))
    assert seen == [
        ("running", 1, 1, 1.0),
        ("running", 2, 2, 5.0),
        ("running", 3, 3, 100.0),
        ("promoted", 3, 4, 100.0),
    ]
    assert [segment.step for segment in state.segments] == [1, 2, 3]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"held_s": 59.2}, "it holds for 1 s more"),
        ({"verdict": Verdict(waits_for="canary: 3 of 20")}, "canary: 3 of 20"),
        ({"verdict": Verdict()}, "there is too little evidence"),
        ({"verdict": replace(ENOUGH, worse="errors look worse")}, "errors look worse: it waits"),
        ({"verdict": replace(ENOUGH, mismatch="units are split 50:50")}, "units are split 50:50"),
        ({"warm": 1, "wanted": 2}, "1 of 2 replicas of canary are warm"),
    ],
)
def test_a_step_waits(change: dict[str, Any], why: str) -> None:
    ready = look_at(spec_of(hold_s=60.0), STEP_1, 10.0, held_s=60.0)
    assert move(ready) is not None
    assert waits_for(ready) == ""
    waiting = replace(ready, **change)
    assert move(waiting) is None
    assert waits_for(waiting).startswith(why)


def test_last_step_needs_no_more_replicas() -> None:
    state = RolloutState(ROLLOUT, step=2, segment=2)
    found = move(look_at(spec_of(), state, 100.0, warm=0, wanted=3))
    assert found is not None
    assert found.state.state == "promoted"


def test_harm_rolls_back_at_once_and_keeps_what_was_seen() -> None:
    seen = {"stable": counts(900, 9), "canary": counts(100, 20)}
    found = move(look_at(spec_of(hold_s=1e6), STEP_1, 10.0, HARM, held_s=0.0, counts=seen))
    assert found is not None
    assert weights(found) == {"stable": 100.0, "canary": 0.0}
    state = found.state
    assert (state.state, state.step, state.segment) == ("rolled_back", 1, 2)
    assert state.reason == WORSE
    (segment,) = state.segments
    assert segment.weights == {"stable": 90.0, "canary": 10.0}
    assert segment.arms["canary"] == ArmSeen(100, 100, 20, 20)
    assert segment.log_e == {"errors": 4.0}
    assert state.evidence is not None
    assert state.evidence["arms"]["canary"]["errors"] == 20
    assert move(look_at(spec_of(), state, 0.0, HARM)) is None


def test_harm_counts_while_paused_and_although_promotion_is_wished() -> None:
    paused = replace(STEP_1, state="paused")
    for spec in (spec_of(wish="pause"), spec_of(wish="promote")):
        found = move(look_at(spec, paused, 10.0, HARM))
        assert found is not None
        assert found.state.state == "rolled_back"


def test_guard_may_pause_instead_until_it_is_overruled() -> None:
    spec = spec_of(guard=PAUSES)
    found = move(look_at(spec, STEP_1, 10.0, HARM))
    assert found is not None
    paused = found.state
    assert (paused.state, paused.segment) == ("paused", 1)
    assert weights(found) == {"stable": 90.0, "canary": 10.0}
    assert paused.harm == WORSE
    for verdict in (HARM, ENOUGH):  # a new controller may not have heard of it yet
        waiting = look_at(spec, paused, 10.0, verdict)
        assert move(waiting) is None
        assert waits_for(waiting) == paused.harm
    found = move(look_at(spec_of(guard=PAUSES, overruled=1), paused, 10.0, HARM))
    assert found is not None
    assert (found.state.state, found.state.segment, found.state.harm) == ("running", 2, "")
    assert weights(found) == {"stable": 90.0, "canary": 10.0}
    assert [segment.log_e for segment in found.state.segments] == [{}]
    again = move(look_at(spec_of(guard=PAUSES, overruled=1), found.state, 10.0, HARM))
    assert again is not None
    assert again.state.state == "paused"


def test_promotion_in_spite_of_a_guard_that_only_pauses() -> None:
    paused = replace(STEP_1, state="paused", harm="errors")
    found = move(look_at(spec_of(guard=PAUSES, wish="promote"), paused, 10.0, HARM))
    assert found is not None
    assert (found.state.state, weights(found)["canary"]) == ("promoted", 100.0)


def test_pause_and_resume_keep_weights_and_segment() -> None:
    found = move(look_at(spec_of(wish="pause"), STEP_1, 10.0))
    assert found is not None
    assert (found.state.state, found.state.segment, found.state.step) == ("paused", 1, 1)
    assert weights(found)["canary"] == 10.0
    assert move(look_at(spec_of(wish="pause"), found.state, 10.0)) is None
    assert waits_for(look_at(spec_of(wish="pause"), found.state, 10.0)) == "paused by request"
    found = move(look_at(spec_of(), found.state, 10.0))
    assert found is not None
    assert (found.state.state, found.state.segment, found.state.step) == ("running", 1, 1)


def test_promote_waits_for_replicas_and_for_nothing_else() -> None:
    spec = spec_of(1.0, 50.0, 100.0, hold_s=1e6, wish="promote")
    for state in (STEP_1, replace(STEP_1, state="paused")):
        ready = look_at(spec, state, 1.0, Verdict(mismatch="split", worse="looks so"), held_s=0.0)
        assert move(replace(ready, wanted=2)) is None
        assert waits_for(replace(ready, wanted=2)) == "1 of 2 replicas of canary are warm"
        found = move(ready)
        assert found is not None
        assert (found.state.state, found.state.step) == ("promoted", 3)
        assert weights(found) == {"stable": 0.0, "canary": 100.0}


def test_abort_wins_over_everything_also_over_a_promotion_that_was_faster() -> None:
    spec = spec_of(wish="abort")
    before = move(look_at(spec, None))
    assert before is not None
    assert before.state.state == "rolled_back"
    for phase in ("running", "paused", "promoted"):
        found = move(look_at(spec, replace(STEP_1, state=phase), 10.0, warm=0))
        assert found is not None
        assert (found.state.state, found.state.segment) == ("rolled_back", 2)
        assert weights(found) == {"stable": 100.0, "canary": 0.0}
        assert move(look_at(spec, found.state)) is None


@pytest.mark.parametrize("wish", ["run", "pause", "promote"])
@pytest.mark.parametrize("phase", ["promoted", "rolled_back"])
def test_end_is_the_end(wish: str, phase: str) -> None:
    ended = replace(STEP_1, state=phase)
    assert move(look_at(spec_of(wish=wish), ended, 10.0, HARM, failed="x", failed_s=1e6)) is None


def test_candidate_that_cannot_be_loaded_is_given_up() -> None:
    for state, canary in ((RolloutState(ROLLOUT), 0.0), (STEP_1, 10.0)):
        look = look_at(
            spec_of(), state, canary, Verdict(), warm=0, failed="bad graph", failed_s=FAILED_S_MAX
        )
        assert move(replace(look, failed_s=FAILED_S_MAX - 1)) is None
        found = move(look)
        assert found is not None
        assert (found.state.state, weights(found)["stable"]) == ("rolled_back", 100.0)
        assert found.reason == "canary cannot be loaded: bad graph"


def test_steps_that_were_changed_meanwhile_go_on_from_the_weight() -> None:
    state = RolloutState(ROLLOUT, step=3, segment=3)
    found = move(look_at(spec_of(1.0, 5.0, 25.0, 30.0, 100.0), state, 25.0))
    assert found is not None
    assert (found.state.step, weights(found)["canary"]) == (4, 30.0)
    found = move(look_at(spec_of(50.0, 100.0), state, 25.0))
    assert found is not None
    assert (found.state.step, weights(found)["canary"]) == (1, 50.0)


def test_other_arms_have_no_weight() -> None:
    spec = spec_of()
    third = replace(spec.variants[0], name="old", weight=0.0)
    spec = replace(spec, variants=(*spec.variants, third))
    assert weights(move(look_at(spec, RolloutState(ROLLOUT)))) == {
        "stable": 90.0,
        "canary": 10.0,
        "old": 0.0,
    }


def test_segments_stay_bounded_and_lose_no_evidence() -> None:
    past = tuple(
        Segment(1, {"canary": 10.0}, {"canary": ArmSeen(calls=1)}, {"errors": 0.5})
        for _ in range(SEGMENTS_MAX)
    )
    found = move(look_at(spec_of(), replace(STEP_1, segments=past), 10.0, HARM))
    assert found is not None
    segments = found.state.segments
    assert len(segments) == SEGMENTS_MAX
    assert math.fsum(one.log_e.get("errors", 0.0) for one in segments) == 0.5 * SEGMENTS_MAX + 4.0
    arms = [one.arms.get("canary", ArmSeen()) for one in segments]
    assert sum(arm.calls for arm in arms) == SEGMENTS_MAX


def test_segments_of_one_sort_become_one_where_there_are_too_many() -> None:
    before = Segment(0, {"stable": 100.0}, {"stable": ArmSeen(calls=9)})
    overruled = Segment(1, {"canary": 10.0}, {"canary": ArmSeen(calls=7, errors=7)})
    past = (before, overruled, *(replace(overruled, log_e={"errors": 0.5}) for _ in range(62)))
    found = move(look_at(spec_of(), replace(STEP_1, segments=past), 10.0, HARM))
    assert found is not None
    assert found.state.segments[:2] == (before, overruled)
    assert found.state.segments[2].log_e == {"errors": 1.0}


def test_what_the_baseline_did_before_the_first_step_is_kept() -> None:
    begun = RolloutState(ROLLOUT)
    found = move(look_at(spec_of(), begun, counts={"stable": counts(50, 1)}))
    assert found is not None
    (segment,) = found.state.segments
    assert (segment.step, segment.weights["canary"], segment.log_e) == (0, 0.0, {})
    assert segment.arms["stable"].errors == 1


def test_every_decision_can_be_written() -> None:
    wild = Verdict(
        harms=("x" * 100_000,),
        log_e={"errors": math.inf},
        segment_log_e={"errors": -math.inf},
        intervals={"canary": (math.nan, 0.5, math.inf)},
    )
    for guard in (Guard(), PAUSES):
        found = move(look_at(spec_of(guard=guard), STEP_1, 10.0, wild))
        assert found is not None
        state = EndpointState("e", 1, dict(found.weights), rollout=found.state)
        assert read_state(write(state)).rollout == msgspec.json.decode(
            msgspec.json.encode(found.state), type=RolloutState
        )
        json.dumps(msgspec.to_builtins(found.state), allow_nan=False)


def test_what_json_cannot_have_is_no_evidence_or_a_bounded_one() -> None:
    values = (math.nan, math.inf, -math.inf, 3.0)
    assert [finite(value) for value in values] == [0.0, LOG_E_MAX, -LOG_E_MAX, 3.0]


def test_no_look_makes_a_move_that_changes_nothing() -> None:
    """Over all combinations of a few values: what is written can be told from what was before."""
    looks: list[Look] = []
    for wish in ("run", "pause", "promote", "abort"):
        for phase in ("running", "paused", "promoted", "rolled_back"):
            for step, canary in ((0, 0.0), (1, 10.0), (2, 100.0)):
                for verdict in (ENOUGH, HARM, Verdict()):
                    for guard in (Guard(), PAUSES):
                        state = RolloutState(ROLLOUT, phase, step=step, segment=step)
                        spec = spec_of(wish=wish, guard=guard)
                        looks.append(look_at(spec, state, canary, verdict))
    for look in looks:
        found, before = move(look), look.state
        assert before is not None
        if found is None:
            continue
        after = found.state
        key = (after.segment, after.step, after.state, after.harm)
        assert key != (before.segment, before.step, before.state, before.harm)
        is_moved = dict(found.weights) != dict(look.weights)
        assert not is_moved or after.segment == before.segment + 1
        assert math.fsum(found.weights.values()) == 100.0
