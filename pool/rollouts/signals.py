"""What the guards and the policy of rollouts are told and what they answer: plain values.

The same values go through the controller, the simulations and the tests.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from registry_sync.documents import EndpointSpec
from registry_sync.rollout_terms import ArmSeen, RolloutState

Unit = tuple[float, float]  # calls, and of these how many had an event


class ArmCounts(msgspec.Struct, frozen=True):
    """One arm in one segment, over all edges: cumulative since the segment began."""

    seen: ArmSeen = ArmSeen()  # calls, units and events as people are shown them
    units: float = 0.0  # dispatched, each once in a look window
    errors: int = 0  # of calls without a unit, each of which is its own
    slow: int = 0  # the same
    log_calls: int = 0
    log_sum: float = 0.0
    log_squares: float = 0.0
    assigned: int = 0  # units that got this arm, as many as one edge alone has told apart
    requests: int = 0  # that got this arm, dispatched or not
    lone_calls: int = 0  # dispatched calls without a unit
    # By kind, "errors" or "slow": every unit with such events, from its first event on.  Of many
    # units a sample by their hash, of both arms alike.
    unit_events: Mapping[str, tuple[Unit, ...]] = {}
    told_share: float = 1.0  # of all units, how many are in this sample


class Verdict(msgspec.Struct, frozen=True):
    """What the guards say of a candidate now."""

    harms: tuple[str, ...] = ()  # of what there is evidence, for people; empty: of nothing
    is_enough: bool = False  # both arms have as many outcomes as a next step needs
    waits_for: str = ""  # what is missing to that, for people
    worse: str = ""  # looks worse than the margin allows, but the evidence does not suffice
    mismatch: str = ""  # units are not split as the weights say: nothing else can be trusted
    log_e: Mapping[str, float] = {}  # by guard, all segments together; natural logarithms
    segment_log_e: Mapping[str, float] = {}  # of this segment alone
    # By arm: rate of errors, and an interval around it that holds at every look.
    intervals: Mapping[str, tuple[float, float, float]] = {}  # arm → (low, rate, high)


class Look(msgspec.Struct, frozen=True):
    """Everything that a rollout's next move depends on."""

    now_s: float  # monotonic
    spec: EndpointSpec  # with a rollout
    state: RolloutState | None  # of this rollout; None: it has not begun
    verdict: Verdict
    counts: Mapping[str, ArmCounts]  # by arm, of the current segment
    warm: int = 0  # replicas of the candidate
    wanted: int = 1  # so many are enough for the next step
    failed: str = ""  # why the candidate cannot be loaded anywhere; empty: it can, or tries
    failed_s: float = 0.0  # for how long that has been so
    held_s: float = 0.0  # since every live edge has gone by the current weights
    weights: Mapping[str, float] = {}  # that hold now, by arm, in percent
    cold: str = ""  # what is missing to so many, for people


class Move(msgspec.Struct, frozen=True):
    """One decision: the next state, and the weights that hold from now on."""

    state: RolloutState
    weights: Mapping[str, float]
    reason: str


def added_seen(one: ArmSeen, other: ArmSeen) -> ArmSeen:
    """Return what was counted in both."""
    return ArmSeen(*(getattr(one, f) + getattr(other, f) for f in ArmSeen.__struct_fields__))
