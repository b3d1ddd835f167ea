"""Spans of requests, for processes that are told to send them: what they need of a tracer.

A span is known by its W3C `traceparent` (https://www.w3.org/TR/trace-context/): that is what goes
over HTTP and over the wire.  OpenTelemetry is loaded only where spans are sent (`otel`).
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import structlog

Kind: TypeAlias = Literal["server", "client", "internal"]
Attributes: TypeAlias = Mapping[str, str | int | float | bool]

# Trace id, span id, flags: https://www.w3.org/TR/trace-context/#traceparent-header
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")

_log = structlog.get_logger()


class Span(Protocol):
    """A part of a request that goes on."""

    @property
    def traceparent(self) -> str:
        """What names it to others."""

    def end(self, ended_s: float, attributes: Attributes, error: str = "") -> None:
        """End it.

        Args:
            ended_s: monotonic.
            attributes: in addition to those that it began with.
            error: why it failed; empty: it did not.
        """


class Tracing(Protocol):
    """Where spans go."""

    def begin(
        self, name: str, kind: Kind, parent: str, started_s: float, attributes: Attributes
    ) -> Span | None:
        """Begin a span.

        Args:
            parent: its traceparent; empty, or not one: the span begins a trace.
            started_s: monotonic.

        Returns:
            None: this trace is not sampled.
        """

    def add(
        self,
        name: str,
        members: Sequence[str],
        started_s: float,
        ended_s: float,
        attributes: Attributes,
    ) -> None:
        """Add what was done for several spans at once: part of the first, linked to all.

        Args:
            members: their traceparents, at least one.
            started_s: monotonic, as `ended_s`.
        """

    def close(self, s_max: float) -> None:
        """Send what is not sent yet, for so long; blocks."""


def open_tracing(service: str, instance: str, *, is_wanted: bool) -> Tracing | None:
    """Return where spans go, by OpenTelemetry's own environment (OTEL_…); None: nowhere.

    Serving goes on without spans if they cannot be sent.

    Args:
        service: what this process is, unless OTEL_SERVICE_NAME says another.
        instance: which of these it is.
    """
    if not is_wanted:
        return None
    try:
        otel: Any = importlib.import_module("registry_sync.otel")
        tracing: Tracing = otel.OtelTracing(service, instance)
    except Exception as error:
        _log.warning("no_traces", error=f"{type(error).__name__}: {error}")
        return None
    return tracing
