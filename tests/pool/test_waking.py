"""What a load is doing, how long it takes, and what that means to whoever waits for it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from pool import phases, slots, wake_book
from pool.loaded import Loaded, load_session
from pool.phases import Phases, enter, of_start, process_began_s
from pool.queueing.ticket import Answer, Failed
from pool.slots import EngineSlot
from pool.wake_book import WakeBook
from pool.wake_estimates import Wake, WakeEstimates
from tests.pool.test_slots import Call, Loader
from tests.support.tickets import echo

REF = ("m", "1")


# phases


def test_phases_leave_no_gap_and_add_up() -> None:
    found = Phases("fetch", 10.0)
    found.enter("deserialise", 10.25)
    found.enter("warm_up", 11.0)
    found.enter("deserialise", 11.5)
    assert found.end(12.0) == {"fetch": 250_000, "deserialise": 1_250_000, "warm_up": 500_000}


def test_clock_that_seems_to_go_back_makes_no_negative_phase() -> None:
    found = Phases("spawn", 10.0)
    found.enter("import", 9.0)  # the beginning of a process is known to a hundredth of a second
    found.enter("context", 10.5)
    assert found.end(10.6) == {"spawn": 0, "import": 500_000, "context": 100_000}


def test_more_phases_than_the_wire_takes_are_part_of_the_last_one() -> None:
    found = Phases("p", 0.0)
    for at in range(2 * phases.PHASES_MAX):
        found.enter(f"p{at}", float(at + 1))
    shown = found.end(100.0)
    assert len(shown) == phases.PHASES_MAX
    assert sum(shown.values()) == 100_000_000


async def test_phase_is_said_from_any_thread_that_works_for_the_load() -> None:
    found = Phases("fetch")
    found.watch()
    await asyncio.to_thread(enter, "deserialise")
    assert found.name == "deserialise"


async def test_loads_side_by_side_keep_their_phases_apart() -> None:
    async def load(name: str) -> Phases:
        found = Phases("fetch")
        found.watch()
        await asyncio.sleep(0)
        await asyncio.to_thread(enter, name)
        return found

    one, other = await asyncio.gather(load("a"), load("b"))
    assert (one.name, other.name) == ("a", "b")


def test_phase_without_a_load_is_passed_over() -> None:
    enter("deserialise")


def test_start_of_a_process_is_spawn_import_and_context() -> None:
    code = (
        "import time; from pool.phases import process_began_s; "
        "print(process_began_s(), time.monotonic())"
    )
    asked_s = time.monotonic()
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    began_s, imported_s = map(float, said.stdout.split())
    assert asked_s - 0.02 <= began_s < imported_s  # the kernel counts hundredths of a second
    shown = of_start(asked_s, began_s, imported_s, imported_s + 0.5)
    assert list(shown) == ["spawn", "import", "context"]
    assert sum(shown.values()) == pytest.approx((imported_s + 0.5 - asked_s) * 1e6, abs=2)


def test_process_that_nobody_has_asked_for_begins_with_itself() -> None:
    assert of_start(0.0, 5.0, 6.0, 6.5) == {"spawn": 0, "import": 1_000_000, "context": 500_000}
    assert process_began_s() < time.monotonic()


# estimates


def test_what_was_never_woken_has_no_estimate() -> None:
    assert WakeEstimates().wake_s(REF) == 0.0


def test_estimate_falls_faster_than_it_rises() -> None:
    known = WakeEstimates()
    for wake_s in (0.4, 0.8):
        known.learn(REF, "e", wake_s)
    assert known.wake_s(REF) == pytest.approx(0.5)
    known.learn(REF, "e", 0.1)
    assert known.wake_s(REF) == pytest.approx(0.3)


def test_each_engine_has_its_own_and_the_last_one_counts() -> None:
    known = WakeEstimates()
    known.learn(REF, "onnxruntime", 0.1)
    known.learn(REF, "tensorrt", 2.0)
    assert known.wake_s(REF) == 2.0
    known.learn(REF, "onnxruntime", 0.1)
    assert known.wake_s(REF) == pytest.approx(0.1)


def test_estimates_are_bounded_and_the_oldest_go() -> None:
    known = WakeEstimates()
    for at in range(4096):
        known.learn((f"m{at}", "1"), "e", 1.0)
    known.learn(("m0", "1"), "e", 1.0)
    known.learn(("new", "1"), "e", 1.0)
    assert len(known.rows()) == 4096
    assert known.wake_s(("m0", "1")) == 1.0
    assert known.wake_s(("m1", "1")) == 0.0


async def kept(book: WakeBook) -> None:
    assert book._keeping is not None
    await book._keeping


async def test_next_process_knows_what_the_last_one_learned(tmp_path: Path) -> None:
    book = WakeBook(tmp_path / "w-0")
    book.learn(REF, "e", 0.25)
    book.learn(("n", "1"), "e", 0.5)
    await kept(book)
    again = WakeBook(tmp_path / "w-0")
    assert (again.wake_s(REF), again.wake_s(("n", "1"))) == (0.25, 0.5)


async def test_worker_knows_what_others_of_its_node_learned_and_its_own_counts(
    tmp_path: Path,
) -> None:
    for worker, wake_s in (("w-0", 0.25), ("w-1", 0.75)):
        book = WakeBook(tmp_path / worker)
        book._estimates = WakeEstimates()
        book.learn(REF, "e", wake_s)
        await kept(book)
    assert WakeBook(tmp_path / "w-1").wake_s(REF) == 0.75
    assert WakeBook(tmp_path / "w-2").wake_s(REF) == 0.25


@pytest.mark.parametrize("content", [b"", b"{}", b'[["m","1","e",-1.0]]', b'[["m"]]', b"\xff"])
async def test_file_that_cannot_be_read_is_nothing_known(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / wake_book.NAME).write_bytes(content)
    book = WakeBook(tmp_path / "w")
    assert book.wake_s(REF) == 0.0
    book.learn(REF, "e", 0.5)
    await kept(book)
    rows = msgspec.json.decode((tmp_path / "w" / wake_book.NAME).read_bytes(), type=list[Wake])
    assert rows == [Wake("m", "1", "e", 0.5)]


async def test_folder_that_cannot_be_written_costs_nothing_but_the_memory(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"a file")
    book = WakeBook(tmp_path / "w")
    book.learn(REF, "e", 0.5)
    await kept(book)
    assert book.wake_s(REF) == 0.5


# slots


class Place:
    """A slot that knows how long loads take, with a loader that waits to be told to go on."""

    def __init__(self) -> None:
        self.loader = Loader()
        self.known = WakeEstimates()
        self.announced: list[tuple[str, dict[str, int]]] = []
        self.slot = EngineSlot(
            *REF,
            self._load,
            lambda: self.announced.append((self.slot.state, self.slot.phases)),
            wakes=self.known,
        )

    async def _load(self, model: str, version: str) -> Loaded:
        loaded = await self.loader(model, version)
        await asyncio.to_thread(load_session, lambda: loaded.session)
        return loaded

    def call(self, left_s: float = 10.0) -> Call:
        call = Call(left_s=left_s)
        self.slot.submit(call)
        return call


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    made = Place()
    yield made
    await made.slot.close()


async def test_phases_add_up_to_what_the_first_call_waited(place: Place) -> None:
    first = place.call()
    await asyncio.sleep(0.1)
    place.loader.go.set()
    outcome = await first.outcome()
    assert isinstance(outcome, Answer)
    assert list(place.slot.phases) == ["fetch", "deserialise", "warm_up", "hand_over"]
    waited_us = outcome.queue_s * 1e6
    assert 0.98 * waited_us <= sum(place.slot.phases.values()) <= waited_us + 1000


async def test_phases_are_whole_when_it_is_said_that_it_is_warm(place: Place) -> None:
    place.loader.go.set()
    await place.call().outcome()
    assert place.announced[-1] == ("warm", place.slot.phases)
    assert "hand_over" in place.slot.phases


async def test_phases_begin_with_the_call_and_not_with_the_look_at_it(place: Place) -> None:
    first = Call(arrived_s=time.monotonic() - 5.0, left_s=60.0)
    place.loader.go.set()
    place.slot.submit(first)
    await first.outcome()
    assert place.slot.phases["fetch"] >= 5_000_000


async def test_call_for_which_the_process_was_started_has_waited_since_that_was_up() -> None:
    ups = [time.monotonic() - 5.0]
    loader, known = Loader(), WakeEstimates()
    slot = EngineSlot(
        *REF, loader, lambda: None, wakes=known, take_up_s=lambda: ups.pop() if ups else None
    )
    loader.go.set()
    for is_first in (True, False):
        call = Call()
        slot.submit(call)
        await call.outcome()
        assert ("connect" in slot.phases) == is_first
        if is_first:
            assert next(iter(slot.phases)) == "connect"
            assert slot.phases["connect"] == pytest.approx(5e6, rel=0.1)
        assert known.wake_s(REF) < 1.0  # it says nothing of the next wake
        await slot.unload()
    await slot.close()


async def test_load_teaches_how_long_the_next_one_takes_without_the_fetch(place: Place) -> None:
    place.call()
    await asyncio.sleep(0.2)  # its loader is in the phase `fetch`
    place.loader.go.set()
    await place.call().outcome()
    assert 0 < place.known.wake_s(REF) < 0.15


async def test_call_that_cannot_be_in_time_is_refused_at_once_and_wakes_it_all_the_same(
    place: Place,
) -> None:
    place.known.learn(REF, "test", 30.0)
    late, patient = place.call(left_s=29.0), place.call(left_s=60.0)
    [refusal] = late.outcomes
    assert isinstance(refusal, Failed)
    assert refusal.status == 503
    assert refusal.retry_after_s == pytest.approx(30.0, abs=1.0)
    assert "waking up" in refusal.detail
    place.loader.go.set()
    assert isinstance(await patient.outcome(), Answer)
    assert place.loader.loads == 1


async def test_estimate_counts_from_the_beginning_of_the_load(place: Place) -> None:
    place.known.learn(REF, "test", 30.0)
    place.call(left_s=60.0)
    waking = place.slot._waking
    assert waking is not None
    waking.phases = Phases("deserialise", time.monotonic() - 25.0)
    assert place.slot.left_s == pytest.approx(5.0, abs=0.5)
    assert not place.call(left_s=6.0).outcomes
    assert place.call(left_s=4.0).outcomes


async def test_load_that_takes_longer_than_ever_refuses_nobody(place: Place) -> None:
    place.known.learn(REF, "test", 0.01)
    place.call()
    await asyncio.sleep(0.05)
    waking = place.slot._waking
    assert waking is not None
    waking.phases = Phases("deserialise", time.monotonic() - 1.0)
    assert not place.call(left_s=0.2).outcomes


async def test_warm_engine_refuses_nobody_for_its_wake(place: Place) -> None:
    place.loader.go.set()
    await place.call().outcome()
    place.known.learn(REF, "test", 1000.0)
    assert isinstance(await place.call(left_s=5.0).outcome(), Answer)


async def test_first_run_is_as_large_as_what_has_waited(place: Place) -> None:
    calls = [place.call() for _ in range(20)]
    place.loader.go.set()
    answers = [await call.outcome() for call in calls]
    assert [answer.batch_rows for answer in answers if isinstance(answer, Answer)] == [20] * 20


async def test_who_waits_hears_what_the_load_does(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "HELD_S", 0.01)
    place.known.learn(REF, "test", 30.0)
    call = place.call(left_s=60.0)
    async with asyncio.timeout(10):
        while len(call.words) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    place.loader.go.set()
    await call.outcome()
    told = len(call.words)
    await asyncio.sleep(0.05)
    assert {phase for phase, _ in call.words} == {"fetch"}
    assert call.words[0][1] == pytest.approx(30.0, abs=0.01)  # the fetch is no part of it
    assert len(call.words) == told


async def test_only_the_load_under_way_is_told_of(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "HELD_S", 0.02)
    place.loader.go.set()
    for _ in range(3):
        await place.call().outcome()
        await place.slot.unload()
    place.loader.go.clear()
    began_s = time.monotonic()
    call = place.call()
    await asyncio.sleep(0.2)
    assert 0 < len(call.words) <= (time.monotonic() - began_s) / 0.02


async def test_load_that_fails_teaches_nothing(place: Place) -> None:
    place.loader.error = slots.CannotLoad("no")
    place.loader.go.set()
    await place.call().outcome()
    assert place.known.wake_s(REF) == 0.0
    assert place.slot._waking is None


def test_engine_session_is_loaded_and_warmed_in_phases_of_their_own() -> None:
    found = Phases("fetch")
    found.watch()
    load_session(echo)
    assert list(found.end()) == ["fetch", "deserialise", "warm_up"]
