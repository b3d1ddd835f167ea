"""Processes that are told to end: what they still do, and that nobody notices."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest

from tests.support.load import Load
from tests.support.models import identity
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
        stack.edit_endpoint("echo", cache=None)
        until(lambda: warm_in(stack) == 2, 30.0, "a replica in both workers")
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


def restart(stack: Stack, name: str) -> None:
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
    until(lambda: warm_in(stack) == 2, GONE_S_MAX, "a replica in both workers")


def roll(stack: Stack, names: list[str]) -> Load:
    with Load(stack.url, stack.key, "echo", threads=6, pause_s=0.002) as load:
        load.more(50)
        for name in names:
            restart(stack, name)
            load.more(50)
    load.assert_clean()
    return load


def test_rolling_restarts_of_edges_and_workers_fail_no_request(pair: Stack) -> None:
    load = roll(pair, ["edge-0", "worker-0", "edge-1"])
    print(f"\n{load.answered} requests over 3 restarts, slowest {max(load.latencies_s):.3f} s")
    assert '"event": "worker_lost"' not in pair.log_text()


@pytest.mark.slow
def test_20_rolling_restarts_of_edges_and_workers_fail_no_request(pair: Stack) -> None:
    load = roll(pair, ["edge-0", "worker-0", "edge-1", "worker-1"] * 5)
    print(f"\n{load.answered} requests over 20 restarts, slowest {max(load.latencies_s):.3f} s")
    assert '"event": "worker_lost"' not in pair.log_text()
