"""How a rollout is wished for and what became of it: the parts of an endpoint's two documents.

`Rollout` is part of the spec, which users write; `RolloutState` of the state, which the controller
writes.  What both mean together is decided in `rollouts`.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from registry_sync.fitting import INTEGER_MAX, rule_of, schema_of
from registry_sync.names import NAME_PATTERN, check_name
from registry_sync.rules import guard_rule, steps_rule

STEPS_MAX: Final = 20
HOLD_S_MAX: Final = 30 * 86_400  # of one step
SEGMENTS_MAX: Final = 64  # of one rollout: its steps, and what was asked for in between

_Arm = Annotated[
    str,
    Meta(
        extra={"rule": rule_of(lambda value: check_name("variant", value))},
        extra_json_schema=schema_of(NAME_PATTERN),
    ),
]
_Count = Annotated[int, Meta(ge=0, le=INTEGER_MAX)]
_Text = Annotated[str, Meta(max_length=4096)]
_Id = Annotated[str, Meta(max_length=64)]
_Percent = Annotated[float, Meta(ge=0, le=100)]

Wish = Literal["run", "pause", "promote", "abort"]
Phase = Literal["running", "paused", "promoted", "rolled_back"]


class Step(msgspec.Struct, frozen=True):
    """The candidate's share, and for how long it is watched before the next step."""

    weight: Annotated[float, Meta(gt=0, le=100)]  # percent
    hold_s: Annotated[float, Meta(ge=0, le=HOLD_S_MAX)] = 60.0


class Guard(msgspec.Struct, frozen=True):
    """What the candidate is watched for, and what happens when it is worse.

    Only calls that were dispatched to a worker count, and a unit's own bad luck only once.
    """

    errors: bool = True  # the share of calls that the model failed
    # The share of calls that take longer.
    slower_than_ms: Annotated[float, Meta(gt=0, le=3_600_000)] | None = None
    # How many times as long its calls may take as the baseline's, by the geometric mean.
    latency_ratio_max: Annotated[float, Meta(ge=1, le=100)] | None = None
    margin_points: _Percent = 0.5  # by which the shares may be worse, in percentage points
    # The chance that a candidate as good as the baseline is ever taken for worse.
    alpha: Annotated[float, Meta(gt=0, le=0.5)] = 0.05
    outcomes_min: Annotated[int, Meta(ge=1, le=1_000_000)] = 20  # of each arm, before the next step
    then: Literal["rollback", "pause"] = "rollback"


# One that watches something.
Watching = Annotated[Guard, Meta(extra={"rule": guard_rule})]


class Shadow(msgspec.Struct, frozen=True):
    """Copies of the baseline's calls, which the candidate answers for nobody."""

    sample: Annotated[float, Meta(gt=0, le=1)] = 0.1
    calls_per_s_max: Annotated[float, Meta(gt=0, le=1e6)] = 50.0  # at one worker


class Rollout(msgspec.Struct, frozen=True):
    """How one arm is to take over from another."""

    # Another id is another rollout; empty in a file: made from the versions of both arms.
    id: _Id = ""
    baseline: _Arm = "stable"
    candidate: _Arm = "canary"
    steps: Annotated[
        tuple[Step, ...], Meta(min_length=1, max_length=STEPS_MAX, extra={"rule": steps_rule})
    ] = (Step(1), Step(5), Step(25), Step(50), Step(100))
    guard: Watching = Guard()
    shadow: Shadow | None = None
    wish: Wish = "run"
    # A segment's number: what guards found up to its end does not pause the rollout any more.
    overruled: _Count = 0


class ArmSeen(msgspec.Struct, frozen=True):
    """What was counted of one arm in one segment."""

    calls: _Count = 0  # dispatched, with an outcome
    units: _Count = 0  # dispatched, each once in a look window
    errors: _Count = 0  # calls that the model failed, or did not answer in time
    failed_units: _Count = 0  # each once; estimated where they are many
    slow: _Count = 0  # calls over the guard's limit
    slow_units: _Count = 0  # each once; estimated where they are many
    requests: _Count = 0  # that were given this arm; dispatched or not


class Segment(msgspec.Struct, frozen=True):
    """A stretch of a rollout with the same weights, after it has ended."""

    step: _Count
    weights: Annotated[dict[_Arm, _Percent], Meta(max_length=16)]
    arms: Annotated[dict[_Arm, ArmSeen], Meta(max_length=16)] = {}
    # Natural logarithms of the e-values by guard: "errors", "slow", …
    log_e: Annotated[dict[_Id, float], Meta(max_length=16)] = {}


class RolloutState(msgspec.Struct, frozen=True):
    """How far a rollout is; every decision is one new state, written by compare-and-swap."""

    id: _Id  # of the spec's rollout that this is about
    state: Phase = "running"
    step: _Count = 0  # of the rollout's steps, from 1 on; 0: the candidate has no weight yet
    segment: _Count = 0  # one more for every change of weights; what edges count belongs to one
    segments: Annotated[tuple[Segment, ...], Meta(max_length=SEGMENTS_MAX)] = ()  # ended ones
    reason: _Text = ""
    at: _Text = ""  # UTC, ISO 8601, of the decision; for people only
    evidence: dict[str, Any] | None = None  # that the decision was made on; for people only
    harm: _Text = ""  # why a guard has paused it; until the spec overrules that
    revision: _Count = 0  # of the spec that it began with
    epoch: _Count = 0  # of the controller that made the decision; for people only
