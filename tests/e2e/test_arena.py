"""Large tensors on one host: through shared memory, each answer still its own."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.support.models import identity
from tests.support.stack import Stack, running_stack, until

ROW_BYTES = 400_000


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One edge and one worker with `wide`, whose rows of 100,000 numbers come back as they are."""
    data = tmp_path_factory.mktemp("arena")
    with running_stack(data) as stack:
        stack.publish("wide", identity(data / "wide.onnx", shape=("N", ROW_BYTES // 4)))
        stack.edit_endpoint("wide", cache=None)
        yield stack


def arenas(pid: int) -> int:
    """Return how much shared memory of edges a process maps, in bytes."""
    found = 0
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if "memfd:tidepool-arena" in line:
            start, _, end = line.split()[0].partition("-")
            found += int(end, 16) - int(start, 16)
    return found


def echo(stack: Stack, seed: int) -> bool:
    """Send rows of random bits; tell whether the same came back."""
    dice = random.Random(seed)
    rows = dice.choice([1, 1, 1, 2, 5])
    tensor = np.random.default_rng(seed).normal(size=rows * ROW_BYTES // 4).astype("<f4").tobytes()
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "shape": [rows, ROW_BYTES // 4],
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": len(tensor)},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    answer = stack.request(
        "POST",
        "/v2/models/wide/infer",
        head + tensor,
        {"inference-header-content-length": str(len(head))},
    )
    assert answer.status == 200, answer.body[:300]
    return answer.body.endswith(tensor)


def test_each_of_many_large_calls_gets_its_own_answer(stack: Stack) -> None:
    with ThreadPoolExecutor(12) as threads:
        assert all(threads.map(lambda seed: echo(stack, seed), range(150)))
    assert arenas(stack.pids()["worker-0"]) > 0


def test_large_calls_outlive_their_worker_and_share_memory_with_the_next(stack: Stack) -> None:
    with ThreadPoolExecutor(6) as threads:
        answers = threads.map(lambda seed: echo(stack, seed), range(200, 300))
        old = stack.pids()["worker-0"]
        os.kill(old, signal.SIGKILL)
        assert all(answers)
    new = until(lambda: stack.pids().get("worker-0", old) != old, 20.0, "a new worker")
    assert new
    assert echo(stack, 301)
    until(lambda: arenas(stack.pids()["worker-0"]) > 0, 20.0, "memory shared with it")
