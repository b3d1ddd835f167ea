"""Rollouts for tests of who decides on them: specs, and what edges report."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pool.rollouts.signals import ArmCounts, Look, Verdict
from pool.wire.control import ArmEvidence, UnitSeen
from registry_sync.documents import EndpointSpec, Variant
from registry_sync.rollout_terms import ArmSeen, Rollout, RolloutState, Step

ENOUGH = Verdict(is_enough=True)
ROLLOUT = "r1"


def spec_of(
    *weights: float, hold_s: float = 0.0, revision: int = 1, **rollout: Any
) -> EndpointSpec:
    """An endpoint `e` that is to go from version 1 to 2 of the model `m`, by these steps."""
    steps = tuple(Step(weight, hold_s) for weight in weights or (10.0, 100.0))
    return EndpointSpec(
        "e",
        (Variant("stable", "m", "1", 100.0), Variant("canary", "m", "2", 0.0)),
        revision=revision,
        rollout=Rollout(**{"id": ROLLOUT, "steps": steps, **rollout}),
    )


def look_at(
    spec: EndpointSpec,
    state: RolloutState | None,
    canary: float = 0.0,
    verdict: Verdict = ENOUGH,
    **known: Any,
) -> Look:
    """A look at `spec` while the candidate has `canary` percent, and is warm."""
    given = {"now_s": 100.0, "warm": 1, "held_s": 1e6, "counts": {}, **known}
    weights = {"stable": 100.0 - canary, "canary": canary}
    return Look(spec=spec, state=state, verdict=verdict, weights=weights, **given)


def counts(calls: int, errors: int = 0) -> ArmCounts:
    """Counts of calls, each of its own unit."""
    seen = ArmSeen(calls, calls, errors, errors)
    return ArmCounts(seen, units=float(calls), errors=errors, lone_calls=calls)


def row(
    variant: str,
    calls: int = 0,
    errors: int = 0,
    *,
    segment: int = 1,
    units: Iterable[int] = (),
    slow_units: Iterable[int] = (),
    **more: Any,
) -> ArmEvidence:
    """What an edge reports of one arm: errors of calls without a unit, and units that failed."""
    failed, slow = set(units), set(slow_units)
    counted = dict.fromkeys(("assigned", "units", "lone_calls", "requests"), calls)
    given = {"endpoint": "e", "rollout": ROLLOUT, **counted, **more}
    told = [UnitSeen(unit, 1, unit in failed, unit in slow) for unit in sorted(failed | slow)]
    return ArmEvidence(
        segment=segment,
        variant=variant,
        calls=calls,
        errors=errors + len(failed),
        lone_errors=errors,
        slow=len(slow),
        told=tuple(told),
        **given,
    )
