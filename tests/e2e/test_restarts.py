"""Processes that are told to end: what they still do, and that nobody notices."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection

import pytest

from tests.support.load import Load
from tests.support.models import identity
from tests.support.observed_engine import DIARY, LOAD_S, Diary
from tests.support.processes import is_alive
from tests.support.stack import TEST_ENGINES, Stack, running_stack, until

LAME_DUCK_S = 1.0
GONE_S_MAX = 20.0  # the lame duck, what is in flight, and a machine that others keep busy
INPUT = {"x": ("FP32", [1, 4], [1.0, -2.0, 3.5, 0.25])}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two edges and two workers with the model `echo`; each test leaves them whole."""
    data = tmp_path_factory.mktemp("pair")
    options = ("--lame-duck-s", str(LAME_DUCK_S))
    with running_stack(data, engines=TEST_ENGINES, edges=2, workers=2, arguments=options) as stack:
        stack.publish("echo", identity(data / "echo.onnx"))
        stack.edit_endpoint("echo", cache=None, scale={"replicas_min": 2})
        until(lambda: warm_in(stack) == 2, 30.0, "a replica in both workers")
        yield stack


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One edge and one worker with the model `echo`; each test leaves them whole."""
    data = tmp_path_factory.mktemp("lone")
    with running_stack(data, engines=TEST_ENGINES, arguments=("--lame-duck-s", "0.5")) as stack:
        stack.publish("echo", identity(data / "echo.onnx"))
        stack.edit_endpoint("echo", cache=None)
        yield stack


def warm_in(stack: Stack) -> int:
    try:
        engines = stack.engine("echo")
    except (AssertionError, OSError):
        return 0  # no edge, or no controller, that could say
    return sum(engine["state"] == "warm" for engine in engines)


def terminate(stack: Stack, name: str) -> int:
    """Send SIGTERM to a process; returns its pid."""
    pid = stack.pids()[name]
    os.kill(pid, signal.SIGTERM)
    return pid


def ends(stack: Stack) -> dict[int, int]:
    """Return the status of every process that has ended, by pid."""
    lines = [line for line in stack.log_text().splitlines() if '"process_ended"' in line]
    return {one["child_pid"]: one["code"] for one in map(json.loads, lines)}


def assert_ends_well(stack: Stack, pid: int, timeout_s: float = GONE_S_MAX) -> None:
    until(lambda: pid in ends(stack), timeout_s, f"{pid} has ended", pause_s=0.05)
    assert ends(stack)[pid] == 0


def restart(stack: Stack, name: str, replicas: int = 2) -> None:
    """Let a process be replaced; returns when its successor serves and it has ended."""
    pid = terminate(stack, name)
    until(lambda: stack.pids().get(name, pid) != pid, GONE_S_MAX, f"a new {name}")
    assert_ends_well(stack, pid)
    new = stack.pids()[name]

    def is_known() -> bool:
        try:
            found = stack.status()
        except (AssertionError, OSError):
            return False
        return new in {one["pid"] for tier in ("edges", "workers") for one in found[tier]}

    until(is_known, GONE_S_MAX, f"the new {name} is known")
    until(lambda: warm_in(stack) == replicas, GONE_S_MAX, "its engine is warm")


def roll(stack: Stack, names: list[str]) -> Load:
    with Load(stack.url, stack.key, "echo", threads=6, pause_s=0.002) as load:
        load.more(50)
        for name in names:
            restart(stack, name)
            load.more(50)
    load.assert_clean()
    return load


@pytest.mark.rule("F16")
def test_rolling_restarts_of_edges_and_workers_fail_no_request(pair: Stack) -> None:
    load = roll(pair, ["edge-0", "worker-0", "edge-1"])
    print(f"\n{load.answered} requests over 3 restarts, slowest {max(load.latencies_s):.3f} s")
    assert '"event": "worker_lost"' not in pair.log_text()


@pytest.mark.slow
def test_rolling_restarts_without_a_lame_duck_fail_no_request_of_a_busy_client(
    start_stack: Callable[..., Stack],
) -> None:
    stack = start_stack(engines=TEST_ENGINES, edges=2, workers=2)
    stack.publish("echo", identity(stack.data / "echo.onnx"))
    stack.edit_endpoint("echo", cache=None, scale={"replicas_min": 2})
    until(lambda: warm_in(stack) == 2, 30.0, "a replica in both workers")
    load = roll(stack, ["edge-0", "worker-0", "edge-1", "worker-1"])
    print(f"\n{load.answered} requests over 4 restarts, slowest {max(load.latencies_s):.3f} s")


@pytest.mark.rule("F16")
@pytest.mark.slow
def test_20_rolling_restarts_of_edges_and_workers_fail_no_request(pair: Stack) -> None:
    load = roll(pair, ["edge-0", "worker-0", "edge-1", "worker-1"] * 5)
    print(f"\n{load.answered} requests over 20 restarts, slowest {max(load.latencies_s):.3f} s")
    assert '"event": "worker_lost"' not in pair.log_text()


# The lame duck.


def ask(connection: HTTPConnection, path: str) -> tuple[int, str | None]:
    """GET over a kept connection; returns the status and whether it is closed afterwards."""
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    return response.status, response.getheader("connection")


@pytest.mark.rule("F16")
def test_edge_in_its_lame_duck_is_not_ready_serves_on_and_closes_what_is_kept(lone: Stack) -> None:
    kept = [HTTPConnection("127.0.0.1", lone.port, timeout=10) for _ in range(3)]
    admin = HTTPConnection("127.0.0.1", lone.admin_port, timeout=10)
    idle = socket.create_connection(("127.0.0.1", lone.port), timeout=10)
    live, ready = "/v2/health/live", "/v2/health/ready"
    assert [ask(one, live) for one in kept] == [(200, None)] * 3
    assert ask(admin, "/readyz") == (200, None)
    drains = lone.log_text().count('"event": "edge_draining"')
    pid = terminate(lone, "edge-0")
    until(lambda: lone.log_text().count('"event": "edge_draining"') > drains, what="it drains")
    assert ask(kept[0], ready) == (503, "close")
    assert ask(admin, "/readyz") == (503, "close")
    inputs = [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": INPUT["x"][2]}]
    headers = {"authorization": f"Bearer {lone.key}", "content-type": "application/json"}
    kept[1].request("POST", "/v2/models/echo/infer", json.dumps({"inputs": inputs}), headers)
    answer = kept[1].getresponse()
    assert (answer.status, answer.getheader("connection")) == (200, "close")
    assert json.loads(answer.read())["outputs"][0]["data"] == INPUT["x"][2]
    # Whoever comes anew is served at any moment, by the one or by the other.
    while is_alive(pid):
        assert lone.infer("echo", INPUT).status == 200
    assert_ends_well(lone, pid)
    with closing(idle):
        assert idle.recv(1) == b""  # closed, not reset
    for one in (*kept, admin):
        one.close()
    until(lambda: warm_in(lone) == 1, GONE_S_MAX, "all is well again")


@pytest.mark.slow
@pytest.mark.parametrize("keep_alive_s", [0.5, 7.0])  # shorter and longer than the default
def test_kept_connection_may_be_silent_for_as_long_as_told(
    start_stack: Callable[..., Stack], keep_alive_s: float
) -> None:
    stack = start_stack(arguments=("--keep-alive-s", str(keep_alive_s)))
    kept = HTTPConnection("127.0.0.1", stack.port, timeout=20)
    assert ask(kept, "/v2/health/live") == (200, None)
    began_s = time.monotonic()
    assert kept.sock.recv(1) == b""
    assert keep_alive_s * 0.9 < time.monotonic() - began_s < keep_alive_s + 5.0
    kept.close()


def test_one_worker_alone_is_replaced_under_load_and_no_request_fails(lone: Stack) -> None:
    with Load(lone.url, lone.key, "echo", threads=4, pause_s=0.002) as load:
        load.more(50)
        restart(lone, "worker-0", replicas=1)
        load.more(50)
    load.assert_clean()


def pids_of(stack: Stack) -> list[set[int]]:
    """Return the pids of all edges and workers that the controller knows."""
    try:
        found = stack.status()
    except (AssertionError, OSError):
        return []  # nobody can say
    return [{one["pid"] for one in found[tier]} for tier in ("edges", "workers")]


def test_controller_is_replaced_at_once_and_nobody_notices(lone: Stack) -> None:
    everybody = until(lambda: pids_of(lone), GONE_S_MAX)
    epoch = lone.status()["controller"]["epoch"]
    with Load(lone.url, lone.key, "echo", threads=2, pause_s=0.005) as load:
        load.more(20)
        assert_ends_well(lone, terminate(lone, "controller"))
        until(lambda: pids_of(lone) == everybody, GONE_S_MAX, "its successor knows all")
        load.more(20)
    load.assert_clean()
    assert lone.status()["controller"]["epoch"] == epoch + 1


# What is under way.


def test_call_that_waits_for_a_load_is_handed_to_the_successor(lone: Stack) -> None:
    diary = Diary(lone.data / "slow.diary")
    lone.publish_engine(
        "slow",
        "observed",
        [("x", "INT64", (-1, 1))],
        [("y", "INT64", (-1, 1))],
        files={DIARY: str(diary.path), LOAD_S: "3.0"},
    )
    lone.edit_endpoint("slow", scale={"idle_s": 0.3}, cache=None, deadline_ms=60_000)
    until(lambda: not lone.engine("slow"), 15.0, "it sleeps")
    runs, returns = diary.count("run"), lone.metric("tidepool_dispatch_returns_total")
    with ThreadPoolExecutor(1) as thread:
        call = thread.submit(lone.infer, "slow", {"x": ("INT64", [1, 1], [5])})
        until(lambda: [e["state"] for e in lone.engine("slow")] == ["loading"], what="it loads")
        began_s = time.monotonic()
        assert_ends_well(lone, terminate(lone, "worker-0"))
        assert time.monotonic() - began_s < 2.5  # before the load would have been done
        assert call.result().output() == [5]
    assert diary.count("run") == runs + 1
    assert lone.metric("tidepool_dispatch_returns_total") == returns + 1
    assert lone.metric("tidepool_dispatch_retries_total") == 0


@pytest.mark.rule("F16")
def test_streams_end_whole_and_nothing_holds_a_process_for_ever(lone: Stack) -> None:
    lone.publish_engine(
        "counter",
        "counter",
        [("n", "INT64", [1]), ("delay_ms", "INT64", [1])],
        [("value", "INT64", [1])],
    )
    key = f"authorization: Bearer {lone.key}\r\n"
    content = json.dumps({"n": 30, "delay_ms": 100})
    stream = socket.create_connection(("127.0.0.1", lone.port), timeout=30)
    stream.sendall(
        f"POST /v2/models/counter/generate_stream HTTP/1.1\r\nhost: e2e\r\n{key}"
        f"content-length: {len(content)}\r\n\r\n{content}".encode()
    )
    received = b""
    while b'"value":2}' not in received:
        received += stream.recv(65536)
    stalled = socket.create_connection(("127.0.0.1", lone.port), timeout=30)
    stalled.sendall(
        f"POST /v2/models/echo/infer HTTP/1.1\r\nhost: e2e\r\n{key}"
        "content-length: 1000\r\n\r\nnot all of it".encode()
    )
    half = socket.create_connection(("127.0.0.1", lone.port), timeout=30)
    half.sendall(b"POST /v2/models/echo/infer HTT")
    began_s = time.monotonic()
    pids = [terminate(lone, name) for name in ("edge-0", "worker-0")]
    time.sleep(0.2)
    for pid in pids:  # whoever is impatient changes nothing
        os.kill(pid, signal.SIGTERM)
    with closing(stream), closing(stalled), closing(half):
        while not received.endswith(b"0\r\n\r\n"):
            more = stream.recv(65536)
            assert more, received
            received += more
        assert received.count(b"data: ") == 30
        assert b"error" not in received
        assert stalled.recv(65536).startswith(b"HTTP/1.1 408 ")
        for pid in pids:
            assert_ends_well(lone, pid, 30.0)
    assert time.monotonic() - began_s < 20.0
    until(lambda: warm_in(lone) == 1, GONE_S_MAX, "all is well again")
    assert '"event": "process_killed"' not in lone.log_text()
