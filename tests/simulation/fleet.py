"""Controllers, sync processes, workers and edges as they are, on the simulation's loop.

What stands in the place of something else: the edge has no HTTP in front of `dispatch`, the store
no S3 behind it, and the engine computes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import tempfile
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import numpy as np

from edge import __main__ as edge_main
from edge.config import EdgeConfig
from edge.dispatching.calls import Call
from edge.dispatching.dispatch import Pool
from edge.errors import Refusal
from edge.metrics import Metrics
from edge.world import World as EdgeWorld
from infra import local, stack
from infra.node_agent import UpLimits
from pool import controller_main, worker
from pool.config import ControllerConfig, WorkerConfig
from pool.wire.data import Tensor
from registry_sync import daemon
from registry_sync.config import SyncConfig
from tests.simulation import spawning, told
from tests.simulation.documents import put_endpoint, put_model
from tests.simulation.engine import Costs, ledger, new_ledger
from tests.simulation.processes import Process
from tests.simulation.store import FarStore
from tests.simulation.world import World, until

T = TypeVar("T")

ENGINE = "tests.simulation.engine:SimulatedEngine"
REGISTRY = "s3://simulated/registry"
LATE_S_MAX = 0.1  # after its deadline a call has ended, one way or another


@dataclass
class Asked:
    """One call at an edge, and how it ended."""

    endpoint: str
    value: int
    at_s: float
    deadline_s: float
    ended_s: float = 0.0
    status: int = 0  # 0: it has not ended
    detail: str = ""

    @property
    def wait_s(self) -> float:
        """How long it took."""
        return self.ended_s - self.at_s


class Edge:
    """An edge process without HTTP."""

    def __init__(self, fleet: Fleet, name: str, controller: str) -> None:
        self.name = name
        self._fleet = fleet
        self._controller = controller
        self.process = fleet.world.start(name, self._main)

    async def _main(self) -> None:
        folder = self._fleet.folder / self.name

        config = EdgeConfig(
            id=self.name, data=str(folder), registry=REGISTRY, controller=self._controller
        )
        self.pool = Pool(self.name, None)
        self.world = EdgeWorld(
            edge_id=self.name,
            folder=folder,
            pool=self.pool,
            find=edge_main.finder(config),
            secrets=None,
            metrics=Metrics(folder / "metrics", self.name),
        )
        self.world.boot()
        await asyncio.gather(self.world.run(), self.pool.sweep_forever())

    def ask(self, endpoint: str, *, deadline_s: float = 10.0) -> asyncio.Task[Asked]:
        """Call an endpoint; every call has a value of its own."""
        fleet = self._fleet
        now_s = fleet.world.now_s
        asked = Asked(endpoint, 1000 + len(fleet.asked), now_s, now_s + deadline_s)
        fleet.asked.append(asked)
        return self.process.spawn(self._ask(asked))

    async def _ask(self, asked: Asked) -> Asked:
        found = self.world.snapshot.endpoints.get(asked.endpoint)
        if found is None:
            return self._end(asked, 404, "no such endpoint")
        version = found.arms[0].version
        data = np.array([asked.value], np.int64).tobytes()
        call = Call(
            ref=version.ref,
            digest=version.digest,
            request_id=f"r{asked.value}",
            inputs=[Tensor("x", "INT64", (1,), data)],
            outputs=(),
            deadline_s=asked.deadline_s,
        )
        self.pool.start(call)
        try:
            answer = await call.future
        except Refusal as error:
            return self._end(asked, error.status, str(error))
        got = int(np.frombuffer(answer.outputs[0].data, np.int64)[0])
        assert got == asked.value + 1, f"a wrong answer to {asked}: {got}"
        return self._end(asked, 200, "")

    def knows(self, endpoint: str) -> bool:
        """Tell whether it has an endpoint's documents."""
        return hasattr(self, "world") and endpoint in self.world.snapshot.endpoints

    def routes_to(self, endpoint: str) -> bool:
        """Tell whether it knows of a worker that could be asked for an endpoint."""
        route = self.pool.route(self.world.snapshot.endpoints[endpoint].arms[0].version.ref)
        return route is not None and bool(route.warm or route.wake_at)

    async def in_process(self, work: Coroutine[Any, Any, T]) -> T:
        """Have this process do something, and wait for it."""
        return await self.process.spawn(work)

    def _end(self, asked: Asked, status: int, detail: str) -> Asked:
        assert not asked.status, f"ended twice: {asked}"
        asked.ended_s = self._fleet.world.now_s
        asked.status, asked.detail = status, detail
        return asked


