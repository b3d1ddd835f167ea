"""Edges whose calls take the whole way, from the key to the answer, and what callers were told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from edge.auth import Auth
from edge.cache import AnswerCache
from edge.errors import ClientGone, Refusal
from edge.flight import Flights
from edge.infer import Service, Target
from tests.simulation.fleet import Edge
from tests.simulation.processes import Process

KEY: Final = "a key of the simulation"
GONE: Final = 499  # its caller left


@dataclass
class Told:
    """One call, and what its caller was told."""

    edge: Process
    at_s: float
    value: int  # of its first row; the others' follow
    unit: str = ""
    number: int = 0  # its own
    endpoint: str = "m"
    key: str = KEY
    rows: int = 1
    priority: int = 0
    timeout_s: float = 0.0  # 0: the endpoint's own
    status: int = 0  # 0: it has not ended
    detail: str = ""
    arm: str = ""
    ended_s: float = 0.0
    # By rows, of a right answer: what the version that answered adds to the input.
    added: tuple[int, ...] = ()

    @property
    def id(self) -> str:
        """Its request id."""
        return f"r{self.number}"

    @property
    def values(self) -> Sequence[int]:
        """The value of every row."""
        return range(self.value, self.value + self.rows)

    @property
    def headers(self) -> Mapping[str, str]:
        """What it is sent with."""
        found = {"authorization": f"Bearer {self.key}", "x-request-id": self.id}
        if self.unit:
            found["x-user-id"] = self.unit
        if self.timeout_s:
            found["x-request-timeout-seconds"] = f"{self.timeout_s:.6f}"
        return found

    @property
    def body(self) -> bytes:
        """What it asks."""
        tensor = {"name": "x", "datatype": "INT64", "shape": [self.rows], "data": [*self.values]}
        return json.dumps({"inputs": [tensor], "parameters": {"priority": self.priority}}).encode()


class Front(Edge):
    """An edge whose calls take the whole way."""

    def call(self, told: Told) -> asyncio.Task[None]:
        """Make a call in this process, which ends with it."""
        task = self.process.spawn(self._call(told))
        task.add_done_callback(self._failed)
        return task

    def _failed(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._fleet.world.loop.fail(error)

    async def _call(self, told: Told) -> None:
        async def body() -> bytes:
            return told.body

        service, given = self.service, told.headers.get
        trace = service.begin(given)
        try:
            status, _, content = await service.infer(trace, Target(told.endpoint), given, body)
        except Refusal as refusal:
            trace.refusal, status = refusal, refusal.status
            told.detail = str(refusal)
        except asyncio.CancelledError:
            told.status, told.ended_s = GONE, self._fleet.world.now_s
            trace.refusal = ClientGone()
            service.end(trace, GONE)
            raise
        else:
            [answer] = json.loads(content)["outputs"]
            pairs = zip(answer["data"], told.values, strict=True)
            told.added = tuple(got - value for got, value in pairs)
        service.end(trace, status)
        assert not told.status, f"ended twice: {told}"
        told.arm = trace.arm.name if trace.arm is not None else ""
        told.status, told.ended_s = status, self._fleet.world.now_s

    @property
    def is_running(self) -> bool:
        """Whether its process runs, and has begun to."""
        return self.process.state == "running" and hasattr(self, "world")

    def is_up_for(self, endpoint: str) -> bool:
        """Whether it can be called."""
        return self.is_running and self.knows(endpoint) and self.pool.workers_up > 0

    @property
    def service(self) -> Service:
        """The way of a request through this process."""
        found: Service | None = getattr(self, "_service", None)
        if found is None:
            found = self._service = Service(
                world=self.world,
                pool=self.pool,
                auth=Auth(),
                cache=AnswerCache(1 << 20),
                flights=Flights(),
                metrics=self.world.metrics,
            )
        return found

    def weights(self, endpoint: str) -> Mapping[str, float]:
        """By which it sends calls to the arms, now."""
        found = self.world.snapshot.endpoints[endpoint]
        shares = dict(found.assignment._shares)
        return {arm.name: shares.get(at, 0.0) for at, arm in enumerate(found.arms)}
