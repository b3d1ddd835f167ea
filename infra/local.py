"""`up`: the whole system as processes of this machine, from first start to clean end."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from edge.config import AccessLogMode
from infra import stack
from infra.changes import recorded
from infra.child import ProcessSpec
from infra.client import NoController, NotTrusted, ask, get, trusting_only
from infra.node_agent import UpLimits, following
from infra.stack import CannotStart, Node, StackFile, TlsFiles
from infra.supervisor import Supervisor
from pool.wire.fleet_secret import make_secrets
from registry_sync import keys, local_plans
from registry_sync.documents import KeyRecord
from registry_sync.open import open_store
from registry_sync.stores import Store, StoreUnavailable

KEY_VARIABLE = "TIDEPOOL_API_KEY"
READY_S_MAX = 60.0
EDGES_S_MAX = 5.0  # once one edge serves, the others are not waited for longer
POLL_S = 0.02
LEFTOVERS_S_MAX = 5.0  # processes of a killed `up` are gone, and with them their ports, within this


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    """What `up` was told."""

    node: Node
    registry: str
    host: str = "127.0.0.1"
    port: int = 8000
    admin_host: str = "127.0.0.1"
    admin_port: int = 8002
    workers: int = 1
    workers_min: int | None = None  # up whatever the demand; None: all
    parked: int = 0
    workers_idle_s: float = 60.0
    edges: int = 1
    engines: tuple[str, ...] = ()
    lame_duck_s: float = 0.0
    keep_alive_s: float = 5.0
    sync_interval_s: float = 0.0
    time_scale: float = 1.0  # see `ControllerConfig`
    body_bytes_max: int = 64 << 20
    cache_memory_bytes: int = 256 << 20
    cache_disk_bytes: int = 1 << 30
    plans_bytes_max: int = local_plans.BYTES_MAX_DEFAULT
    memory_bytes_max: int = 0
    device: str = stack.AUTO
    body_bytes_in_flight_max: int = 512 << 20
    access_log: AccessLogMode = "off"
    access_log_lines_per_s: float = 20.0
    device_usd_per_h: Mapping[str, float] = field(default_factory=dict)
    require_signed: str = ""  # file of trusted keys; empty: versions need no signature
    tls: TlsFiles | None = None  # of the edge's ports; None: HTTP
    log_level: str = "warning"
    log_folder: Path | None = None

    @property
    def limits(self) -> UpLimits:
        """How many workers are up."""
        up_min = self.workers if self.workers_min is None else self.workers_min
        return UpLimits(up_min=up_min, parked=self.parked, rest_s=self.workers_idle_s)

    @property
    def url(self) -> str:
        """The public URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self._scheme}://{host}:{self.port}"

    @property
    def admin_url(self) -> str:
        """The admin URL."""
        host = f"[{self.admin_host}]" if ":" in self.admin_host else self.admin_host
        return f"{self._scheme}://{host}:{self.admin_port}"

    @property
    def _scheme(self) -> str:
        return "http" if self.tls is None else "https"


@dataclass(frozen=True, slots=True)
class TierOptions:
    """The processes of one tier."""

    node: Node
    processes: tuple[ProcessSpec, ...]
    name: str
    before: Callable[[], None] | None = None  # done once the folder is this tier's alone
    limits: UpLimits | None = None  # of the workers among them; None: there are none
    controller: str = ""  # of these workers; empty: by the leader record


@contextlib.contextmanager
def sole_owner(folder: Path, name: str) -> Iterator[None]:
    """Hold a folder for one stack; its death gives it back.

    Raises:
        CannotStart: another one runs on it.
    """
    with open(folder / f"{name}.lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotStart(
                f"another `tidepool {name}` runs on --data {folder}; end it or choose another"
            ) from None
        yield


