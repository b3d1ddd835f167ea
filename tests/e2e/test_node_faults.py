"""What happens to a node itself: its clock jumps, its disk is full, everything on it is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from infra.stack import Node
from registry_sync import endpoints
from registry_sync.publish import publish
from tests.support import disk_faults
from tests.support.load import Load
from tests.support.models import identity
from tests.support.processes import descendants, is_alive
from tests.support.stack import TEST_ENGINES, Stack, running_stack, until
from tests.support.stepped_clock import SteppedClock

INPUT = {"x": ("FP32", [1, 4], [1.0, -2.0, 3.5, 0.25])}
STORE_BYTES = 8 << 20
HOUR_S = 3600

pytestmark = pytest.mark.slow  # a node of its own, started twice


@dataclass
class OneNode:
    """A stack, its clock, and where its artifacts lie: a small disk."""

    stack: Stack
    clock: SteppedClock
    store: Path

    def load(self) -> Load:
        return Load(self.stack.url, self.stack.key, "echo", threads=4, pause_s=0.005)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneNode]:
    data, folder = tmp_path_factory.mktemp("node"), tmp_path_factory.mktemp("clock")
    clock = SteppedClock(folder)
    with (
        disk_faults.small_disk(data / "store", f"size={STORE_BYTES}"),
        running_stack(data, engines=TEST_ENGINES, env=clock.environment) as stack,
    ):
        stack.publish("echo", identity(folder / "echo.onnx"))
        yield OneNode(stack, clock, data / "store")


def last_logged(stack: Stack) -> datetime:
    """Return when, by its own clock, the stack logged last."""
    lines = [line for line in stack.log_text().splitlines() if line.startswith("{")]
    return datetime.fromisoformat(json.loads(lines[-1])["timestamp"])


def renew_worker(stack: Stack) -> None:
    """Let the worker have a successor."""
    old = stack.pids()["worker-0"]
    os.kill(old, signal.SIGTERM)
    until(lambda: stack.pids().get("worker-0", old) != old, 20.0, "a new worker")


@pytest.mark.rule("F13")
def test_steps_of_the_clock_change_nothing(node: OneNode) -> None:
    stack = node.stack
    epoch = stack.status()["controller"]["epoch"]
    assert stack.infer("echo", INPUT).status == 200
    with node.load() as load:
        for offset_s in (2 * HOUR_S, -2 * HOUR_S, -600, 48 * HOUR_S, 0):
            node.clock.step(offset_s)
            load.more(100)
            time.sleep(1.0)  # beats, leases and rounds by the new clock
            # The answer from before is as old as it is, not as the calendar says.
            state = stack.infer("echo", INPUT).headers["cache-status"]
            assert state.startswith("tidepool; hit"), (offset_s, state)
            ttl_s = re.search(r"ttl=(\d+)", state)
            assert ttl_s is not None
            assert HOUR_S - 60 < int(ttl_s[1]) <= HOUR_S
            if offset_s == 48 * HOUR_S:
                renew_worker(stack)  # it begins on another day than the others
                assert last_logged(stack) > datetime.now(UTC) + timedelta(hours=24)
        load.more(100)
    load.assert_clean()
    status = stack.status()
    assert status["controller"]["epoch"] == epoch
    assert len(status["workers"]) == 1


@pytest.mark.rule("F9")
def test_full_disk_keeps_a_new_version_out_and_what_is_loaded_serving(node: OneNode) -> None:
    stack = node.stack
    before = disk_used(node.store)
    big = stack.data / "big"
    big.mkdir()
    (big / "weights.bin").write_bytes(os.urandom(2 * STORE_BYTES))
    says = {
        "format": "counting",
        "inputs": [{"name": "x", "datatype": "INT64", "shape": [1]}],
        "outputs": [{"name": "y", "datatype": "INT64", "shape": [1]}],
    }
    (big / "tidepool.json").write_text(json.dumps(says))
    with node.load() as load:
        load.more(20)
        publish(stack.store, "big", big)
        stack.poke()
        answer = stack.infer("big", {"x": ("INT64", [1], [1])})
        assert answer.status == 503, answer.body
        assert "no room" in answer.error
        assert str(stack.data) not in answer.error
        load.more(20)
        with disk_faults.filled(node.store):
            load.more(50)
            assert stack.request("GET", "/v2/health/ready").status == 200
    load.assert_clean()
    failed = until(lambda: [e for e in stack.engine("big") if e["state"] == "failed"], 10.0)
    assert "no room" in failed[0]["detail"]
    assert disk_used(node.store) <= before + (64 << 10)


def disk_used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.rule("F26")
def test_what_was_confirmed_is_there_after_everything_was_killed(node: OneNode) -> None:
    stack = node.stack
    assert stack.process is not None
    body = {
        "endpoint": "kept",
        "variants": [{"name": "a", "model": "echo", "version": "1", "weight": 100}],
    }
    with node.load() as load:
        load.more(50)
        answer = stack.request(
            "PUT", "/admin/endpoints/kept", body, {"content-type": "application/json"}, admin=True
        )
        everybody = [*descendants(stack.process.pid), stack.process.pid]
        for pid in reversed(everybody):
            os.kill(pid, signal.SIGKILL)
    assert answer.status in (200, 201), answer.body
    # Each answer that came was the whole result: nothing was promised for later.
    assert not load.wrong
    stack.kill()
    until(lambda: not any(map(is_alive, everybody)), 10.0, "all of it is gone")
    stack.start()
    assert stack.infer("echo", INPUT).status == 200
    until(lambda: stack.infer("kept", INPUT).status == 200, 20.0, "the endpoint is there")
    assert endpoints.get_spec(stack.store, "kept")[0].variants[0].model == "echo"
    assert Node(stack.data).read_stack() is not None
