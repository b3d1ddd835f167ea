"""Makes versions runnable in this worker: brings them to the node, and loads them.

The best engine whose plan is on the node is taken, else the portable one: a caller may wait for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final

from pool.config import WorkerConfig
from pool.engines import choice
from pool.engines.base import Engine, EngineError, without_paths
from pool.load_guard import LoadGuard
from pool.loaded import CannotLoad, Loaded, load_session
from pool.parking import Parking
from pool.phases import BUILD_WAIT, TURN, enter
from registry_sync.client import SyncAway, SyncError, fetch_golden_via, fetch_via
from registry_sync.documents import Manifest
from registry_sync.local import LocalStore
from registry_sync.sync import golden_path, present
from registry_sync.trust import Trust

SYNC_BACK_S_MAX: Final = 2.0  # its supervisor starts it again at once; a call may wait for that
SYNC_LOOK_S: Final = 0.05


class Loader:
    """Loads for one worker.

    Args:
        engines: that run artifacts as they are.
        guard: keeps the worker from dying of the same load again and again.
        parking: prepares an engine while what it is to run is on its way.
    """

    def __init__(
        self,
        config: WorkerConfig,
        engines: tuple[Engine, ...],
        guard: LoadGuard,
        parking: Parking,
    ) -> None:
        self.guard = guard
        self.local = LocalStore(Path(config.data) / "store", Trust(config.require_signed))
        self._sync_socket = config.sync_socket
        self._threads = config.threads
        self._engines = engines
        self._parking = parking

    async def bring(
        self, model: str, version: str, on_format: Callable[[str], None] | None = None
    ) -> Manifest:
        """Bring a version to this node, unless it is here; raises `CannotLoad`.

        Args:
            on_format: see `fetch_via`; perhaps called again.
        """
        manifest = await asyncio.to_thread(present, self.local, model, version)
        if manifest is None:
            await self._fetch(model, version, on_format)
            manifest = await asyncio.to_thread(present, self.local, model, version)
            if manifest is None:
                raise CannotLoad(f"{model} version {version} was brought and is not there")
        return manifest

    async def _fetch(
        self, model: str, version: str, on_format: Callable[[str], None] | None
    ) -> None:
        """Have sync fetch a version; one that has just died, or not begun yet, is waited for."""
        until_s = time.monotonic() + SYNC_BACK_S_MAX
        while True:
            try:
                await fetch_via(self._sync_socket, model, version, on_format)
                return
            except SyncAway as error:
                if time.monotonic() >= until_s:
                    raise CannotLoad(without_paths(str(error)), passes=True) from None
            except SyncError as error:
                # Clients are told why; where, the log of the sync process says.
                raise CannotLoad(without_paths(str(error)), passes=error.retry) from None
            except OSError as error:
                raise CannotLoad(without_paths(str(error)), passes=True) from None
            await asyncio.sleep(SYNC_LOOK_S)

    async def golden(self, manifest: Manifest) -> Path | None:
        """Return the file with a version's recorded inputs, bringing it; None: it has none.

        Raises:
            SyncError: it cannot be brought.
        """
        if manifest.golden is not None and golden_path(self.local, manifest) is None:
            await fetch_golden_via(self._sync_socket, manifest.model, manifest.version)
        path = golden_path(self.local, manifest)
        if path is None and manifest.golden is not None:
            raise SyncError(f"blob {manifest.golden} was brought and is not there", retry=True)
        return path

    async def load(
        self,
        model: str,
        version: str,
        best_here: Callable[[Manifest], Loaded | None],
        engine_name: Callable[[Manifest], str],
        room: Callable[[Manifest], AbstractAsyncContextManager[None]],
    ) -> Loaded:
        """Bring a version and make it runnable.

        Args:
            best_here: loads it from a plan that is here, if it can; blocks.
            engine_name: the engine that is wished for, "auto" if none is.
            room: makes room for it in the device's memory; raises `NoRoom`.

        Raises:
            CannotLoad: see there.
        """
        manifest = await self.bring(model, version, lambda fmt: self._comes(model, version, fmt))
        async with room(manifest):
            enter(BUILD_WAIT)
            return await asyncio.to_thread(
                lambda: best_here(manifest) or self.portable(manifest, engine_name(manifest))
            )

    def _comes(self, model: str, version: str, format: str) -> None:
        """Have the engine prepared that will run what is on its way."""
        try:
            engine = choice.portable(self._engines, format, "auto")
        except EngineError:
            return  # the load will say so
        # One that processes die of is left to its load, which is kept from coming again and again.
        if not self.guard.is_suspect(model, version, engine.name):
            self._parking.begin(engine, self.guard.loading(model, version, engine.name))

    def is_portable(self, name: str) -> bool:
        """Tell whether the engine of this name runs artifacts as they are."""
        return any(engine.name == name for engine in self._engines)

    def portable(self, manifest: Manifest, name: str) -> Loaded:
        """Load the artifact as it is, with the engine of this name if it can; blocks.

        Raises:
            CannotLoad: see there.
        """
        try:
            engine = choice.portable(self._engines, manifest.format, name)
        except EngineError as error:
            raise CannotLoad(str(error)) from None
        folder = self.local.folder_of(manifest)
        self._parking.finish(engine)
        enter(TURN)
        with self.guard.loading(manifest.model, manifest.version, engine.name):
            session = load_session(lambda: engine.load(folder, manifest, self._threads))
        datatypes = {spec.name: spec.datatype for spec in session.outputs}
        return Loaded(manifest, manifest.digest, session, engine.name, datatypes)
