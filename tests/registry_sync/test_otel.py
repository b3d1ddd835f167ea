"""Spans where nobody takes them."""

from __future__ import annotations

import socket
import time

import pytest

from registry_sync.otel import OtelTracing

CLOSE_S = 0.5
S_MAX = 5.0  # of the time that the exporter itself would wait, 10 s for each try


def test_collector_that_hangs_holds_nobody_who_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        tracing = OtelTracing("tidepool-test", "one")
        span = tracing.begin("request", "server", "", time.monotonic(), {})
        assert span is not None
        span.end(time.monotonic(), {})
        began_s = time.monotonic()
        tracing.close(CLOSE_S)
        assert CLOSE_S * 0.9 <= time.monotonic() - began_s < S_MAX
