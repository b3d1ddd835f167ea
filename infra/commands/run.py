"""`up` and the single tiers: processes that run until they are told to end."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer

from edge.config import AccessLogMode
from infra import stack
from infra.commands.options import (
    DATA_DEFAULT,
    Data,
    LogLevel,
    RequireSigned,
    node_of,
    registry_url,
    said,
    trusted_file,
)
from infra.commands.pools_option import Pools, launcher_processes
from infra.commands.price_option import DevicePrices, device_prices
from infra.commands.tls_option import TlsCert, TlsKey, tls_files
from infra.ecs_task import host_option, hosts_option
from infra.local import TierOptions, UpOptions, run_tier, up
from infra.node_agent import UpLimits
from infra.stack import CannotStart, free_port
from pool.config import NODE_ID
from pool.wire.fleet_secret import FILE, VARIABLE, wire_tls
from pool.wire.peer import Address
from registry_sync import local_plans
from registry_sync.logs import configure

Host = Annotated[
    str, typer.Option("--host", callback=host_option, help="Where the public port listens.")
]
Port = Annotated[
    int, typer.Option("--port", min=0, max=65535, help="The public port; 0: any free one.")
]
GrpcPort = Annotated[
    int, typer.Option("--grpc-port", min=0, max=65535, help="Reserved; nothing listens yet.")
]
AdminPort = Annotated[
    int, typer.Option("--admin-port", min=0, max=65535, help="Admin and metrics.")
]
AdminHost = Annotated[
    str,
    typer.Option(
        "--admin-host",
        callback=host_option,
        help="Where the admin port listens; ecs-task: at this ECS task's own address, as wherever "
        "a host is named.",
    ),
]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Worker processes.")]
WorkersMin = Annotated[
    int | None,
    typer.Option(
        "--workers-min",
        min=0,
        help="Worker processes that are up whatever the demand; default: all. The others are "
        "started when they are needed, or called.",
    ),
]
Parked = Annotated[
    int,
    typer.Option(
        "--parked",
        min=0,
        help="On each device so many worker processes are up, with nothing loaded, beyond those "
        "that serve: a wake there is spared the start of a process.",
    ),
]
WorkersIdle = Annotated[
    float,
    typer.Option(
        "--workers-idle-s",
        min=0,
        help="A worker process that nobody needs ends so long after it was last of use.",
    ),
]
TimeScale = Annotated[
    float,
    typer.Option(
        "--time-scale",
        min=0.001,
        hidden=True,
        help="A rehearsal: what decides about sleep and replicas sees time pass so much faster.",
    ),
]
Edges = Annotated[int, typer.Option("--edges", min=1, help="Edge processes.")]
RegistryOf = Annotated[str, typer.Option("--registry", help="s3://bucket/prefix or a folder.")]
Engines = Annotated[
    list[str] | None, typer.Option("--engine", help='A further engine, "module:Class".')
]
LameDuck = Annotated[
    float,
    typer.Option(
        "--lame-duck-s",
        min=0,
        help="After SIGTERM: no longer ready, but serving; longer than a balancer takes to notice.",
    ),
]
KeepAlive = Annotated[
    float,
    typer.Option(
        "--keep-alive-s",
        min=0.1,
        help="How long a connection may be silent before the next request's head is whole. "
        "Behind a balancer: longer than that keeps idle connections.",
    ),
]
Controller = Annotated[
    str,
    typer.Option("--controller", help="tcp://host:port or tls://…; default: the leader record."),
]
Interval = Annotated[float, typer.Option("--sync-interval-s", min=0, help="0: 1 s, on S3 10 s.")]
Notifications = Annotated[
    str,
    typer.Option(
        "--notifications",
        metavar="QUEUE_URL",
        help="The SQS queue that the registry's bucket tells of changes; nobody else may read it.",
    ),
]
BodyMax = Annotated[int, typer.Option("--body-bytes-max", min=1, help="Of one request.")]
BodiesMax = Annotated[
    int,
    typer.Option(
        "--body-bytes-in-flight-max", min=1, help="Of all requests of an edge process together."
    ),
]
AccessLog = Annotated[
    AccessLogMode,
    typer.Option(
        "--access-log",
        help="A line per request: on, sampled when busy, or off (only of those that failed).",
    ),
]
AccessLines = Annotated[
    float,
    typer.Option(
        "--access-log-lines-per-s",
        min=0.1,
        help="Of an edge process, each for what was fine, refused, and failed or slow.",
    ),
]
MemoryMax = Annotated[
    int, typer.Option("--cache-memory-bytes", min=0, help="Answers in memory, of each edge.")
]
DiskMax = Annotated[
    int,
    typer.Option("--cache-disk-bytes", min=0, help="Answers on disk, of all edges together."),
]
PlansMax = Annotated[
    int,
    typer.Option("--plans-bytes-max", min=1, help="Built plans kept on this node, all together."),
]
EnginesMax = Annotated[
    int,
    typer.Option(
        "--memory-bytes-max",
        min=0,
        help="For the models loaded in one worker process; what is least missed leaves for what "
        "is called.  0: what its device has.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        help="On which all workers serve: cpu or cuda:N; auto: the GPUs in turn, else the CPU.",
    ),
]
Fallback = Annotated[
    bool,
    typer.Option(
        "--fallback",
        help="These workers serve, on the CPU, only the endpoints whose scale.fallback is cpu, and "
        "only while no other worker has their model warm.  They are always up.",
    ),
]

NO_CERTIFICATE = (
    "tls:// needs a certificate: put tls.crt and tls.key into DATA/wire-tls, or name their folder "
    "with TIDEPOOL_WIRE_TLS"
)
NO_SECRET = "TCP needs a fleet secret: set TIDEPOOL_FLEET_SECRET, or put one into DATA/secrets"
WILDCARDS = ("0.0.0.0", "::")  # good to listen on, impossible to dial


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("up")(up_command)
    app.command("edge")(edge_command)
    app.command("pool")(pool_command)
    app.command("controller")(controller_command)
    app.command("sync")(sync_command)


def up_command(
    data: Data = DATA_DEFAULT,
    registry: RegistryOf = "",
    host: Host = "127.0.0.1",
    port: Port = 8000,
    grpc_port: GrpcPort = 8001,
    admin_host: AdminHost = "127.0.0.1",
    admin_port: AdminPort = 8002,
    workers: Workers = 1,
    workers_min: WorkersMin = None,
    parked: Parked = 0,
    workers_idle_s: WorkersIdle = 60.0,
    edges: Edges = 1,
    engine: Engines = None,
    lame_duck_s: LameDuck = 0.0,
    keep_alive_s: KeepAlive = 5.0,
    sync_interval_s: Interval = 0.0,
    body_bytes_max: BodyMax = 64 << 20,
    body_bytes_in_flight_max: BodiesMax = 512 << 20,
    access_log: AccessLog = "sampled",
    access_log_lines_per_s: AccessLines = 20.0,
    device_price_usd_per_h: DevicePrices = "",
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    cache_memory_bytes: MemoryMax = 256 << 20,
    cache_disk_bytes: DiskMax = 1 << 30,
    plans_bytes_max: PlansMax = local_plans.BYTES_MAX_DEFAULT,
    memory_bytes_max: EnginesMax = 0,
    device: Device = stack.AUTO,
    time_scale: TimeScale = 1.0,
    require_signed: RequireSigned = None,
    log_level: LogLevel = "warning",
) -> None:
    """Run the whole system on this machine until Ctrl-C or SIGTERM."""
    options = UpOptions(
        node=node_of(data),
        registry=registry_url(data, registry) if registry else str(node_of(data).data / "registry"),
        host=host,
        port=port or free_port(host),
        admin_host=admin_host,
        admin_port=admin_port or free_port(admin_host),
        workers=workers,
        workers_min=_workers_min(workers, workers_min),
        parked=parked,
        workers_idle_s=workers_idle_s,
        edges=edges,
        engines=tuple(engine or ()),
        lame_duck_s=lame_duck_s,
        keep_alive_s=keep_alive_s,
        sync_interval_s=sync_interval_s,
        body_bytes_max=body_bytes_max,
        body_bytes_in_flight_max=body_bytes_in_flight_max,
        access_log=access_log,
        access_log_lines_per_s=access_log_lines_per_s,
        device_usd_per_h=device_prices(device_price_usd_per_h),
        tls=tls_files(tls_cert, tls_key),
        cache_memory_bytes=cache_memory_bytes,
        cache_disk_bytes=cache_disk_bytes,
        plans_bytes_max=plans_bytes_max,
        memory_bytes_max=memory_bytes_max,
        device=device,
        time_scale=time_scale,
        require_signed=trusted_file(require_signed),
        log_level=log_level,
    )
    with said():
        configure("supervisor", log_level)
        asyncio.run(up(options))


def edge_command(
    data: Data = DATA_DEFAULT,
    registry: RegistryOf = "",
    controller: Controller = "",
    host: Host = "127.0.0.1",
    port: Port = 8000,
    grpc_port: GrpcPort = 8001,
    admin_host: AdminHost = "127.0.0.1",
    admin_port: AdminPort = 8002,
    edges: Edges = 1,
    lame_duck_s: LameDuck = 5.0,
    keep_alive_s: KeepAlive = 5.0,
    body_bytes_max: BodyMax = 64 << 20,
    body_bytes_in_flight_max: BodiesMax = 512 << 20,
    access_log: AccessLog = "sampled",
    access_log_lines_per_s: AccessLines = 20.0,
    device_price_usd_per_h: DevicePrices = "",
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    cache_memory_bytes: MemoryMax = 256 << 20,
    cache_disk_bytes: DiskMax = 1 << 30,
    require_signed: RequireSigned = None,
    log_level: LogLevel = "info",
) -> None:
    """Run only the edge."""
    node = node_of(data)
    if not controller and not registry:
        raise CannotStart("an edge needs --controller or --registry to find its controller")
    port, admin_port = port or free_port(host), admin_port or free_port(admin_host)
    node.prepare()
    processes = stack.edge_processes(
        node,
        edges,
        log_level,
        host=host,
        port=port,
        admin_host=admin_host,
        admin_port=admin_port,
        registry=registry_url(data, registry) if registry else "",
        controller=controller,
        lame_duck_s=lame_duck_s,
        keep_alive_s=keep_alive_s,
        body_bytes_max=body_bytes_max,
        body_bytes_in_flight_max=body_bytes_in_flight_max,
        access_log=access_log,
        access_log_lines_per_s=access_log_lines_per_s,
        device_usd_per_h=device_prices(device_price_usd_per_h),
        tls=tls_files(tls_cert, tls_key),
        require_signed=trusted_file(require_signed),
        cache_memory_bytes=cache_memory_bytes,
        cache_disk_bytes=cache_disk_bytes,
    )

    def before() -> None:
        stack.require_free(host, port, "--port")
        stack.require_free(admin_host, admin_port, "--admin-port")
        node.forget_metrics()

    _run(TierOptions(node, tuple(processes), "edge", before), log_level)


def pool_command(
    data: Data = DATA_DEFAULT,
    registry: RegistryOf = "",
    controller: Controller = "",
    workers: Workers = 1,
    workers_min: WorkersMin = None,
    parked: Parked = 0,
    workers_idle_s: WorkersIdle = 60.0,
    listen_host: Annotated[
        str,
        typer.Option(
            "--listen-host",
            callback=host_option,
            help="Serve edges of other hosts over TCP here.",
        ),
    ] = "",
    advertise_host: Annotated[
        str,
        typer.Option(
            "--advertise-host",
            callback=host_option,
            help="What those edges dial, if it differs.",
        ),
    ] = "",
    worker_port: Annotated[
        int, typer.Option("--worker-port", help="TCP port of the first worker; 0: any.")
    ] = 0,
    engine: Engines = None,
    lame_duck_s: LameDuck = 5.0,
    plans_bytes_max: PlansMax = local_plans.BYTES_MAX_DEFAULT,
    memory_bytes_max: EnginesMax = 0,
    device: Device = stack.AUTO,
    fallback: Fallback = False,
    require_signed: RequireSigned = None,
    log_level: LogLevel = "info",
) -> None:
    """Run only workers, with the sync process that brings their artifacts."""
    node = node_of(data)
    if not registry:
        raise CannotStart("a pool needs --registry to bring its artifacts from")
    if listen_host and not _has_secret(node.data):
        raise CannotStart(NO_SECRET)
    if listen_host in WILDCARDS and not advertise_host:
        raise CannotStart(f"--listen-host {listen_host}: say with --advertise-host what edges dial")
    limits: UpLimits | None = UpLimits(
        up_min=_workers_min(workers, workers_min), parked=parked, rest_s=workers_idle_s
    )
    if fallback:
        device = _fallback_device(device)
        if workers_min not in (None, workers) or parked:
            raise CannotStart("--fallback: these workers are always up; leave --workers-min and "
                              "--parked away")  # fmt: skip
        limits = None  # no node that the controller may let rest
    if NODE_ID in os.environ:
        limits = None  # nor here: whoever placed this node has it up, or not
    node.prepare()
    url, signed = registry_url(data, registry), trusted_file(require_signed)
    controller = controller or ("" if url.startswith("s3://") else node.control)
    processes = [
        stack.sync_process(
            node, url, log_level, plans_bytes_max=plans_bytes_max, require_signed=signed
        ),
        *stack.worker_processes(
            node,
            workers,
            log_level,
            controller=controller,
            listen_host=listen_host,
            advertise_host=advertise_host,
            port=worker_port,
            engines=tuple(engine or ()),
            lame_duck_s=lame_duck_s,
            plans_bytes_max=plans_bytes_max,
            memory_bytes_max=memory_bytes_max,
            on=device,
            is_fallback=fallback,
            require_signed=signed,
        ),
    ]
    _run(
        TierOptions(node, tuple(processes), "pool", limits=limits, controller=controller),
        log_level,
    )


def controller_command(
    data: Data = DATA_DEFAULT,
    registry: RegistryOf = "",
    listen: Annotated[
        list[str] | None,
        typer.Option(
            "--listen", callback=hosts_option, help="tcp://host:port or tls://… for other hosts."
        ),
    ] = None,
    advertise: Annotated[
        str,
        typer.Option(
            "--advertise", callback=host_option, help="What other hosts dial, if it differs."
        ),
    ] = "",
    workers_expected: Annotated[
        int, typer.Option("--workers-expected", min=0, help="Not ready before so many.")
    ] = 0,
    sync_interval_s: Interval = 0.0,
    notifications: Notifications = "",
    pools: Pools = None,
    require_signed: RequireSigned = None,
    log_level: LogLevel = "info",
) -> None:
    """Run only the controller, with the launcher of the pools on AWS if there are any."""
    node = node_of(data)
    for text in listen or ():
        try:
            address = Address.parse(text)
        except ValueError as error:
            raise CannotStart(f"--listen: {error}") from None
        if address.host in WILDCARDS and not advertise:
            raise CannotStart(f"--listen {text}: say with --advertise what other hosts dial")
        if address.needs_secret and not _has_secret(node.data):
            raise CannotStart(NO_SECRET)
        with said():
            tls = wire_tls(node.data)
        if address.is_tls and tls.server() is None:
            raise CannotStart(f"--listen {text}: {NO_CERTIFICATE}")
        if tls.is_mutual and address.needs_secret and not address.is_tls:
            raise CannotStart(f"--listen {text}: this node has a CA for the wire: say tls://")
    url = registry_url(data, registry)
    if notifications and not (url.startswith("s3://") and _is_http(notifications)):
        raise CannotStart(
            f"--notifications {notifications}: expected the https:// URL of an SQS queue, and an "
            f"s3:// registry that tells it; the registry is {url}"
        )
    node.prepare()
    process = stack.controller_process(
        node,
        url,
        log_level,
        listen=tuple(listen or ()),
        advertise=advertise,
        workers_expected=workers_expected,
        sync_interval_s=sync_interval_s,
        notifications=notifications,
        require_signed=trusted_file(require_signed),
    )
    processes = (process, *launcher_processes(node, pools, log_level))
    _run(TierOptions(node, processes, "controller"), log_level)


def sync_command(
    data: Data = DATA_DEFAULT,
    registry: RegistryOf = "",
    plans_bytes_max: PlansMax = local_plans.BYTES_MAX_DEFAULT,
    require_signed: RequireSigned = None,
    log_level: LogLevel = "info",
) -> None:
    """Run only the process that brings artifacts to this node."""
    node = node_of(data)
    node.prepare()
    process = stack.sync_process(
        node,
        registry_url(data, registry),
        log_level,
        plans_bytes_max=plans_bytes_max,
        require_signed=trusted_file(require_signed),
    )
    _run(TierOptions(node, (process,), "sync"), log_level)


def _workers_min(workers: int, workers_min: int | None) -> int:
    """Return how many workers are up whatever the demand.

    Raises:
        CannotStart: more than there are.
    """
    if workers_min is not None and workers_min > workers:
        raise CannotStart(f"--workers-min {workers_min} is more than --workers {workers}")
    return workers if workers_min is None else workers_min


def _fallback_device(name: str) -> str:
    """Return on what fallback workers serve.

    Raises:
        CannotStart: that is not a CPU.
    """
    if name not in (stack.AUTO, "cpu"):
        raise CannotStart(f"--fallback: these workers serve on the CPU, not on --device {name}")
    return "cpu"


def _is_http(url: str) -> bool:
    return url.startswith(("https://", "http://"))


def _run(options: TierOptions, log_level: str) -> None:
    with said():
        configure("supervisor", log_level)
        asyncio.run(run_tier(options))


def _has_secret(data: Path) -> bool:
    return VARIABLE in os.environ or (data / FILE).exists()
