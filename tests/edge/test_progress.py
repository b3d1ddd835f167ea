"""What the client of a stream is told while its call waits for an engine to wake."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from edge import progress
from edge.dispatching.calls import Call
from edge.dispatching.dispatch import Pool
from edge.progress import Waits, first_parts
from edge.stream import Parts
from pool.wire.control import EngineRoute, Routes, WorkerRoute
from pool.wire.data import Tensor

PART = [Tensor("y", "INT64", (1,), b"\0" * 8)]


class Client:
    """A stream to a client that writes down what it gets."""

    def __init__(self) -> None:
        self.begun = 0
        self.got: list[bytes] = []

    def begin(self) -> Client:
        self.begun += 1
        return self

    async def send_bytes(self, data: bytes) -> None:
        self.got.append(data)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "COMMENT_S", 0.01)


def a_call(*, is_sent: bool) -> Call:
    call = Call(ref=("m", "1"), digest="d", request_id="r", inputs=(), outputs=(), deadline_s=1e9)
    call.conn = object() if is_sent else None  # type: ignore[assignment]
    return call


async def told(parts: Parts, call: Call, waits: Waits, client: Client) -> Any:
    async with asyncio.timeout(10):
        return await first_parts(parts, call, waits, client.begin)


async def test_parts_that_come_at_once_begin_nothing() -> None:
    parts, client = Parts(), Client()
    parts.put(PART)
    assert await told(parts, a_call(is_sent=True), Waits(), client) == ([PART], None)
    assert not client.begun


async def test_call_that_runs_long_without_a_wake_is_told_nothing() -> None:
    parts, client = Parts(), Client()
    asyncio.get_running_loop().call_later(0.1, parts.put, PART)
    assert await told(parts, a_call(is_sent=True), Waits(), client) == ([PART], None)


async def test_each_word_of_the_load_is_one_comment() -> None:
    parts, client, waits = Parts(), Client(), Waits()
    waits.hear("deserialise", 1.25)
    asyncio.get_running_loop().call_later(0.1, parts.put, PART)
    taken, transport = await told(parts, a_call(is_sent=True), waits, client)
    assert (taken, transport, client.begun) == ([PART], client, 1)
    assert client.got == [b": waking: deserialise, about 1.2 s left\n\n"]


async def test_call_for_which_a_process_is_started_waits_for_a_worker() -> None:
    parts, client, call = Parts(), Client(), a_call(is_sent=False)
    call.pool = Pool("e", None)
    route = EngineRoute("m", "1", (), ("w",))
    call.pool.update(Routes(1, 1, (WorkerRoute("w", "", "unix:/nobody", 0, "cold"),), (route,)))
    asyncio.get_running_loop().call_later(0.2, parts.put, PART)
    await told(parts, call, Waits(), client)
    await call.pool.close()
    assert client.begun == 1
    assert len(client.got) >= 2
    assert set(client.got) == {b": waiting for a worker\n\n"}


async def test_call_that_nobody_will_answer_is_told_nothing() -> None:
    parts, client = Parts(), Client()
    asyncio.get_running_loop().call_later(0.1, parts.put, PART)
    await told(parts, a_call(is_sent=False), Waits(), client)
    assert not client.begun


async def test_call_that_lost_its_worker_after_the_first_comment_hears_that_it_waits() -> None:
    parts, client, waits, call = Parts(), Client(), Waits(), a_call(is_sent=True)
    waits.hear("deserialise", 0.0)
    loop = asyncio.get_running_loop()
    loop.call_later(0.1, setattr, call, "conn", None)
    loop.call_later(0.3, parts.put, PART)
    await told(parts, call, waits, client)
    assert client.begun == 1
    assert client.got[:2] == [b": waking: deserialise\n\n", b": waiting for a worker\n\n"]


async def test_end_without_a_part_is_the_end() -> None:
    parts, client = Parts(), Client()
    parts.end()
    assert await told(parts, a_call(is_sent=True), Waits(), client) == ([], None)


async def test_phase_cannot_end_a_comment() -> None:
    waits = Waits()
    waits.hear("x\n\ndata: {}\n", 0.0)
    assert waits.comment(a_call(is_sent=True), has_begun=False) == b": waking: xdata \n\n"
