"""The launcher of one machine: a place is a worker process of this machine's supervisor."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence

from infra.child import ProcessSpec
from infra.supervisor import Supervisor
from pool.config import WorkerConfig
from pool.wire.control import Place


class LocalLauncher:
    """Workers under a supervisor; see `pool.launcher.Launcher`.

    Args:
        supervisor: has been given `specs` already.
        specs: the workers, whose configs are `WorkerConfig`.
    """

    def __init__(self, supervisor: Supervisor, specs: Sequence[ProcessSpec]) -> None:
        self._supervisor = supervisor
        self._workers = [(spec.name, spec.config) for spec in specs]

    @property
    def changed(self) -> asyncio.Event:
        """Set whenever a process has started, is ready, drains or has ended."""
        return self._supervisor.changed

    def places(self) -> tuple[Place, ...]:
        """Return the workers' places."""
        states = self._supervisor.states()
        found = []
        for name, config in self._workers:
            assert isinstance(config, WorkerConfig)
            state, pid = states[name]
            address = config.advertise or config.listen
            found.append(Place(config.id, address, config.device, state, pid))
        return tuple(found)

    def hold_up(self, workers: Collection[str]) -> None:
        """Let these run, and the others rest."""
        names = []
        for name, config in self._workers:
            assert isinstance(config, WorkerConfig)
            if config.id in workers:
                names.append(name)
        self._supervisor.want(names)

    def counts(self) -> Mapping[str, int]:
        """Return nothing: a machine's processes are all in its places."""
        return {}

    def trouble(self) -> str:
        """Return nothing: why a process does not start, its own log says."""
        return ""
