"""Nodes whose workers have no process until an edge of another host dials them over TCP."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.models import identity
from tests.support.nodes import Fleet, running_fleet
from tests.support.seaweed import BUCKET, S3Server
from tests.support.stack import until

INPUT = {"x": ("FP32", [1, 4], [1.0, -2.0, 3.5, 0.25])}
HEADERS = {"cache-control": "no-store", "x-request-timeout-seconds": "30"}
PATIENCE_S = 60.0  # interpreters start, on a machine that other tests keep busy


@pytest.fixture
def fleet(tmp_path: Path, seaweed: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """An edge's node, and two more with a place each that is cold unless it is needed."""
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    arguments = ("--workers-min", "0", "--workers-idle-s", "0.5")
    with running_fleet(
        *(tmp_path, f"s3://{BUCKET}/{tmp_path.name}", seaweed.environment),
        edges=1,
        pools=2,
        pool_arguments=arguments,
    ) as made:
        made.publish("m", identity(tmp_path / "m.onnx", shape=("N", 4)))
        made.edit_endpoint("m", scale={"idle_s": 0.5})
        yield made


def states(fleet: Fleet) -> list[str]:
    """Return the states of all nodes' places."""
    return [place["state"] for node in fleet.status()["nodes"] for place in node["places"]]


@pytest.mark.slow
def test_call_starts_a_worker_on_some_node_and_on_another_one_when_that_is_gone(
    fleet: Fleet,
) -> None:
    until(lambda: states(fleet) == ["cold", "cold"], PATIENCE_S, "both are cold")
    assert fleet.infer("m", INPUT, HEADERS).output() == INPUT["x"][2]
    (serving,) = fleet.status()["workers"]
    until(lambda: states(fleet) == ["cold", "cold"], PATIENCE_S, "both are cold again")
    # The node that all edges try first is gone, and nobody has told them yet.
    first = next(pool for pool in fleet.pools if serving["pid"] in ended(pool.log()))
    first.stop(signal.SIGKILL)
    assert fleet.infer("m", INPUT, HEADERS).output() == INPUT["x"][2]
    (other,) = fleet.status()["workers"]
    assert other["id"] != serving["id"]


def ended(log: str) -> set[int]:
    """Return the pids of the processes that have ended, as a node's log tells them."""
    return set(map(int, re.findall(r'"child_pid": (\d+)', log)))
