"""What the plan engines of this process say of its device, asked once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from pool.engines.base import PlanEngine, Probe


class Devices(msgspec.Struct, frozen=True):
    """What the plan engines of this worker say of it, once."""

    engines: tuple[PlanEngine, ...]
    probes: Mapping[str, Probe]

    @classmethod
    def of(cls, engines: Iterable[PlanEngine]) -> Devices:
        """Ask every engine."""
        found = tuple(engines)
        return cls(found, {engine.name: engine.probe() for engine in found})

    @property
    def builds(self) -> tuple[str, ...]:
        """What can be built here: "engine/device class"."""
        return tuple(
            f"{name}/{device_class}"
            for name, probe in self.probes.items()
            for device_class in probe.builds_for
        )
