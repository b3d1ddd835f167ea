"""Starts rollouts and says how they are to go on: new revisions of specs, by compare-and-swap.

For the commands and the admin API.  What may be wished when is decided in `rollouts`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from registry_sync import documents, endpoints
from registry_sync.documents import EndpointSpec, EndpointState
from registry_sync.endpoints import RevisionConflict
from registry_sync.rollout_terms import Guard, Shadow, Wish
from registry_sync.rollouts import (
    HOLD_S_DEFAULT,
    STEPS_DEFAULT,
    settled,
    shares_by_version,
    started,
    terms,
    wished,
)
from registry_sync.rules import check_version
from registry_sync.stores import Conflict, Store
from registry_sync.swap import TRIES_MAX
from registry_sync.variant_checks import check_variants


class Ordered(NamedTuple):
    """A spec that was written, or stood as it was wished already."""

    spec: EndpointSpec
    before: int  # revision that was replaced; the spec's own if nothing was written
    shares_before: Mapping[str, float]  # of the traffic, in percent, by version

    @property
    def moved(self) -> tuple[str, str]:
        """The audit record's `before` and `after`."""
        return str(self.before), str(self.spec.revision)


def start(
    store: Store,
    name: str,
    version: str,
    *,
    steps: Sequence[float] = STEPS_DEFAULT,
    hold_s: float = HOLD_S_DEFAULT,
    shadow: Shadow | None = None,
    guard: Guard | None = None,
    if_revision: int | None = None,
) -> Ordered:
    """Begin a rollout of an endpoint to `version`; arguments as of `rollouts.started`.

    After a rollout that has ended, what it led to is written first as a revision of its own, so
    that `endpoints.rollback` goes back to what served, and not to the former rollout's beginning.

    Raises:
        NotFound: there is no such endpoint.
        BadName: `version` is none.
        BadDocument: a value does not fit, or the version is not published or not like the other.
        RolloutRefused: see `rollouts.started`.
        RevisionConflict: another revision than `if_revision` is current.
    """
    check_version(version)
    id = secrets.token_hex(8)
    # Before the endpoint is looked at: what can never be is no matter of what runs there now.
    documents.check_rollout(terms(id=id, steps=steps, hold_s=hold_s, shadow=shadow, guard=guard))

    def change(spec: EndpointSpec, state: EndpointState | None) -> list[EndpointSpec]:
        begun = started(
            spec,
            state,
            id=id,
            version=version,
            steps=steps,
            hold_s=hold_s,
            shadow=shadow,
            guard=guard,
        )
        documents.check_spec(begun)
        check_variants(store, begun)  # before anything is written
        return [begun] if spec.rollout is None else [settled(spec, state), begun]

    return _ordered(store, name, change, if_revision)


def wish(store: Store, name: str, wish: Wish, *, if_revision: int | None = None) -> Ordered:
    """Say how an endpoint's rollout is to go on; what is wished already is not written again.

    Raises:
        NotFound: there is no such endpoint.
        RolloutRefused: see `rollouts.wished`.
        RevisionConflict: another revision than `if_revision` is current.
    """

    def change(spec: EndpointSpec, state: EndpointState | None) -> list[EndpointSpec]:
        changed = wished(spec, state, wish)
        return [] if changed == spec else [changed]

    return _ordered(store, name, change, if_revision)


def _ordered(
    store: Store,
    name: str,
    change: Callable[[EndpointSpec, EndpointState | None], list[EndpointSpec]],
    if_revision: int | None,
) -> Ordered:
    """Write the specs that `change` makes of the current one, decided anew if that was replaced."""
    for _ in range(TRIES_MAX):
        current, _ = endpoints.get_spec(store, name)
        if if_revision is not None and current.revision != if_revision:
            raise RevisionConflict(name, current.revision, if_revision)
        found = endpoints.read_state(store, name)
        state = None if found is None else found[0]
        spec = current
        try:
            for new in change(current, state):
                revision = endpoints.set_spec(store, new, if_revision=spec.revision)
                spec = replace(new, revision=revision)
        except RevisionConflict:
            continue
        return Ordered(spec, current.revision, shares_by_version(current, state))
    raise Conflict(name, f"other writers were faster {TRIES_MAX} times; try again")
