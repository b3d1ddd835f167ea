"""Workers are killed one after the other under load: nothing is lost, doubled, wrong or late."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from tests.support.load import Load
from tests.support.models import identity
from tests.support.stack import TEST_ENGINES, Stack, running_stack, until

WORKERS = 3
TOTAL, SECONDS = 10_000, 30.0
KILL_EVERY_S = 2.0
DEADLINE_S = 5.0
LATE_S_MAX = 0.25
FAILED_SHARE_MAX = 0.001
CLIENTS = 8
BACK_S_MAX = 40.0


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One edge and three workers with the model `echo` in each."""
    data = tmp_path_factory.mktemp("three")
    with running_stack(data, engines=TEST_ENGINES, workers=WORKERS) as stack:
        stack.publish("echo", identity(data / "echo.onnx"))
        deadline_ms, scale = int(DEADLINE_S * 1000), {"replicas_min": WORKERS}
        stack.edit_endpoint("echo", cache=None, deadline_ms=deadline_ms, scale=scale)
        until(lambda: are_warm(stack), BACK_S_MAX, "a replica in every worker")
        yield stack


def are_warm(stack: Stack) -> bool:
    return [engine["state"] for engine in stack.engine("echo")] == ["warm"] * WORKERS


class Killer(threading.Thread):
    """Kills a random worker at once, and then another one every so often."""

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self.stack = stack
        self.killed: list[int] = []
        self._end = threading.Event()

    def run(self) -> None:
        chance = random.Random(1)
        while not self._end.wait(KILL_EVERY_S if self.killed else 0.3):
            names = sorted(self.stack.pids().items())
            workers = [pid for name, pid in names if name.startswith("worker")]
            if workers:
                self.killed.append(chance.choice(workers))
                os.kill(self.killed[-1], signal.SIGKILL)

    def __enter__(self) -> Killer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self.join()


@pytest.mark.rule("F1")
@pytest.mark.slow  # in short: test_faults.py, 1,000 requests
def test_10_000_requests_while_workers_are_killed(three: Stack) -> None:
    until(lambda: are_warm(three), BACK_S_MAX, "a replica in every worker")
    before = three.metric("tidepool_requests_total")
    began_s = time.monotonic()
    pause_s = SECONDS * CLIENTS / TOTAL
    load = Load(three.url, three.key, "echo", threads=CLIENTS, total=TOTAL, pause_s=pause_s)
    with Killer(three) as killer, load:
        load.wait()
    p50, p99, longest = np.quantile(load.latencies_s, [0.5, 0.99, 1.0])
    print(f"{TOTAL} requests in {time.monotonic() - began_s:.0f} s, {len(killer.killed)} workers "
          f"killed: {len(load.failed)} failed, {len(load.wrong)} wrong; p50 {p50 * 1e3:.1f}, p99 "
          f"{p99 * 1e3:.0f}, longest {longest * 1e3:.0f} ms; {load.failed[:3]}")  # fmt: skip
    assert len(killer.killed) > SECONDS / KILL_EVERY_S / 2
    assert not load.wrong
    assert load.answered + len(load.failed) == TOTAL
    assert three.metric("tidepool_requests_total") - before == TOTAL
    assert len(load.failed) <= TOTAL * FAILED_SHARE_MAX
    assert longest <= DEADLINE_S + LATE_S_MAX
