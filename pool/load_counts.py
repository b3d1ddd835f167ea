"""How often each version was loaded, and how long that took, over all workers that ever were."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any, Final

from pool.members import Worker
from pool.phase_times import LOAD, START, PhaseTimes
from pool.placement import Ref
from pool.wire.control import EngineState

LOADS_MAX: Final = 4096  # versions whose loads are counted


class LoadCounts:
    """Loads and starts since the controller began; also of engines that sleep again."""

    def __init__(self) -> None:
        # The whole mutable state.
        self.counts: dict[Ref, int] = {}
        self._times = PhaseTimes()

    def add_start(self, phases: Mapping[str, int]) -> None:
        """Take note of a worker's start."""
        self._times.add(START, "", phases)

    def add(self, worker: Worker, engines: Sequence[EngineState], known: Container[Ref]) -> None:
        """Add the loads since a worker's last report; an engine that sleeps is in none.

        Args:
            worker: whose report it is.
            engines: what it has.
            known: once there are too many counts, those of other versions are forgotten.
        """
        for engine in engines:
            ref = (engine.model, engine.version)
            new = engine.loads - worker.loads.get(ref, 0)
            if new > 0:
                worker.loads[ref] = engine.loads
                self.counts[ref] = self.counts.get(ref, 0) + new
                self._times.add(LOAD, engine.engine, engine.phases)
                worker.commanded_s.pop(("unload", ref), None)  # that was obeyed
        if len(self.counts) > LOADS_MAX:
            self.counts = {ref: count for ref, count in self.counts.items() if ref in known}

    def phases(self) -> list[dict[str, Any]]:
        """Return how long starts and loads took, phase by phase."""
        return self._times.rows()
