"""What edges have counted of a rollout, and the controller knows, over the end of an edge."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from registry_sync import rollout_orders
from tests.support.models import identity
from tests.support.stack import Stack, until

INPUTS = {"x": ("FP32", [1, 4], [1.0, 2.0, 3.0, 4.0])}
WAIT_S_MAX = 60.0


@pytest.mark.slow
def test_every_call_counts_once_although_an_edge_ends(wide_stack: Stack, tmp_path: Path) -> None:
    """The last second is told before the end; whoever comes after counts as somebody else."""
    stack, name = wide_stack, f"counted-{os.urandom(3).hex()}"  # a retry begins anew
    for version in ("1", "2"):
        stack.publish(name, identity(tmp_path / f"{version}.onnx"), labels={"v": version})
    stack.edit_endpoint(name, cache=None)
    rollout_orders.start(stack.store, name, "2", steps=(50,), hold_s=3600.0)
    stack.poke()

    def shown() -> dict[str, Any]:
        found: dict[str, Any] = stack.request(
            "GET", f"/admin/endpoints/{name}/rollout", admin=True
        ).json()
        return found

    def counted() -> dict[str, int]:
        return {arm["name"]: arm["calls"] for arm in shown()["variants"]}

    until(lambda: shown()["step"] == 1, WAIT_S_MAX, "the candidate has its weight", 0.1)
    until(lambda: shown()["hold_left_s"] is not None, WAIT_S_MAX, "at every edge", 0.1)
    sent = Counter[str]()
    edges = set()

    def call(count: int) -> None:
        for _ in range(count):
            answer = stack.infer(name, INPUTS)
            assert answer.status == 200, answer.body
            sent[answer.headers["x-tidepool-variant"]] += 1
            edges.add(answer.headers["x-request-id"].partition("-")[0])

    call(60)
    pid = stack.pids()["edge-0"]
    os.kill(pid, signal.SIGTERM)
    until(lambda: stack.pids().get("edge-0", pid) != pid, WAIT_S_MAX, "another edge is there")
    until(lambda: len(stack.status()["edges"]) == 2, WAIT_S_MAX, "both are known", 0.1)
    call(60)
    until(lambda: counted() == sent, WAIT_S_MAX, "all calls are counted", 0.1)
    time.sleep(1.2)  # one more report of each edge
    assert counted() == sent
    assert len(edges) >= 2
    rollout_orders.wish(stack.store, name, "abort")
    stack.poke()
    until(lambda: shown()["state"] == "rolled_back", WAIT_S_MAX, "it is over", 0.1)
