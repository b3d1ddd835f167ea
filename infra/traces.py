"""Whether this node's processes send traces: where OpenTelemetry's environment says to whom."""

from __future__ import annotations

import importlib.util
import os

import structlog

WHERE = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
NEEDED = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")

_log = structlog.get_logger()


def sends_traces() -> bool:
    """Tell whether traces are to be sent; if they cannot be, say why and go on without."""
    where = next((name for name in WHERE if os.environ.get(name)), "")
    is_off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if not where or is_off or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    if all(_is_there(name) for name in NEEDED):
        return True
    _log.warning(
        "no_traces", error=f"{where} is set, and OpenTelemetry is missing: install tidepool[otel]"
    )
    return False


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of what it is in
        return False
