"""Shadow traffic on the real stack: marked by edges, run by workers, shown by the controller."""

from __future__ import annotations

import hashlib
import http.client
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from pool.copy_guard import DIED
from tests.support import models
from tests.support.counting_engine import MAGIC_VALUE
from tests.support.stack import Stack, until

CLIENTS = 4
ROUNDS = 50


def shifted(path: Path, by: list[float]) -> Path:
    """Write ``y = x + by``."""
    return models.save(
        path,
        [helper.make_node("Add", ["x", "by"], ["y"])],
        [models.tensor("x", models.ELEMENT_TYPES["FP32"], ["N", "W"])],
        [models.tensor("y", models.ELEMENT_TYPES["FP32"], ["N", "W"])],
        [numpy_helper.from_array(np.float32([by]), "by")],
    )


def roll_out(stack: Stack, name: str, model: str, **rollout: Any) -> None:
    """Begin a rollout of version 2 whose first step nobody waits for."""
    arms = (("stable", "1", 100), ("canary", "2", 0))
    stack.set_endpoint(
        {
            "endpoint": name,
            "variants": [
                {"name": arm, "model": model, "version": version, "weight": weight}
                for arm, version, weight in arms
            ],
            "cache": None,
            "rollout": {"steps": [{"weight": 1, "hold_s": 3600}, {"weight": 100}], **rollout},
        }
    )


def shadow_of(stack: Stack, name: str) -> dict[str, Any]:
    """Return what the controller knows of a rollout's copies."""
    answer = stack.request("GET", f"/admin/endpoints/{name}/rollout", admin=True)
    assert answer.status == 200, answer.body
    return answer.json()["shadow"] or {}


def test_copies_of_calls_are_compared_and_the_worst_are_kept(
    wide_stack: Stack, tmp_path: Path
) -> None:
    stack, name = wide_stack, "shadowed"
    stack.publish(name, shifted(tmp_path / "1.onnx", [10, 10]))
    stack.publish(name, shifted(tmp_path / "2.onnx", [30, 10]))
    roll_out(stack, name, name, shadow={"sample": 1.0, "calls_per_s_max": 1000})
    until(lambda: stack.engine(name, "2") and stack.engine(name, "2")[0]["state"] == "warm")

    def call(number: int) -> bool:
        answer = stack.infer(name, {"x": ("FP32", [1, 2], [number, 2 * number])})
        assert answer.status == 200, answer.body
        if answer.headers["x-tidepool-variant"] == "stable":
            assert answer.output() == [number + 10, 2 * number + 10]
        return shadow_of(stack, name).get("compared", 0) >= 5

    numbers = iter(range(1, 10_000))
    until(lambda: call(next(numbers)))
    found = shadow_of(stack, name)
    assert found["compared"] + found["dropped"] + found["failed"] <= found["offered"]
    assert (found["failed"], found["unlike"], found["rows"]) == (0, 0, found["compared"])
    assert found["top1_off"] > 0
    worst = found["worst"][0]
    assert worst["kind"] == "top1"
    inputs = {
        hashlib.sha256(
            b'["x","FP32",[1,2]]\n' + np.float32([number, 2 * number]).tobytes()
        ).hexdigest()
        for number in range(1, next(numbers))
    }
    assert worst["inputs"] in inputs
    done = stack.request("POST", f"/admin/endpoints/{name}/rollout/abort", admin=True)
    assert done.status == 200, done.body


