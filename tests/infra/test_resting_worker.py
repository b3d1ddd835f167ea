"""A real worker process that rests, and an edge's connection to it, which goes by old routes."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from edge.dispatching import worker_conn
from edge.dispatching.calls import Call
from edge.dispatching.dispatch import Pool
from edge.errors import ClientGone
from infra.stack import Node, worker_processes
from infra.supervisor import Supervisor
from pool.config import WorkerConfig
from pool.wire.control import EngineRoute, Routes, WorkerRoute
from pool.wire.data import Tensor

PATIENCE_S = 30.0


class Place:
    """A supervised worker, and an edge that is told once that it is up."""

    def __init__(self, folder: Path) -> None:
        node = Node(folder)
        node.prepare()
        (self.spec,) = worker_processes(node, 1, "info", controller="unix:/nowhere", on="cpu")
        config = self.spec.config
        assert isinstance(config, WorkerConfig)
        self.supervisor = Supervisor(folder / "log")
        self.supervisor.start([self.spec])
        self.pool = Pool("e1", None)
        route = WorkerRoute(config.id, "i", config.listen)
        engine = EngineRoute("m", "1", (route.id,), (route.id,), "warm")
        self.pool.update(Routes(1, 1, (route,), (engine,)))

    @property
    def state(self) -> str:
        return self.supervisor.states()[self.spec.name][0]

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not is_so():  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    def ask(self) -> Call:
        """Call a model that nobody has."""
        call = Call(
            ref=("m", "1"),
            digest="d",
            request_id="r",
            inputs=[Tensor("x", "FP32", (1,), bytes(4))],
            outputs=(),
            deadline_s=time.monotonic() + PATIENCE_S,
        )
        self.pool.start(call)
        return call


@pytest.fixture
async def place(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    monkeypatch.setattr(worker_conn, "REDIAL_S_MAX", 0.05)
    folder = Path(tempfile.mkdtemp(prefix="tp"))
    made = Place(folder)
    sweeper = asyncio.get_running_loop().create_task(made.pool.sweep_forever())
    yield made
    sweeper.cancel()
    await made.pool.close()
    await made.supervisor.stop()
    shutil.rmtree(folder)


async def test_worker_that_was_told_to_rest_is_started_by_a_call_alone(place: Place) -> None:
    await place.until(lambda: place.pool.workers_up == 1)
    place.supervisor.want(())
    await place.until(lambda: place.state == "cold")
    await asyncio.sleep(0.2)
    assert place.state == "cold"
    call = place.ask()
    await place.until(lambda: call.conn is not None)  # it was sent
    assert place.state == "up"
    call.cancel()
    with pytest.raises(ClientGone):
        await call.future
