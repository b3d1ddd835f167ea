"""Engines that an operator has had unloaded: they sleep until somebody wants them again.

An endpoint that never sleeps by policy would have its engines loaded again at once.  So what was
let go is remembered until it is woken, by a call or by being asked for, or until a new document
wants a minimum of it or begins a rollout; then it is wanted as before.  Pure functions over the
workers' last heartbeats and documents; the controller keeps the memory, which does not outlive it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pool.placement import Demand, Ref, WorkerView
from registry_sync.documents import EndpointSpec

# No replica is kept, and the first round in which it has no calls takes it away.
NOTHING = Demand(replicas=0, failed_idle_s=0.0)
_NOR_FALLBACK = Demand(replicas=0, failed_idle_s=0.0, fallback_idle_s=0.0)


def refs_of(endpoint: str, specs: Mapping[str, EndpointSpec]) -> list[Ref]:
    """Return the versions that `endpoint` alone names; what others serve too stays with them."""
    others = {
        (variant.model, variant.version)
        for name, spec in specs.items()
        if name != endpoint
        for variant in spec.variants
    }
    own = [(variant.model, variant.version) for variant in specs[endpoint].variants]
    return [ref for ref in dict.fromkeys(own) if ref not in others]


def still(let_go: Mapping[Ref, bool], workers: Sequence[WorkerView]) -> dict[Ref, bool]:
    """Return what is still let go, and for each whether every worker has dropped it since.

    One that is there again after it was gone was woken, and is let go no longer.

    >>> still({("m", "1"): False}, [])
    {('m', '1'): True}
    """
    there = {ref for worker in workers for ref in worker.engines}
    return {
        ref: was_gone or ref not in there
        for ref, was_gone in let_go.items()
        if not (was_gone and ref in there)
    }


def unless_called(let_go: Mapping[Ref, bool], calls: Mapping[str, int]) -> dict[Ref, bool]:
    """Return what is still let go: not what was gone, and now has calls that reach no worker.

    Where no worker is there, none hears a call; edges tell of it.

    Args:
        let_go: see `still`.
        calls: by "model/version", that wait for a worker or were refused for want of one.

    >>> unless_called({("m", "1"): True, ("n", "1"): False}, {"m/1": 1, "n/1": 1})
    {('n', '1'): False}
    """
    return {
        ref: was_gone
        for ref, was_gone in let_go.items()
        if not (was_gone and calls.get("/".join(ref)))
    }


def unless_set(
    let_go: Mapping[Ref, bool],
    before: Mapping[str, EndpointSpec],
    specs: Mapping[str, EndpointSpec],
) -> dict[Ref, bool]:
    """Return what is still let go once `specs` hold.

    That is not what a new one wants a minimum of, or has a rollout for, which keeps both arms warm.
    """
    wanted = {
        (variant.model, variant.version)
        for name, spec in specs.items()
        if (spec.scale.replicas_min or spec.rollout is not None) and spec != before.get(name)
        for variant in spec.variants
    }
    return {ref: was_gone for ref, was_gone in let_go.items() if ref not in wanted}


def demands(let_go: Iterable[Ref], wanted: Mapping[Ref, Demand]) -> dict[Ref, Demand]:
    """Return what is wanted of them meanwhile, in place of what their endpoints want.

    A call may wake them on a fallback worker, where it might have done that before.
    """
    helped = {ref for ref, demand in wanted.items() if demand.fallback_idle_s is not None}
    return {ref: _NOR_FALLBACK if ref in helped else NOTHING for ref in let_go}
