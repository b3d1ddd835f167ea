"""One JSON line per request at its end: who called what, what became of it, and where time went.

No key, no payload, no path or query as it was sent, no text of an error: only names that documents
gave, ids, counts and durations.  The request's way pays for a decision and, if there is to be a
line, for a copy of a few numbers; rendering and writing are a thread's.
"""

from __future__ import annotations

import asyncio
import functools
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
import structlog

from edge.config import AccessLogMode
from edge.errors import (
    BadRequest,
    BodyTooSlow,
    ClientGone,
    DeadlineExceeded,
    Forbidden,
    HeadersTooLarge,
    MethodNotAllowed,
    ModelFailed,
    NotFound,
    QuotaExceeded,
    TooLarge,
    Unauthorized,
    Unavailable,
    Unprocessable,
    Unsupported,
    WorkerLost,
)
from edge.log_writer import LogWriter
from edge.sampling import Sampler, kind_of
from edge.trace import Header, Trace, trace_context
from registry_sync.documents import KeyRecord

_log = structlog.get_logger()

FLUSH_S = 0.1
LINES_MAX = 4096  # between two flushes; what comes beyond is counted as dropped
FAILED_LINES_PER_S = 20.0  # where only failures are logged

# Asked for every second by machines; nobody looks for them.
QUIET = frozenset({"GET /v2/health/live", "GET /v2/health/ready", "GET /livez", "GET /readyz",
                   "GET /metrics"})  # fmt: skip


class Line(msgspec.Struct, omit_defaults=True, kw_only=True, gc=False):
    """One line; what is empty or did not happen is not in it."""

    timestamp: str
    level: str
    tier: str
    pid: int
    event: str
    edge: str
    request_id: str
    trace_id: str = ""
    span_id: str = ""
    route: str = ""  # empty: refused before anybody looked at the path
    status: int
    error: str = ""  # a word for the kind of refusal
    endpoint: str = ""
    variant: str = ""
    version: str = ""
    key: str = ""  # its id
    tenant: str = ""
    cache: str = ""
    bytes_in: int = 0  # of the body, decompressed
    bytes_out: int = 0
    rows: int = 0
    batch_rows: int = 0
    worker: str = ""
    retries: int = 0
    auth_ms: float = 0
    parse_ms: float = 0
    cache_ms: float = 0
    queue_ms: float = 0
    infer_ms: float = 0
    respond_ms: float = 0
    total_ms: float
    dropped: int = 0  # requests without a line since the line before this one


# The words for refusals that are known by their status alone.
CODES = {
    kind.status: kind.code
    for kind in (
        BadRequest, Unauthorized, Forbidden, NotFound, MethodNotAllowed, BodyTooSlow, TooLarge,
        Unsupported, Unprocessable, QuotaExceeded, HeadersTooLarge, ClientGone, ModelFailed,
        WorkerLost, Unavailable, DeadlineExceeded,
    )
}  # fmt: skip