def cpu_s(pid: int) -> float:
    """Return the time that all threads of a process have computed."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


@pytest.mark.slow
@pytest.mark.parametrize(("width", "calls"), [(2, 120), (150_000, 24)])
def test_figure_shadow_of_everything_costs_the_edge_little(
    start_stack: Callable[..., Stack], tmp_path: Path, width: int, calls: int
) -> None:
    """At a sample of 100 %, the edge's CPU for each call is ≤ 1.1 × what it is without."""
    stack = start_stack(arguments=("--log-level", "warning"))
    for version in "12":
        stack.publish("m", shifted(tmp_path / f"{version}.onnx", [float(version)]))
    roll_out(stack, "plain", "m")
    roll_out(stack, "shadowed", "m", shadow={"sample": 1.0, "calls_per_s_max": 1e6})
    until(lambda: stack.engine("m", "2") and stack.engine("m", "2")[0]["state"] == "warm")
    pid = stack.pids()["edge-0"]
    body = np.zeros((1, width), np.float32).tobytes()
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, width]}
    output = {"name": "y", "parameters": {"binary_data": True}}
    tensor["parameters"] = {"binary_data_size": len(body)}
    head = json.dumps({"inputs": [tensor], "outputs": [output]}).encode()
    headers = {**stack.auth(), "inference-header-content-length": str(len(head))}
    clients = [http.client.HTTPConnection("127.0.0.1", stack.port) for _ in range(CLIENTS)]

    def call_often(client: http.client.HTTPConnection, name: str) -> None:
        for _ in range(calls // CLIENTS):
            client.request("POST", f"/v2/models/{name}/infer", head + body, headers)
            answer = client.getresponse()
            answer.read()
            assert answer.status == 200

    def spent_s(name: str) -> float:
        before_s = cpu_s(pid)
        with ThreadPoolExecutor(CLIENTS) as threads:
            list(threads.map(call_often, clients, [name] * CLIENTS))
        return cpu_s(pid) - before_s

    for name in ("plain", "shadowed"):
        spent_s(name)
    plain, shadowed = [], []
    for number in range(ROUNDS):  # short ones, so that what else this machine does meets both
        for name in ("plain", "shadowed")[:: 1 if number % 2 else -1]:
            (plain if name == "plain" else shadowed).append(spent_s(name))
    for client in clients:
        client.close()
    per_call = [1e6 * float(np.quantile(times, 0.25)) / calls for times in (plain, shadowed)]
    ratio = per_call[1] / per_call[0]
    medians = np.median(shadowed) / np.median(plain)
    found = shadow_of(stack, "shadowed")
    print(
        f"{4 * width} bytes: {per_call[0]:.1f} µs of the edge without, {per_call[1]:.1f} µs with, "
        f"ratio {ratio:.3f}, of the medians {medians:.3f}; "
        f"{found['compared']} of {found['offered']} copies compared"
    )
    assert found["offered"] >= 0.9 * ROUNDS * calls
    assert ratio <= 1.1


@pytest.mark.slow
def test_candidate_whose_copy_kills_a_worker_kills_two_and_no_caller_notices(stack: Stack) -> None:
    signature = [[("x", "INT64", [-1])], [("y", "INT64", [-1])]]
    stack.publish_engine("sure", "sleeper", *signature, rows_max=8)
    stack.publish_engine("deadly", "dying", *signature, rows_max=8)
    stack.set_endpoint(
        {
            "endpoint": "sure",
            "variants": [
                {"name": "stable", "model": "sure", "version": "1", "weight": 100},
                {"name": "canary", "model": "deadly", "version": "1", "weight": 0},
            ],
            "rollout": {
                "steps": [{"weight": 0.001, "hold_s": 3600}, {"weight": 100}],
                "shadow": {"sample": 1.0},
            },
        }
    )
    until(lambda: [one["state"] for one in stack.engine("deadly")] == ["warm"])
    pids = {stack.pids()["worker-0"]}

    def call(value: int) -> None:
        answer = stack.infer("sure", {"x": ("INT64", [1], [value])})
        assert (answer.status, answer.output()) == (200, [value])

    for _ in range(2):
        call(MAGIC_VALUE)
        until(lambda: stack.pids().get("worker-0") not in {None, *pids})
        until(lambda: [one["state"] for one in stack.engine("deadly")] == ["warm"])
        pids.add(stack.pids()["worker-0"])
    for value in (MAGIC_VALUE, 1, MAGIC_VALUE, 2):
        call(value)
    until(lambda: shadow_of(stack, "sure").get("failed") == 1)
    found = shadow_of(stack, "sure")
    assert (found["compared"], found["last_failure"]) == (0, DIED)
    assert stack.pids()["worker-0"] in pids
    assert len(pids) == 3
