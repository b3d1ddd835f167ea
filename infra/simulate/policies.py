"""The policies by their names; each name stands for a fresh family of policies, one per model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from infra.simulate.autoscalers import Kpa, Ray
from infra.simulate.engine import Load, Maker, Simulated, World
from infra.simulate.fixed import Fixed
from infra.simulate.hybrid import HybridHistogram
from infra.simulate.in_sample import InSample
from infra.simulate.limit import Limit
from pool.scaling.gaps import GapPool
from pool.scaling.policy import ScalingPolicy


def _tidepool() -> Maker:
    """What production runs: the versions learn from one another."""
    pool = GapPool()

    def make(load: Load, world: World) -> Simulated:
        return ScalingPolicy(pool)

    return make


# Called once for a simulation; what it returns is called once for every model.
FAMILIES: Final[Mapping[str, Callable[[], Maker]]] = {
    "tidepool": _tidepool,
    "fixed-10m": lambda: lambda load, world: Fixed(600.0),
    "fixed-20m": lambda: lambda load, world: Fixed(1200.0),
    "fixed-60m": lambda: lambda load, world: Fixed(3600.0),
    "hybrid-histogram": lambda: lambda load, world: HybridHistogram(),
    "kpa": lambda: lambda load, world: Kpa(),
    "ray": lambda: lambda load, world: Ray(),
    "limit": lambda: Limit,
    "in-sample": lambda: InSample,
}

# Policies of which only the curve over the knob is shown.
CURVES: Final[tuple[str, ...]] = ("in-sample",)
