"""Who pays for the device: what calls, copies and tries cost adds up to what workers have run."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.device_prices import added
from edge.dispatching.calls import Answer, Call
from edge.dispatching.dispatch import Pool
from edge.dispatching.late_bills import CALLS_MAX, LateBills
from edge.errors import ModelFailed, Refusal
from pool.engines.base import EngineError, Tensors
from pool.queueing.billing import bill
from pool.queueing.running import run_tickets
from pool.queueing.sharing import parts_of
from pool.wire import data
from pool.wire.control import EngineRoute, Routes, WorkerRoute
from pool.wire.data import Tensor
from pool.wire.listening import Server, serve
from tests.pool.test_worker import MAGIC_VALUE, SHADOW, Node, manifest
from tests.support.edge_fleet import outcome
from tests.support.tickets import asked


@given(st.integers(0, 2**53), st.lists(st.integers(0, 2**40), min_size=1, max_size=64))
def test_parts_add_up_and_none_is_off_by_a_whole_one(total_us: int, weights: list[int]) -> None:
    parts = parts_of(total_us, weights)
    assert sum(parts) == total_us
    assert min(parts) >= 0
    if whole := sum(weights):
        for part, weight in zip(parts, weights, strict=True):
            assert abs(part * whole - total_us * weight) < whole


class Slow:
    """Takes 2 ms a row by a clock of its own, and fails on 13."""

    streams = False
    lanes = 1

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = 0
        monkeypatch.setattr("pool.queueing.running.time.monotonic_ns", lambda: self.now_ns)

    def infer(self, tensors: Tensors, outputs: Sequence[str] = ()) -> Tensors:
        self.now_ns += 2_000_000 * len(tensors["x"])
        if 13 in tensors["x"]:
            raise EngineError("13")
        return {"y": tensors["x"]}


class Unsplit(Slow):
    """Answers with one row, whatever it was asked."""

    def infer(self, tensors: Tensors, outputs: Sequence[str] = ()) -> Tensors:
        return {"y": super().infer(tensors)["y"][:1]}


def billed(session: Any, *values: list[int], run_us: int = 100_000) -> list[int]:
    """Return what each of some calls that share a run has to pay."""
    tickets = [asked(rows).ticket for rows in values]
    heard: list[list[int]] = [[] for _ in tickets]
    for ticket, parts in zip(tickets, heard, strict=True):
        ticket.on_device = parts.append
    ran = run_tickets(session, tickets, [ticket.inputs for ticket in tickets])
    bill(tickets, ran.spent_ns, run_us, "m/1")
    paid = [part for parts in heard for part in parts]
    assert len(paid) == len(tickets)
    assert sum(paid) == run_us
    return paid


def test_a_run_is_paid_for_by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert billed(Slow(monkeypatch), [1], [2, 3], [4]) == [25_000, 50_000, 25_000]


def test_who_spoils_a_run_pays_for_every_try_that_it_was_part_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # All together, the halves, and of the bad half one by one: by rows 4, 4, 6 and 6 ms of 20.
    paid = billed(Slow(monkeypatch), [1], [2], [3], [13])
    assert paid == [20_000, 20_000, 30_000, 30_000]


def test_a_model_that_cannot_be_split_is_paid_for_by_its_tries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert billed(Unsplit(monkeypatch), [1], [2], [3], [4]) == [25_000] * 4


def test_a_caller_that_fails_at_its_bill_disturbs_nobody() -> None:
    tickets = [asked(1).ticket, asked(1).ticket]
    heard: list[int] = []
    tickets[0].on_device = lambda us: heard.append(us // 0)
    tickets[1].on_device = heard.append
    bill(tickets, (), 10, "m/1")
    assert heard == [5]


def test_late_bills_are_bounded() -> None:
    bills = LateBills()
    for call_id in range(CALLS_MAX + 1):
        bills.add(call_id, {})
    assert (bills.take(0), bills.take(1), bills.take(1)) == (None, {}, None)


class World:
    """One edge's pool and two workers, over real sockets; calls are paid for by who makes them."""

    def __init__(self) -> None:
        self.nodes = [Node(Path(tempfile.mkdtemp(prefix="tp"))) for _ in "ab"]
        self.pool = Pool("e1", None)
        self.paid: dict[str, dict[str, int]] = {}
        self.servers: list[Server] = []

    async def up(self) -> None:
        for node, name in zip(self.nodes, "ab", strict=True):
            node.worker.config = msgspec.structs.replace(node.config, id=name)
            self.servers.append(await serve(node.address, None, node.worker.on_peer))
        self.route("failing", "a")
        await self.until(lambda: self.pool.workers_up == 2)

    def route(self, model: str, *warm: str) -> None:
        """Go by routes that have `model` there, and all others at the first worker."""
        workers = [
            WorkerRoute(n, "i", str(node.address)) for n, node in zip("ab", self.nodes, strict=True)
        ]
        engines = [
            EngineRoute(one, "1", warm if one == model else ("a",), ("a",), "warm")
            for one in ("failing", "sleeper", "counter")
        ]
        self.pool.update(Routes(1, 1, tuple(workers), tuple(engines)))

    async def down(self) -> None:
        await self.pool.close()
        for node, server in zip(self.nodes, self.servers, strict=True):
            await node.worker.drain(0.0, 5.0)
            await server.close()
            shutil.rmtree(node.folder)
        await asyncio.sleep(0.02)

    def call(
        self,
        payer: str,
        model: str,
        values: Sequence[int],
        *,
        shadow: tuple[data.ShadowOf, ...] = (),
        on_chunk: Any = None,
        left_s: float = 10.0,
    ) -> Call:
        names = ("n", "delay_ms") if model == "counter" else ("x",)
        columns = [[one] for one in values] if model == "counter" else [list(values)]
        made = Call(
            ref=(model, "1"),
            digest=manifest(model).digest,
            request_id="r",
            inputs=[
                Tensor(name, "INT64", (len(column),), np.array(column, np.int64).tobytes())
                for name, column in zip(names, columns, strict=True)
            ],
            outputs=(),
            deadline_s=time.monotonic() + left_s,
            on_chunk=on_chunk,
            device_us=self.paid.setdefault(payer, {}),
        )
        made.shadow = shadow
        self.pool.start(made)
        return made

    async def running(self, worker: int, model: str) -> None:
        await self.nodes[worker].running(model)

    @property
    def paid_us(self) -> int:
        """What edges have counted, and copies of calls for a comparison."""
        calls = sum(us for paid in self.paid.values() for us in paid.values())
        return calls + self.copied_us

    @property
    def copied_us(self) -> int:
        return sum(
            count.device_us for node in self.nodes for count in node.worker.shadows._counts.values()
        )

    @property
    def run_us(self) -> int:
        """What the workers have measured."""
        queues = [slot.queue for node in self.nodes for slot in node.worker._slots.values()]
        return sum(queue.counters.run_us for queue in queues if queue is not None)

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not is_so():  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    async def add_up(self) -> None:
        """Wait until nothing is inside, and all that was run is paid for."""
        for node in self.nodes:
            await node.idle()
        await self.until(lambda: self.paid_us >= self.run_us > 0)
        await asyncio.sleep(0.02)
        assert self.paid_us == self.run_us


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    await made.up()
    yield made
    await made.down()


