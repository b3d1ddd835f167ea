"""Rollouts of a running stack, by the functions behind the commands."""

from __future__ import annotations

from typing import Any

from registry_sync import endpoints, rollout_orders
from registry_sync.documents import EndpointState
from registry_sync.rollout_terms import Phase, RolloutState, Wish
from registry_sync.rollouts import effective_weights
from tests.support.stack import Stack, until

DECIDED_S_MAX = 60.0  # a candidate is loaded meanwhile, on a machine that other tests keep busy


def start(stack: Stack, endpoint: str, version: str, **options: Any) -> None:
    """Do what `rollout start` does, up to the point where every edge has the document."""
    rollout_orders.start(stack.store, endpoint, version, **options)
    stack.poke()


def wish(stack: Stack, endpoint: str, what: Wish) -> None:
    """Do what `rollout promote`, `abort`, … do, up to that point."""
    rollout_orders.wish(stack.store, endpoint, what)
    stack.poke()


def state_of(stack: Stack, endpoint: str) -> RolloutState | None:
    """Return what is stored of an endpoint's last rollout."""
    found = _state(stack, endpoint)
    return None if found is None else found.rollout


def _state(stack: Stack, endpoint: str) -> EndpointState | None:
    found = endpoints.read_state(stack.store, endpoint)
    return None if found is None else found[0]


def until_decided(
    stack: Stack, endpoint: str, phase: Phase, timeout_s: float = DECIDED_S_MAX
) -> RolloutState:
    """Wait for a decision on an endpoint's present rollout, and return it."""
    rollout = stack.spec(endpoint).rollout
    assert rollout is not None

    def decided() -> RolloutState | None:
        found = state_of(stack, endpoint)
        is_it = found is not None and (found.id, found.state) == (rollout.id, phase)
        return found if is_it else None

    found = until(decided, timeout_s, f"{endpoint} is {phase}")
    assert found is not None
    return found


def until_held(stack: Stack, endpoint: str, phase: Phase) -> RolloutState:
    """Wait until every live edge goes by that decision."""
    found = until_decided(stack, endpoint, phase)
    weights = effective_weights(stack.spec(endpoint), _state(stack, endpoint))
    until(
        lambda: {n: arm["weight"] for n, arm in stack.variants(endpoint).items()} == weights,
        what="the controller goes by it",
    )
    stack.poke()
    return found