@dataclass
class Fleet:
    """Everything that a scenario starts, with what it was asked."""

    world: World
    folder: Path
    store: FarStore
    asked: list[Asked] = field(default_factory=list)
    is_told: bool = False  # controllers hear of changes by a queue, and look seldom

    # documents

    def put(self, name: str, costs: Costs | None = None, **scale: Any) -> None:
        """Publish a model, and an endpoint of its name."""
        put_model(self.store.behind, name, costs)
        put_endpoint(self.store.behind, name, **scale)

    def change(self, name: str, **scale: Any) -> None:
        """Replace an endpoint's document."""
        self.store.behind.delete(f"endpoints/{name}.json")
        put_endpoint(self.store.behind, name, **scale)

    # processes

    def named(self, name: str) -> Process:
        """Return the last process of this name."""
        return [p for p in self.world.loop.processes.values() if p.name == name][-1]

    def controller(self, name: str = "c1", **options: Any) -> Process:
        """Start a controller, on a node of its own name."""
        config = ControllerConfig(
            id=name,
            data=str(self.folder / name),
            registry=REGISTRY,
            listen=(self.control(name),),
            sync_interval_s=options.pop("sync_interval_s", 10.0 if self.is_told else 1.0),
            notifications=told.URL if self.is_told else "",
            **options,
        )
        return self.world.start(name, lambda: controller_main.run(config))

    def control(self, name: str = "c1") -> str:
        """Return where a controller listens."""
        return f"unix:{self.folder}/{name}.s"

    def sync(self, node: str) -> Process:
        """Start a node's sync process."""
        config = SyncConfig(
            data=str(self.folder / node / "store"), registry=REGISTRY, socket=self._sync(node)
        )
        return self.world.start(f"{node}.sync", lambda: daemon.serve(config))

    def _sync(self, node: str) -> str:
        return f"{self.folder}/{node}.y"

    def worker(
        self, name: str, node: str = "n1", *, controller: str | None = "c1", **options: Any
    ) -> Process:
        """Start a worker; without a `controller` it finds the leader through its node's sync."""
        config = WorkerConfig(
            id=name,
            data=str(self.folder / node),
            listen=f"unix:{self.folder}/{name}.w",
            controller="" if controller is None else self.control(controller),
            sync_socket=self._sync(node),
            engines=(ENGINE,),
            device="cpu",
            **options,
        )
        return self.world.start(
            name, lambda: worker.run(config, (self.world.now_s, self.world.now_s))
        )

    def pool(
        self,
        node: str,
        *,
        workers: int,
        up_min: int,
        parked: int = 0,
        rest_s: float = 5.0,
        controller: str | None = "c1",
    ) -> Process:
        """Start a node as `tidepool pool` does: a supervisor, its workers, and the node's agent."""
        control = "" if controller is None else self.control(controller)
        place = stack.Node(self.folder / node)
        place.prepare()
        (place.data / "node-id").write_text(node)

        async def main() -> None:
            processes = (
                stack.sync_process(place, REGISTRY, "info"),
                *stack.worker_processes(
                    place, workers, "info", controller=control, engines=(ENGINE,), on="cpu"
                ),
            )
            limits = UpLimits(up_min=up_min, parked=parked, rest_s=rest_s)
            await local.run_tier(
                local.TierOptions(place, processes, node, limits=limits, controller=control)
            )

        return self.world.start(node, main)

    def edge(self, name: str = "e1", *, controller: str | None = "c1") -> Edge:
        """Start an edge; without a `controller` it finds the leader by the record."""
        return Edge(self, name, "" if controller is None else self.control(controller))

    async def ready(self, *edges: Edge, workers: int) -> None:
        """Wait until the edges can reach so many workers and know every endpoint."""
        await until(
            lambda: all(
                hasattr(edge, "world")
                and edge.pool.workers_up >= workers
                and edge.world.snapshot.endpoints
                for edge in edges
            )
        )

    # what was asked

    async def traffic(
        self, edges: Sequence[Edge], endpoint: str, *, per_s: float, for_s: float, **options: Any
    ) -> list[Asked]:
        """Call an endpoint at random times, and wait for all answers."""
        dice, tasks = self.world.loop.dice, []
        until_s = self.world.now_s + for_s
        while self.world.now_s < until_s:
            await asyncio.sleep(dice.expovariate(per_s))
            tasks.append(dice.choice(edges).ask(endpoint, **options))
        return await asyncio.gather(*tasks)

    async def settled(self) -> None:
        """Wait until every call has ended."""
        await until(lambda: all(asked.status for asked in self.asked), 120.0)

    def check(self, *, may_repeat: bool = False) -> None:
        """Check that nothing was lost, late or doubled.

        Args:
            may_repeat: a worker was killed in the middle of runs, which are then tried once more.
        """
        assert self.asked
        lost = [asked for asked in self.asked if not asked.status]
        late = [asked for asked in self.asked if asked.ended_s > asked.deadline_s + LATE_S_MAX]
        assert not lost
        assert not late
        times = ledger.times_run()
        doubled = [value for value, count in times.items() if count > 1 + may_repeat]
        assert not doubled
        unheard = [a for a in self.asked if a.status == 200 and not times[a.value]]
        assert not unheard, "answers that nobody computed"

    def statuses(self) -> dict[int, int]:
        """Return how many calls ended how."""
        found: dict[int, int] = {}
        for asked in self.asked:
            found[asked.status] = found.get(asked.status, 0) + 1
        return found


@contextlib.contextmanager
def fleet_of(world: World) -> Iterator[Fleet]:
    """Make a fleet of nothing, with an empty registry."""
    with ExitStack() as exits:
        folder = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="tp")))
        store = FarStore(folder / "registry", world.loop.dice)
        for module in (controller_main, daemon, edge_main):
            exits.enter_context(mock.patch.object(module, "open_store", return_value=store))
        queue = told.ToldQueue(store.behind)
        exits.enter_context(mock.patch.object(controller_main, "open_queue", return_value=queue))
        new_ledger()
        world.loop.spawn = functools.partial(spawning.spawn, world.loop)
        yield Fleet(world, folder, store)
