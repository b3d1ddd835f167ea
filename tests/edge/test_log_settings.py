"""Log levels set at run time: what they show, who shares them, and when they end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.errors import BadRequest, Unavailable
from edge.log_settings import LogSettings, SharedLogSettings
from edge.settings import TRACE, check_trace
from registry_sync import logs

USUAL = LogSettings(log_info=True, log_warning=True, log_error=True, log_verbose_level=0)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """This process shows afterwards what it showed before."""
    before = logs.shown()
    yield
    logs.show(before)


def test_each_switch_is_a_level() -> None:
    assert USUAL.levels() == {"info", "warning", "error", "critical"}
    only_errors = USUAL.changed({"log_info": False, "log_warning": False})
    assert only_errors.levels() == {"error", "critical"}
    assert USUAL.changed({"log_verbose_level": 1}).levels() >= {"debug", "info"}
    odd = USUAL.changed({"log_warning": False})
    assert odd.levels() == {"info", "error", "critical"}


def test_what_a_process_shows_are_its_settings() -> None:
    logs.show(["debug", "error", "critical"])
    found = LogSettings.now()
    assert found == LogSettings(
        log_info=False, log_warning=False, log_error=True, log_verbose_level=1
    )


def test_settings_may_be_sent_back_as_they_came() -> None:
    assert USUAL.changed(USUAL.shown()) == USUAL


@pytest.mark.parametrize(
    "given",
    [
        {"log_info": 1},
        {"log_info": "true"},
        {"log_info": None},
        {"log_verbose_level": True},
        {"log_verbose_level": -1},
        {"log_verbose_level": 10**40},
        {"log_verbose_level": "1"},
        {"log_file": "/tmp/x"},
        {"log_format": "default"},
        {"log_warnings": True},
        {"": True},
    ],
)
def test_a_setting_that_is_none_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        USUAL.changed(given)


def test_a_sibling_takes_the_settings_over(tmp_path: Path) -> None:
    one, other = SharedLogSettings(tmp_path), SharedLogSettings(tmp_path)
    one.set(USUAL.changed({"log_info": False}))
    other.look()
    assert other.settings == one.settings
    assert "info" not in logs.shown()


def test_another_start_goes_by_its_own_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SharedLogSettings(tmp_path).set(USUAL.changed({"log_info": False}))
    logs.show(["info"])
    monkeypatch.setattr(os, "getppid", lambda: 1)
    after = SharedLogSettings(tmp_path)
    after.look()
    assert after.settings.log_info


def test_a_file_that_is_none_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "log_settings.json").write_text("{")
    shared = SharedLogSettings(tmp_path)
    shared.look()
    assert shared.settings == LogSettings.now()


def test_settings_that_cannot_be_shared_are_not_taken(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("no folder")
    shared = SharedLogSettings(tmp_path / "run")
    with pytest.raises(Unavailable):
        shared.set(USUAL.changed({"log_info": False}))
    assert shared.settings == LogSettings.now()


@pytest.mark.parametrize(
    "given", [{}, TRACE, {"trace_level": "OFF"}, {"trace_rate": None, "trace_level": None}]
)
def test_a_tracer_may_be_told_to_stay_off(given: dict[str, Any]) -> None:
    check_trace(given)


@pytest.mark.parametrize(
    "given",
    [
        {"trace_level": ["TIMESTAMPS"]},
        {"trace_level": ["OFF", "TENSORS"]},
        {"trace_rate": "1"},
        {"trace_rate": 0},
        {"trace_file": "/tmp/x"},
        {"trace_mode": "opentelemetry"},
    ],
)
def test_a_tracer_that_is_not_there_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        check_trace(given)
