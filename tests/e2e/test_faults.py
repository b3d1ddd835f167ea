"""Faults of every process and of the registry, injected into a running system under load."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from infra.stack import Node
from tests.support.artifacts import put_artifact
from tests.support.load import Load
from tests.support.models import identity
from tests.support.processes import is_alive
from tests.support.stack import TEST_ENGINES, Stack, running_stack, until

INPUT = {"x": ("FP32", [1, 4], [1.0, -2.0, 3.5, 0.25])}
SIBLINGS_S = 1.5  # so old is what an edge tells of its siblings, on a busy machine
RESPAWN_S_MAX = 20.0  # an interpreter's start on a machine that other tests keep busy


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One worker and one edge with the model `echo`; each test leaves it whole."""
    data = tmp_path_factory.mktemp("one")
    with running_stack(data, engines=TEST_ENGINES) as stack:
        stack.publish("echo", identity(data / "echo.onnx"))
        yield stack


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two workers and two edges with the model `echo`."""
    data = tmp_path_factory.mktemp("two")
    with running_stack(data, engines=TEST_ENGINES, workers=2, edges=2) as stack:
        stack.publish("echo", identity(data / "echo.onnx"))
        stack.edit_endpoint("echo", scale={"replicas_min": 2})
        until(lambda: warm_in(stack) == 2, 30.0, "a replica in both workers")
        yield stack


def load_on(stack: Stack, model: str = "echo", **options: float) -> Load:
    return Load(stack.url, stack.key, model, **options)  # type: ignore[arg-type]


def status_of(stack: Stack) -> dict[str, Any]:
    """Return the status, from whichever edge has found a controller by now."""

    def ask_edge() -> dict[str, Any]:
        try:
            answer = stack.request("GET", "/admin/pool", admin=True)
        except OSError:
            return {}  # the edge is not there yet
        return answer.json() if answer.status == 200 else {}

    return until(ask_edge, RESPAWN_S_MAX, "a controller answers")


def engines_of(stack: Stack, model: str = "echo") -> list[dict[str, Any]]:
    return [
        engine
        for worker in status_of(stack)["workers"]
        for engine in worker["engines"]
        if engine["model"] == model
    ]


def warm_in(stack: Stack, model: str = "echo") -> int:
    return sum(engine["state"] == "warm" for engine in engines_of(stack, model))


def loads_of(stack: Stack, model: str = "echo") -> int:
    return sum(engine["loads"] for engine in engines_of(stack, model))


def wakes_of(stack: Stack, endpoint: str) -> int:
    found = [e["wakes"] for e in status_of(stack)["endpoints"] if e["name"] == endpoint]
    return int(found[0])


def everybody_of(stack: Stack) -> set[int]:
    """Return the pids of all workers and edges that have registered."""
    found = status_of(stack)
    return {one["pid"] for tier in ("workers", "edges") for one in found[tier]}


def epoch_of(stack: Stack) -> int:
    return int(status_of(stack)["controller"]["epoch"])


def respawned(stack: Stack, name: str, old: int) -> int:
    """Wait until a process has a successor, and return its pid."""
    return until(
        lambda: pid if (pid := stack.pids().get(name, old)) != old else 0,
        RESPAWN_S_MAX,
        f"a new {name}",
    )


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Let a process stand still meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


# A worker.


@pytest.mark.rule("F1")
@pytest.mark.parametrize("name", ["one", "two"])
def test_worker_killed_under_load_loses_no_request_and_comes_back_warm(
    name: str, request: pytest.FixtureRequest
) -> None:
    stack: Stack = request.getfixturevalue(name)
    workers = len([pid for pid in stack.pids() if pid.startswith("worker")])
    with load_on(stack, threads=8, total=1000) as load:
        load.more(200)
        pid = stack.pids()["worker-0"]
        os.kill(pid, signal.SIGKILL)
        load.wait()
        load.assert_clean()
        assert load.answered == 1000
    new = respawned(stack, "worker-0", pid)
    until(lambda: warm_in(stack) == workers, RESPAWN_S_MAX, "its engine is warm again")
    shown = [worker["pid"] for worker in status_of(stack)["workers"]]
    assert new in shown
    assert pid not in shown


def test_worker_told_to_end_under_load_finishes_what_it_has(two: Stack) -> None:
    pid = two.pids()["worker-0"]
    with load_on(two, threads=8) as load:
        load.more(100)
        os.kill(pid, signal.SIGTERM)
        respawned(two, "worker-0", pid)
        load.more(100)
        until(lambda: warm_in(two) == 2, RESPAWN_S_MAX, "a replica in both workers")
    load.assert_clean()


def test_both_workers_killed_one_after_the_other_lose_no_request(two: Stack) -> None:
    with load_on(two, threads=8) as load:
        load.more(100)
        for name in ("worker-0", "worker-1"):
            pid = two.pids()[name]
            os.kill(pid, signal.SIGKILL)
            respawned(two, name, pid)
            load.more(100)
            until(lambda: warm_in(two) == 2, RESPAWN_S_MAX, "a replica in both workers")
    load.assert_clean()


@pytest.mark.rule("F2")
def test_worker_that_stands_still_is_found_and_its_calls_go_elsewhere(two: Stack) -> None:
    def silences() -> float:
        return two.metric("tidepool_dispatch_ejections_total", why="silent")

    pid, before = two.pids()["worker-0"], silences()
    with load_on(two, threads=4) as load:
        load.more(100)
        with stopped(pid):
            began_s = time.monotonic()
            until(lambda: silences() > before, 10.0, "an edge has found it", 0.02)
            seen_s = time.monotonic() - began_s
            load.more(200)
        until(lambda: warm_in(two) == 2, RESPAWN_S_MAX, "both serve")
        load.more(50)
    print(f"seen after {seen_s:.2f} s, longest call {max(load.latencies_s):.2f} s")
    load.assert_clean()  # what it held was sent to the other one, and its late answers to nobody
    assert seen_s < 1.5 + SIBLINGS_S


@pytest.mark.rule("F2", "SEC-12")
def test_edge_whose_only_worker_stands_still_is_not_ready_until_it_goes_on(one: Stack) -> None:
    def told() -> list[int]:
        paths = ("/v2/health/ready", "/v2/models/echo/ready")
        found = [one.request("GET", path, key=one.key) for path in paths]
        return [one.request("GET", "/readyz", admin=True).status, *(a.status for a in found)]

    assert told() == [200, 200, 200]
    with stopped(one.pids()["worker-0"]):
        began_s = time.monotonic()
        until(lambda: told() == [503, 503, 503], RESPAWN_S_MAX, "none is ready", 0.05)
        seen_s = time.monotonic() - began_s
        answer = one.request("GET", "/v2/models/echo/ready")
        assert answer.headers["x-tidepool-state"] == "no_worker"
        assert one.request("GET", "/v2/health/live").status == 200
    until(lambda: told() == [200, 200, 200], RESPAWN_S_MAX, "all are ready again", 0.05)
    print(f"not ready after {seen_s:.2f} s")
    assert one.infer("echo", INPUT).status == 200
    assert seen_s < 2.5 + SIBLINGS_S


def test_call_whose_worker_dies_of_it_is_tried_twice_and_then_refused(one: Stack) -> None:
    one.publish_engine("dying", "dying", [("x", "INT64", [1])], [("y", "INT64", [1])])
    answer = one.infer("dying", {"x": ("INT64", [1], [666])})
    assert (answer.status, answer.error[:17]) == (422, "two workers died ")
    until(lambda: warm_in(one) == 1, RESPAWN_S_MAX, "the worker is back")
    assert one.infer("dying", {"x": ("INT64", [1], [1])}).output() == [1]
    assert one.infer("echo", INPUT).status == 200


# The edge.


def test_killed_edge_is_started_again_and_serves_before_any_controller_speaks(one: Stack) -> None:
    pids = one.pids()
    with stopped(pids["controller"]):
        os.kill(pids["edge-0"], signal.SIGKILL)
        respawned(one, "edge-0", pids["edge-0"])

        def answers() -> bool:
            try:
                return one.infer("echo", INPUT).status == 200
            except OSError:
                return False

        until(answers, RESPAWN_S_MAX, "it serves from its last good copies")
    epoch_of(one)


@pytest.mark.rule("F17")
def test_stream_of_a_killed_edge_never_looks_finished(one: Stack) -> None:
    tensors = [("n", "INT64", [1]), ("delay_ms", "INT64", [1])]
    one.publish_engine("talker", "counter", tensors, [("value", "INT64", [1])])
    content = json.dumps({"n": 1000, "delay_ms": 20})
    with socket.create_connection(("127.0.0.1", one.port), timeout=30) as client:
        client.sendall(
            f"POST /v2/models/talker/generate_stream HTTP/1.1\r\nhost: e2e\r\n"
            f"authorization: Bearer {one.key}\r\ncontent-length: {len(content)}\r\n\r\n"
            f"{content}".encode()
        )
        received = b""
        while b'"value":2}' not in received:
            received += client.recv(65536)
        pid = one.pids()["edge-0"]
        os.kill(pid, signal.SIGKILL)
        with suppress(ConnectionResetError):
            while more := client.recv(65536):
                received += more
    assert not received.endswith(b"0\r\n\r\n")
    assert b"[DONE]" not in received
    respawned(one, "edge-0", pid)

    def answers() -> bool:
        try:
            return one.infer("echo", INPUT).status == 200
        except OSError:
            return False

    until(answers, RESPAWN_S_MAX, "its successor serves")
    # Nobody reads it any more: the worker is told so by the end of its connection.
    until(lambda: one.calls("talker") == 0, 10.0, "the engine has stopped")


@pytest.mark.rule("F17")
def test_one_of_two_edges_killed_leaves_the_other_serving(two: Stack) -> None:
    pids = two.pids()
    os.kill(pids["edge-0"], signal.SIGKILL)
    until(lambda: not is_alive(pids["edge-0"]), 5.0)
    assert {two.infer("echo", INPUT).status for _ in range(10)} == {200}
    respawned(two, "edge-0", pids["edge-0"])
    until(lambda: len(status_of(two)["edges"]) == 2, RESPAWN_S_MAX, "both edges are known")


# The controller.


@pytest.mark.rule("F27")
def test_controller_killed_under_load_fails_no_request_and_reloads_nothing(two: Stack) -> None:
    pid = two.pids()["controller"]
    epoch, loads = epoch_of(two), loads_of(two)
    before = everybody_of(two)
    with load_on(two, pause_s=0.005) as load:
        load.more(50)
        os.kill(pid, signal.SIGKILL)
        respawned(two, "controller", pid)
        until(lambda: epoch_of(two) > epoch, RESPAWN_S_MAX, "the epoch rises")
        until(lambda: everybody_of(two) == before, RESPAWN_S_MAX, "all have registered again")
        time.sleep(4.0)  # longer than a new leader takes to settle and to plan
        load.more(50)
    load.assert_clean()
    assert loads_of(two) == loads
    assert warm_in(two) == 2


# The sync process.


def test_killed_sync_is_started_again_and_brings_models(one: Stack, tmp_path: Path) -> None:
    pid = one.pids()["sync"]
    os.kill(pid, signal.SIGKILL)
    respawned(one, "sync", pid)
    one.publish("later", identity(tmp_path / "later.onnx"))
    assert one.infer("later", INPUT).status == 200


# The registry.


@contextmanager
def registry_gone(stack: Stack) -> Iterator[None]:
    """Move the registry away meanwhile."""
    here, away = stack.data / "registry", stack.data / "registry.away"
    here.rename(away)
    try:
        yield
    finally:
        away.rename(here)


def registry_error(stack: Stack) -> str:
    return str(status_of(stack)["controller"]["registry_error"])


def test_registry_that_goes_away_stops_nothing_and_shows_in_the_status(
    one: Stack, tmp_path: Path
) -> None:
    with load_on(one, pause_s=0.005) as load:
        with registry_gone(one):
            until(lambda: registry_error(one), 10.0, "the status says so")
            load.more(50)
            assert one.request("GET", "/v2/models/echo/ready").status == 200
        until(lambda: not registry_error(one), 10.0, "it is read again")
        load.more(20)
    load.assert_clean()
    one.publish("afterwards", identity(tmp_path / "m.onnx"))


def test_restarts_while_the_registry_is_away_lose_no_document(one: Stack) -> None:
    pids = one.pids()
    with load_on(one, pause_s=0.005) as load:
        with registry_gone(one):
            os.kill(pids["controller"], signal.SIGKILL)
            respawned(one, "controller", pids["controller"])
            time.sleep(3.0)
            load.more(50)
            assert not (one.data / "registry").exists()  # nobody made an empty one
        epoch_of(one)
        load.more(50)
    load.assert_clean()
    assert one.variants("echo")


def put_endpoint(stack: Stack, name: str, data: bytes) -> None:
    """Write a document as no command would."""
    path = stack.data / "registry" / "endpoints" / f"{name}.json"
    partial = path.with_suffix(".partial")
    partial.write_bytes(data)
    partial.rename(path)


@pytest.mark.rule("F14")
def test_invalid_document_stays_out_the_last_good_one_serves_and_the_status_says_why(
    one: Stack, tmp_path: Path
) -> None:
    one.publish("spoilt", identity(tmp_path / "m.onnx"))
    path = one.data / "registry" / "endpoints" / "spoilt.json"
    good = path.read_bytes()
    bad = json.loads(good)
    bad["variants"][0]["weight"] = "all of it"
    put_endpoint(one, "spoilt", json.dumps(bad).encode())
    why = until(lambda: status_of(one)["rejected"].get("endpoints/spoilt.json"), 10.0, "rejected")
    assert "$.variants[0].weight" in why
    assert one.infer("spoilt", INPUT).status == 200
    # Nor does a controller that has never seen the good one forget it.
    pid = one.pids()["controller"]
    os.kill(pid, signal.SIGKILL)
    respawned(one, "controller", pid)
    epoch_of(one)
    until(lambda: status_of(one)["rejected"].get("endpoints/spoilt.json"), 10.0, "still rejected")
    time.sleep(4.0)  # until the new leader has settled and pushed its routes
    assert one.infer("spoilt", INPUT).status == 200
    put_endpoint(one, "spoilt", good)
    until(lambda: not status_of(one)["rejected"], 10.0, "taken again")


def test_invalid_keys_leave_the_last_good_ones(one: Stack) -> None:
    path = one.data / "registry" / "keys.json"
    good = path.read_bytes()
    partial = path.with_suffix(".partial")
    try:
        partial.write_bytes(b'{"schema": 1, "keys": [{"id": 7}]}')
        partial.rename(path)
        until(lambda: status_of(one)["rejected"].get("keys.json"), 10.0, "rejected")
        assert one.infer("echo", INPUT).status == 200
    finally:
        partial.write_bytes(good)
        partial.rename(path)
    until(lambda: not status_of(one)["rejected"], 10.0, "taken again")


def test_document_that_came_before_its_version_serves_once_that_is_published(
    one: Stack, tmp_path: Path
) -> None:
    spec = {
        "endpoint": "early",
        "variants": [{"name": "a", "model": "late", "version": "1", "weight": 100}],
    }
    put_endpoint(one, "early", json.dumps({"schema": 1, "revision": 1, **spec}).encode())
    why = until(lambda: status_of(one)["rejected"].get("endpoints/early.json"), 10.0, "rejected")
    assert "late version 1 is not published" in why
    one.publish("late", identity(tmp_path / "m.onnx"))
    until(lambda: one.infer("early", INPUT).status == 200, 10.0, "it serves")
    assert not status_of(one)["rejected"]


# Sleep and wake.


def test_idle_engine_is_unloaded_and_many_calls_at_once_wake_it_with_one_load(
    one: Stack, tmp_path: Path
) -> None:
    one.publish("sleepy", identity(tmp_path / "m.onnx"))
    one.edit_endpoint("sleepy", scale={"idle_s": 0.5}, cache=None)
    until(lambda: not engines_of(one, "sleepy"), 15.0, "it sleeps")
    ready = one.request("GET", "/v2/models/sleepy/ready")
    assert (ready.status, ready.headers["x-tidepool-state"]) == (200, "asleep")
    assert not engines_of(one, "sleepy")  # asking woke nothing
    wakes = wakes_of(one, "sleepy")
    with ThreadPoolExecutor(50) as threads:
        answers = list(threads.map(lambda _: one.infer("sleepy", INPUT), range(50)))
    assert {answer.status for answer in answers} == {200}
    assert all(answer.output() == INPUT["x"][2] for answer in answers)
    after = wakes_of(one, "sleepy")
    assert after == wakes + 1
    until(lambda: not engines_of(one, "sleepy"), 15.0, "it sleeps again")


def test_calls_around_the_moment_of_falling_asleep_are_all_answered(
    one: Stack, tmp_path: Path
) -> None:
    one.publish("dozing", identity(tmp_path / "m.onnx"))
    one.edit_endpoint("dozing", scale={"idle_s": 0.3}, cache=None)
    with load_on(one, "dozing", threads=2, pause_s=0.6, total=12) as load:
        load.wait()
    load.assert_clean()


@pytest.mark.rule("F22")
def test_first_calls_of_a_fresh_worker_cost_one_load_in_the_whole_pool(
    two: Stack, tmp_path: Path
) -> None:
    two.publish("fleet", identity(tmp_path / "m.onnx"))
    two.edit_endpoint("fleet", scale={"idle_s": 1.0}, cache=None)
    until(lambda: not engines_of(two, "fleet"), 20.0, "it sleeps")
    with ThreadPoolExecutor(50) as threads:
        answers = list(threads.map(lambda _: two.infer("fleet", INPUT), range(50)))
    assert {answer.status for answer in answers} == {200}
    assert len(engines_of(two, "fleet")) == 1  # all edges woke the same worker


# A model that cannot be had.


def test_model_that_cannot_be_loaded_is_refused_and_the_others_are_not(one: Stack) -> None:
    put_artifact(one.store, {"model.onnx": b"this is no graph at all"}, "garbage", "1")
    one.set_endpoint(
        {
            "endpoint": "garbage",
            "variants": [{"name": "a", "model": "garbage", "version": "1", "weight": 100}],
        }
    )
    answer = one.infer("garbage", {"x": ("FP32", [1, 2], [1.0, 2.0])})
    assert answer.status == 503
    assert answer.headers["retry-after"]
    assert "cannot be loaded" in answer.error
    assert str(one.data) not in answer.error
    assert one.request("GET", "/v2/models/garbage/ready").status == 503
    failed = until(lambda: [e for e in engines_of(one, "garbage") if e["state"] == "failed"], 10.0)
    assert failed[0]["detail"]
    assert one.infer("echo", INPUT).status == 200


@pytest.mark.rule("F11")
def test_blob_that_is_not_what_the_manifest_says_is_never_served(one: Stack) -> None:
    put_artifact(one.store, {"model.onnx": b"what the manifest speaks of"}, "forged", "1")
    (blob,) = [
        path
        for path in (one.data / "registry" / "blobs" / "sha256").iterdir()
        if path.read_bytes() == b"what the manifest speaks of"
    ]
    blob.chmod(0o644)
    blob.write_bytes(b"something else of that size"[:27])
    one.set_endpoint(
        {
            "endpoint": "forged",
            "variants": [{"name": "a", "model": "forged", "version": "1", "weight": 100}],
        }
    )
    answer = one.infer("forged", {"x": ("FP32", [1, 2], [1.0, 2.0])})
    assert answer.status == 503
    assert "sha256" in answer.error
    assert one.infer("echo", INPUT).status == 200


def test_nothing_but_the_killed_processes_was_ever_restarted(one: Stack) -> None:
    text = one.log_text()
    assert '"event": "bug"' not in text, [line for line in text.splitlines() if '"bug"' in line][:3]
    assert Node(one.data).read_stack() is not None
