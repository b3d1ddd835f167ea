"""The disk as the loop sees it: real threads, real folder; nobody ever waits for long."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from edge import breaker, disk
from edge.disk import READ_S_MAX, WRITE_BYTES_MAX, Disk
from edge.disk_frame import Found
from pool.wire.data import Tensor
from tests.support import disk_faults

MIB = 1 << 20
OUTPUTS = [Tensor("y", "FP32", (1, 2), b"12345678")]
LARGE = [Tensor("y", "UINT8", (MIB,), os.urandom(MIB))]


def key_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "edge" / "answers"


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk be tried again soon; what `breaker` decides is tested there."""
    monkeypatch.setattr(breaker, "PAUSE_S", 0.3)
    monkeypatch.setattr(disk, "PAUSE_S", 0.3)


@pytest.fixture
async def cache(folder: Path) -> AsyncIterator[Disk]:
    """A disk that is open, with the answer to key 1."""
    cache = Disk(folder, 64 * MIB)
    keep(cache, 1)
    await cache.flush()
    await until(lambda: found(cache, 1), "the first answer is there")
    yield cache
    await cache.flush()


def keep(cache: Disk, number: int, outputs: list[Tensor] = OUTPUTS, tenant: str = "red") -> None:
    size_bytes = sum(len(output.data) for output in outputs)
    cache.keep(key_of(number), tenant, outputs, size_bytes, ttl_s=60.0, keep_s=60.0)


async def found(cache: Disk, number: int, tenant: str = "red") -> Found | None:
    looking = cache.look(key_of(number), tenant)
    return None if looking is None else await looking


async def until(holds: Callable[[], Awaitable[object]], what: str, timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not await holds():
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.01)


async def test_answer_that_was_kept_is_found(cache: Disk) -> None:
    keep(cache, 2, LARGE)
    await until(lambda: found(cache, 2), "it is found")
    answer = await found(cache, 1)
    assert answer is not None
    assert answer.outputs == OUTPUTS


async def test_other_process_finds_it(cache: Disk, folder: Path) -> None:
    other = Disk(folder, 64 * MIB)
    await until(lambda: found(other, 1), "it is found")


async def test_nothing_begins_before_it_is_wanted(folder: Path) -> None:
    unwanted = Disk(folder, MIB)
    await unwanted.flush()
    assert not folder.parent.exists()


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let reads take long, on a busy machine."""
    monkeypatch.setattr(disk, "READ_S_MAX", 10.0)


@pytest.mark.usefixtures("patience")
async def test_answer_of_another_tenant_is_a_miss_and_deleted(cache: Disk) -> None:
    async def is_gone() -> bool:
        return cache.counters.damaged == 0 and await found(cache, 1, "blue") is not None

    assert not await is_gone()
    await until(lambda: _is(cache.counters.damaged >= 1), "it was noticed")
    await cache.flush()

    async def misses() -> bool:
        return await found(cache, 1) is None

    await until(misses, "it is gone")


async def _is(value: bool) -> bool:
    return value


@pytest.mark.usefixtures("patience")
async def test_damaged_answer_is_a_miss_and_deleted(cache: Disk, folder: Path) -> None:
    keep(cache, 2, LARGE)
    await until(lambda: found(cache, 2), "it is found")
    (path,) = disk_faults.values(folder)
    disk_faults.flip(path)
    assert await found(cache, 2) is None
    await until(lambda: _is(not disk_faults.values(folder)), "its file is deleted")
    assert cache.counters.damaged == 1
    assert not cache.is_off


async def test_stopped_writer_stops_no_reads_and_then_no_writes(cache: Disk, folder: Path) -> None:
    with disk_faults.held_transaction(folder):
        for number in range(100, 110):
            keep(cache, number)
        await until(lambda: _is(cache.is_off), "writes are left alone")
        assert cache.counters.errors["busy"] >= 5
        assert await _all_in_time(cache) > 0
    keep(cache, 2)

    async def is_back() -> bool:
        keep(cache, 2)
        return await found(cache, 2) is not None

    await until(is_back, "it writes again")
    assert not cache.is_off


async def _all_in_time(cache: Disk, count: int = 30) -> int:
    """Look again and again; returns how often it was found, each time within the bound."""
    hits = 0
    for _ in range(count):
        began_s = time.monotonic()
        hits += await found(cache, 1) is not None
        assert time.monotonic() - began_s < READ_S_MAX + 0.2  # of a busy machine
    return hits


async def test_folder_that_cannot_be_opened_holds_nobody_up(cache: Disk, folder: Path) -> None:
    # Who opens a database writes to it, which the stopped process allows nobody.
    with disk_faults.held_transaction(folder):
        late = Disk(folder, 64 * MIB)
        await _all_in_time(late, 10)
        assert late.counters.late >= 5

        async def is_left_alone() -> bool:
            await found(late, 1)
            return late.is_off

        await until(is_left_alone, "it is left alone")
        began_s = time.monotonic()
        for _ in range(100):
            late.look(key_of(1), "red")
        assert time.monotonic() - began_s < READ_S_MAX


async def test_queue_for_writes_is_bounded_in_bytes(cache: Disk, folder: Path) -> None:
    with disk_faults.held_transaction(folder):
        for number in range(2 * WRITE_BYTES_MAX // MIB):
            keep(cache, number, LARGE)
        assert cache.counters.dropped_writes >= WRITE_BYTES_MAX // MIB - 2


async def test_folder_of_others_is_left_alone_until_it_is_ours(tmp_path: Path) -> None:
    folder = tmp_path / "answers"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    cache = Disk(folder, MIB)
    keep(cache, 1)

    async def is_off() -> bool:
        await found(cache, 1)
        return cache.is_off

    await until(is_off, "it is off")
    assert cache.counters.errors["insecure"] >= 1
    assert not list(folder.iterdir())
    folder.chmod(0o700)

    async def is_back() -> bool:
        keep(cache, 1)
        return await found(cache, 1) is not None

    await until(is_back, "it is on again")


async def test_folder_removed_meanwhile_is_made_anew(cache: Disk, folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()

    async def is_back() -> bool:
        keep(cache, 2)
        return await found(cache, 2) is not None

    await until(is_back, "it keeps answers again")


async def test_writes_under_way_are_waited_for_at_the_end(cache: Disk, folder: Path) -> None:
    for number in range(200, 300):
        keep(cache, number)
    await cache.flush()
    other = Disk(folder, 64 * MIB)
    await until(lambda: found(other, 299), "the last one is there")
