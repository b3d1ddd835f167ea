"""Spans by OpenTelemetry, sent with OTLP over HTTP from a thread of its own.

Where to, which traces, and how many spans may wait is said by OpenTelemetry's own environment:
OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER, OTEL_BSP_….  What cannot be sent is dropped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, TraceFlags

from registry_sync.tracing import TRACEPARENT, Attributes, Kind

SAMPLED = 1
UNNAMED = "unknown_service"  # what OpenTelemetry calls a service that nobody has named
LINKS_MAX = 128  # of one span, as collectors take them

_KINDS = {
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "internal": SpanKind.INTERNAL,
}


class OtelSpan:
    """See `registry_sync.tracing.Span`."""

    __slots__ = ("_offset_ns", "_span", "traceparent")

    def __init__(self, span: trace.Span, offset_ns: int) -> None:
        context = span.get_span_context()
        self._span = span
        self._offset_ns = offset_ns
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-01"

    def end(self, ended_s: float, attributes: Attributes, error: str = "") -> None:
        """End it."""
        self._span.set_attributes(dict(attributes))
        if error:
            self._span.set_status(trace.StatusCode.ERROR, error)
        self._span.end(_unix_ns(ended_s, self._offset_ns))


class OtelTracing:
    """See `registry_sync.tracing.Tracing`."""

    def __init__(self, service: str, instance: str) -> None:
        resource = Resource.create({SERVICE_INSTANCE_ID: instance})
        if str(resource.attributes[SERVICE_NAME]).startswith(UNNAMED):
            resource = resource.merge(Resource({SERVICE_NAME: service}))
        # Our processes end by themselves, and `close` comes before.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("tidepool")

    def begin(
        self, name: str, kind: Kind, parent: str, started_s: float, attributes: Attributes
    ) -> OtelSpan | None:
        """Begin a span; None: its trace is not sampled."""
        offset_ns = _offset_ns()
        span = self._tracer.start_span(
            name,
            _within(parent),
            _KINDS[kind],
            dict(attributes),
            start_time=_unix_ns(started_s, offset_ns),
        )
        return OtelSpan(span, offset_ns) if span.is_recording() else None

    def add(
        self,
        name: str,
        members: Sequence[str],
        started_s: float,
        ended_s: float,
        attributes: Attributes,
    ) -> None:
        """Add what was done for several spans at once."""
        offset_ns = _offset_ns()
        contexts = [found for one in members[:LINKS_MAX] if (found := _context_of(one))]
        span = self._tracer.start_span(
            name,
            _within(members[0]),
            SpanKind.INTERNAL,
            dict(attributes),
            [Link(context) for context in contexts],
            start_time=_unix_ns(started_s, offset_ns),
        )
        span.end(_unix_ns(ended_s, offset_ns))

    def close(self, s_max: float) -> None:
        """Send what is not sent yet; blocks."""
        # It keeps no time of its own while a collector hangs; who waits for us must not.
        flush = threading.Thread(target=self._provider.force_flush, daemon=True)
        flush.start()
        flush.join(s_max)


def _context_of(traceparent: str) -> SpanContext | None:
    match = TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return None
    context = SpanContext(
        int(match[1], 16),
        int(match[2], 16),
        is_remote=True,
        trace_flags=TraceFlags(int(match[3], 16) & SAMPLED),
    )
    return context if context.is_valid else None


def _within(traceparent: str) -> Context:
    context = _context_of(traceparent) if traceparent else None
    if context is None:
        return Context()
    return trace.set_span_in_context(NonRecordingSpan(context), Context())


def _offset_ns() -> int:
    """Return what turns monotonic time into Unix time now, both in ns."""
    return time.time_ns() - time.monotonic_ns()


def _unix_ns(monotonic_s: float, offset_ns: int) -> int:
    return int(monotonic_s * 1e9) + offset_ns
