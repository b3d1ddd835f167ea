"""What a worker pays in advance, so that the first wake in a process is as short as the others."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pool import parking
from pool.parking import Parking
from registry_sync.directory import DirectoryStore
from registry_sync.local import LocalStore
from registry_sync.publish import publish
from registry_sync.sync import fetch
from tests.support.artifacts import manifest_of
from tests.support.worker_process import running_worker


class Preparing:
    """An engine that has something to prepare."""

    name = "preparing"
    formats = frozenset({"theirs"})

    def __init__(self, error: Exception | None = None) -> None:
        self.threads: list[threading.Thread] = []
        self._error = error

    def prepare(self) -> bool:
        self.threads.append(threading.current_thread())
        if self._error is not None:
            raise self._error
        return True


class Plain:
    """An engine from before there was anything to prepare."""

    name = "plain"
    formats = frozenset({"theirs"})


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "IDLE_S", 0.01)


def theirs() -> frozenset[str]:
    return frozenset({"theirs"})


async def test_engine_is_prepared_once_and_not_on_the_loop() -> None:
    engine = Preparing()
    await Parking((Plain(), engine)).park(theirs, lambda: True)
    [thread] = engine.threads
    assert thread is not threading.main_thread()


async def test_engine_that_nothing_here_needs_is_left_alone() -> None:
    engine = Preparing()
    await Parking((engine,)).park(lambda: frozenset({"onnx"}), lambda: True)
    assert not engine.threads


async def test_nothing_is_prepared_while_somebody_waits() -> None:
    engine, busy = Preparing(), [True]
    parked = asyncio.create_task(Parking((engine,)).park(theirs, lambda: not busy[0]))
    await asyncio.sleep(0.1)
    assert not engine.threads
    busy[0] = False
    await parked
    assert engine.threads


async def test_engine_that_cannot_be_prepared_keeps_no_other_from_it() -> None:
    broken, other = Preparing(OSError("no driver")), Preparing()
    await Parking((broken, other)).park(theirs, lambda: True)
    assert other.threads


async def test_engine_is_prepared_once_whoever_asks() -> None:
    engine = Preparing(OSError("no driver"))
    parking = Parking((engine,))
    assert parking.begin(engine) is parking.begin(engine)
    await parking.park(theirs, lambda: True)
    assert len(engine.threads) == 1
    assert parking.begin(Plain()) is None


def test_store_knows_the_formats_of_what_is_here(tmp_path: Path) -> None:
    local = LocalStore(tmp_path)
    assert local.formats() == frozenset()
    for model, format in (("a", "onnx"), ("b", "theirs"), ("c", "theirs")):
        manifest = msgspec.structs.replace(manifest_of({"f": b"x"}, model=model), format=format)
        local.save_manifest(manifest)
    (tmp_path / "models" / "a" / "1" / "manifest.json").write_bytes(b"{")
    assert local.formats() == {"theirs"}


@pytest.mark.slow
async def test_parked_worker_wakes_a_torch_model_without_the_import(tmp_path: Path) -> None:
    pt2 = pytest.importorskip("tests.support.pt2")
    store = DirectoryStore(tmp_path / "registry")
    publish(store, "m", pt2.scaled(tmp_path / "model.pt2"), "1")
    local = LocalStore(tmp_path / "store")
    manifest = fetch(store, local, "m", "1")
    async with running_worker(tmp_path) as worker:
        prepared = await logged(tmp_path / "log", "engine_prepared")
        reply = await worker.call(manifest)
        assert reply.status == 200, reply.detail
        phases_us = (await logged(tmp_path / "log", "engine_warm"))["phases_us"]
    took_s, wake_ms = prepared["took_s"], reply.queue_us / 1e3
    print(f"torch: prepared in {took_s} s, first wake {wake_ms:.0f} ms")
    assert phases_us["import"] / 1e6 < 0.05 * took_s
    assert sum(phases_us.values()) / 1e6 < 0.5 * took_s


async def logged(log: Path, event: str) -> dict[str, Any]:
    """Wait for a line of a worker's log."""
    async with asyncio.timeout(120):
        while True:
            for line in log.read_text().splitlines():
                if f'"event": "{event}"' in line:
                    found: dict[str, Any] = json.loads(line)
                    return found
            await asyncio.sleep(0.05)
