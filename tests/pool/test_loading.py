"""What a worker does while an artifact is on its way: it gets the engine ready that will run it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pool.config import WorkerConfig
from pool.deaths import Deaths, What
from pool.engines.base import Engine
from pool.load_guard import LoadGuard
from pool.loaded import CannotLoad, Loaded
from pool.loading import Loader
from pool.parking import Parking
from pool.phases import FETCH, IMPORT, Phases, enter
from registry_sync.daemon import Daemon, Registry
from registry_sync.directory import DirectoryStore
from registry_sync.documents import read_manifest, write
from registry_sync.local import LocalStore
from registry_sync.local_plans import LocalPlans
from registry_sync.publish import publish
from registry_sync.stores import Store
from tests.support.artifacts import blob_key, manifest_of
from tests.support.gated_engine import GatedEngine
from tests.support.worker_process import running_worker

PATIENCE_S = 60.0
MANIFEST = "models/m/1/manifest.json"
GATE = b"/nowhere/gate"  # always open


class HeldStore(DirectoryStore):
    """A registry whose blobs come once `release` is set; `asked` has what was asked for."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.release = threading.Event()
        self.asked: list[str] = []

    def size(self, key: str) -> int:
        self.asked.append(key)
        if key.startswith("blobs/"):
            assert self.release.wait(PATIENCE_S)
        return super().size(key)

    def read(self, key: str, offset: int, length: int) -> bytes:
        self.asked.append(key)
        return super().read(key, offset, length)


class Held(Registry):
    """The registry as the sync process has it."""

    def __init__(self, store: HeldStore) -> None:
        super().__init__(store.url)
        self.held = store

    def store(self) -> Store:
        return self.held


@asynccontextmanager
async def syncing(folder: Path, store: HeldStore) -> AsyncIterator[None]:
    """Run a node's sync daemon in this process, where its workers look for it."""
    (folder / "engines").mkdir()
    plans = LocalPlans(folder / "engines", 1 << 20)
    daemon = Daemon(Held(store), LocalStore(folder / "store"), plans)
    async with await asyncio.start_unix_server(daemon.connected, path=folder / "nobody"):
        yield
        store.release.set()
        await daemon.end()


class Slow(GatedEngine):
    """Format "slow": takes as long to prepare as the test likes."""

    name = "slow"
    formats = frozenset({"slow"})

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.prepared = 0
        self.meanwhile: Callable[[], None] = lambda: None

    def prepare(self) -> bool:
        self.begun.set()
        enter("theirs")
        assert self.go_on.wait(PATIENCE_S)
        self.meanwhile()
        self.prepared += 1
        return True


class Place:
    """A worker's loader of one engine, on a node whose registry holds its blobs back."""

    def __init__(self, folder: Path, store: HeldStore, engine: Engine) -> None:
        config = WorkerConfig(
            id="w", data=str(folder), listen="unix:/nowhere", sync_socket=str(folder / "nobody")
        )
        self.loading = folder / "loading"
        self.loader = Loader(config, (engine,), LoadGuard(self.loading, "now"), Parking((engine,)))
        self.store = store
        self.phases = Phases(FETCH)
        self.begun: list[asyncio.Task[Loaded]] = []

    def begin(self) -> asyncio.Task[Loaded]:
        self.begun.append(asyncio.create_task(self.load()))
        return self.begun[-1]

    async def load(self) -> Loaded:
        self.phases.watch()
        return await self.loader.load(
            "m", "1", lambda _: None, lambda _: "auto", lambda _: nullcontext()
        )


@pytest.fixture
def engine() -> Slow:
    return Slow()


@pytest.fixture
def store(tmp_path: Path) -> HeldStore:
    held = HeldStore(tmp_path / "registry")
    manifest = msgspec.structs.replace(manifest_of({"gate": GATE}), format="slow")
    held.put_new(blob_key(GATE), GATE)
    held.put_new(MANIFEST, write(manifest))
    return held


@pytest.fixture
async def place(tmp_path: Path, store: HeldStore, engine: Slow) -> AsyncIterator[Place]:
    async with syncing(tmp_path, store):
        made = Place(tmp_path, store, engine)
        yield made
        engine.go_on.set()
        store.release.set()
        await asyncio.gather(*made.begun, return_exceptions=True)


async def happens(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, PATIENCE_S)


async def test_engine_is_prepared_while_the_files_are_on_their_way(
    place: Place, engine: Slow
) -> None:
    load = place.begin()
    await happens(engine.begun)
    assert not place.store.release.is_set()
    engine.go_on.set()
    place.store.release.set()
    assert (await load).engine == "slow"
    assert engine.prepared == 1
    assert "theirs" not in place.phases.end()  # what is beside the fetch is no phase
    assert place.store.asked.count(MANIFEST) == 1


