"""Lines of the access log: what is in them, who gets one, and what a full log costs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from edge import access_log as access_log_module
from edge.access_log import AccessLog, rates
from edge.config import AccessLogMode
from edge.errors import ModelFailed, NotFound
from edge.log_writer import LogWriter
from edge.sampling import Sampler
from edge.trace import Trace
from registry_sync import keys

RECORD = keys.make_key("acme", ("admin",))[1]
Make = Callable[..., AccessLog]


class Pipe:
    """Where lines go, and what came out of it."""

    def __init__(self) -> None:
        self.read, self.write = os.pipe()
        self.writer = LogWriter(self.write)

    def lines(self) -> list[dict[str, Any]]:
        """Wait until all that was taken is written; return the lines."""
        self.writer.close(10.0)
        return [json.loads(line) for line in os.read(self.read, 1 << 16).splitlines()]

    def close(self) -> None:
        """End the thread, also one that nobody reads from."""
        os.close(self.read)
        self.writer.close(10.0)
        os.close(self.write)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


@pytest.fixture
def make(pipe: Pipe) -> Make:
    def made(mode: AccessLogMode = "on", lines_per_s: float = 5.0) -> AccessLog:
        sampler = Sampler(rates(mode, lines_per_s))
        slow_s = math.inf if mode == "off" else 1.0
        return AccessLog("e1", pipe.writer, sampler, slow_s, lambda header: RECORD)

    return made


def ended(name: str, *, took_s: float = 0.004, **fields: Any) -> Trace:
    return Trace(name, 10.0, ended_s=10.0 + took_s, route="GET /v2", **fields)


def test_nothing_that_is_empty_is_in_a_line(make: Make, pipe: Pipe) -> None:
    log = make()
    log.note(ended("plain"), 200)
    log.flush()
    (line,) = pipe.lines()
    assert line.keys() == {
        "timestamp", "level", "tier", "pid", "event", "edge", "request_id", "route", "status",
        "total_ms",
    }  # fmt: skip
    assert (line["level"], line["total_ms"], line["pid"]) == ("info", 4.0, os.getpid())


def test_refusal_is_named_by_its_word_and_not_by_its_text(make: Make, pipe: Pipe) -> None:
    log = make()
    log.note(ended("own", refusal=NotFound("secret text", code="no_such_version")), 404)
    log.note(ended("plain"), 404)
    log.note(ended("gone"), 499)
    log.note(ended("failed", refusal=ModelFailed("secret text")), 500)
    log.flush()
    lines = pipe.lines()
    words = ["no_such_version", "not_found", "client_gone", "model_failed"]
    assert [line["error"] for line in lines] == words
    assert [line["level"] for line in lines] == ["info", "info", "info", "warning"]
    assert "secret" not in json.dumps(lines)


def test_key_is_looked_for_only_where_it_may_be_a_good_one(make: Make, pipe: Pipe) -> None:
    log = make()
    headers: dict[str, str] = {}
    log.note(ended("known", header=headers.get), 200)
    log.note(ended("stranger", header=headers.get), 401)
    log.flush()
    known, stranger = pipe.lines()
    assert (known["key"], known["tenant"]) == (RECORD.id, "acme")
    assert not {"key", "tenant"} & stranger.keys()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("on", {"fine", "slow", "refused", "failed"}), ("off", {"failed"})],
)
def test_mode_says_which_requests_have_lines(
    make: Make, pipe: Pipe, mode: AccessLogMode, expected: set[str]
) -> None:
    log = make(mode)
    for name, status, took_s in (
        ("fine", 200, 0.1), ("slow", 200, 3.0), ("refused", 404, 0.1), ("failed", 503, 0.1),
    ):  # fmt: skip
        log.note(ended(name, took_s=took_s), status)
    log.flush()
    assert {line["request_id"] for line in pipe.lines()} == expected
    assert log.sampler.dropped_total == 4 - len(expected)


def test_line_says_how_many_requests_went_without_one(make: Make, pipe: Pipe) -> None:
    log = make("sampled", lines_per_s=2.0)
    for i in range(10):
        log.note(ended(f"{i}"), 200)
    log.sampler.refill(0.5)
    log.note(ended("next"), 200)
    log.flush()
    lines = pipe.lines()
    assert [line["request_id"] for line in lines] == ["0", "1", "next"]
    assert [line.get("dropped", 0) for line in lines] == [0, 0, 8]


def test_more_lines_than_are_kept_are_counted(
    make: Make, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log_module, "LINES_MAX", 3)
    log = make()
    for i in range(10):
        log.note(ended(f"{i}"), 200)
    log.flush()
    assert len(pipe.lines()) == 3
    assert log.sampler.dropped_total == 7


def test_lines_that_nobody_takes_are_counted(make: Make, pipe: Pipe) -> None:
    log = make()
    stuck = "x" * (1 << 17)  # more than a pipe takes
    while pipe.writer.put(lambda: stuck.encode()):
        pass
    for i in range(5):
        log.note(ended(f"{i}"), 200)
    log.flush()
    assert log.sampler.dropped_total == 5
