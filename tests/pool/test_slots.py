"""One version's place in a worker: how it is loaded, waited for and given back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from pool import slots
from pool.engines.base import EngineError
from pool.loaded import CannotLoad, Loaded, load_session
from pool.queueing.ticket import Answer, Failed, Outcome, Overdue, Returned, Ticket
from pool.slots import EngineSlot
from tests.support.artifacts import manifest_of
from tests.support.counting_engine import TestSession
from tests.support.tickets import X, Y, asked, echo


@dataclass(eq=False)
class Call:
    """A call that waits for an engine, and what became of it."""

    arrived_s: float = field(default_factory=time.monotonic)
    left_s: float = 10.0
    insists: bool = False
    outcomes: list[Outcome] = field(default_factory=list)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    words: list[tuple[str, float]] = field(default_factory=list)

    @property
    def deadline_s(self) -> float:
        return self.arrived_s + self.left_s

    def make_ticket(self, loaded: Loaded) -> Ticket:
        ticket = asked(1, arrived_s=self.arrived_s, slo_s=self.left_s).ticket
        ticket.on_settled = self.settle
        return ticket

    def settle(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.done.set()

    def held(self, phase: str, left_s: float) -> None:
        self.words.append((phase, left_s))

    async def outcome(self) -> Outcome:
        async with asyncio.timeout(10):
            await self.done.wait()
        assert len(self.outcomes) == 1
        return self.outcomes[0]


class Loader:
    """Loads when it is told to, and as it is told to."""

    def __init__(self) -> None:
        self.loads = 0
        self.go = asyncio.Event()
        self.error: Exception | None = None
        self.sessions: list[TestSession] = []

    async def __call__(self, model: str, version: str) -> Loaded:
        self.loads += 1
        await self.go.wait()
        if self.error is not None:
            raise self.error
        self.sessions.append(echo())
        manifest = manifest_of({"f": b"x"})
        return Loaded(manifest, manifest.digest, self.sessions[-1], "test", {"y": "INT64"})


class Place:
    """A slot with its loader and the states that it has told."""

    def __init__(self, load: Callable[[str, str], Awaitable[Loaded]] | None = None) -> None:
        self.loader = Loader()
        self.states: list[str] = []
        self.slot = EngineSlot(
            "m", "1", load or self.loader, lambda: self.states.append(self.slot.state)
        )

    def call(self, left_s: float = 10.0, *, insists: bool = False) -> Call:
        call = Call(left_s=left_s, insists=insists)
        self.slot.submit(call)
        return call

    async def until(self, state: str) -> None:
        async with asyncio.timeout(10):
            while self.slot.state != state:  # noqa: ASYNC110
                await asyncio.sleep(0.001)


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    made = Place()
    yield made
    await made.slot.close()


async def test_every_call_is_counted_once_and_its_rows_when_they_are_known(place: Place) -> None:
    early, late = Call(), Call()
    place.slot.submit(early)
    assert (place.slot.arrived, place.slot.arrived_rows) == (1, 0)
    place.loader.go.set()
    await early.outcome()
    place.slot.submit(late)
    await late.outcome()
    assert (place.slot.arrived, place.slot.arrived_rows) == (2, 2)


async def test_first_call_loads_and_is_answered(place: Place) -> None:
    place.loader.go.set()
    outcome = await place.call().outcome()
    assert isinstance(outcome, Answer)
    assert np.array_equal(outcome.outputs["y"], [1])
    assert place.states == ["loading", "warm"]


async def test_one_load_serves_all_calls(place: Place) -> None:
    calls = [place.call() for _ in range(5)]
    assert (place.slot.state, place.slot.calls) == ("loading", 5)
    place.loader.go.set()
    assert all([isinstance(await call.outcome(), Answer) for call in calls])
    assert (place.loader.loads, place.slot.loads) == (1, 1)


async def test_command_loads_without_a_call_and_once(place: Place) -> None:
    place.loader.go.set()
    place.slot.ensure()
    place.slot.ensure()
    await place.until("warm")
    place.slot.ensure()
    assert place.loader.loads == 1


async def test_call_whose_deadline_passes_while_the_engine_loads_is_ended(place: Place) -> None:
    soon, later = place.call(left_s=0.1), place.call(left_s=10.0)
    outcome = await soon.outcome()
    assert isinstance(outcome, Overdue)
    assert outcome.waited_s >= 0.1
    assert not later.outcomes
    assert place.slot.calls == 1


async def test_call_that_nobody_wants_any_more_is_not_run(place: Place) -> None:
    call = place.call()
    assert place.slot.forget(call) is True
    assert place.slot.forget(call) is False
    place.loader.go.set()
    await place.until("warm")
    assert not call.outcomes


async def test_load_that_failed_refuses_who_waits_and_says_why(place: Place) -> None:
    call = place.call()
    place.loader.error = CannotLoad("no such file in the registry")
    place.loader.go.set()
    outcome = await call.outcome()
    assert isinstance(outcome, Failed)
    assert (outcome.status, place.slot.state) == (503, "failed")
    assert "no such file in the registry" in outcome.detail
    assert place.slot.detail == "no such file in the registry"


async def test_whatever_a_loader_raises_ends_as_a_failure(place: Place) -> None:
    call = place.call()
    place.loader.error = KeyError("bug")
    place.loader.go.set()
    assert isinstance(await call.outcome(), Failed)
    assert place.slot.state == "failed"


async def test_call_right_after_a_failure_is_refused_without_another_load(place: Place) -> None:
    place.loader.error = CannotLoad("no")
    place.loader.go.set()
    await place.call().outcome()
    assert isinstance(await place.call().outcome(), Failed)
    assert place.loader.loads == 1


async def test_pauses_between_failures_double_up_to_a_minute(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    monkeypatch.setattr(slots, "time", SimpleNamespace(monotonic=lambda: now_s))
    place.loader.error = CannotLoad("no")
    place.loader.go.set()
    for pause_s in (1, 2, 4, 8, 16, 32, 60, 60):
        before = place.loader.loads
        place.slot.ensure()
        await place.until("failed")
        assert place.loader.loads == before + 1
        now_s += pause_s - 0.01
        place.slot.ensure()
        assert place.slot.state == "failed", f"not before {pause_s} s"
        now_s += 0.01


async def test_pause_stays_short_where_the_version_is_not_to_blame(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    monkeypatch.setattr(slots, "time", SimpleNamespace(monotonic=lambda: now_s))
    place.loader.error = CannotLoad("the registry does not answer", passes=True)
    place.loader.go.set()
    for pause_s in (1, 2, 2, 2):
        before = place.loader.loads
        place.slot.ensure()
        await place.until("failed")
        assert place.loader.loads == before + 1
        assert place.slot.passes
        now_s += pause_s
    place.loader.error = CannotLoad("no")
    place.slot.ensure()
    assert not place.slot.passes
    await place.until("failed")
    assert not place.slot.passes


async def test_engine_that_fails_for_a_day_may_still_come_back(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    monkeypatch.setattr(slots, "time", SimpleNamespace(monotonic=lambda: now_s))
    place.slot._failures = 2000
    place.loader.error = CannotLoad("no")
    place.loader.go.set()
    place.slot.ensure()
    await place.until("failed")
    now_s += 60
    place.loader.error = None
    place.slot.ensure()
    await place.until("warm")
    assert place.slot.detail == ""


async def test_pause_is_short_again_after_a_success(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    monkeypatch.setattr(slots, "time", SimpleNamespace(monotonic=lambda: now_s))
    place.slot._failures = 5
    place.loader.go.set()
    place.slot.ensure()
    await place.until("warm")
    await place.slot.unload()
    place.loader.error = CannotLoad("no")
    place.slot.ensure()
    await place.until("failed")
    now_s += 1.0
    place.loader.error = None
    place.slot.ensure()
    await place.until("warm")


async def test_unload_gives_the_session_back_and_the_next_call_loads_again(place: Place) -> None:
    place.loader.go.set()
    await place.call().outcome()
    await place.slot.unload()
    assert place.loader.sessions[0].is_closed
    assert place.states == ["loading", "warm", "draining", "cold"]
    assert isinstance(await place.call().outcome(), Answer)
    assert place.loader.loads == 2


async def test_unload_is_refused_while_there_are_calls(place: Place) -> None:
    place.loader.go.set()
    place.slot.ensure()
    await place.until("warm")
    call = place.call()
    await place.slot.unload()
    assert isinstance(await call.outcome(), Answer)
    assert place.slot.state == "warm"


async def test_unload_while_it_loads_does_nothing(place: Place) -> None:
    place.slot.ensure()
    await place.slot.unload()
    assert place.slot.state == "loading"


async def test_call_that_comes_while_the_engine_drains_has_it_loaded_again(place: Place) -> None:
    place.loader.go.set()
    place.slot.ensure()
    await place.until("warm")
    unloading = asyncio.get_running_loop().create_task(place.slot.unload())
    await asyncio.sleep(0)
    assert place.slot.state == "draining"
    call = place.call()
    await unloading
    assert isinstance(await call.outcome(), Answer)
    assert place.loader.loads == 2


async def test_unloading_what_failed_makes_it_cold(place: Place) -> None:
    place.loader.error = CannotLoad("no")
    place.loader.go.set()
    await place.call().outcome()
    await place.slot.unload()
    assert (place.slot.state, place.slot.detail) == ("cold", "")


async def test_engine_is_not_idle_from_before_it_was_loaded(place: Place) -> None:
    place.slot.used_s = time.monotonic() - 1000
    place.loader.go.set()
    place.slot.ensure()
    await place.until("warm")
    assert time.monotonic() - place.slot.used_s < 60


async def test_close_returns_who_waits_and_who_comes_later(place: Place) -> None:
    waits = place.call()
    await place.slot.close()
    for call in (waits, place.call()):
        assert await call.outcome() == Returned()
    assert place.slot.calls == 0


async def test_close_lets_the_session_go() -> None:
    place = Place()
    place.loader.go.set()
    await place.call().outcome()
    await place.slot.close()
    assert place.loader.sessions[0].is_closed


class Unwilling(TestSession):
    """Cannot be warmed up."""

    def warmup(self) -> None:
        raise EngineError("out of memory")


def test_session_that_cannot_be_warmed_up_is_closed() -> None:
    session = Unwilling(X, Y)
    with pytest.raises(CannotLoad, match="out of memory"):
        load_session(lambda: session)
    assert session.is_closed
