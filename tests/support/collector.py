"""A collector of traces: takes what OTLP over HTTP brings, and keeps it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Sent:
    """One span as it came; times are Unix seconds."""

    service: str
    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    started_s: float
    ended_s: float
    attributes: dict[str, Any]
    links: tuple[str, ...]  # ids of spans
    error: str


@dataclass
class Collector:
    """All that came, in the order in which it came."""

    port: int
    spans: list[Sent] = field(default_factory=list)
    is_broken: bool = False  # it refuses what comes
    refused: int = 0

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process send here, soon."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }

    def of(self, trace_id: str) -> dict[str, list[Sent]]:
        """Return the spans of one trace by name."""
        found: dict[str, list[Sent]] = {}
        for span in list(self.spans):
            if span.trace_id == trace_id:
                found.setdefault(span.name, []).append(span)
        return found


@contextmanager
def collector() -> Iterator[Collector]:
    """Take spans on a port of loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if found.is_broken:
                found.refused += 1
            else:
                found.spans.extend(_read(body))
            self.send_response(500 if found.is_broken else 200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Collector(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _read(body: bytes) -> Iterator[Sent]:
    request = ExportTraceServiceRequest.FromString(body)
    for of_process in request.resource_spans:
        about = _plain(of_process.resource.attributes)
        for scope in of_process.scope_spans:
            for span in scope.spans:
                yield Sent(
                    about["service.name"],
                    span.name,
                    span.kind,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.start_time_unix_nano / 1e9,
                    span.end_time_unix_nano / 1e9,
                    _plain(span.attributes),
                    tuple(link.span_id.hex() for link in span.links),
                    span.status.message,
                )


def _plain(attributes: Any) -> dict[str, Any]:
    return {
        one.key: getattr(one.value, one.value.WhichOneof("value") or "string_value")
        for one in attributes
    }
