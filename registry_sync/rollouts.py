"""What a spec and its state mean together: the weights that hold, and whether a rollout runs.

Pure: everybody who goes by weights (edges, controller, status) asks here, so that they agree.
"""

from __future__ import annotations

from collections.abc import Mapping

from registry_sync.documents import EndpointSpec, EndpointState
from registry_sync.rollout_terms import RolloutState


def effective_weights(spec: EndpointSpec, state: EndpointState | None) -> Mapping[str, float]:
    """Return the weights that hold, by variant; a state that is not about this spec has no say.

    A rollout's weights hold through later revisions that keep the rollout and its arms; a spec
    without one goes by its own weights, unless the state is about this very revision.
    """
    own = {variant.name: variant.weight for variant in spec.variants}
    if state is None or not state.weights:
        return own
    if spec.rollout is not None:
        is_about = state.rollout is not None and state.rollout.id == spec.rollout.id
    else:
        is_about = state.revision == spec.revision
    return dict(state.weights) if is_about and state.weights.keys() == own.keys() else own


def state_of(spec: EndpointSpec, state: EndpointState | None) -> RolloutState | None:
    """Return how far the spec's rollout is; None before the controller has begun it."""
    if spec.rollout is None or state is None or state.rollout is None:
        return None
    return state.rollout if state.rollout.id == spec.rollout.id else None


def is_live(spec: EndpointSpec, state: EndpointState | None) -> bool:
    """Tell whether the spec has a rollout that has not come to its end."""
    if spec.rollout is None:
        return False
    found = state_of(spec, state)
    return found is None or found.state in ("running", "paused")
