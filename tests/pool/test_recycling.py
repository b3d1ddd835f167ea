"""When a worker asks to be replaced because its memory does not come back."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from pool import recycling, succession
from pool.config import WorkerConfig
from pool.loaded import CannotLoad, Loaded
from pool.recycling import (
    CALM_SHARE,
    HOLD_S,
    INTERVAL_S,
    INTERVAL_S_MAX,
    Sample,
    State,
    look,
    next_interval_s,
)
from pool.slots import EngineSlot
from pool.succession import Succession, Will, memory_bytes
from pool.worker import Worker, takes_over
from tests.support.artifacts import manifest_of
from tests.support.tickets import echo

SLACK = 1000
CALM = Sample(now_s=0.0, held=500, base=300, engines=100, calls=50, available=10_000, is_busy=False)
OVER = replace(CALM, held=300 + 200 + 50 + SLACK + 1)


def asks(*samples: Sample, interval_s: float = 0.0, slack: int = SLACK) -> list[bool]:
    """Look once a second."""
    state, found = State(), []
    for at_s, sample in enumerate(samples):
        is_due, state = look(
            state,
            replace(sample, now_s=float(at_s)),
            started_s=0.0,
            interval_s=interval_s,
            slack_bytes=slack,
        )
        found.append(is_due)
    return found


def test_too_much_for_long_enough_is_a_reason_and_not_before() -> None:
    found = asks(*[OVER] * 40)
    assert found.index(True) == HOLD_S
    assert not any(asks(*[CALM] * 40))


def test_what_engines_and_calls_account_for_is_not_too_much() -> None:
    assert not any(asks(*[replace(OVER, engines=101)] * 40))
    assert not any(asks(*[replace(OVER, calls=51)] * 40))
    assert not any(asks(*[replace(OVER, base=301)] * 40))


def test_a_pause_begins_the_wait_anew_unless_it_is_within_the_hysteresis() -> None:
    edge = replace(OVER, held=OVER.held - 1 - round((1 - CALM_SHARE) * SLACK))
    assert asks(*[OVER] * 20, edge, *[OVER] * 20).index(True) == HOLD_S
    below = replace(edge, held=edge.held - 1)
    assert asks(*[OVER] * 20, below, *[OVER] * 40).index(True) == 21 + HOLD_S


def test_never_while_it_drains_loads_or_has_asked_already() -> None:
    assert not any(asks(*[replace(OVER, is_busy=True)] * 100))
    assert asks(*[replace(OVER, is_busy=True)] * 100, OVER)[-1]


def test_a_process_lives_at_least_so_long() -> None:
    assert asks(*[OVER] * 100, interval_s=60.0).index(True) == 60


def test_not_without_the_memory_for_both() -> None:
    assert not any(asks(*[replace(OVER, available=500)] * 100))


def test_no_slack_means_never() -> None:
    assert not any(asks(*[OVER] * 100, slack=0))


def test_who_needed_it_soon_again_lives_twice_as_long_next_time() -> None:
    interval_s = INTERVAL_S
    for _ in range(20):
        interval_s = next_interval_s(interval_s + 30, interval_s)
    assert interval_s == INTERVAL_S_MAX
    assert next_interval_s(2 * INTERVAL_S, INTERVAL_S) == INTERVAL_S
    assert next_interval_s(INTERVAL_S + 30, INTERVAL_S) == 2 * INTERVAL_S


# The shell.


class Slots:
    """Versions of a model, each of which loads or does not."""

    def __init__(self, *broken: str) -> None:
        self.broken = broken
        self.made: dict[str, EngineSlot] = {}

    def __call__(self, model: str, version: str) -> EngineSlot:
        if version not in self.made:
            self.made[version] = EngineSlot(model, version, self._load, lambda: None)
        return self.made[version]

    async def _load(self, model: str, version: str) -> Loaded:
        if version in self.broken:
            raise CannotLoad("no")
        manifest = manifest_of({"f": b"x"})
        return Loaded(manifest, manifest.digest, echo(), "test", {"y": "INT64"})

    async def close(self) -> None:
        for slot in self.made.values():
            await slot.close()


async def test_heir_inherits_what_is_warm_what_was_called_last_first(tmp_path: Path) -> None:
    told, tells = os.pipe()
    before = Slots()
    old = Succession(tmp_path, "w", tells, 0)
    for version in ("1", "2", "3"):
        before("m", version).ensure()
        while before("m", version).state != "warm":  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    before("m", "4")
    before.made["1"].used_s += 10
    old.ask(list(before.made.values()))
    assert os.read(told, 10) == b"r"
    assert old.has_asked

    after = Slots()
    assert await Succession(tmp_path, "w", -1, 0).inherit(after)
    assert list(after.made) == ["1", "3", "2"]
    assert {slot.state for slot in after.made.values()} == {"warm"}
    broken = Slots("2")
    assert not await Succession(tmp_path, "w", -1, 0).inherit(broken)
    for slots in (before, after, broken):
        await slots.close()
    os.close(told)
    os.close(tells)


@pytest.mark.parametrize("will", [b"", b"{", b'{"hot": 3}'])
async def test_heir_of_a_will_that_cannot_be_read_begins_empty(tmp_path: Path, will: bytes) -> None:
    path = tmp_path / "loading" / "w" / "will.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(will)
    slots = Slots()
    assert await Succession(tmp_path, "w", -1, 0).inherit(slots)
    assert not slots.made


def test_memory_that_does_not_come_back_has_a_successor_asked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recycling, "HOLD_S", 0.0)
    told, tells = os.pipe()
    path = tmp_path / "loading" / "w" / "will.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(msgspec.json.encode(Will(interval_s=0.0)))
    one = Succession(tmp_path, "w", tells, 1 << 20)
    asyncio.run(one.inherit(Slots()))
    os.set_blocking(told, False)
    one.look([], 0, is_draining=False)
    with pytest.raises(BlockingIOError):
        os.read(told, 10)
    kept = bytearray(os.urandom(1 << 20) * 64)
    one.look([], 66 << 20, is_draining=False)  # calls account for it, and what it came with
    with pytest.raises(BlockingIOError):
        os.read(told, 10)
    one.look([], 0, is_draining=True)
    one.look([], 0, is_draining=False)
    one.look([], 0, is_draining=False)
    assert os.read(told, 10) == b"r"
    assert memory_bytes() > len(kept)
    assert succession.available_bytes() > 0
    os.close(told)
    os.close(tells)


async def test_heir_takes_over_when_its_predecessor_does_not_listen_any_more(
    tmp_path: Path,
) -> None:
    (told, tells), (waits, go) = os.pipe(), os.pipe()
    config = WorkerConfig(
        id="w",
        data=str(tmp_path),
        listen=f"unix:{tmp_path}/w",
        controller=f"unix:{tmp_path}/c",
        sync_socket="",
        notice_fd=tells,
        go_fd=waits,
    )
    taking = asyncio.create_task(takes_over(Worker(config, (), None), asyncio.Event()))
    assert await asyncio.to_thread(os.read, told, 10) == b"u"
    await asyncio.sleep(0.05)
    assert not taking.done()
    os.close(go)
    async with asyncio.timeout(10):
        assert await taking is True
    for fd in (told, tells):
        os.close(fd)


async def test_heir_that_is_told_to_end_does_not_take_over(tmp_path: Path) -> None:
    waits, go = os.pipe()
    stop = asyncio.Event()
    stop.set()
    config = WorkerConfig(
        id="w", data=str(tmp_path), listen=f"unix:{tmp_path}/w", sync_socket="", go_fd=waits
    )
    assert await takes_over(Worker(config, (), None), stop) is False
    for fd in (waits, go):
        os.close(fd)
