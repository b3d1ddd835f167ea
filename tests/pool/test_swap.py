"""Another engine takes the place of the one that serves: no call is lost, and the old one ends."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence

import numpy as np
import pytest
from msgspec.structs import replace

from pool.engines.base import Tensors
from pool.loaded import CannotLoad, Loaded
from pool.queueing.ticket import Answer, Cancelled, Failed, Outcome, Overdue, Returned, Ticket
from pool.slots import EngineSlot
from tests.support.artifacts import manifest_of
from tests.support.counting_engine import TestSession
from tests.support.tickets import Asked, X, Y, asked

MANIFEST = manifest_of({"f": b"x"})
PATIENCE_S = 20.0


class Gated(TestSession):
    """Gives back its input plus `plus`, once its gate is open."""

    plus = 0

    def __post_init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.seen: list[list[int]] = []

    def infer(self, tensors: Tensors, outputs: Sequence[str] = ()) -> Tensors:
        assert not self.is_closed, "a run in a session that is closed"
        self.seen.append(tensors["x"].tolist())
        self.entered.set()
        assert self.gate.wait(PATIENCE_S)
        return {"y": tensors["x"] + self.plus}


class Counter(TestSession):
    """Streams 0, 1, 2, … for as long as it is not stopped, each when the gate lets it."""

    def __post_init__(self) -> None:
        self.streams = True
        self.room = threading.Semaphore(0)
        self.entered = threading.Event()
        self.was_stopped = threading.Event()

    def stream(self, tensors: Tensors) -> Iterator[Tensors]:
        self.entered.set()
        try:
            for value in range(int(tensors["x"][0])):
                assert self.room.acquire(timeout=PATIENCE_S)
                yield {"y": np.array([value])}
        except GeneratorExit:
            self.was_stopped.set()
            raise


class Call:
    """A call whose ticket is made when its engine is warm."""

    def __init__(self, value: int, left_s: float = PATIENCE_S, *, stream: bool = False) -> None:
        self.asked: Asked = asked(
            value,
            arrived_s=time.monotonic(),
            slo_s=left_s,
            on_chunk=self._take if stream else None,
        )
        self.arrived_s = self.asked.ticket.arrived_s
        self.deadline_s = self.asked.ticket.deadline_s
        self.pieces: list[int] = []

    def _take(self, piece: Tensors) -> None:
        self.pieces += piece["y"].tolist()

    def make_ticket(self, loaded: Loaded) -> Ticket:
        return self.asked.ticket

    def settle(self, outcome: Outcome) -> None:
        self.asked.ticket.settle(outcome)

    async def outcome(self) -> Outcome:
        async with asyncio.timeout(PATIENCE_S):
            await self.asked.settled.wait()
        return self.asked.outcome

    async def answer(self) -> list[int]:
        outcome = await self.outcome()
        assert isinstance(outcome, Answer), outcome
        return [int(value) for value in outcome.outputs["y"]]


def loaded_with(session: TestSession, engine: str) -> Loaded:
    return Loaded(MANIFEST, MANIFEST.digest, session, engine, {"y": "INT64"})


class Place:
    """A slot that is warm with `old`, and `new` to take its place."""

    def __init__(self, old: TestSession, new: TestSession) -> None:
        self.old, self.new = old, new
        self.told: list[str] = []
        self.slot = EngineSlot("m", "1", self._load, self._changed)

    async def _load(self, model: str, version: str) -> Loaded:
        return loaded_with(self.old, "old")

    def _changed(self) -> None:
        self.told.append(self.slot.loaded.engine if self.slot.loaded else self.slot.state)

    async def warm(self) -> None:
        self.slot.ensure()
        async with asyncio.timeout(PATIENCE_S):
            while self.slot.state != "warm":  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    def call(self, value: int, left_s: float = PATIENCE_S, *, stream: bool = False) -> Call:
        call = Call(value, left_s, stream=stream)
        self.slot.submit(call)
        return call

    def swap(self) -> asyncio.Task[bool]:
        return asyncio.get_running_loop().create_task(self.slot.swap(loaded_with(self.new, "new")))


async def entered(session: Gated | Counter) -> None:
    assert await asyncio.to_thread(session.entered.wait, PATIENCE_S)


async def made(old: TestSession, new: TestSession) -> AsyncIterator[Place]:
    place = Place(old, new)
    await place.warm()
    yield place
    for session in (old, new):
        if isinstance(session, Gated):
            session.gate.set()
    await place.slot.close()


class Better(Gated):
    plus = 1000


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    async for one in made(Gated(X, Y), Better(X, Y)):
        yield one


@pytest.fixture
async def streams() -> AsyncIterator[Place]:
    async for one in made(Counter(X, Y), Counter(X, Y)):
        yield one


async def test_next_call_is_answered_by_the_new_engine_and_the_old_session_is_closed(
    place: Place,
) -> None:
    assert await place.call(1).answer() == [1]
    assert await place.swap() is True
    assert place.old.is_closed
    assert await place.call(1).answer() == [1001]
    assert place.told == ["loading", "old", "new"]
    assert place.slot.loads == 1


async def test_who_runs_gets_the_old_answer_and_who_waits_the_new_one_in_order(
    place: Place,
) -> None:
    assert isinstance(place.old, Gated)
    assert isinstance(place.new, Gated)
    place.old.gate.clear()
    running = place.call(1)
    await entered(place.old)
    waiting = [place.call(value) for value in (2, 3, 4)]
    swapping = place.swap()
    assert [await call.answer() for call in waiting] == [[1002], [1003], [1004]]
    assert place.new.seen == [[2, 3, 4]]
    assert not swapping.done()
    assert not place.old.is_closed
    place.old.gate.set()
    assert await running.answer() == [1]
    assert await swapping is True
    assert place.old.is_closed


async def test_calls_of_the_old_engine_count_until_they_have_ended(place: Place) -> None:
    assert isinstance(place.old, Gated)
    place.old.gate.clear()
    running = place.call(1)
    await entered(place.old)
    swapping = place.swap()
    await asyncio.sleep(0)
    assert place.slot.calls == 1
    await place.slot.unload()
    assert place.slot.state == "warm"
    place.old.gate.set()
    await running.answer()
    await swapping
    assert place.slot.calls == 0


async def test_deadline_that_was_watched_by_the_old_queue_is_watched_by_the_new(
    place: Place,
) -> None:
    assert isinstance(place.old, Gated)
    assert isinstance(place.new, Gated)
    place.old.gate.clear()
    place.new.gate.clear()
    place.call(1)
    await entered(place.old)
    place.call(2)
    place.swap()
    await entered(place.new)
    waits = place.call(3, left_s=0.05)
    assert isinstance(await waits.outcome(), Overdue)
    place.old.gate.set()
    place.new.gate.set()


async def test_call_that_waited_in_the_old_queue_ends_at_its_deadline(place: Place) -> None:
    assert isinstance(place.old, Gated)
    assert isinstance(place.new, Gated)
    place.old.gate.clear()
    place.new.gate.clear()
    place.call(1)
    await entered(place.old)
    place.slot.queue._rows_max = 1  # type: ignore[union-attr]  # or all would share a run
    place.call(2)
    late = place.call(3, left_s=0.2)
    place.swap()
    outcome = await late.outcome()
    assert isinstance(outcome, Overdue)
    assert not outcome.was_shed


async def test_counters_and_loads_never_fall(place: Place) -> None:
    for value in range(3):
        await place.call(value).answer()
    assert place.slot.queue is not None
    before = place.slot.queue.counters.runs
    await place.swap()
    await place.call(1).answer()
    assert place.slot.queue.counters.runs == before + 1
    assert place.slot.queue.counters.submitted == before + 1


async def test_model_that_was_found_not_to_batch_does_not_batch_in_the_new_engine(
    place: Place,
) -> None:
    assert isinstance(place.new, Gated)
    assert place.slot.queue is not None
    place.slot.queue._rows_max = 1
    await place.swap()
    calls = [place.call(value) for value in (1, 2, 3)]
    assert [await call.answer() for call in calls] == [[1001], [1002], [1003]]
    assert place.new.seen == [[1], [2], [3]]


async def test_stream_goes_on_to_its_end_while_the_new_engine_serves(streams: Place) -> None:
    assert isinstance(streams.old, Counter)
    assert isinstance(streams.new, Counter)
    old = streams.call(3, stream=True)
    await entered(streams.old)
    swapping = streams.swap()
    new = streams.call(2, stream=True)
    streams.new.room.release(2)
    assert isinstance(await new.outcome(), Answer)
    assert not streams.old.is_closed
    streams.old.room.release(3)
    assert isinstance(await old.outcome(), Answer)
    assert (old.pieces, new.pieces) == ([0, 1, 2], [0, 1])
    assert await swapping is True
    assert streams.old.is_closed


async def test_stream_whose_reader_leaves_during_the_swap_is_stopped(streams: Place) -> None:
    assert isinstance(streams.old, Counter)
    call = streams.call(10, stream=True)
    await entered(streams.old)
    swapping = streams.swap()
    await asyncio.sleep(0)
    streams.slot.cancel(call.asked.ticket)
    assert await call.outcome() == Cancelled()
    streams.old.room.release(10)
    assert await asyncio.to_thread(streams.old.was_stopped.wait, PATIENCE_S)
    assert await swapping is True


async def test_stream_whose_deadline_passes_during_the_swap_ends(streams: Place) -> None:
    assert isinstance(streams.old, Counter)
    call = streams.call(10, left_s=0.1, stream=True)
    await entered(streams.old)
    swapping = streams.swap()
    assert isinstance(await call.outcome(), Overdue)
    streams.old.room.release(10)
    assert await swapping is True


async def test_closing_the_slot_during_a_swap_cuts_the_old_stream_too(streams: Place) -> None:
    assert isinstance(streams.old, Counter)
    call = streams.call(10, stream=True)
    await entered(streams.old)
    swapping = streams.swap()
    await asyncio.sleep(0)
    closing = asyncio.get_running_loop().create_task(streams.slot.close())
    assert isinstance(await call.outcome(), Failed)
    streams.old.room.release(10)
    await closing
    assert await swapping is True
    assert streams.old.is_closed
    assert streams.new.is_closed


async def test_call_that_runs_in_the_old_engine_can_be_cancelled(place: Place) -> None:
    assert isinstance(place.old, Gated)
    place.old.gate.clear()
    call = place.call(1)
    await entered(place.old)
    swapping = place.swap()
    await asyncio.sleep(0)
    place.slot.cancel(call.asked.ticket)
    assert await call.outcome() == Cancelled()
    place.old.gate.set()
    assert await swapping is True


async def test_engine_for_what_is_not_served_any_more_is_closed(place: Place) -> None:
    await place.slot.unload()
    assert await place.swap() is False
    assert place.new.is_closed
    assert place.slot.state == "cold"


async def test_engine_that_comes_after_the_end_is_closed(place: Place) -> None:
    await place.slot.close()
    assert await place.swap() is False
    assert place.new.is_closed
    assert place.call(1).asked.outcome == Returned()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"digest": "other"}, "another artifact"),
        ({"datatypes": {"y": "FP32"}}, "its outputs are {'y': 'FP32'}, not {'y': 'INT64'}"),
        ({"session": Counter(X, Y)}, "only one of them answers in pieces"),
    ],
)
async def test_engine_that_would_answer_otherwise_is_refused_and_closed(
    place: Place, change: dict[str, object], why: str
) -> None:
    other = replace(loaded_with(place.new, "new"), **change)  # type: ignore[arg-type]
    with pytest.raises(CannotLoad, match="new cannot take the place of old") as refused:
        await place.slot.swap(other)
    assert why in str(refused.value)
    assert isinstance(other.session, TestSession)
    assert other.session.is_closed
    assert await place.call(1).answer() == [1]


async def test_nobody_is_lost_when_engines_are_swapped_under_load() -> None:
    place = Place(Gated(X, Y), Gated(X, Y))
    await place.warm()
    sessions = [place.old]
    answered = 0
    is_over = False

    async def client(number: int) -> None:
        nonlocal answered
        value = number * 1_000_000
        while not is_over:
            value += 1
            assert await place.call(value).answer() == [value]
            answered += 1
            if value % 7 == 0:
                await asyncio.sleep(0.001)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(client(number))
        for _ in range(50):
            sessions.append(Gated(X, Y))
            assert await place.slot.swap(loaded_with(sessions[-1], "new")) is True
            before = answered
            while answered < before + 20:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        is_over = True
    assert [session.is_closed for session in sessions] == [True] * 50 + [False]
    await place.slot.close()
    assert sessions[-1].is_closed
