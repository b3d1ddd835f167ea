"""The sync process of a node: asked over a unix socket, the only one that talks to the registry.

It owns the socket and the sharing of work between those who ask; bringing files
is `sync`'s. Everything on disk survives a kill at any time, so ending is quick:
who still waits is told to come again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog

from registry_sync.config import SyncConfig
from registry_sync.leader import look
from registry_sync.leader_record import LeaderRecord
from registry_sync.local import LocalStore
from registry_sync.local_plans import LocalPlans
from registry_sync.messages import (
    LINE_BYTES_MAX,
    AskLeader,
    Fetch,
    FetchGolden,
    FetchPlan,
    Ping,
    PutGate,
    PutPlan,
    Reply,
    Request,
    UsePlan,
    decode_request,
    encode,
)
from registry_sync.names import BadName
from registry_sync.open import open_store
from registry_sync.plan_desk import PlanDesk
from registry_sync.stores import Distant, Store, StoreError, StoreUnavailable
from registry_sync.sync import FetchError, fetch, fetch_golden, golden_path, present
from registry_sync.trust import Trust

_FETCHES_MAX = 8  # each holds up to 64 MiB of parts
_PUTS_MAX = 4  # apart too: one that waits for another writer does so for a minute
_LOOKS_MAX = 2  # apart from the fetches, so that no download delays finding the leader
SILENT_S_MAX = 4.0  # who waits for a registry that says nothing waits for so long, and hears why
LOOK_S = 0.25
_DRAIN_S_MAX = 1.0  # for a part that is being written; then the process ends all the same

_log = structlog.get_logger()


class Registry:
    """The store behind a URL, opened by the first thread that needs it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._store: Store | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        return self._url

    def silent_s(self) -> float:
        """Return for how long it has not answered who asks it now; 0: it does, or nobody does."""
        store = self._store
        return store.silent_s() if isinstance(store, Distant) else 0.0

    def store(self) -> Store:
        """Return the store; raises `BadStore`, and then tries again the next time."""
        with self._lock:
            if self._store is None:
                self._store = open_store(self._url)
            return self._store


class _Work(NamedTuple):
    """What is done for all who ask the same."""

    reply: asyncio.Task[Reply]
    format: asyncio.Future[str]  # of a version that is on its way; else for ever open