def ensure_key(store: Store) -> str | None:
    """Make sure that some admin key exists.

    `TIDEPOOL_API_KEY` becomes one as it is.  Else the first start makes one.

    Returns:
        The key that was made, which nothing keeps; None if none was.

    Raises:
        ValueError: the variable's value does not fit.
    """
    own = os.environ.get(KEY_VARIABLE)
    known = keys.list_keys(store)
    if own is not None:
        found = keys.verify(own, {record.id: record for record in known}, time.time())
        is_admin = found is not None and {*keys.ALL_SCOPES} <= {*found.scopes} and not found.quota
        if not is_admin:
            record = keys.record_of(own, "default", keys.ALL_SCOPES)
            _add_key(store, record, f"{KEY_VARIABLE} is set on up")
        return None
    if any("admin" in record.scopes for record in known):
        return None
    key, record = keys.make_key("default", keys.ALL_SCOPES)
    _add_key(store, record, "the first start of up")
    return key


def _add_key(store: Store, record: KeyRecord, reason: str) -> None:
    add = functools.partial(keys.add_key, store, record, replace=True)
    recorded(store, reason, "key.create", record.id, add)


@contextlib.asynccontextmanager
async def running(
    options: UpOptions, before: Callable[[], Awaitable[None]] | None = None
) -> AsyncIterator[Supervisor]:
    """Run the whole system; on entering it is ready, on leaving it has ended.

    Args:
        options: what `up` was told.
        before: done once nothing of another stack is in the way, and before anything starts.

    Raises:
        CannotStart: a port is taken, another stack has the folder, or it does not get ready.
    """
    node = options.node
    node.prepare()
    with sole_owner(node.data, "up"):
        await _require_ports(options)
        node.forget_metrics()
        make_secrets(node.data)
        if before is not None:
            await before()
        supervisor = Supervisor(options.log_folder)
        processes = _processes(options)
        try:
            async with following(node, supervisor, processes, node.control, options.limits):
                node.write_stack(
                    StackFile(
                        options.url,
                        options.admin_url,
                        options.registry,
                        node.control,
                        os.getpid(),
                        options.plans_bytes_max,
                        options.require_signed,
                    )
                )
                await _until_ready(options, supervisor)
                yield supervisor
        finally:
            await supervisor.stop()
            (node.data / "stack.json").unlink(missing_ok=True)
            _remove_sockets(node)


async def _require_ports(options: UpOptions) -> None:
    """Check that both ports are free, once what a killed `up` left behind has ended."""
    was_killed = (options.node.data / "stack.json").exists()
    deadline_s = time.monotonic() + (LEFTOVERS_S_MAX if was_killed else 0.0)
    while True:
        try:
            if options.port == options.admin_port and options.host == options.admin_host:
                raise CannotStart(f"--port and --admin-port are both {options.port}")
            stack.require_free(options.host, options.port, "--port")
            stack.require_free(options.admin_host, options.admin_port, "--admin-port")
            return
        except CannotStart:
            if time.monotonic() >= deadline_s:
                raise
        await asyncio.sleep(POLL_S)


def _processes(options: UpOptions) -> list[ProcessSpec]:
    node, level = options.node, options.log_level
    return [
        stack.controller_process(
            node,
            options.registry,
            level,
            workers_expected=options.workers,
            sync_interval_s=options.sync_interval_s,
            time_scale=options.time_scale,
            require_signed=options.require_signed,
        ),
        stack.sync_process(
            node,
            options.registry,
            level,
            plans_bytes_max=options.plans_bytes_max,
            require_signed=options.require_signed,
        ),
        *stack.worker_processes(
            node,
            options.workers,
            level,
            controller=node.control,
            engines=options.engines,
            lame_duck_s=options.lame_duck_s,
            plans_bytes_max=options.plans_bytes_max,
            memory_bytes_max=options.memory_bytes_max,
            on=options.device,
            require_signed=options.require_signed,
        ),
        *stack.edge_processes(
            node,
            options.edges,
            level,
            host=options.host,
            port=options.port,
            admin_host=options.admin_host,
            admin_port=options.admin_port,
            registry=options.registry,
            controller=node.control,
            lame_duck_s=options.lame_duck_s,
            keep_alive_s=options.keep_alive_s,
            body_bytes_max=options.body_bytes_max,
            cache_memory_bytes=options.cache_memory_bytes,
            cache_disk_bytes=options.cache_disk_bytes,
            body_bytes_in_flight_max=options.body_bytes_in_flight_max,
            access_log=options.access_log,
            access_log_lines_per_s=options.access_log_lines_per_s,
            device_usd_per_h=options.device_usd_per_h,
            tls=options.tls,
            require_signed=options.require_signed,
        ),
    ]


