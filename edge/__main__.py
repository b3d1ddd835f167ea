"""An edge process: `python -m edge '<config as JSON>'`.

Two granian servers embedded in one uvloop: the public port and the admin port.  Several edge
processes of a node listen on the same ports (SO_REUSEPORT); the kernel spreads connections.
"""

from __future__ import annotations

import asyncio
import functools
import math
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import structlog
import uvloop

from edge.access_log import AccessLog, rates
from edge.admin.app import Admin
from edge.admin.desk import Desk
from edge.auth import Auth
from edge.bridge import Bridge
from edge.cache import AnswerCache
from edge.cache_metrics import cache_totals
from edge.config import EdgeConfig
from edge.disk import Disk
from edge.dispatching.dispatch import Pool
from edge.dispatching.dispatch_metrics import dispatch_totals
from edge.exposure import ExposureLog
from edge.flight import Flights
from edge.guard import Guard
from edge.infer import Service
from edge.listening import Port
from edge.log_settings import SharedLogSettings
from edge.log_writer import LogWriter
from edge.metrics import Counter, Metrics
from edge.noted import Noted
from edge.receive import Room
from edge.sampling import Sampler
from edge.server import App
from edge.spans import Spans
from edge.web import Web
from edge.world import World
from pool.wire.fleet_secret import load_secrets
from registry_sync.leader import look
from registry_sync.logs import configure
from registry_sync.memory import calm_collector
from registry_sync.open import open_store
from registry_sync.scheduling import take_turns
from registry_sync.stores import StoreError
from registry_sync.supervised import leave, say_draining
from registry_sync.tracing import open_tracing
from registry_sync.trust import Trust

METRICS_S = 1.0
LOG_S_MAX = 2.0  # that the last lines may take
TRACES_S_MAX = 1.0  # for the last spans to be sent
LAST_WORDS_S = 0.01  # for the loop to write what was sent
DRAIN_POLL_S = 0.1
QUIET_S = 0.05
CLOSING_S_MAX = 1.0  # a lame duck may be shorter; connections in use are closed with an answer
FLUSH_S_MAX = 5.0  # for clients to read their last answer
ADMIN_BODY_BYTES_MAX = 1 << 20

_log = structlog.get_logger()


def finder(config: EdgeConfig) -> Callable[[], Awaitable[str | None]]:
    """Return the way to the controller: as configured, else by the leader record."""
    if config.controller:

        async def configured() -> str | None:
            return config.controller

        return configured

    store = open_store(config.registry)

    async def by_record() -> str | None:
        try:
            seen = await asyncio.to_thread(look, store)
        except StoreError as error:
            raise ConnectionError(f"the leader record cannot be read: {error}") from None
        return None if seen.record is None else seen.record.url

    return by_record


