"""Replicas come and go five times a second under traffic, in real worker processes.

This process is their controller and their edge: it goes by the real placement and dispatch.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge.dispatching.calls import Answer, Call
from edge.dispatching.dispatch import Pool
from edge.errors import Refusal
from pool import placement
from pool.placement import WorkerView
from pool.wire.control import Command, Heartbeat, Routes, WorkerRoute
from pool.wire.data import Tensor
from registry_sync.documents import Manifest, TensorSpec
from registry_sync.local import LocalStore
from tests.support.artifacts import manifest_of
from tests.support.control import Member
from tests.support.observed_engine import DIARY, LOAD_S, Diary
from tests.support.tickets import X, Y
from tests.support.worker_process import WorkerProcess, running_worker

REF = ("m", "1")
INPUTS = (*X, TensorSpec("delay_ms", "INT64", (-1,)))
RUN_MS = 4
CLIENTS = 12
STEP_S = 0.1  # one replica leaves, then it comes: each five times a second


class Fleet:
    """Two workers, an edge's pool, and what a controller does, late by up to 30 ms."""

    def __init__(self, workers: dict[str, WorkerProcess], manifest: Manifest, folder: Path) -> None:
        self.pool = Pool("e", None)
        self.manifest = manifest
        self._workers = workers
        self._folder = folder
        # The whole mutable state: what the workers last said, and what became of the calls.
        self.members: dict[str, Member] = {}
        self.became: Counter[str] = Counter()
        self.commands: Counter[str] = Counter()
        self.waits_s: list[float] = []

    async def follow(self, name: str) -> None:
        """Route by what a worker says, a moment after it says so."""
        member = self.members[name] = await self._workers[name].member()
        heard = 0
        while True:
            await _hears_more(member, heard)
            heard = len(member.heard)
            await asyncio.sleep(random.uniform(0.0, 0.03))
            views = self.views()
            workers = tuple(
                WorkerRoute(view.id, "", f"unix:{self._folder / view.id / 'w'}") for view in views
            )
            self.pool.update(Routes(1, heard, workers, (placement.route(REF, views),)))

    def views(self) -> list[WorkerView]:
        return [
            WorkerView(name, False, {(e.model, e.version): e for e in beats[-1].engines})
            for name, member in self.members.items()
            if (beats := member.all(Heartbeat))
        ]

    def states(self) -> dict[str, str]:
        return {
            view.id: view.engines[REF].state if REF in view.engines else "cold"
            for view in self.views()
        }

    async def warm(self, count: int) -> None:
        async with asyncio.timeout(30):
            while list(self.states().values()).count("warm") < count:  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    def command(self, name: str, op: str) -> None:
        self.commands[op] += 1
        self.members[name].say(Command(1, op, *REF, is_elsewhere=op == "unload"))

    async def scale_for(self, s: float) -> None:
        """Let one of two replicas leave, and have it back; never the only one."""
        until_s = time.monotonic() + s
        while time.monotonic() < until_s:
            states = self.states()
            warm = [name for name, state in states.items() if state == "warm"]
            if len(warm) == 2:
                self.command(random.choice(warm), "unload")
            else:
                for name in states.keys() - set(warm):
                    self.command(name, "load")
            await asyncio.sleep(STEP_S)

    async def call_until(self, ended: asyncio.Event) -> None:
        while not ended.is_set():
            call = Call(
                ref=REF,
                digest=self.manifest.digest,
                request_id="r",
                inputs=[
                    Tensor(spec.name, "INT64", (1,), np.array([RUN_MS], np.int64).tobytes())
                    for spec in INPUTS
                ],
                outputs=(),
                deadline_s=time.monotonic() + 10.0,
            )
            began_s = time.monotonic()
            self.pool.start(call)
            try:
                answer = await call.future
                self.became[type(answer).__name__] += 1
            except Refusal as refusal:
                self.became[refusal.text] += 1
            self.waits_s.append(time.monotonic() - began_s)
            await asyncio.sleep(random.uniform(0.0, 0.01))


async def _hears_more(member: Member, than: int) -> None:
    await member.until(lambda: [True] if len(member.heard) > than else [])


def put(store: Path, diary: Path, load_s: float) -> Manifest:
    """Put a model that notes its runs in `diary` into a node's store."""
    contents = {DIARY: str(diary).encode(), LOAD_S: str(load_s).encode()}
    manifest = msgspec.structs.replace(
        manifest_of(contents, model="m"), format="observed", inputs=INPUTS, outputs=Y, rows_max=8
    )
    local = LocalStore(store)
    local.save_manifest(manifest)
    for file in manifest.files:
        local.blob_path(file.sha256).write_bytes(contents[file.path])
    return manifest


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    folder = Path(tempfile.mkdtemp(prefix="tp"))
    async with AsyncExitStack() as stack:
        workers = {}
        for name in ("a", "b"):
            (folder / name).mkdir()
            manifest = put(folder / name / "store", folder / "diary", 0.02)
            workers[name] = await stack.enter_async_context(
                running_worker(
                    folder / name, id=name, engines=["tests.support.observed_engine:ObservedEngine"]
                )
            )
        made = Fleet(workers, manifest, folder)
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(made.follow(name)) for name in workers]
        tasks.append(loop.create_task(made.pool.sweep_forever()))
        yield made
        assert not any(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        await made.pool.close()
    shutil.rmtree(folder)


@pytest.mark.rule("F29")
@pytest.mark.parametrize("s", [2.0, pytest.param(30.0, marks=pytest.mark.slow)])
async def test_no_call_fails_or_runs_twice_while_replicas_come_and_go(
    fleet: Fleet, s: float
) -> None:
    diary = Diary(fleet._folder / "diary")
    ended = asyncio.Event()
    async with asyncio.timeout(30):
        while len(fleet.views()) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    for name in ("a", "b"):
        fleet.command(name, "load")
    await fleet.warm(2)
    clients = [asyncio.create_task(fleet.call_until(ended)) for _ in range(CLIENTS)]
    await fleet.scale_for(s)
    ended.set()
    await asyncio.gather(*clients)
    ran = sum(int(line.split()[1]) for line in diary.lines())
    waits_s = sorted(fleet.waits_s)
    print(
        f"\n{fleet.became.total()} calls, {fleet.commands['unload']} scale-downs in {s} s, "
        f"{fleet.pool.returns} given back, p50 {1e3 * waits_s[len(waits_s) // 2]:.1f} ms, "
        f"longest {1e3 * waits_s[-1]:.1f} ms"
    )
    assert set(fleet.became) == {Answer.__name__}
    assert ran == fleet.became.total()
    assert fleet.commands["unload"] >= s
    assert fleet.pool.retries == 0
