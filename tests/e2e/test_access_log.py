"""One line per request, as a running system writes it."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.stack import (
    TEST_ENGINES,
    Stack,
    StackOptions,
    observed_inputs,
    running_stack,
    tensors,
    until,
)

MODEL = "noted"
PIPE_BYTES = 1 << 12  # the least that Linux gives
INFER = "POST /v2/models/{model}/infer"
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture(scope="module")
def noting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A system that writes a line for every request."""
    data = tmp_path_factory.mktemp("noting")
    arguments = ("--access-log", "on")
    with running_stack(data, engines=TEST_ENGINES, arguments=arguments) as stack:
        stack.publish_observed(MODEL, deterministic=True)
        yield stack


def lines(stack: Stack) -> list[dict[str, Any]]:
    """Return the access log so far."""
    found = [json.loads(line) for line in stack.log_text().splitlines() if line.startswith("{")]
    return [line for line in found if line["event"] == "request"]


def line_of(stack: Stack, request_id: str) -> dict[str, Any]:
    """Wait for a request's line."""

    def found() -> list[dict[str, Any]]:
        return [line for line in lines(stack) if line["request_id"] == request_id]

    until(found, what=f"a line for {request_id}")
    assert len(found()) == 1
    return found()[0]


def test_line_says_who_what_and_where_the_time_went(noting: Stack) -> None:
    answer = noting.infer_observed(MODEL, 1, {"x-request-id": "computed"})
    line = line_of(noting, "computed")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", line.pop("timestamp"))
    phases = {name: line.pop(name) for name in [*line] if name.endswith("_ms")}
    assert list(phases) == [
        f"{phase}_ms" for phase in ("auth", "parse", "cache", "queue", "infer", "respond", "total")
    ]
    said = re.findall(r"([a-z]+);dur=([0-9.]+)", answer.headers["server-timing"])
    assert {f"{phase}_ms": float(ms) for phase, ms in said} == pytest.approx(phases, abs=0.0011)
    body = json.dumps({"inputs": tensors(observed_inputs(1))})
    record = noting.status()["workers"][0]
    assert line == {
        "level": "info", "tier": "edge", "pid": noting.pids()["edge-0"], "event": "request",
        "edge": noting.status()["edges"][0]["id"], "request_id": "computed", "route": INFER,
        "status": 200, "endpoint": MODEL, "variant": "stable", "version": "1",
        "key": line["key"], "tenant": "default", "cache": "fwd=uri-miss",
        "bytes_in": len(body), "bytes_out": len(answer.body), "rows": 1, "batch_rows": 1,
        "worker": record["id"],
    }  # fmt: skip
    assert line["key"]
    assert line["key"] not in noting.key


def test_hit_names_no_worker_and_no_phase_that_did_not_happen(noting: Stack) -> None:
    for name in ("fresh", "known"):
        noting.infer_observed(MODEL, 2, {"x-request-id": name})
    line = line_of(noting, "known")
    assert line["cache"].startswith("hit")
    assert not {"worker", "queue_ms", "infer_ms", "batch_rows"} & line.keys()


@pytest.mark.parametrize(
    ("name", "method", "path", "body", "key", "expected"),
    [
        ("wrong-key", "POST", f"/v2/models/{MODEL}/infer", "{}", "tp_no_key",
         (401, "unauthorized", INFER)),
        ("malformed", "POST", f"/v2/models/{MODEL}/infer", "{", "", (400, "malformed", INFER)),
        ("no-model", "POST", "/v2/models/nobody/versions/3/infer", "{}", "",
         (404, "not_found", "POST /v2/models/{model}/versions/{version}/infer")),
        ("metadata", "GET", f"/v2/models/{MODEL}?api_key=s3cr3t-in-query", None, "",
         (200, "", "GET /v2/models/{model}")),
        ("nowhere", "GET", "/s3cr3t-in-path", None, "", (404, "not_found", "unmatched")),
        ("long", "POST", f"/v2/models/{'m' * 9000}/infer", "{}", "", (414, "target_too_long", "")),
    ],
)  # fmt: skip
def test_refused_and_cold_requests_have_lines_too(
    noting: Stack, name: str, method: str, path: str, body: str | None, key: str,
    expected: tuple[int, str, str],
) -> None:  # fmt: skip
    headers = {"x-request-id": name}
    assert noting.request(method, path, body, headers, key=key).status == expected[0]
    line = line_of(noting, name)
    assert (line["status"], line.get("error", ""), line.get("route", "")) == expected
    assert "s3cr3t" not in noting.log_text()


def test_admin_port_is_noted_and_health_is_not(noting: Stack) -> None:
    noting.request("GET", "/livez", admin=True, key=None, headers={"x-request-id": "health"})
    noting.request("GET", "/v2/health/ready", headers={"x-request-id": "health"})
    noting.request("GET", "/admin/pool", admin=True, headers={"x-request-id": "pool"})
    line = line_of(noting, "pool")
    assert (line["route"], line["status"], line["tenant"]) == ("GET /admin/pool", 200, "default")
    assert not [line for line in lines(noting) if line["request_id"] == "health"]


