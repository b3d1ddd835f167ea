"""From a call at an edge to a worker on an instance, and back to nothing: every process is real.

AWS is moto: it boots nothing, so `Agents` starts `tidepool pool` where a container would run.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.support.aws import AwsServer
from tests.support.aws_pool import Agents, AwsPool
from tests.support.models import identity
from tests.support.nodes import Fleet
from tests.support.processes import command, environment, tidepool
from tests.support.seaweed import BUCKET, S3Server
from tests.support.stack import until

INPUT = {"x": ("FP32", [1, 4], [1.0, -2.0, 3.5, 0.25])}
HEADERS = {"cache-control": "no-store", "x-request-timeout-seconds": "100"}
PATIENCE_S = 90.0


@pytest.fixture
def pool(moto: AwsServer) -> AwsPool:
    return AwsPool(moto)


@pytest.fixture
def fleet(
    tmp_path: Path,
    seaweed: S3Server,
    moto: AwsServer,
    pool: AwsPool,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Fleet]:
    """A controller with the launcher beside it, and an edge; no worker anywhere."""
    services = ("ECS", "EC2", "AUTO_SCALING")
    env = {
        **seaweed.environment,
        **{f"AWS_ENDPOINT_URL_{name}": moto.endpoint for name in services},
        "TIDEPOOL_POOLS": msgspec.json.encode(pool.config(rest_s=1.0, start_s=10.0)).decode(),
    }
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    made = Fleet(tmp_path, f"s3://{BUCKET}/{pool.name}", env, edges=1, pools=1, workers=0)
    made.tiers = [made.controller, made.edge]
    made.start()
    try:
        yield made
    finally:
        made.stop()


@pytest.mark.slow
def test_call_starts_an_instance_with_a_worker_that_answers_and_both_end_when_idle(
    fleet: Fleet, pool: AwsPool, tmp_path: Path
) -> None:
    def start(told: dict[str, str]) -> subprocess.Popen[bytes]:
        folder = tmp_path / told["TIDEPOOL_NODE_ID"]
        arguments = (
            *("pool", "--data", str(folder), "--registry", fleet.options.registry),
            *("--listen-host", "127.0.0.1", "--lame-duck-s", "0", "--device", "cpu"),
        )
        with (tmp_path / f"{folder.name}.log").open("ab") as log:
            return subprocess.Popen(
                command(*arguments), stdout=log, stderr=log, env=environment({**fleet.env, **told})
            )

    with Agents(pool, start) as agents:
        fleet.publish("m", identity(tmp_path / "m.onnx", shape=("N", 4)))
        fleet.edit_endpoint("m", deadline_ms=100_000, scale={"idle_s": 1})
        assert fleet.infer("m", INPUT, HEADERS).output() == INPUT["x"][2]
        (worker,) = fleet.status()["workers"]
        assert worker["id"].startswith("gpu-")
        (node,) = fleet.status()["nodes"]
        assert node["id"] == "gpu"
        assert (node["counts"]["instances"], node["counts"]["instances_max"]) == (1, 2)
        # By itself it would be kept for two minutes, for those who were told to come back.
        answer = fleet.request("POST", "/v2/repository/models/m/unload", b"{}")
        assert answer.status == 200
        until(lambda: not pool.instances(), PATIENCE_S, "the instance has ended", 0.2)
        until(
            lambda: all(one.poll() is not None for one in agents.started.values()),
            PATIENCE_S,
            "the worker has ended",
            0.2,
        )
        assert pool.group()["DesiredCapacity"] == 0
    assert {task["lastStatus"] for task in pool.tasks()} == {"STOPPED"}
    assert "Traceback" not in fleet.log_text()


POOLS = '{"fleet": "prod", "cluster": "c", "pools": [{"name": "GPU"}]}'


def test_pools_that_do_not_fit_are_named_before_anything_starts(tmp_path: Path) -> None:
    arguments = ("controller", "--data", str(tmp_path / "d"), "--registry", str(tmp_path / "r"))
    ended = tidepool(*arguments, env={"TIDEPOOL_POOLS": POOLS})
    assert ended.code == 1
    assert "TIDEPOOL_POOLS: pools: " in ended.stderr
    assert "$.pools[0]" in ended.stderr
    (tmp_path / "pools.json").write_text(POOLS)
    ended = tidepool(*arguments, "--pools", str(tmp_path / "pools.json"))
    assert ended.code == 1
    assert f"--pools {tmp_path / 'pools.json'}: pools: " in ended.stderr.replace("\n", " ")
    assert not os.path.exists(tmp_path / "d" / "control")
