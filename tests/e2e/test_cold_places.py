"""Worker processes that are there only while they are needed: a call starts one."""

from __future__ import annotations

import os
import random
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.models import identity
from tests.support.processes import is_alive
from tests.support.stack import TEST_ENGINES, Answer, Stack, running_stack, until

INPUT = {"x": ("FP32", [1, 4], [1.0, -2.0, 3.5, 0.25])}
NO_STORE = {"cache-control": "no-store"}
FROM_NOTHING_S_MAX = 1.0
COLD_S_MAX = 30.0  # interpreters start, on a machine that other tests keep busy


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two places, none of which is up unless it is needed, and a model that sleeps soon."""
    folder = tmp_path_factory.mktemp("cold")
    arguments = ("--workers-min", "0", "--workers-idle-s", "0.3")
    with running_stack(folder / "up", workers=2, arguments=arguments) as made:
        made.publish("m", identity(folder / "m.onnx", shape=("N", 4)))
        made.edit_endpoint("m", scale={"idle_s": 0.3})
        yield made


def places(stack: Stack) -> dict[str, dict[str, Any]]:
    """Return the places of the only node, by their workers' numbers; none while it is unknown."""
    return {
        place["worker"].rpartition("-")[2]: place
        for node in stack.status()["nodes"]
        for place in node["places"]
    }


def until_cold(stack: Stack) -> None:
    """Wait until no worker has a process, nor is about to be told to end."""

    def is_cold() -> bool:
        # What edges go by was sent before the worker was told, so they know it by now.
        return {(p["state"], p["up"]) for p in places(stack).values()} == {("cold", "")}

    until(is_cold, COLD_S_MAX, "all places are cold")


def call(stack: Stack, deadline_s: float = 30.0) -> Answer:
    headers = {**NO_STORE, "x-request-timeout-seconds": str(deadline_s)}
    return stack.infer("m", INPUT, headers)


def workers(stack: Stack) -> dict[str, int]:
    """Return the pids of worker processes that live, as Linux knows them."""
    return {name: pid for name, pid in stack.pids().items() if name.startswith("worker")}


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Let a process stand still meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_stack_without_any_worker_process_is_ready_and_a_call_starts_one(stack: Stack) -> None:
    until_cold(stack)
    assert workers(stack) == {}
    assert stack.request("GET", "/v2/health/ready").status == 200
    assert stack.request("GET", "/v2/models/m/ready").status == 200
    (line,) = [line for line in stack.cli("status").splitlines() if line.startswith("node ")]
    assert "2 places  0 up  2 cold" in line
    assert workers(stack) == {}  # to ask wakes nothing
    assert call(stack).output() == INPUT["x"][2]
    assert len(workers(stack)) == 1
    until_cold(stack)
    until(lambda: not workers(stack), COLD_S_MAX, "the process has ended")


def test_phases_of_start_and_load_are_what_a_call_waits(stack: Stack) -> None:
    until_cold(stack)
    began_s = time.monotonic()
    assert call(stack).status == 200
    waited_ms = (time.monotonic() - began_s) * 1e3

    def phases() -> list[float]:
        found = [one for one in stack.status()["workers"] if one["engines"]]
        return [
            took_ms
            for one in found
            for took_ms in (
                *one["phases_ms"].values(),
                *one["engines"][0]["phases_ms"].values(),
            )
        ]

    told_ms = sum(until(phases, COLD_S_MAX, "they are told"))
    # 98 to 99 %; on a machine that other tests keep busy, the client itself is late.
    assert 0.9 * waited_ms <= told_ms <= waited_ms


def test_many_calls_at_once_start_one_process(stack: Stack) -> None:
    until_cold(stack)
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(call(stack).status)) for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 20
    assert len(workers(stack)) == 1


def test_cold_place_wakes_while_the_controller_hangs(stack: Stack) -> None:
    until_cold(stack)
    with stopped(stack.pids()["controller"]):
        assert call(stack).status == 200


@pytest.mark.slow
def test_cold_place_wakes_while_the_controller_is_dead_and_its_successor_learns_of_it(
    stack: Stack,
) -> None:
    until_cold(stack)
    os.kill(stack.pids()["controller"], signal.SIGKILL)
    assert call(stack).status == 200
    # The next controller is told, and lets the worker rest when nobody needs it.
    until(lambda: stack.request("GET", "/admin/pool", admin=True).status == 200, COLD_S_MAX)
    until_cold(stack)