async def test_what_is_left_of_it_after_the_fetch_is_import(place: Place, engine: Slow) -> None:
    load = place.begin()
    await happens(engine.begun)
    place.store.release.set()
    async with asyncio.timeout(PATIENCE_S):
        while place.phases.name != IMPORT:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert not (await asyncio.wait([load], timeout=0.05))[0]
    engine.go_on.set()
    await load
    elapsed_s = place.phases.elapsed_s()
    took_us = place.phases.end()
    assert took_us["import"] >= 50_000
    assert sum(took_us.values()) >= 0.98e6 * elapsed_s


async def test_engine_that_cannot_be_prepared_loads_all_the_same(
    place: Place, engine: Slow
) -> None:
    def fail() -> None:
        raise OSError("no driver")

    engine.meanwhile = fail
    engine.go_on.set()
    place.store.release.set()
    assert (await place.load()).engine == "slow"
    assert engine.prepared == 0


async def test_fetch_that_fails_does_not_end_what_it_began(place: Place, engine: Slow) -> None:
    place.store.delete(blob_key(GATE))
    place.store.release.set()
    with pytest.raises(CannotLoad, match="blobs/"):
        await place.load()
    await happens(engine.begun)
    place.store.put_new(blob_key(GATE), GATE)
    load = place.begin()
    engine.go_on.set()
    await load
    assert engine.prepared == 1


async def test_process_that_dies_of_it_has_died_of_the_load(place: Place, engine: Slow) -> None:
    noted: list[str] = []
    engine.meanwhile = lambda: noted.append((place.loading / "now.journal").read_text())
    engine.go_on.set()
    place.store.release.set()
    await place.load()
    assert json.dumps(["m", "1", "slow"], separators=(",", ":")) in noted[0]


async def test_engine_that_processes_die_of_is_not_prepared_beside_a_fetch(
    tmp_path: Path, store: HeldStore, engine: Slow
) -> None:
    died = {"what": What("m", "1", "slow"), "deaths": Deaths(1, 0.0)}
    (tmp_path / "loading").mkdir()
    (tmp_path / "loading" / "deaths.json").write_bytes(msgspec.json.encode([died]))
    async with syncing(tmp_path, store):
        place = Place(tmp_path, store, engine)
        store.release.set()
        await place.load()
    assert not engine.begun.is_set()


async def test_torch_is_imported_while_an_archive_is_on_its_way(tmp_path: Path) -> None:
    held = HeldStore(tmp_path / "registry")
    files = {"model.pt2": b"no archive: making one would take this process a torch of its own"}
    manifest = msgspec.structs.replace(manifest_of(files), format="torch-export")
    held.put_new(blob_key(files["model.pt2"]), files["model.pt2"])
    held.put_new(MANIFEST, write(manifest))
    async with (
        syncing(tmp_path, held),
        running_worker(tmp_path) as worker,
        asyncio.TaskGroup() as tasks,
    ):
        call = tasks.create_task(worker.call(manifest))
        await logged(tmp_path / "log", "engine_prepared")
        assert not held.release.is_set()
        held.release.set()
        reply = await call
        assert "model.pt2" in reply.detail


@pytest.mark.slow
async def test_wake_from_the_registry_takes_the_longer_of_fetch_and_import(
    tmp_path: Path,
) -> None:
    pt2 = pytest.importorskip("tests.support.pt2")
    archive = pt2.scaled(tmp_path / "model.pt2")
    publish(DirectoryStore(tmp_path / "registry"), "m", archive, "1")
    held = HeldStore(tmp_path / "registry")
    manifest = read_manifest(held.get(MANIFEST).data)
    async with (
        syncing(tmp_path, held),
        running_worker(tmp_path) as worker,
        asyncio.TaskGroup() as tasks,
    ):
        call = tasks.create_task(worker.call(manifest))
        prepared = await logged(tmp_path / "log", "engine_prepared")
        assert not held.release.is_set()
        held.release.set()
        reply = await call
        assert reply.status == 200, reply.detail
        phases_us = (await logged(tmp_path / "log", "engine_warm"))["phases_us"]
    print(f"prepared in {prepared['took_s']} s; {phases_us}")
    assert phases_us["fetch"] / 1e6 > 0.9 * prepared["took_s"]
    assert phases_us["import"] / 1e6 < 0.1 * prepared["took_s"]
    assert sum(phases_us.values()) >= 0.98 * reply.queue_us
    assert held.asked.count(MANIFEST) == 1


async def logged(log: Path, event: str) -> dict[str, Any]:
    """Wait for a line of a worker's log."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            for line in log.read_text().splitlines():
                if f'"event": "{event}"' in line:
                    found: dict[str, Any] = json.loads(line)
                    return found
            await asyncio.sleep(0.05)