Row = tuple[
    float, int, int, str, str | None, str, str, str, str, str, str, str, str,
    tuple[int, int, int], str, int, tuple[float, float, float, float], float,
    tuple[int, int, int] | None,
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Origin:
    """Which process a line is of."""

    edge: str
    pid: int


def rates(mode: AccessLogMode, lines_per_s: float) -> tuple[float, float, float]:
    """Return the lines per second for what was fine, refused, and failed or slow."""
    match mode:
        case "on":
            return (math.inf, math.inf, math.inf)
        case "sampled":
            return (lines_per_s, lines_per_s, lines_per_s)
        case "off":
            return (0.0, 0.0, min(lines_per_s, FAILED_LINES_PER_S))


class AccessLog:
    """The access log of one edge process.

    Args:
        edge: this process's id.
        writer: where lines go.
        sampler: who gets one.
        slow_s: a request that took so long is shown like one that failed.
        key_of: finds the record of a request's key, if it has been found good before.
    """

    def __init__(
        self,
        edge: str,
        writer: LogWriter,
        sampler: Sampler,
        slow_s: float,
        key_of: Callable[[Header], KeyRecord | None],
    ) -> None:
        self.sampler = sampler
        self._origin = _Origin(edge, os.getpid())
        self._writer = writer
        self._slow_s = slow_s
        self._key_of = key_of
        # The whole mutable state, besides the sampler: what will be lines.
        self._rows: list[Row] = []

    def note(self, trace: Trace, status: int) -> None:
        """Take a request that has ended."""
        kind = kind_of(status, trace.ended_s - trace.started_s, self._slow_s)
        if self.sampler.takes(kind):
            self._take(trace, status)

    def _take(self, trace: Trace, status: int) -> None:
        if len(self._rows) >= LINES_MAX:
            self.sampler.drop()
            return
        refusal, record, answer, call = trace.refusal, trace.record, trace.answer, trace.call
        if status >= 500 and refusal is not None:
            _log.warning("refused", status=status, request_id=trace.request_id, error=refusal.text)
        if record is None and status != 401 and trace.header is not None:
            record = self._key_of(trace.header)
        arm = trace.arm
        self._rows.append(
            (
                time.time(),
                status,
                self.sampler.take_dropped(),
                trace.request_id,
                trace.header("traceparent") if trace.header is not None else None,
                trace.route,
                refusal.code if refusal is not None else CODES.get(status, ""),
                trace.endpoint.name if trace.endpoint is not None else "",
                arm.name if arm is not None else "",
                arm.version.ref[1] if arm is not None else "",
                record.id if record is not None else "",
                record.tenant if record is not None else "",
                trace.cache_status,
                (trace.bytes_in, trace.bytes_out, trace.rows),
                call.conn.id if call is not None and call.conn is not None else "",
                call.sent - 1 if call is not None and call.sent else 0,
                (trace.auth_s, trace.parse_s, trace.cache_s, trace.respond_s),
                trace.ended_s - trace.started_s,
                (answer.queue_us, answer.infer_us, answer.batch_rows)
                if answer is not None and trace.dispatched
                else None,
            )
        )

    def flush(self) -> None:
        """Give what there is to the thread that writes it."""
        rows, self._rows = self._rows, []
        if rows and not self._writer.put(functools.partial(render, self._origin, rows)):
            self.sampler.drop(len(rows))

    async def run(self) -> None:
        """Write and let the budgets grow until cancelled."""
        before_s = time.monotonic()
        while True:
            await asyncio.sleep(FLUSH_S)
            now_s = time.monotonic()
            self.sampler.refill(now_s - before_s)
            before_s = now_s
            self.flush()


def render(origin: _Origin, rows: Sequence[Row]) -> bytes:
    """Return the lines of `rows`, each with its end."""
    return b"".join([msgspec.json.encode(_line(origin, row)) + b"\n" for row in rows])


def _line(origin: _Origin, row: Row) -> Line:
    (
        unix_s, status, dropped, request_id, traceparent, route, error, endpoint, variant, version,
        key, tenant, cache, sizes, worker, retries, phases_s, total_s, ran,
    ) = row  # fmt: skip
    trace_id, span_id = trace_context(traceparent)
    # The very object 0 is what `omit_defaults` leaves out.
    auth_ms, parse_ms, cache_ms, respond_ms = (round(s * 1e3, 3) or 0 for s in phases_s)
    queue_us, infer_us, batch_rows = ran or (0, 0, 0)
    return Line(
        timestamp=datetime.fromtimestamp(unix_s, UTC).isoformat().replace("+00:00", "Z"),
        level="warning" if status >= 500 else "info",
        tier="edge",
        pid=origin.pid,
        event="request",
        edge=origin.edge,
        request_id=request_id,
        trace_id=trace_id,
        span_id=span_id,
        route=route,
        status=status,
        error=error,
        endpoint=endpoint,
        variant=variant,
        version=version,
        key=key,
        tenant=tenant,
        cache=cache.removeprefix("tidepool; "),
        bytes_in=sizes[0],
        bytes_out=sizes[1],
        rows=sizes[2],
        batch_rows=batch_rows,
        worker=worker,
        retries=retries,
        auth_ms=auth_ms,
        parse_ms=parse_ms,
        cache_ms=cache_ms,
        queue_ms=queue_us / 1e3 or 0,
        infer_ms=infer_us / 1e3 or 0,
        respond_ms=respond_ms,
        total_ms=round(total_s * 1e3, 3),
        dropped=dropped,
    )