def test_client_that_leaves_is_a_499(noting: Stack) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", noting.port)
    body = json.dumps({"inputs": tensors(observed_inputs(3, delay_ms=2000))})
    headers = {"x-request-id": "leaver", **noting.auth()}
    connection.request("POST", f"/v2/models/{MODEL}/infer", body, headers)
    until(lambda: noting.calls(MODEL) == 1)
    connection.close()
    line = line_of(noting, "leaver")
    assert (line["status"], line["error"], line["endpoint"]) == (499, "client_gone", MODEL)


def test_call_that_was_sent_again_says_so(noting: Stack) -> None:
    diary = noting.publish_observed("noted-again")
    answers: list[int] = []

    def call() -> None:
        headers = {"x-request-id": "again"}
        answers.append(noting.infer_observed("noted-again", 5, headers, delay_ms=1500).status)

    caller = threading.Thread(target=call)
    caller.start()
    until(lambda: diary.count("run") == 1)
    os.kill(noting.pids()["worker-0"], signal.SIGKILL)
    caller.join()
    assert answers == [200]
    line = line_of(noting, "again")
    assert (line["retries"], line["status"]) == (1, 200)
    assert line["worker"].endswith("-0")


def test_trace_of_the_caller_is_in_the_line_and_in_the_answer(noting: Stack) -> None:
    parent = f"00-{TRACE}-{SPAN}-01"
    answer = noting.infer_observed(MODEL, 1, {"traceparent": parent})
    assert answer.headers["x-request-id"] == f"{TRACE}-{SPAN}"
    line = line_of(noting, f"{TRACE}-{SPAN}")
    assert (line["trace_id"], line["span_id"]) == (TRACE, SPAN)
    noting.infer_observed(MODEL, 1, {"traceparent": parent, "x-request-id": "my own"})
    assert line_of(noting, "my own")["trace_id"] == TRACE
    zeros = f"00-{'0' * 32}-{SPAN}-01"
    noting.infer_observed(MODEL, 1, {"traceparent": zeros, "x-request-id": "zeros"})
    assert "trace_id" not in line_of(noting, "zeros")


def test_busy_edge_samples_and_says_how_many_it_left_out(
    start_stack: Callable[..., Stack],
) -> None:
    stack = start_stack(
        engines=TEST_ENGINES, arguments=("--access-log-lines-per-s", "5")
    )  # sampled is what it does by itself
    stack.publish_observed(MODEL, deterministic=True)
    body = json.dumps({"inputs": tensors(observed_inputs(1))})
    connection = http.client.HTTPConnection("127.0.0.1", stack.port)
    sent = 200

    def send(name: str, text: str) -> int:
        headers = {"x-request-id": name, **stack.auth()}
        connection.request("POST", f"/v2/models/{MODEL}/infer", text, headers)
        response = connection.getresponse()
        response.read()
        return response.status

    # Waiting for the model was noted too, or left out.
    before = stack.metric("tidepool_access_lines_dropped_total")
    began_s = time.monotonic()
    for i in range(sent):
        assert send(f"busy-{i}", body) == 200
        time.sleep(0.006)  # for longer than the second whose lines others may have used up
    took_s = time.monotonic() - began_s
    assert send("bad", "{") == 400  # has a budget of its own
    connection.close()

    def of_load() -> list[dict[str, Any]]:
        return [line for line in lines(stack) if line["request_id"].startswith("busy")]

    line_of(stack, "bad")
    assert 1 <= len(of_load()) <= 5 + 5 * (took_s + 1)
    dropped = stack.metric("tidepool_access_lines_dropped_total")
    assert dropped - before == sent - len(of_load())
    assert sum(line.get("dropped", 0) for line in lines(stack)) == dropped


def test_reader_of_the_log_that_stands_still_stops_no_request(tmp_path: Path) -> None:
    options = StackOptions(engines=TEST_ENGINES, arguments=("--access-log", "on"))
    stack, count = Stack(tmp_path, options), 60
    stack.log_path.unlink(missing_ok=True)
    os.mkfifo(stack.log_path)
    keep = os.open(stack.log_path, os.O_RDWR)  # a reader that reads nothing yet
    try:
        fcntl.fcntl(keep, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        stack.start()
        stack.publish_observed(MODEL, deterministic=True)
        for i in range(count):  # more lines than the pipe takes
            assert stack.infer_observed(MODEL, 1, {"x-request-id": f"stuck-{i}"}).status == 200
        assert stack.metric("tidepool_access_lines_dropped_total") == 0
        found = b""
        while f"stuck-{count - 1}".encode() not in found:  # nothing is lost once it reads on
            found += os.read(keep, 1 << 16)
        assert len(re.findall(rb'"request_id":"stuck-', found)) == count
        assert len(found) > 2 * PIPE_BYTES
    finally:
        reader = threading.Thread(target=drain, args=(keep,), daemon=True)
        reader.start()
        stack.stop()


def drain(descriptor: int) -> None:
    """Read on until the process ends."""
    while os.read(descriptor, 1 << 16):
        pass
