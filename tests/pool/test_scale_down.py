"""A replica leaves because others have the version: no call fails of it, and none runs twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from pool import slots
from pool.queueing.ticket import Answer, Returned
from pool.slots import ELSEWHERE, LATE_S
from tests.pool.test_slots import Place


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    """A version that is loaded."""
    made = Place()
    made.loader.go.set()
    made.slot.ensure()
    await made.until("warm")
    yield made
    await made.slot.close()


def leave(place: Place) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(place.slot.unload(is_elsewhere=True))


async def test_what_is_inside_is_answered_before_it_leaves(place: Place) -> None:
    inside = [place.call() for _ in range(3)]
    await leave(place)
    assert all([isinstance(await call.outcome(), Answer) for call in inside])
    assert (place.slot.state, place.loader.sessions[0].is_closed) == ("cold", True)
    assert place.states == ["loading", "warm", "draining", "cold"]


@pytest.mark.rule("F29")
async def test_call_that_comes_too_late_is_given_back(place: Place) -> None:
    inside = place.call()
    leaving = leave(place)
    await asyncio.sleep(0)
    assert place.slot.state == "draining"
    assert await place.call().outcome() == Returned(ELSEWHERE)
    await leaving
    assert await place.call().outcome() == Returned(ELSEWHERE)
    assert isinstance(await inside.outcome(), Answer)
    assert (place.slot.state, place.loader.loads) == ("cold", 1)


async def test_call_is_the_wake_again_once_no_late_one_can_come(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await leave(place)
    now_s = time.monotonic() + LATE_S
    monkeypatch.setattr(slots, "time", SimpleNamespace(monotonic=lambda: now_s))
    assert isinstance(await place.call().outcome(), Answer)
    assert place.loader.loads == 2


async def test_call_that_nobody_else_takes_ends_the_drain(place: Place) -> None:
    inside = place.call()
    leaving = leave(place)
    await asyncio.sleep(0)
    insists = place.call(insists=True)
    assert place.slot.state == "warm"
    await leaving
    assert [type(await call.outcome()) for call in (inside, insists, place.call())] == [Answer] * 3
    assert place.loader.loads == 1


async def test_call_that_nobody_else_takes_loads_what_has_left(place: Place) -> None:
    await leave(place)
    assert isinstance(await place.call(insists=True).outcome(), Answer)
    assert isinstance(await place.call().outcome(), Answer)
    assert place.loader.loads == 2


async def test_call_that_insists_while_the_session_closes_loads_anew(place: Place) -> None:
    leaving = leave(place)
    await asyncio.sleep(0)
    call = place.call(insists=True)
    await leaving
    assert isinstance(await call.outcome(), Answer)
    assert place.loader.loads == 2


async def test_being_wanted_again_ends_the_drain(place: Place) -> None:
    inside = place.call()
    leaving = leave(place)
    await asyncio.sleep(0)
    place.slot.ensure()
    again = leave(place)
    await asyncio.sleep(0)
    place.slot.ensure()
    await asyncio.gather(leaving, again)
    assert isinstance(await inside.outcome(), Answer)
    assert place.slot.state == "warm"
    assert isinstance(await place.call().outcome(), Answer)
    assert place.loader.loads == 1


async def test_worker_that_ends_does_not_wait_for_a_drain(place: Place) -> None:
    place.call()
    leaving = leave(place)
    await asyncio.sleep(0)
    place.slot.stop_loading()
    await leaving
    assert place.slot.state == "draining"
    assert await place.call().outcome() == Returned()
