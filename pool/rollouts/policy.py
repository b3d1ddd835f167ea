"""How a rollout goes on: a pure function from everything that is known to the next state.

Decides steps, pauses, promotions and rollbacks, and says what is waited for.  Whether the candidate
is worse the guards decide; who writes the decision down is the desk.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from pool.rollouts.signals import Look, Move, added_seen
from registry_sync.rollout_terms import (
    SEGMENTS_MAX,
    ArmSeen,
    Phase,
    Rollout,
    RolloutState,
    Segment,
)

FAILED_S_MAX: Final = 15.0  # a candidate that no worker can load for so long is given up
LOG_E_MAX: Final = 1e6  # JSON has no infinity
E_MAX: Final = 1e300
REASON_CHARS_MAX: Final = 4000
RESUMED: Final = "resumed"  # the first word of why a rollout goes on


def move(look: Look) -> Move | None:
    """Choose the next state of a rollout; None: everything stays as it is.

    What is wished comes first: an abort always, a promotion unless a guard has just rolled back.
    Then harm, then a candidate that cannot be loaded, then pause and resume.  The next step is
    taken only if nothing is waited for (see `waits_for`); without evidence a rollout waits for
    ever.  Calling again after the move has been written gives the next.

    Args:
        look: at one moment, all of the same segment; its `verdict` is of no use before step 1.

    Returns:
        The state to be written, which has another (segment, step, state) or `harm` than the one
        that was decided on, and the weights of every variant, in percent.
    """
    rollout, state = _rollout(look), look.state
    if state is None:
        return _begin(look)
    if rollout.wish == "abort":
        return None if state.state == "rolled_back" else _back(look, state, "aborted by request")
    if state.state in ("promoted", "rolled_back"):
        return None
    harm = _harm(look, state)
    if harm and rollout.guard.then == "rollback":
        return _back(look, state, harm)
    if look.failed and look.failed_s >= FAILED_S_MAX:
        return _back(look, state, f"{rollout.candidate} cannot be loaded: {look.failed}")
    if rollout.wish == "promote":
        if waits_for(look):
            return None
        return _to(look, state, len(rollout.steps), "promoted", "promoted by request")
    if harm and not state.harm:
        paused = replace(state, state="paused", harm=harm[:REASON_CHARS_MAX])
        return _stay(look, paused, f"paused: {harm}")
    if rollout.wish == "pause":
        if state.state == "paused":
            return None
        return _stay(look, replace(state, state="paused"), "paused by request")
    if state.state == "paused":
        return _resume(look, state)
    if waits_for(look):
        return None
    step = _following(look)
    if step is None:
        return _to(look, state, state.step, "promoted", "every step has held")
    share = f"{rollout.candidate} gets {rollout.steps[step - 1].weight:g} %"
    return _to(look, state, step, "running", f"step {step} of {len(rollout.steps)}: {share}")


def decided(state: RolloutState) -> str:
    """Return which decision a state is the outcome of.

    Returns:
        One of begin, step, pause, resume, promote and rollback.
    """
    if state.state == "rolled_back":
        return "rollback"
    if state.state == "promoted":
        return "promote"
    if state.evidence is None:
        return "begin"
    if state.state == "paused":
        return "pause"
    return "resume" if state.reason.startswith(RESUMED) else "step"


def e_of(log_e: float) -> float:
    """Return an e-value by its natural logarithm, as JSON can have it."""
    return math.exp(min(finite(log_e), math.log(E_MAX)))


def waits_for(look: Look) -> str:
    """Say why a rollout does not go on now; empty: nothing is waited for, or it has ended."""
    rollout, state = _rollout(look), look.state
    if state is None or state.state in ("promoted", "rolled_back"):
        return ""
    if rollout.wish == "promote":
        return _cold(look)
    if state.state == "paused":
        return state.harm or "paused by request"
    verdict = look.verdict
    if state.step:
        if verdict.mismatch:
            return verdict.mismatch
        left_s = hold_s(look) - look.held_s
        if left_s > 0:
            return f"it holds for {math.ceil(left_s)} s more"
        if not verdict.is_enough:
            return verdict.waits_for or "there is too little evidence"
        if verdict.harms:
            return "; ".join(verdict.harms)
        if verdict.worse:
            return f"{verdict.worse}: it waits for evidence"
    return "" if _following(look) is None else _cold(look)


def hold_s(look: Look) -> float:
    """Return for how long the current step is to be watched at least."""
    steps, state = _rollout(look).steps, look.state
    if state is None or not state.step:
        return 0.0
    return steps[min(state.step, len(steps)) - 1].hold_s


def _cold(look: Look) -> str:
    if look.warm >= look.wanted:
        return ""
    candidate = _rollout(look).candidate
    return look.cold or f"{look.warm} of {look.wanted} replicas of {candidate} are warm"


def _harm(look: Look, state: RolloutState) -> str:
    guard = _rollout(look).guard
    if guard.then == "pause" and _rollout(look).overruled >= state.segment:
        return ""
    return "; ".join(look.verdict.harms) if state.step else ""


def _following(look: Look) -> int | None:
    """Return the next step, from 1 on; by its weight, as the steps may be others than before."""
    rollout = _rollout(look)
    now = look.weights.get(rollout.candidate, 0.0)
    return next((i for i, step in enumerate(rollout.steps, 1) if step.weight > now), None)


def _begin(look: Look) -> Move:
    rollout, spec = _rollout(look), look.spec
    if rollout.wish == "abort":
        state = RolloutState(rollout.id, "rolled_back", reason="aborted before it began")
    else:
        phase: Phase = "paused" if rollout.wish == "pause" else "running"
        state = RolloutState(rollout.id, phase, reason="it has begun")
    return Move(replace(state, revision=spec.revision), _weights(look, 0.0), state.reason)


def _resume(look: Look, state: RolloutState) -> Move | None:
    if not state.harm:
        return _stay(look, replace(state, state="running"), f"{RESUMED} by request")
    if _rollout(look).overruled < state.segment:
        return None
    # What was seen stays for people to read; the evidence that was overruled counts no more.
    seen = tuple(replace(segment, log_e={}) for segment in _ended(look, state))
    reason = f"{RESUMED} in spite of: {state.harm}"
    onward = replace(state, state="running", harm="", segment=state.segment + 1, segments=seen)
    return Move(_why(look, onward, reason), dict(look.weights), reason)


def _stay(look: Look, state: RolloutState, reason: str) -> Move:
    """Keep the weights, and with them the segment."""
    return Move(_why(look, state, reason), dict(look.weights), reason)


def _back(look: Look, state: RolloutState, reason: str) -> Move:
    onward = replace(
        state, state="rolled_back", segment=state.segment + 1, segments=_ended(look, state)
    )
    return Move(_why(look, onward, reason), _weights(look, 0.0), reason)


def _to(look: Look, state: RolloutState, step: int, phase: Phase, reason: str) -> Move:
    onward = replace(
        state,
        state=phase,
        step=step,
        segment=state.segment + 1,
        segments=_ended(look, state),
        harm="",
    )
    weight = 100.0 if phase == "promoted" else _rollout(look).steps[step - 1].weight
    return Move(_why(look, onward, reason), _weights(look, weight), reason)


def _why(look: Look, state: RolloutState, reason: str) -> RolloutState:
    return replace(state, reason=reason[:REASON_CHARS_MAX], evidence=_evidence(look))


def _weights(look: Look, candidate: float) -> Mapping[str, float]:
    rollout = _rollout(look)
    given = {rollout.candidate: candidate, rollout.baseline: 100.0 - candidate}
    return {variant.name: given.get(variant.name, 0.0) for variant in look.spec.variants}


def _ended(look: Look, state: RolloutState) -> tuple[Segment, ...]:
    """Return the ended segments, the current one among them; too many become one."""
    arms = {name: counts.seen for name, counts in look.counts.items()}
    if not (state.step or arms):
        return state.segments
    # Before the first step nothing was compared, but the baseline was seen.
    log_es = look.verdict.segment_log_e if state.step else {}
    log_e = {name: finite(value) for name, value in log_es.items()}
    ended = (*state.segments, Segment(state.step, dict(look.weights), arms, log_e))
    if len(ended) <= SEGMENTS_MAX:
        return ended
    # Those of one sort: with evidence, or overruled, or from before the first step.
    pairs = itertools.pairwise(ended)
    sorts = [(bool(a.log_e) == bool(b.log_e), bool(a.step) == bool(b.step)) for a, b in pairs]
    at = sorts.index((True, True)) if (True, True) in sorts else 0
    return (*ended[:at], _together(ended[at], ended[at + 1]), *ended[at + 2 :])


def _together(one: Segment, other: Segment) -> Segment:
    arms = {
        name: added_seen(one.arms.get(name, ArmSeen()), other.arms.get(name, ArmSeen()))
        for name in {**one.arms, **other.arms}
    }
    names = {**one.log_e, **other.log_e}
    log_e = {n: finite(one.log_e.get(n, 0.0) + other.log_e.get(n, 0.0)) for n in names}
    return Segment(other.step, other.weights, arms, log_e)


def finite(value: float) -> float:
    """Return `value` as JSON can have it."""
    return 0.0 if math.isnan(value) else max(-LOG_E_MAX, min(LOG_E_MAX, value))


def _evidence(look: Look) -> dict[str, Any]:
    """Return what the decision was made on, for people."""
    verdict = look.verdict
    return {
        "held_s": round(look.held_s, 3),
        "warm": look.warm,
        "wanted": look.wanted,
        "arms": {
            name: {field: getattr(counts.seen, field) for field in ArmSeen.__struct_fields__}
            for name, counts in look.counts.items()
        },
        "log_e": {name: round(finite(value), 4) for name, value in verdict.log_e.items()},
        "intervals": {
            name: [round(finite(value), 6) for value in interval]
            for name, interval in verdict.intervals.items()
        },
        "harms": list(verdict.harms),
        "worse": verdict.worse,
        "mismatch": verdict.mismatch,
    }


def _rollout(look: Look) -> Rollout:
    rollout = look.spec.rollout
    assert rollout is not None, "a look is at an endpoint with a rollout"
    return rollout
