"""Which of a baseline's calls a candidate answers as well, for nobody but the comparison.

A draw of its own for each call, so that it depends neither on who got which arm nor on anything
that a client sends; the worker that has answered a marked call does the rest.  Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from pool.wire.data import ShadowOf
from registry_sync.documents import EndpointSpec, EndpointState
from registry_sync.rollouts import is_live


@dataclass(frozen=True, slots=True)
class Sample:
    """What calls of one arm are marked with, and what part of them."""

    of: tuple[ShadowOf, ...]
    share: float  # of the calls, in (0, 1]

    def draw(self, uniform: float) -> tuple[ShadowOf, ...]:
        """Return what one call is marked with, by a random number in [0, 1)."""
        return self.of if uniform < self.share else ()


def sample_of(spec: EndpointSpec, state: EndpointState | None, variant: str) -> Sample | None:
    """Return what calls of a variant are marked with; None: nobody but it answers them.

    Only a live rollout's baseline is shadowed, and only by another version.
    """
    rollout = spec.rollout
    if rollout is None or rollout.shadow is None or variant != rollout.baseline:
        return None
    refs = {arm.name: (arm.model, arm.version) for arm in spec.variants}
    candidate = refs[rollout.candidate]
    if candidate == refs[variant] or not is_live(spec, state):
        return None
    name = f"{spec.endpoint}/{rollout.id}"  # ids of two endpoints may be alike
    mark = ShadowOf(name, *candidate, rollout.shadow.calls_per_s_max)
    return Sample((mark,), rollout.shadow.sample)
