"""A node whose places have no address: each needs a machine that takes minutes to start.

What stands for something else: nobody starts a machine, that much time passes.  The agent, the
worker and its drain are as they are.  Machines start on while the agent is away.
"""

from __future__ import annotations

import asyncio
import contextvars
import signal
from collections.abc import Collection
from dataclasses import dataclass, field

from infra.node_agent import NodeAgent, UpLimits
from pool.wire.control import Place
from tests.simulation.fleet import Fleet
from tests.simulation.processes import Process


@dataclass
class FarLauncher:
    """Places whose workers are started `start_s` after they are wanted.

    Times of starts that came to nothing, or to a worker, are in `starts`.
    """

    fleet: Fleet
    node: str
    count: int
    start_s: float
    guess_s: float
    rest_s: float
    up_min: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    starts: list[str] = field(default_factory=list)
    called_off: int = 0
    workers: dict[str, Process] = field(default_factory=dict)
    agent: Process = field(init=False)
    _starting: dict[str, asyncio.TimerHandle] = field(default_factory=dict)
    _outside: contextvars.Context = field(default_factory=contextvars.copy_context)

    def __post_init__(self) -> None:
        self.run_agent()

    def run_agent(self) -> Process:
        """Start the node's agent, as whoever watches over it does once it has ended."""

        async def main() -> None:
            limits = UpLimits(up_min=self.up_min, rest_s=self.rest_s, start_s=self.guess_s)

            async def find() -> str:
                return self.fleet.control()

            await NodeAgent(self.node, self, find, None, limits).run()

        self.agent = self.fleet.world.start(self.node, main)
        return self.agent

    def places(self) -> tuple[Place, ...]:
        """Return the places; none can be dialled."""
        found = []
        for name in self._names():
            state = "cold"
            if name in self._starting:
                state = "starting"
            elif name in self.up():
                state = "up"
            found.append(Place(name, "", "cuda:0", state))
        return tuple(found)

    def counts(self) -> dict[str, int]:
        """Return nothing: nobody is asked for machines here."""
        return {}

    def trouble(self) -> str:
        """Return nothing: none is made here."""
        return ""

    def hold_up(self, workers: Collection[str]) -> None:
        """Start machines for these, end the workers of the others."""
        loop = asyncio.get_running_loop()
        for name in self._names():
            worker = self.workers.get(name)
            is_there = name in self.up()
            if name in workers and not is_there and name not in self._starting:
                self.starts.append(name)
                self._starting[name] = loop.call_later(
                    self.start_s, self._start, name, context=self._outside
                )
            elif name not in workers and name in self._starting:
                self._starting.pop(name).cancel()
                self.called_off += 1
            elif name not in workers and worker is not None and is_there:
                worker.kill(signal.SIGTERM)
        self.changed.set()

    def up(self) -> list[str]:
        """Return the names of the workers that there are."""
        return [name for name, worker in self.workers.items() if worker.state != "dead"]

    def _names(self) -> list[str]:
        return [f"{self.node}-{slot}" for slot in range(self.count)]

    def _start(self, name: str) -> None:
        del self._starting[name]
        self.workers[name] = self.fleet.worker(name, self.node, drain_s_max=5.0)
        self.changed.set()


def far_node(
    fleet: Fleet,
    node: str = "far",
    *,
    places: int = 1,
    start_s: float = 180.0,
    rest_s: float = 60.0,
    guess_s: float = 0.0,
    up_min: int = 0,
) -> FarLauncher:
    """Start a node's agent, with a sync process for its workers to come."""
    fleet.sync(node)
    return FarLauncher(fleet, node, places, start_s, guess_s, rest_s, up_min)