async def test_calls_that_share_runs_pay_for_them_together(world: World) -> None:
    await outcome(world.call("warm", "sleeper", [0]))
    calls = [world.call(name, "sleeper", [5] * rows) for name, rows in (("a", 1), ("b", 3))]
    assert {type(await outcome(call)) for call in calls} == {Answer}
    await world.add_up()
    assert 2 * world.paid["a"]["cpu"] < world.paid["b"]["cpu"] < 4 * world.paid["a"]["cpu"]


async def test_tries_in_halves_and_failures_are_paid_for(world: World) -> None:
    await outcome(world.call("warm", "failing", [0]))
    bad = world.call("bad", "failing", [MAGIC_VALUE])
    calls = [world.call(str(n), "failing", [n]) for n in range(8)]
    assert isinstance(await outcome(bad), ModelFailed)
    assert {type(await outcome(call)) for call in calls} == {Answer}
    await world.add_up()
    assert world.paid["bad"]["cpu"] > 0


async def test_call_that_is_given_up_while_it_runs_is_paid_for_and_one_that_waits_is_free(
    world: World,
) -> None:
    await outcome(world.call("warm", "sleeper", [0]))
    runs = world.call("runs", "sleeper", [60])
    await world.running(0, "sleeper")
    waits = world.call("waits", "sleeper", [60])
    await asyncio.sleep(0.01)
    for call in (runs, waits):
        call.cancel()
        assert isinstance(await outcome(call), Refusal)
    await world.add_up()
    assert world.paid["runs"]["cpu"] >= 60_000
    assert not world.paid["waits"]


async def test_both_tries_of_a_hedged_call_are_paid_for_by_its_endpoint(world: World) -> None:
    world.route("sleeper", "a", "b")
    call = world.call("hedged", "sleeper", [80])
    twin = call.make_twin()
    assert world.pool.send_beside(call, twin)
    for worker in (0, 1):
        await world.running(worker, "sleeper")
    await outcome(call)
    twin.cancel()
    await world.add_up()
    assert world.paid["hedged"]["cpu"] >= 160_000


async def test_streams_are_paid_for_to_where_they_were_stopped(world: World) -> None:
    ends = world.call("ends", "counter", [5, 2], on_chunk=lambda tensors: None)
    assert isinstance(await outcome(ends), Answer)
    parts: list[Any] = []
    stops = world.call("stops", "counter", [1000, 2], on_chunk=parts.append)
    await world.until(lambda: len(parts) > 2)
    stops.cancel()
    late = world.call("late", "counter", [1000, 2], on_chunk=parts.append, left_s=0.1)
    assert isinstance(await outcome(late), Refusal)
    await world.add_up()
    assert world.paid["ends"]["cpu"] >= 8_000
    assert world.paid["stops"]["cpu"] >= 4_000
    assert world.paid["late"]["cpu"] > 0


async def test_copy_for_a_comparison_is_paid_for_by_its_rollout(world: World) -> None:
    await outcome(world.call("warm", "sleeper", [0]))
    await outcome(world.call("e", "failing", [20], shadow=(SHADOW,)))
    before = dict(world.paid["e"])
    await world.until(lambda: world.copied_us > 0)
    await world.add_up()
    assert world.copied_us >= 20_000
    assert world.paid["e"] == before


def test_times_are_added_by_device() -> None:
    assert added({"cpu": 1, "sm_89": 2}, {"sm_89": 3}) == {"cpu": 1, "sm_89": 5}
