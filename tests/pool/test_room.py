"""Several versions in one worker whose memory does not hold them all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from pool import room as rooms
from pool.engines import device_memory
from pool.loaded import Loaded
from pool.queueing.ticket import Answer, Failed, Outcome, Returned
from pool.room import Room
from pool.scaling.residency import Ref
from pool.slots import EngineSlot
from registry_sync.documents import File, Manifest
from tests.pool.test_slots import Call
from tests.support.artifacts import manifest_of
from tests.support.counting_engine import TestSession
from tests.support.tickets import X, Y

MIB = 1 << 20


class House:
    """Versions of so many MiB each, in a worker that may use 100."""

    def __init__(self, mib_max: int = 100) -> None:
        self.slots: dict[Ref, EngineSlot] = {}
        self.room = Room("cpu", mib_max * MIB, lambda: self.slots)
        self.manifests: dict[str, Manifest] = {}
        self.peak = 0

    def add(self, name: str, mib: int, really_mib: int = 0) -> EngineSlot:
        """Add a version; its engine takes what its files do unless it is said to."""
        manifest = msgspec.structs.replace(
            manifest_of({}, model=name), files=(File("f", "0" * 64, mib * MIB),)
        )

        async def load(model: str, version: str) -> Loaded:
            async with self.room.taken(manifest):
                await asyncio.sleep(0.01)
            self.peak = max(self.peak, self.used_mib + (really_mib or mib))
            session = TestSession(X, Y, memory_bytes=(really_mib or mib) * MIB)
            return Loaded(manifest, manifest.digest, session, "test", {"y": "INT64"})

        slot = self.slots[name, "1"] = EngineSlot(name, "1", load, self.room.look)
        return slot

    @property
    def used_mib(self) -> int:
        return sum(s.loaded.session.memory_bytes for s in self.slots.values() if s.loaded) // MIB

    @property
    def warm(self) -> str:
        return "".join(model for (model, _), s in sorted(self.slots.items()) if s.state == "warm")

    def submit(self, name: str, *, insists: bool = False, left_s: float = 10.0) -> Call:
        call = Call(insists=insists, left_s=left_s)
        self.slots[name, "1"].submit(call)
        return call

    async def call(self, *names: str, insists: bool = False, left_s: float = 10.0) -> Outcome:
        """Call one after the other; returns what came of the last."""
        for name in names:
            outcome = await self.submit(name, insists=insists, left_s=left_s).outcome()
        return outcome

    async def prewarm(self, name: str) -> None:
        """Load for nobody, and wait for what comes of it."""
        slot = self.slots[name, "1"]
        slot.ensure()
        async with asyncio.timeout(10):
            while slot.state == "loading":  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    def hold(self, name: str) -> Call:
        """Have a call inside that is not over before it is cancelled."""
        slot = self.slots[name, "1"]
        assert slot.queue is not None
        held = Call()
        slot._waiting[held] = None
        return held


@pytest.fixture
async def house(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr(rooms, "ROOM_S_MAX", 0.2)
    made = House()
    for name, mib in (("a", 40), ("b", 40), ("c", 40), ("s", 10)):
        made.add(name, mib)
    yield made
    for slot in made.slots.values():
        await slot.close()
    assert made.room._reserved == {}


async def test_nothing_is_unloaded_while_all_fit(house: House) -> None:
    await house.call("a", "b", "s")
    assert house.warm == "abs"


async def test_the_one_that_is_worth_least_makes_room_for_a_call(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    monkeypatch.setattr(rooms, "time", SimpleNamespace(monotonic=lambda: now_s))
    await house.call("a", "b", "s")
    for _ in range(3):
        now_s += 10.0
        await house.call("a", "s")
        house.room.look()
    assert isinstance(await house.call("c"), Answer)
    assert house.warm == "acs"
    assert house.peak <= 100


async def test_what_is_in_use_stays_and_the_call_goes_to_another_worker(house: House) -> None:
    await house.call("a", "b")
    held = [house.hold("a"), house.hold("b")]
    outcome = await house.call("c")
    assert isinstance(outcome, Returned)
    assert outcome.why == (
        "the model takes about 40 MiB, and models in use hold 20 MiB too much of "
        "the 100 MiB that this worker may use (--memory-bytes-max)"
    )
    assert (house.warm, house.slots["c", "1"].state) == ("ab", "cold")
    # Nobody else has room either: it is held for as long as it can be in time.
    began_s = time.monotonic()
    outcome = await house.call("c", insists=True, left_s=0.8)
    assert isinstance(outcome, Failed)
    assert outcome.status == 503
    assert "models in use hold 20 MiB too much" in outcome.detail
    assert time.monotonic() - began_s > 0.6
    for slot, call in zip("ab", held, strict=True):
        assert house.slots[slot, "1"].forget(call)
    assert isinstance(await house.call("c"), Answer)  # without a pause after what was no failure


async def test_call_waits_for_one_in_use_to_end(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "ROOM_S_MAX", 10.0)
    await house.call("a", "b")
    held = [house.hold("a"), house.hold("b")]
    call = house.submit("c")
    await asyncio.sleep(0.1)
    assert not call.outcomes
    house.slots["b", "1"].forget(held[1])
    assert isinstance(await call.outcome(), Answer)
    assert house.warm == "ac"
    assert house.slots["c", "1"].phases["room"] > 50_000
    house.slots["a", "1"].forget(held[0])


async def test_call_that_nobody_else_can_take_is_held_until_it_is_its_turn(house: House) -> None:
    await house.call("a", "b")
    held = [house.hold("a"), house.hold("b")]
    last = house.submit("c", insists=True)
    other = house.submit("c")
    assert isinstance(await other.outcome(), Returned)  # it may go elsewhere
    await asyncio.sleep(2 * rooms.ROOM_S_MAX)
    assert not last.outcomes
    house.slots["b", "1"].forget(held[1])
    assert isinstance(await last.outcome(), Answer)
    house.slots["a", "1"].forget(held[0])


async def test_what_nobody_waits_for_drives_nobody_out(house: House) -> None:
    await house.call("a", "b")
    await house.prewarm("c")
    assert (house.warm, house.slots["c", "1"].state) == ("ab", "cold")
    await house.slots["a", "1"].unload()
    await house.prewarm("c")
    assert house.warm == "bc"


async def test_what_is_larger_than_the_bound_is_refused_at_once_with_both_sizes(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "ROOM_S_MAX", 1e9)
    house.add("huge", 120)
    await house.call("a")
    outcome = await house.call("huge", insists=True)
    assert isinstance(outcome, Failed)
    assert "takes about 120 MiB, more than the 100 MiB" in outcome.detail
    assert house.warm == "a"


async def test_loads_at_once_never_hold_more_than_the_bound_together(house: House) -> None:
    outcomes = await asyncio.gather(*(house.submit(name).outcome() for name in "abc"))
    assert sum(isinstance(outcome, Answer) for outcome in outcomes) >= 2
    assert house.peak <= 100
    await house.call("c", "a", "b", "c")
    assert house.peak <= 100


async def test_size_is_known_from_the_last_load(house: House) -> None:
    """A session may hold more than the files say."""
    house.add("t", 20, really_mib=60)
    await house.call("t")
    await house.slots["t", "1"].unload()
    await house.call("a", "b")
    assert isinstance(await house.call("t"), Answer)
    assert house.used_mib == 100


async def test_without_a_bound_idle_ones_go_when_the_device_is_full_and_nobody_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House(mib_max=0)
    for name in "abc":
        house.add(name, 40)
    monkeypatch.setattr(rooms, "total_bytes", lambda _: 160 * MIB)
    monkeypatch.setattr(rooms, "available_bytes", lambda _: (100 - house.used_mib) * MIB)
    await house.call("a", "b")
    assert house.warm == "ab"
    assert isinstance(await house.call("c"), Answer)
    assert house.warm == "bc"
    held = [house.hold("b"), house.hold("c")]
    assert isinstance(await house.call("a"), Answer)
    assert house.warm == "abc"
    for slot, call in zip("bc", held, strict=True):
        house.slots[slot, "1"].forget(call)
    for slot in house.slots.values():
        await slot.close()


def group(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (
            {
                "memory.max": "1000\n",
                "memory.current": "700\n",
                "memory.stat": "anon 5\ninactive_file 200\n",
            },
            (1000, 500),
        ),
        (
            {
                "memory/memory.limit_in_bytes": "1000\n",
                "memory/memory.usage_in_bytes": "900\n",
                "memory/memory.stat": "cache 9\ntotal_inactive_file 100\n",
            },
            (1000, 200),
        ),
        ({"memory.max": "max\n", "memory.current": "7\n", "memory.stat": ""}, None),
        ({}, None),
    ],
)
def test_what_a_control_group_leaves(
    tmp_path: Path, files: dict[str, str], found: tuple[int, int] | None
) -> None:
    assert device_memory._of_group(group(tmp_path, files)) == found


def test_this_machine_has_memory_and_no_more_free_than_that() -> None:
    assert 0 < device_memory.available_bytes("cpu") <= device_memory.total_bytes("cpu")
    assert device_memory.total_bytes("cuda:99") == 0