def test_call_is_answered_by_the_next_place_when_the_process_is_killed_while_it_starts(
    stack: Stack,
) -> None:
    until_cold(stack)
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(call(stack).status))
    thread.start()
    pid = until(lambda: next(iter(workers(stack).values()), 0), COLD_S_MAX, "one starts", 0.0)
    os.kill(pid, signal.SIGKILL)
    thread.join()
    assert answers == [200]
    assert not is_alive(pid)


def test_calls_are_answered_by_another_place_while_a_worker_hangs(stack: Stack) -> None:
    until_cold(stack)
    assert call(stack).status == 200
    (pid,) = workers(stack).values()
    with stopped(pid):
        shown = until(
            lambda: [p for p in places(stack).values() if p["state"] == "silent"],
            COLD_S_MAX,
            "it is shown as silent",
        )
        assert [place["pid"] for place in shown] == [pid]
        assert [call(stack, 10.0).status for _ in range(5)] == [200] * 5
        assert is_alive(pid)


def wakes_s(stack: Stack, count: int) -> list[float]:
    """Return how long calls took that found no process at all."""
    found = []
    for _ in range(count):
        until_cold(stack)
        began_s = time.monotonic()
        assert call(stack).status == 200
        found.append(time.monotonic() - began_s)
    return found


@pytest.mark.rule("F28")
@pytest.mark.parametrize("count", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_call_that_finds_no_process_is_answered_in_time(stack: Stack, count: int) -> None:
    found = sorted(wakes_s(stack, count))
    p50_s, load = statistics.median(found), os.getloadavg()[0]
    print(f"from no process: {count} wakes, p50 {p50_s:.3f} s, best {found[0]:.3f} s, "
          f"longest {found[-1]:.3f} s, load {load:.1f}")  # fmt: skip
    # A short run shares the machine with other tests: there only the best of it counts.
    assert (p50_s if count > 2 else found[0]) <= FROM_NOTHING_S_MAX


@pytest.mark.slow
def test_parked_worker_is_there_before_it_is_called_and_is_replaced_when_it_serves(
    tmp_path: Path,
) -> None:
    arguments = ("--workers-min", "0", "--parked", "1", "--workers-idle-s", "0.3")
    with running_stack(tmp_path / "up", workers=2, arguments=arguments) as stack:
        stack.publish("m", identity(tmp_path / "m.onnx", shape=("N", 4)))
        stack.edit_endpoint("m", scale={"idle_s": 1.0})

        def shown() -> list[tuple[str, str]]:
            return sorted((p["state"], p["up"]) for p in places(stack).values())

        until(lambda: shown() == [("cold", ""), ("up", "parked")], COLD_S_MAX)
        assert call(stack).status == 200
        until(lambda: ("up", "parked") in shown() and ("cold", "") not in shown(), COLD_S_MAX)
        until(lambda: shown() == [("cold", ""), ("up", "parked")], COLD_S_MAX)


@pytest.mark.slow
def test_workers_that_come_and_go_between_calls_lose_and_double_none(tmp_path: Path) -> None:
    arguments = ("--workers-min", "0", "--workers-idle-s", "0")
    options = {"workers": 2, "edges": 2, "engines": TEST_ENGINES, "arguments": arguments}
    chance = random.Random(5)
    with running_stack(tmp_path / "up", **options) as stack:
        diary = stack.publish_observed("m")
        stack.edit_endpoint("m", scale={"idle_s": 0.05}, deadline_ms=60_000)
        before = diary.count("run")
        headers = {"x-request-timeout-seconds": "60"}
        for x in range(1, 26):
            # Long enough for a worker to be told to rest, and often too short for it to be gone.
            time.sleep(chance.uniform(0.3, 2.2))
            answer = stack.infer_observed("m", x, headers)
            assert (answer.status, answer.output()) == (200, [x])
        starts = stack.log_text().count('"event": "worker_up"')
        assert diary.count("run") - before == 25
    print(f"25 calls found {starts} processes started")
    assert starts > 7