async def run(config: EdgeConfig, writer: LogWriter) -> None:
    """Serve until SIGTERM or SIGINT; then stop being ready, drain, and end."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    secrets = load_secrets(Path(config.data))
    pool = Pool(config.id, secrets)
    metrics = Metrics(
        Path(config.data) / "run" / "metrics", config.id, dict(config.device_usd_per_h)
    )
    world = World(
        edge_id=config.id,
        folder=Path(config.data) / "edge",
        pool=pool,
        find=finder(config),
        secrets=secrets,
        metrics=metrics,
        trust=Trust(config.require_signed),
    )
    auth = Auth()
    lines_per_s = rates(config.access_log, config.access_log_lines_per_s)
    slow_s = config.access_log_slow_ms / 1000 if config.access_log != "off" else math.inf
    access = AccessLog(config.id, writer, Sampler(lines_per_s), slow_s, auth.known)
    exposures = ExposureLog(config.id, writer)
    disk = None
    if config.cache_disk_bytes_max:
        disk = Disk(Path(config.data) / "edge" / "answers", config.cache_disk_bytes_max)
    desk = Desk(config.registry, world.ask)
    await desk.prepare()
    tracing = open_tracing("tidepool-edge", config.id, is_wanted=config.sends_traces)
    service = Service(
        world=world,
        pool=pool,
        auth=auth,
        cache=AnswerCache(config.cache_bytes_max),
        flights=Flights(),
        metrics=metrics,
        access=access,
        disk=disk,
        desk=desk,
        exposures=exposures,
        spans=None if tracing is None else Spans(tracing),
    )
    log_settings = SharedLogSettings(Path(config.data) / "run")
    web = Web(service, stop.is_set, log_settings)
    body_read_s_max = config.body_read_timeout_ms / 1000
    bodies_bytes_max = max(config.body_bytes_in_flight_max, config.body_bytes_max)
    app = App(service, web.app(), config.body_bytes_max, body_read_s_max, bodies_bytes_max)
    public_fd, admin_fd = config.listen_fds or (-1, -1)
    port = Admin(service, stop.is_set, desk, secrets)
    admin_app = port.app()
    behind = Bridge(
        admin_app,
        ADMIN_BODY_BYTES_MAX,
        port.refuse,
        Room(bodies_bytes_max),
        body_read_s_max,
    )
    guards = (Guard(app.__rsgi__, app.refuse), Guard(behind, port.refuse))
    noted = Noted(guards[1].__rsgi__, admin_app.routes, service.request_id, access)
    public = Port(guards[0], config.host, config.port, config, public_fd)
    admin = Port(noted, config.admin_host, config.admin_port, config, admin_fd)
    metrics.follow("tidepool_access_lines_dropped", lambda: access.sampler.dropped_total)
    metrics.follow("tidepool_quarantine_refusals", lambda: pool.suspects.refused)
    metrics.follow("tidepool_quarantine_requests", lambda: pool.suspects.convicted)
    metrics.follow("tidepool_audit_records_lost", lambda: desk.records_lost)
    metrics.in_flight = lambda: app.in_flight
    metrics.pending = app.pending
    metrics.extra = functools.partial(_extra, service)
    world.boot()
    if disk is not None and any(e.cache_disk for e in world.snapshot.endpoints.values()):
        disk.start()
    saving = loop.create_task(_save_forever(metrics))
    tasks = [
        loop.create_task(world.run()),
        loop.create_task(pool.sweep_forever()),
        loop.create_task(pool.renew_forever()),
        loop.create_task(app.watch_forever()),
        saving,
        loop.create_task(log_settings.follow_forever()),
        loop.create_task(access.run()),
        loop.create_task(exposures.run()),
    ]
    servers = [loop.create_task(public.serve()), loop.create_task(admin.serve())]
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    calm_collector()
    _log.info("edge_up", edge=config.id, port=config.port, admin_port=config.admin_port)
    stopped = loop.create_task(stop.wait())
    done, _ = await asyncio.wait([stopped, *servers, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in done - {stopped}:
        task.result()  # a port that is taken, or a bug in a round, ends the process here
    metrics.save()  # the successor counts on from here
    saving.cancel()
    say_draining(config.notice_fd)
    for guard in guards:
        guard.is_closing = True
    service.levels.drain()
    _log.info("edge_draining", edge=config.id)
    await asyncio.sleep(config.lame_duck_s)
    await _quiet(guards[0], CLOSING_S_MAX - config.lame_duck_s)
    public.stop()
    admin.stop()
    await _ended(servers, app, config.drain_s_max)
    if disk is not None:
        await disk.flush()
    world.report()
    for task in tasks:
        task.cancel()
    await pool.close()
    access.flush()
    exposures.flush()
    if tracing is not None:
        tracing.close(TRACES_S_MAX)
    _log.info("edge_down", edge=config.id)
    await asyncio.sleep(LAST_WORDS_S)
    writer.close(LOG_S_MAX)
    leave()


async def _quiet(guard: Guard, s_max: float) -> None:
    """Wait until no kept connection is in use any more; each is closed with its next answer.

    To close one without an answer would cost its client the request that may be on its way.
    """
    deadline_s = time.monotonic() + s_max
    before = -1
    while guard.closings != before and time.monotonic() < deadline_s:
        before = guard.closings
        await asyncio.sleep(QUIET_S)


async def _ended(servers: list[asyncio.Task[None]], app: App, drain_s_max: float) -> None:
    """Wait until the last connection has ended; not for one whose client neither asks nor reads."""
    deadline_s = answered_s = time.monotonic()
    deadline_s += drain_s_max
    while (now_s := time.monotonic()) < min(deadline_s, answered_s + FLUSH_S_MAX):
        if app.in_flight:
            answered_s = now_s
        _, unfinished = await asyncio.wait(servers, timeout=DRAIN_POLL_S)
        if not unfinished:
            return


def _extra(service: Service) -> tuple[list[Counter], list[Counter]]:
    """Return the counters and the gauges that others than the metrics keep."""
    counters, gauges = cache_totals(service.cache, service.levels)
    more_counters, more_gauges = dispatch_totals(service.pool)
    silence = Counter("tidepool_controller_silence_seconds", (), service.world.silence_s)
    return counters + more_counters, [*gauges, *more_gauges, silence]


async def _save_forever(metrics: Metrics) -> None:
    while True:
        await asyncio.sleep(METRICS_S)
        metrics.save()


def main() -> None:
    """Start from the JSON in argv[1]."""
    take_turns()  # before there are threads: they take it over
    config = msgspec.json.decode(sys.argv[1], type=EdgeConfig)
    writer = LogWriter(sys.stderr.fileno())
    configure("edge", config.log_level, writer)
    try:
        uvloop.run(run(config, writer))
    except (ValueError, OSError, RuntimeError) as error:
        _log.error("edge_cannot_start", error=str(error))
    except Exception:
        _log.exception("bug")
    writer.close(LOG_S_MAX)
    leave(1)  # `run` leaves by itself


if __name__ == "__main__":
    main()
