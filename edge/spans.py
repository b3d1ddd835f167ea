"""The spans of a request in the edge: the request itself, and its call to a worker.

Begun only where the process sends traces and the request's trace is sampled; costs nothing else.
"""

from __future__ import annotations

import asyncio
import time

from edge.dispatching.calls import Answer, Call
from edge.errors import Refusal
from edge.trace import Header, Trace
from registry_sync.tracing import Span, Tracing

_ERROR = 500


class Spans:
    """What a service does for traces."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def begin(self, trace: Trace, header: Header) -> None:
        """Begin the request's own span, as part of its client's."""
        method, _, route = trace.route.partition(" ")
        trace.span = self._tracing.begin(
            trace.route or "refused",
            "server",
            header("traceparent") or "",
            trace.started_s,
            {"http.request.method": method, "http.route": route} if route else {},
        )

    def call(self, trace: Trace, call: Call) -> None:
        """Begin the span of a call that is about to be sent; its worker's spans are part of it."""
        if trace.span is None:
            return
        model, version = call.ref
        span = self._tracing.begin(
            "dispatch",
            "client",
            trace.span.traceparent,
            time.monotonic(),
            {"tidepool.model": model, "tidepool.version": version},
        )
        if span is None:
            return
        call.traceparent = span.traceparent
        call.future.add_done_callback(lambda done: _called(span, call, done))

    def end(self, trace: Trace, status: int) -> None:
        """End the request's span."""
        if trace.span is None:
            return
        found: dict[str, str | int | float | bool] = {
            "http.response.status_code": status,
            "tidepool.request_id": trace.request_id,
            "tidepool.auth_ms": trace.auth_s * 1e3,
            "tidepool.parse_ms": trace.parse_s * 1e3,
            "tidepool.cache_ms": trace.cache_s * 1e3,
            "tidepool.respond_ms": trace.respond_s * 1e3,
            "tidepool.rows": trace.rows,
        }
        if trace.endpoint is not None:
            found["tidepool.endpoint"] = trace.endpoint.name
        if trace.arm is not None:
            found["tidepool.variant"] = trace.arm.name
            found["tidepool.model"], found["tidepool.version"] = trace.arm.version.ref
        if trace.record is not None:
            found["tidepool.tenant"] = trace.record.tenant
        if trace.cache_status:
            found["tidepool.cache_status"] = trace.cache_status
        error = ""
        if status >= _ERROR:
            error = trace.refusal.text if trace.refusal is not None else str(status)
        # Of a stream the request goes on after what `ended_s` says.
        trace.span.end(max(trace.ended_s, time.monotonic()), found, error)
        trace.span = None


def _called(span: Span, call: Call, done: asyncio.Future[Answer]) -> None:
    found: dict[str, str | int | float | bool] = {"tidepool.tries": call.sent}
    if call.conn is not None:
        found["tidepool.worker"] = call.conn.id
    error = ""
    if done.cancelled():
        error = "the caller went away"
    elif (failed := done.exception()) is not None:
        error = failed.text if isinstance(failed, Refusal) else "internal error"
    else:
        answer = done.result()
        found["tidepool.queue_ms"] = answer.queue_us / 1e3
        found["tidepool.infer_ms"] = answer.infer_us / 1e3
        found["tidepool.batch_rows"] = answer.batch_rows
    span.end(time.monotonic(), found, error)
