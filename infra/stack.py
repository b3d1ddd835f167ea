"""The tiers of one machine as processes: what `up` and the single-tier commands start.

Decides names, sockets, ports and folders under `--data`; `Supervisor` runs them.
"""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge.config import AccessLogMode, EdgeConfig
from infra.child import ProcessSpec
from infra.traces import sends_traces
from pool.config import NODE_ID, ControllerConfig, WorkerConfig
from pool.engines import device
from pool.wire.fleet_secret import has_certificate
from pool.wire.listening import listen
from pool.wire.peer import Address
from registry_sync import local_plans
from registry_sync.config import SyncConfig
from registry_sync.names import BadName, check_name

RUN_PATH_BYTES_MAX = 80  # leaves room for a socket's name within the 108 bytes of sun_path
UNREAD_S_MAX = 30.0  # a client that takes nothing of its answer for so long is hung up on

AUTO = "auto"  # of devices: the GPUs in turn, the CPU where there are none

STAGE_CONTROLLER, STAGE_SYNC, STAGE_WORKER, STAGE_EDGE = 0, 1, 2, 3


class CannotStart(Exception):
    """Why a command cannot do its work, and the way out."""


class StackFile(msgspec.Struct, frozen=True):
    """What `up` writes to DATA/stack.json for the other commands; no key is in it."""

    url: str
    admin_url: str
    registry: str
    control: str  # the controller's address on this machine
    pid: int
    plans_bytes_max: int = local_plans.BYTES_MAX_DEFAULT  # kept on this node
    require_signed: str = ""  # file of trusted keys; empty: versions need no signature


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The certificate of the edge's ports, with what leads up to its CA, and its key: PEM."""

    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Node:
    """The folders and sockets of one machine."""

    data: Path

    @property
    def run(self) -> Path:
        """Where sockets lie: under DATA, or in a short folder if its path is too long."""
        inside = self.data / "run"
        if len(os.fsencode(inside)) <= RUN_PATH_BYTES_MAX:
            return inside
        digest = hashlib.sha256(os.fsencode(self.data)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"tidepool-{os.getuid()}-{digest}"

    @property
    def control(self) -> str:
        """The address of this machine's controller."""
        return f"unix:{self.run / 'control.sock'}"

    @property
    def sync_socket(self) -> str:
        """The socket of this machine's sync process."""
        return str(self.run / "sync.sock")

    def prepare(self) -> None:
        """Make the folders; nobody else may look into them.

        Raises:
            CannotStart: a folder cannot be made, or belongs to somebody else.
        """
        try:
            for folder in (self.data, self.run):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.run.stat().st_uid != os.getuid():
                raise CannotStart(f"{self.run} belongs to another user; choose another --data")
        except OSError as error:
            raise CannotStart(f"--data {self.data}: {error.strerror}") from None

    def forget_metrics(self) -> None:
        """Remove the totals that edges of a former start left; none of them may live."""
        for leftover in (self.data / "run" / "metrics").glob("*.json"):
            leftover.unlink(missing_ok=True)

    def id(self) -> str:
        """Return this node's id: as it was given, else made on its first start.

        Raises:
            CannotStart: what was given is no name.
        """
        given = os.environ.get(NODE_ID)
        if given is not None:
            try:
                return check_name(NODE_ID, given)
            except BadName as error:
                raise CannotStart(str(error)) from None
        path = self.data / "node-id"
        try:
            return path.read_text().strip()
        except FileNotFoundError:
            path.write_text(f"{socket.gethostname()[:40].lower()}-{secrets.token_hex(4)}\n")
            return path.read_text().strip()

    def has_controller(self) -> bool:
        """Tell whether a controller of this machine listens."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(self.control.removeprefix("unix:"))
            except OSError:
                return False
            return True

    def write_stack(self, stack: StackFile) -> None:
        """Say where everything is."""
        partial = self.data / "stack.json.partial"
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(stack)))
        partial.replace(self.data / "stack.json")

    def read_stack(self) -> StackFile | None:
        """Return what a running `up` wrote; None if none runs."""
        try:
            stack = msgspec.json.decode((self.data / "stack.json").read_bytes(), type=StackFile)
            os.kill(stack.pid, 0)
        except (FileNotFoundError, ProcessLookupError, msgspec.DecodeError):
            return None
        except PermissionError:
            pass
        return stack


def require_free(host: str, port: int, flag: str) -> None:
    """Check that nobody listens on a port.

    Edges share their port with SO_REUSEPORT, so that a second stack would not notice the first.

    Raises:
        CannotStart: the port is taken, or may not be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CannotStart(
                f"{flag} {port}: {error.strerror} on {host}; choose another with {flag}"
            ) from None


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that is free now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def sync_process(
    node: Node,
    registry: str,
    log_level: str,
    *,
    plans_bytes_max: int = local_plans.BYTES_MAX_DEFAULT,
    require_signed: str = "",
) -> ProcessSpec:
    """Return the node's sync process."""
    config = SyncConfig(
        data=str(node.data / "store"),
        registry=registry,
        socket=node.sync_socket,
        plans_bytes_max=plans_bytes_max,
        require_signed=require_signed,
        log_level=log_level,
    )
    return ProcessSpec("sync", "registry_sync", config, STAGE_SYNC)


def controller_process(
    node: Node,
    registry: str,
    log_level: str,
    *,
    listen: tuple[str, ...] = (),
    advertise: str = "",
    workers_expected: int = 0,
    sync_interval_s: float = 0.0,
    notifications: str = "",
    time_scale: float = 1.0,
    require_signed: str = "",
) -> ProcessSpec:
    """Return a controller; it always listens on the node's own socket."""
    config = ControllerConfig(
        id=node.id(),
        data=str(node.data),
        registry=registry,
        listen=(node.control, *listen),
        advertise=advertise,
        sync_interval_s=sync_interval_s,
        notifications=notifications,
        time_scale=time_scale,
        workers_expected=workers_expected,
        require_signed=require_signed,
        log_level=log_level,
    )
    return ProcessSpec("controller", "pool.controller_main", config, STAGE_CONTROLLER)


def worker_processes(
    node: Node,
    count: int,
    log_level: str,
    *,
    controller: str,
    listen_host: str = "",
    advertise_host: str = "",
    port: int = 0,
    engines: tuple[str, ...] = (),
    lame_duck_s: float = 0.0,
    drain_s_max: float = 30.0,
    plans_bytes_max: int = local_plans.BYTES_MAX_DEFAULT,
    memory_bytes_max: int = 0,
    on: str = AUTO,
    is_fallback: bool = False,
    require_signed: str = "",
) -> list[ProcessSpec]:
    """Return the node's workers: on unix sockets, or on TCP from `port` on.

    Args:
        on: the device of all of them, "cpu", "cuda:0", …; "auto": see `devices_for`.
        is_fallback: they serve only where an endpoint says so, and never rest.

    Raises:
        CannotStart: there is no such device.
    """
    threads = max(1, (os.cpu_count() or 1) // count)
    name = node.id()
    specs = []
    for slot, device_name in enumerate(_devices(count, on)):
        listen = f"unix:{node.run / f'worker-{slot}.sock'}"
        advertise = ""
        if listen_host:
            at = port + slot if port else free_port(listen_host)
            scheme = "tls" if has_certificate(node.data) else "tcp"
            listen = f"{scheme}://{listen_host}:{at}"
            advertise = f"{scheme}://{advertise_host or listen_host}:{at}"
        config = WorkerConfig(
            id=f"{name}-{slot}",
            data=str(node.data),
            listen=listen,
            advertise=advertise,
            controller=controller,
            sync_socket=node.sync_socket,
            sends_traces=sends_traces(),
            threads=threads,
            engines=engines,
            device=device_name,
            lame_duck_s=lame_duck_s,
            drain_s_max=drain_s_max,
            plans_bytes_max=plans_bytes_max,
            memory_bytes_max=memory_bytes_max,
            is_fallback=is_fallback,
            require_signed=require_signed,
            log_level=log_level,
        )
        specs.append(
            ProcessSpec(
                f"worker-{slot}",
                "pool.worker",
                config,
                STAGE_WORKER,
                lame_duck_s + drain_s_max,
                # As the driver's management library numbers GPUs, by which they are named here.
                env=(("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),),
                listen=functools.partial(_worker_sockets, listen),
                may_rest=not is_fallback,
            )
        )
    return specs


def _devices(workers: int, on: str) -> list[str]:
    if on == AUTO:
        return devices_for(workers, [gpu.name for gpu in device.gpus().devices])
    if not on:  # which `find` takes for "any"
        raise CannotStart("--device: expected auto, cpu or cuda:N")
    try:
        return [device.find(on).name] * workers
    except device.NoSuchDevice as error:
        raise CannotStart(f"--device: {error}") from None


def devices_for(workers: int, gpus: Sequence[str]) -> list[str]:
    """Return on which device each of a node's workers serves.

    >>> devices_for(3, ["cuda:0", "cuda:1"])
    ['cuda:0', 'cuda:1', 'cuda:0']
    >>> devices_for(2, [])
    ['cpu', 'cpu']
    """
    return [gpus[slot % len(gpus)] if gpus else "cpu" for slot in range(workers)]


def edge_processes(
    node: Node,
    count: int,
    log_level: str,
    *,
    host: str,
    port: int,
    admin_host: str,
    admin_port: int,
    registry: str,
    controller: str,
    lame_duck_s: float = 0.0,
    drain_s_max: float = 30.0,
    keep_alive_s: float = 5.0,
    body_bytes_max: int = 64 << 20,
    cache_memory_bytes: int = 256 << 20,
    cache_disk_bytes: int = 1 << 30,
    body_bytes_in_flight_max: int = 512 << 20,
    access_log: AccessLogMode = "off",
    access_log_lines_per_s: float = 20.0,
    device_usd_per_h: Mapping[str, float] | None = None,
    require_signed: str = "",
    tls: TlsFiles | None = None,
) -> list[ProcessSpec]:
    """Return the node's edges, all on the same ports."""
    name = node.id()
    return [
        ProcessSpec(
            f"edge-{slot}",
            "edge",
            EdgeConfig(
                id=f"{name}-edge-{slot}",
                data=str(node.data),
                sends_traces=sends_traces(),
                host=host,
                port=port,
                admin_host=admin_host,
                admin_port=admin_port,
                registry=registry,
                controller=controller,
                lame_duck_s=lame_duck_s,
                drain_s_max=drain_s_max,
                keep_alive_s=keep_alive_s,
                body_bytes_max=body_bytes_max,
                cache_bytes_max=cache_memory_bytes,
                cache_disk_bytes_max=cache_disk_bytes,
                body_bytes_in_flight_max=body_bytes_in_flight_max,
                access_log=access_log,
                access_log_lines_per_s=access_log_lines_per_s,
                device_usd_per_h=tuple((device_usd_per_h or {}).items()),
                require_signed=require_signed,
                tls_cert="" if tls is None else str(tls.cert),
                tls_key="" if tls is None else str(tls.key),
                log_level=log_level,
            ),
            STAGE_EDGE,
            lame_duck_s + drain_s_max,
            listen=functools.partial(_edge_sockets, (host, port), (admin_host, admin_port)),
        )
        for slot in range(count)
    ]


def _worker_sockets(address: str) -> list[socket.socket]:
    return [listen(Address.parse(address))]


def _edge_sockets(*addresses: tuple[str, int]) -> list[socket.socket]:
    """Bind an edge's sockets; it listens on them once it can answer."""
    bound = []
    try:
        for host, port in addresses:
            one = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            bound.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # several edges on one port
            # Its connections inherit what follows.
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
                unread_ms_max = int(UNREAD_S_MAX * 1000)
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, unread_ms_max)
            one.bind((host, port))
    except OSError:
        for one in bound:
            one.close()
        raise
    return bound
