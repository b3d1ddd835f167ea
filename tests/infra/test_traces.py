"""Whether processes are told to send traces."""

from __future__ import annotations

import sys

import pytest
from structlog.testing import capture_logs

from infra.traces import WHERE, sends_traces


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*WHERE, "OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER"):
        monkeypatch.delenv(name, raising=False)


def test_nobody_sends_traces_who_was_not_told_where_to() -> None:
    assert not sends_traces()


@pytest.mark.parametrize("name", WHERE)
def test_an_endpoint_turns_traces_on(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:4318")
    assert sends_traces()


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_SDK_DISABLED", "True"), ("OTEL_TRACES_EXPORTER", "none")]
)
def test_they_can_be_turned_off(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(WHERE[0], "http://127.0.0.1:4318")
    monkeypatch.setenv(name, value)
    assert not sends_traces()


def test_without_the_extra_serving_goes_on_and_the_log_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "opentelemetry"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.setenv(WHERE[1], "http://127.0.0.1:4318")
    with capture_logs() as lines:
        assert not sends_traces()
    assert "install tidepool[otel]" in lines[0]["error"]