class Daemon:
    """Answers requests; equal ones that are under way share one answer."""

    def __init__(self, registry: Registry, local: LocalStore, plans: LocalPlans) -> None:
        self._registry = registry
        self._local = local
        self._stop = threading.Event()
        self._plan_desk = PlanDesk(registry.store, plans, self._stop)
        self._fetch_threads = ThreadPoolExecutor(_FETCHES_MAX, "fetch")
        self._put_threads = ThreadPoolExecutor(_PUTS_MAX, "put")
        self._look_threads = ThreadPoolExecutor(_LOOKS_MAX, "look")
        # The whole mutable state: the work under way by what was asked, and the connections
        # that wait for an answer.
        self._under_way: dict[Request, _Work] = {}
        self._busy: set[asyncio.Task[None]] = set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection's requests, one after the other, until it closes."""
        task = asyncio.current_task()
        assert task is not None
        try:
            while not self._stop.is_set():
                try:
                    line = await reader.readline()
                except ValueError:
                    writer.write(encode(_refusal(f"longer than {LINE_BYTES_MAX} bytes")))
                    await writer.drain()
                    return
                if not line.endswith(b"\n"):
                    return
                self._busy.add(task)
                reply = await self._answer(line, lambda first: writer.write(encode(first)))
                writer.write(encode(reply))
                await writer.drain()
                self._busy.discard(task)
        except (ConnectionError, asyncio.CancelledError):
            # The caller left, or the process ends: either way nobody waits for an answer.
            pass
        finally:
            self._busy.discard(task)
            writer.close()

    async def end(self) -> None:
        """Have all work given up, and give those who wait for it a moment to hear so."""
        self._stop.set()
        if self._busy:
            await asyncio.wait(self._busy, timeout=_DRAIN_S_MAX)
        for threads in (self._fetch_threads, self._put_threads, self._look_threads):
            threads.shutdown(wait=False, cancel_futures=True)

    async def _answer(self, line: bytes, say: Callable[[Reply], None]) -> Reply:
        try:
            request = decode_request(line)
        except msgspec.DecodeError as error:
            return _refusal(str(error))
        if isinstance(request, Ping):
            return Reply(ok=True)
        tells_format = isinstance(request, Fetch) and request.tells_format
        if isinstance(request, Fetch):
            # Who hears of the format shares the work of those who do not.
            request = msgspec.structs.replace(request, tells_format=False)
        work = self._under_way.get(request)
        if work is None:
            format = asyncio.get_running_loop().create_future()
            work = _Work(asyncio.create_task(self._work(request, format)), format)
            self._under_way[request] = work
            work.reply.add_done_callback(lambda _: self._under_way.pop(request))
        # A caller who leaves does not end it: his connection notices when it is to answer.
        if isinstance(request, Fetch):
            return await self._unless_silent(work, say if tells_format else None)
        return await work.reply

    async def _unless_silent(self, work: _Work, say: Callable[[Reply], None] | None) -> Reply:
        """Wait for work on which calls wait; not for long while the registry says nothing.

        The work goes on, and whoever asks again joins it.

        Args:
            say: takes the line with the format, if the caller does.
        """
        while True:
            news = (work.reply,) if say is None else (work.reply, work.format)
            await asyncio.wait(news, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
            if say is not None and work.format.done():
                say(Reply(ok=True, format=work.format.result()))
                say = None
            if work.reply.done():
                return work.reply.result()
            silent_s = self._registry.silent_s()
            if silent_s >= SILENT_S_MAX:
                url = self._registry.url
                error = f"the registry {url} has not answered for {silent_s:.0f} s"
                return Reply(ok=False, error=error, retry=True)

    async def _work(
        self,
        request: Fetch | FetchGolden | AskLeader | FetchPlan | PutPlan | PutGate | UsePlan,
        format: asyncio.Future[str],
    ) -> Reply:
        run = asyncio.get_running_loop().run_in_executor
        try:
            match request:
                case AskLeader():
                    return Reply(ok=True, leader=await run(self._look_threads, self._look))
                case Fetch(model, version):
                    await run(self._fetch_threads, self._fetch, model, version, format)
                    return Reply(ok=True)
                case FetchGolden(model, version):
                    await run(self._fetch_threads, self._fetch_golden, model, version)
                    return Reply(ok=True)
                case PutPlan() | PutGate():
                    return await run(self._put_threads, self._plan_desk.answer, request)
                case _:
                    return await run(self._fetch_threads, self._plan_desk.answer, request)
        except FetchError as error:
            reply = Reply(ok=False, error=str(error), retry=error.retry)
        except StoreError as error:
            reply = Reply(ok=False, error=str(error), retry=isinstance(error, StoreUnavailable))
        except BadName as error:
            reply = Reply(ok=False, error=str(error))
        except OSError as error:
            # The node's own disk.
            reply = Reply(ok=False, error=f"the local store failed: {error}", retry=True)
        _log.warning("request failed", request=msgspec.to_builtins(request), error=reply.error)
        return reply

    def _fetch(self, model: str, version: str, format: asyncio.Future[str]) -> None:
        tell = format.get_loop().call_soon_threadsafe
        # First without the registry, which may be broken or not yet open.
        if present(self._local, model, version) is None:
            fetch(
                self._registry.store(),
                self._local,
                model,
                version,
                self._stop,
                lambda manifest: tell(format.set_result, manifest.format),
            )
            _log.info("fetched", model=model, version=version)

    def _fetch_golden(self, model: str, version: str) -> None:
        manifest = present(self._local, model, version)
        if manifest is not None and golden_path(self._local, manifest) is None:
            fetch_golden(self._registry.store(), self._local, manifest, self._stop)

    def _look(self) -> LeaderRecord | None:
        return look(self._registry.store()).record


async def serve(config: SyncConfig) -> None:
    """Answer on the socket until SIGTERM or SIGINT.

    Threads may be left behind: a read of a dead store cannot be called back.

    Raises:
        OSError: the socket cannot be made, or another process answers on it.
    """
    data = Path(config.data)
    plans = LocalPlans(data / "engines", config.plans_bytes_max)
    local = LocalStore(data, Trust(config.require_signed))
    daemon = Daemon(Registry(config.registry), local, plans)
    path = Path(config.socket)
    with _listening(path) as listener:
        server = await asyncio.start_unix_server(
            daemon.connected, sock=listener, limit=LINE_BYTES_MAX
        )
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        _log.info("ready", socket=config.socket, registry=config.registry)
        await ended.wait()
        server.close()
        await daemon.end()
        _log.info("ended")


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """Listen on a socket that only this user can open, in the place of a dead process's one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _is_answered(path):
            raise OSError(errno.EADDRINUSE, "another sync process answers here", str(path))
        path.unlink(missing_ok=True)
        # The mask is the process's, but nothing else makes files at this time; a chmod afterwards
        # would leave a moment in which anybody could connect.
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        made = path.lstat()
        try:
            yield listener
        finally:
            # Unless a later process has put its own there.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(made, path.lstat()):
                    path.unlink()
    finally:
        listener.close()


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True


def _refusal(reason: str) -> Reply:
    return Reply(ok=False, error=f"the request cannot be read: {reason}")
