"""What the endpoints allow of each version that they name, all of them together."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Final, TypeAlias

from msgspec.structs import replace

from pool.scaling.signals import Limits
from registry_sync.documents import EndpointSpec, Scale

Ref: TypeAlias = tuple[str, str]  # model, version

UNSERVED_IDLE_S: Final = 300.0  # an arm without weight may be called by its number still
_EAGERNESS: Final = ("off", "observe", "act")


def limits_of(
    specs: Iterable[EndpointSpec],
    weights: Mapping[str, Mapping[str, float]],
    due: Collection[str] = (),
    kept: Mapping[Ref, int] | None = None,
) -> dict[Ref, Limits]:
    """Return the limits of each version.

    Where endpoints share a version, whoever wants more of it gets it: the larger bounds, the
    longer idle time (the learned one before any number), the dearer cold start.  Budgets add up,
    and hold only if every endpoint has one.  An arm without weight asks for nothing and is let
    sleep; it is woken by calls for the version itself.

    Args:
        specs: the current ones.
        weights: effective weights by endpoint and variant, where they differ from the spec's.
        due: endpoints that are to be warm now, by a schedule or by request.
        kept: replicas by version that a rollout wants warm, also of an arm without weight.
    """
    served: dict[Ref, Limits] = {}
    others: dict[Ref, Limits] = {}
    for spec in specs:
        effective = weights.get(spec.endpoint, {})
        for variant in spec.variants:
            serves = effective.get(variant.name, variant.weight) > 0
            new = _limits(spec.scale, serves=serves, is_due=spec.endpoint in due)
            ref = (variant.model, variant.version)
            found = served if serves else others
            found[ref] = _both(found[ref], new) if ref in found else new
    together = {**others, **served}
    for ref, replicas in (kept or {}).items():
        if ref in together:
            together[ref] = replace(together[ref], replicas_kept=replicas)
    return together


def owners_of(specs: Iterable[EndpointSpec]) -> dict[Ref, str]:
    """Return the versions that have workers of their own, and whose: the first dedicated endpoint.

    A version that a dedicated and a shared endpoint both name runs on the dedicated one's workers.
    """
    found: dict[Ref, str] = {}
    for spec in sorted(specs, key=lambda spec: spec.endpoint):
        if spec.scale.dedicated:
            for variant in spec.variants:
                found.setdefault((variant.model, variant.version), spec.endpoint)
    return found


def helped_of(specs: Iterable[EndpointSpec]) -> set[Ref]:
    """Return the versions for which fallback workers may answer: one endpoint that says so will do.

    Also those of arms without weight, which are called by their number.
    """
    return {(v.model, v.version) for s in specs if s.scale.fallback == "cpu" for v in s.variants}


def _limits(scale: Scale, *, serves: bool, is_due: bool) -> Limits:
    idle_s = None if scale.idle_s == "auto" else float(scale.idle_s)
    if not serves and idle_s is None:
        idle_s = UNSERVED_IDLE_S
    return Limits(
        replicas_min=scale.replicas_min if serves else 0,
        replicas_max=scale.replicas_max,
        idle_s=idle_s,
        cold_start_cost_s=scale.cold_start_cost_s,
        replica_hours_per_day_max=scale.replica_hours_per_day_max,
        forecast=scale.forecast,
        is_due=is_due and serves,
    )


def _both(one: Limits, other: Limits) -> Limits:
    budgets = [limits.replica_hours_per_day_max for limits in (one, other)]
    idles_s = [math.inf if limits.idle_s is None else limits.idle_s for limits in (one, other)]
    idle_s = max(idles_s)
    return Limits(
        replicas_min=max(one.replicas_min, other.replicas_min),
        replicas_max=max(one.replicas_max, other.replicas_max),
        idle_s=None if idle_s == math.inf else idle_s,
        cold_start_cost_s=max(one.cold_start_cost_s, other.cold_start_cost_s),
        replica_hours_per_day_max=None
        if None in budgets
        else math.fsum(budget or 0.0 for budget in budgets),
        forecast=max(one.forecast, other.forecast, key=_EAGERNESS.index),
        is_due=one.is_due or other.is_due,
    )
