"""What the controller is told of an engine: every value in its own place."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest

from pool.engine_states import DETAIL_CHARS_MAX, state_of
from pool.loaded import CannotLoad
from pool.queueing.counters import QueueCounters
from pool.wire.control import EngineState
from tests.pool.test_slots import Place
from tests.support import made_plans


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    made = Place()
    yield made
    await made.slot.close()


async def test_state_of_a_warm_engine_has_what_it_is_and_what_it_has_done(place: Place) -> None:
    slot = place.slot
    place.loader.go.set()
    await place.call().outcome()
    assert slot.loaded is not None
    assert slot.queue is not None
    slot.loaded = msgspec.structs.replace(slot.loaded, identity=made_plans.identity())
    slot.queue.counters = QueueCounters(runs=3, rows_run=5, run_us=250_000)
    slot.loads, slot.arrived, slot.arrived_rows, slot.phases = 2, 7, 11, {"load": 4}
    told = state_of(slot, size_bytes=64, why="its plan is being built", now_s=slot.used_s + 2.0)
    assert told == EngineState(
        "m",
        "1",
        engine="test",
        state="warm",
        bytes=64,
        idle_s=pytest.approx(2.0),
        detail="its plan is being built",
        loads=2,
        runs=3,
        rows=5,
        run_us=250_000,
        plan=made_plans.key_of(),
        arrived=7,
        arrived_rows=11,
        rows_per_s=slot.queue.rows_per_s_max,
        phases={"load": 4},
    )


async def test_state_of_an_engine_that_loads_has_the_calls_that_wait_and_no_idle_time(
    place: Place,
) -> None:
    place.call()
    place.call()
    told = state_of(place.slot, size_bytes=64, why="", now_s=place.slot.used_s + 2.0)
    wanted = EngineState("m", "1", "", "loading", 64, calls=2, waiting=2, arrived=2)
    assert msgspec.structs.replace(told, loads=0, phases={}) == wanted


async def test_state_of_a_failed_engine_says_why_and_not_what_else_is_amiss(place: Place) -> None:
    place.loader.error = CannotLoad("x" * (DETAIL_CHARS_MAX + 1))
    place.loader.go.set()
    await place.call().outcome()
    place.slot.passes = True
    told = state_of(place.slot, size_bytes=0, why="no plan", now_s=place.slot.used_s)
    assert (told.state, told.detail, told.passes) == ("failed", "x" * DETAIL_CHARS_MAX, True)
