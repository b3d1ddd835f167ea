"""A controller on a unix socket, over a registry in a folder, without any process."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import msgspec

from pool.controller import Controller
from pool.registry_watch import RegistryWatch
from pool.wire import control
from pool.wire.listening import serve
from pool.wire.peer import Address
from registry_sync.directory import DirectoryStore
from registry_sync.documents import EndpointSpec, Scale, Variant, write
from registry_sync.local import LocalStore
from tests.support.artifacts import put_artifact
from tests.support.control import Member


class Stack:
    """A controller on a unix socket, over a registry in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = Address(path=str(folder / "s"))
        self.store = DirectoryStore(folder / "registry")
        self.local = LocalStore(folder / "control")
        self.watch = RegistryWatch(self.store)
        self.leads, self.epoch = True, 3
        self.members: list[Member] = []
        self.tasks: list[asyncio.Task[None]] = []
        put_artifact(self.store, {"model.onnx": b"1"})

    def make(self, workers_expected: int = 0) -> Controller:
        self.controller = Controller(
            self.watch,
            may_act=lambda: self.leads,
            epoch=lambda: self.epoch,
            workers_expected=workers_expected,
            local=self.local,
        )
        return self.controller

    def go(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(work))

    async def join(self, first: control.Message | None = None) -> Member:
        member = await Member.dial(self.address, first)
        self.members.append(member)
        return member

    async def joined(self, first: control.Message) -> Member:
        """Connect and wait for the welcome."""
        member = await self.join(first)
        await member.hear(control.Welcome)
        return member

    def put_spec(self, name: str = "e", version: str = "1", **scale: Any) -> None:
        spec = EndpointSpec(name, (Variant("a", "m", version, 100.0),), scale=Scale(**scale))
        data = write(spec)
        if any(entry.key == f"endpoints/{name}.json" for entry in self.store.list("endpoints")):
            self.store.delete(f"endpoints/{name}.json")
        self.store.put_new(f"endpoints/{name}.json", data)

    def status(self) -> Any:
        return msgspec.json.decode(msgspec.json.encode(self.controller.status()))


@contextlib.asynccontextmanager
async def running_controller() -> AsyncIterator[Stack]:
    """Serve one until the end."""
    folder = Path(tempfile.mkdtemp(prefix="tp"))
    made = Stack(folder)
    made.make()
    server = await serve(made.address, None, lambda peer: made.controller.on_peer(peer))
    yield made
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)
    for member in made.members:
        member.peer.close()
    await server.close()
    await asyncio.sleep(0.02)
    shutil.rmtree(folder)
