"""Settings at run time, over real processes: log levels of every edge of a node, and no tracer."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support import models
from tests.support.stack import Stack, until

USUAL = {
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_file": "",
    "log_format": "ISO8601",
}
TRACE = {
    "trace_file": "",
    "trace_level": ["OFF"],
    "trace_rate": "0",
    "trace_count": "0",
    "log_frequency": "0",
}


def _set(stack: Stack, **settings: Any) -> dict[str, Any]:
    answer = stack.request("POST", "/v2/logging", settings)
    assert answer.status == 200, answer.body
    found = answer.json()
    assert isinstance(found, dict)
    return found


def _noted(stack: Stack, start: int) -> list[tuple[int, str]]:
    """Return which processes have logged, and when, that they took documents over."""
    lines = (json.loads(line) for line in stack.log_text()[start:].splitlines() if line[:1] == "{")
    return [(line["pid"], line["timestamp"]) for line in lines if line["event"] == "documents"]


def test_log_levels_of_every_edge_of_the_node_are_switched(
    wide_stack: Stack, tmp_path: Path
) -> None:
    stack = wide_stack
    edges = {pid for name, pid in stack.pids().items() if name.startswith("edge")}
    models.identity(tmp_path / "i.onnx")
    assert stack.request("GET", "/v2/logging").json() == USUAL

    def is_told(wanted: bool) -> bool:
        # A connection each: with so many, both edges have answered.
        found = [stack.request("GET", "/v2/logging").json()["log_info"] for _ in range(24)]
        return set(found) == {wanted}

    try:
        assert _set(stack, log_info=False) == {**USUAL, "log_info": False}
        until(lambda: is_told(False), what="every edge goes by it")
        start = len(stack.log_text())
        stack.publish("settings-a", tmp_path / "i.onnx")
        again = datetime.now(UTC).isoformat()
        _set(stack, **USUAL)
        until(lambda: is_told(True), what="every edge goes by it again")
        stack.publish("settings-b", tmp_path / "i.onnx")
        until(
            lambda: {pid for pid, _ in _noted(stack, start)} >= edges,
            what="every edge has said that it took documents over",
        )
    finally:
        _set(stack, **USUAL)
    early = [pid for pid, when in _noted(stack, start) if when[:26] < again[:26]]
    assert not edges.intersection(early), "what was taken over in between was not to be shown"


@pytest.mark.parametrize(
    "settings",
    [{"log_info": "yes"}, {"log_file": "/tmp/x"}, {"log_format": "default"}, {"more": 1}],
)
def test_a_log_setting_that_is_none_changes_nothing(stack: Stack, settings: dict[str, Any]) -> None:
    answer = stack.request("POST", "/v2/logging", settings)
    assert answer.status == 400
    assert answer.error
    assert stack.request("GET", "/v2/logging").json() == USUAL


def test_there_is_no_tracer(stack: Stack) -> None:
    assert stack.request("GET", "/v2/trace/setting").json() == TRACE
    off = stack.request("POST", "/v2/trace/setting", {"trace_level": ["OFF"], "trace_rate": None})
    assert (off.status, off.json()) == (200, TRACE)
    on = stack.request("POST", "/v2/trace/setting", {"trace_level": ["TIMESTAMPS"]})
    assert (on.status, "no tracer" in on.error) == (400, True)


def test_a_model_s_trace_settings_are_those_of_a_model(stack: Stack, tmp_path: Path) -> None:
    stack.publish("settings-model", models.identity(tmp_path / "m.onnx"))
    assert stack.request("GET", "/v2/models/settings-model/trace/setting").json() == TRACE
    unknown = stack.request("GET", "/v2/models/settings-nobody/trace/setting")
    assert (unknown.status, unknown.error[:25]) == (404, "Request for unknown model")


@pytest.mark.parametrize("path", ["/v2/logging", "/v2/trace/setting"])
def test_settings_are_read_with_any_key_and_changed_by_an_admin(stack: Stack, path: str) -> None:
    key = stack.make_key("infer:*")
    assert stack.request("GET", path, key=None).status == 401
    assert stack.request("GET", path, key=key).status == 200
    assert stack.request("POST", path, "{}", key=None).status == 401
    assert stack.request("POST", path, "{}", key=key).status == 403
    wrong = stack.request("DELETE", path)
    assert (wrong.status, wrong.error) == (405, "Method Not Allowed")
