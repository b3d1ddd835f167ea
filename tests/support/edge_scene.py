"""An edge's dispatch and workers that only speak the wire, as processes in virtual time."""

from __future__ import annotations

import asyncio
import functools
import signal
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.dispatching.calls import Call
from edge.dispatching.dispatch import Pool
from pool.wire import data
from pool.wire.peer import Peer
from tests.simulation.processes import Process
from tests.simulation.world import World, simulate, until
from tests.support.edge_fleet import FakeWorker, Fleet, outcome

BEAT_S = 0.5


@dataclass
class Scene:
    """An edge and three workers that speak every half second, each of them a process."""

    world: World
    fleet: Fleet
    processes: dict[str, Process]

    def __getitem__(self, name: str) -> FakeWorker:
        return self.fleet[name]

    @property
    def pool(self) -> Pool:
        return self.fleet.pool

    async def live(self, name: str) -> None:
        """Be a worker: serve, and speak now and then."""
        worker = self[name]
        worker.load_ms = int(BEAT_S * 1000)
        worker.peers.clear()
        await worker.up()
        while True:
            await asyncio.sleep(BEAT_S)
            worker.tell(data.Load(0, 0))

    def answer_after(self, name: str, seconds: float) -> None:
        """Let a worker answer each call after so long."""

        def answer(peer: Peer, call: data.Call) -> None:
            asyncio.get_running_loop().call_later(seconds, self[name].answer, peer, call)

        self[name].on_call = answer

    def stop(self, name: str) -> None:
        self.processes[name].kill(signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        self.processes[name].kill(signal.SIGCONT)

    async def stopped(self, name: str, count: int, **options: Any) -> list[Call]:
        """Return calls that a worker has which was stopped then."""
        for other in "abc":
            self[other].on_call = self[other].keep
        calls: list[Call] = []
        while len(self[name].calls) < count:
            calls.append(self.fleet.call(**options))
            await asyncio.sleep(0.002)
        self.stop(name)
        for call in calls:
            if call.conn is not None and call.conn.id != name:
                call.cancel()
                await outcome(call)
        for other in "abc":
            self[other].on_call = self[other].answer
        return [call for call in calls if not call.future.done()]


def play(main: Callable[[Scene], Coroutine[Any, Any, None]], warm: str = "abc") -> None:
    """Run `main` with all of `warm` connected."""

    async def run(world: World) -> None:
        with tempfile.TemporaryDirectory(prefix="tp") as folder:
            scene = Scene(world, Fleet(Path(folder)), {})

            async def edge() -> None:
                scene.fleet.pool = Pool("e1", None)
                scene.fleet.route(warm, workers="abc")
                await scene.pool.sweep_forever()

            for name in "abc":
                scene.processes[name] = world.start(name, functools.partial(scene.live, name))
            scene.processes["e"] = world.start("e", edge)
            await until(lambda: scene.pool.workers_up == 3)
            await main(scene)
            await scene.pool.close()

    simulate(run)


async def ends(calls: list[Call]) -> list[type]:
    return [type(await outcome(call)) for call in calls]