def _remove_sockets(node: Node) -> None:
    """Remove what killed processes left behind."""
    for path in node.run.glob("*.sock"):
        path.unlink(missing_ok=True)
    if node.run != node.data / "run":
        with contextlib.suppress(OSError):
            node.run.rmdir()


async def _until_ready(options: UpOptions, supervisor: Supervisor) -> None:
    deadline_s = time.monotonic() + READY_S_MAX
    ready_s, status = 0.0, 0
    while time.monotonic() < deadline_s:
        if supervisor.failed.is_set() or supervisor.hopeless():
            why = supervisor.why_failed or supervisor.hopeless()
            raise CannotStart(f"{why}; the log says why")
        # Looked at anew each time: the certificate may be renewed meanwhile.
        trusted = None if options.tls is None else trusting_only(options.tls.cert)
        ready = f"{options.url}/v2/health/ready"
        with contextlib.suppress(NotTrusted):
            status, _ = await asyncio.to_thread(get, ready, None, 2.0, trusted)
        if status == 200:
            ready_s = ready_s or time.monotonic()
            # Without a controller, which a dead registry may keep from leading, nobody can tell.
            if await _edges_up(options) or time.monotonic() > ready_s + EDGES_S_MAX:
                return
        await asyncio.sleep(POLL_S)
    raise CannotStart(f"not ready after {READY_S_MAX:.0f} s; the log says why")


async def _edges_up(options: UpOptions) -> bool:
    """Tell whether every edge has registered; they share a port, so that one answers for all."""
    try:
        answer = await ask(options.node.control, options.node.data, "status")
    except NoController:
        return False
    return len(msgspec.json.decode(answer.data, type=_Status).edges) >= options.edges


class _Status(msgspec.Struct, frozen=True):
    edges: list[msgspec.Raw]


def stop_event() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    return stop


async def until(stop: asyncio.Event, work: asyncio.Task[None]) -> None:
    """Wait for `work` unless `stop` comes first; then cancel it."""
    waiting = asyncio.create_task(stop.wait())
    await asyncio.wait([waiting, work], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    work.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await work


async def up(options: UpOptions) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = stop_event()

    async def serve() -> None:
        async with running(options, lambda: _prepare_key(options)):
            print(f"ready {options.url}", flush=True)
            await asyncio.Event().wait()

    await until(stop, asyncio.create_task(serve()))


async def _prepare_key(options: UpOptions) -> None:
    """Make sure of an admin key, and show at once one that was made: nothing can show it again."""
    try:
        store = await asyncio.to_thread(open_store, options.registry)
        made = await asyncio.to_thread(ensure_key, store)
    except StoreUnavailable as error:
        if not (options.node.data / "edge" / "documents.last").exists():
            raise
        print(f"starting from the last good documents: {error}", file=sys.stderr, flush=True)
        return
    if made is not None:
        print(f"admin key (shown only now): {made}", file=sys.stderr, flush=True)


async def run_tier(options: TierOptions) -> None:
    """Run one tier's processes until SIGTERM or SIGINT."""
    stop = stop_event()
    with sole_owner(options.node.data, options.name):
        if options.before is not None:
            options.before()
        supervisor = Supervisor()
        failed = asyncio.create_task(supervisor.failed.wait())
        stopped = asyncio.create_task(stop.wait())
        async with contextlib.AsyncExitStack() as agent:
            if options.limits is not None:
                await agent.enter_async_context(
                    following(
                        *(options.node, supervisor, options.processes),
                        *(options.controller, options.limits),
                    )
                )
            else:
                supervisor.start(options.processes)
            await asyncio.wait([failed, stopped], return_when=asyncio.FIRST_COMPLETED)
        await supervisor.stop()
        if supervisor.failed.is_set():
            raise CannotStart(supervisor.why_failed)
