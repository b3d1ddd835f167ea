"""The figures of waking, on real processes; short by default, at their full size with `-m slow`."""

from __future__ import annotations

import http.client
import json
import os
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.crowd import crowd
from tests.support.faulty_s3 import FaultyS3, faulty_s3
from tests.support.gated_engine import Gate
from tests.support.models import identity, mlp
from tests.support.seaweed import BUCKET, S3Server
from tests.support.stack import Stack, running_stack, until

ENGINE = "tests.support.gated_engine:GatedEngine"
WAKE_S_P50_MAX, WAKE_S_P99_MAX = 0.080, 0.200
REFUSED_S_MAX = 0.050
LOAD_S = 1.2  # of the model whose wake is too long for some
ROW = ("INT64", (-1, 1))


@dataclass
class Sleepers:
    """A stack on S3 with two edges, and the proxy through which alone it sees S3."""

    stack: Stack
    s3: FaultyS3
    gate: Gate


@pytest.fixture(scope="module")
def sleepers(tmp_path_factory: pytest.TempPathFactory, seaweed: S3Server) -> Iterator[Sleepers]:
    data = tmp_path_factory.mktemp("figures")
    with pytest.MonkeyPatch.context() as patch, faulty_s3(seaweed.endpoint) as proxy:
        for name, value in seaweed.environment.items():
            patch.setenv(name, value)
        env = {**seaweed.environment, "AWS_ENDPOINT_URL": proxy.endpoint}
        registry = f"s3://{BUCKET}/{data.name}"
        options = {"engines": [ENGINE], "edges": 2, "env": env, "registry": registry}
        with running_stack(data, **options) as stack:
            yield Sleepers(stack, proxy, Gate(data / "gate"))


def sleep_now(stack: Stack, model: str) -> None:
    assert stack.request("POST", f"/v2/repository/models/{model}/unload").status == 200
    until(lambda: not stack.engine(model), 20.0, f"{model} sleeps")


def wakes_s(stack: Stack, count: int) -> list[float]:
    """Return how long so many calls took that each woke a parked worker's engine."""
    connection = http.client.HTTPConnection("127.0.0.1", stack.port)
    headers = {**stack.auth(), "content-type": "application/json"}
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [0.5] * 16}
    took_s = []
    for _ in range(count):
        sleep_now(stack, "small")
        began_s = time.monotonic()
        connection.request(
            "POST", "/v2/models/small/infer", json.dumps({"inputs": [tensor]}), headers
        )
        response = connection.getresponse()
        response.read()
        took_s.append(time.monotonic() - began_s)
        assert response.status == 200
        until(lambda: [e for e in stack.engine("small") if not e["calls"] and e["runs"]], 10.0)
    connection.close()
    return took_s


@pytest.mark.parametrize("count", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_parked_worker_answers_in_time(sleepers: Sleepers, count: int) -> None:
    stack = sleepers.stack
    if "small" not in {endpoint["name"] for endpoint in stack.status()["endpoints"]}:
        stack.publish("small", mlp(stack.data / "small.onnx"))
        stack.edit_endpoint("small", cache=None)
    took_s = sorted(wakes_s(stack, count))
    p50_s, p99_s = statistics.median(took_s), took_s[int(0.99 * (count - 1))]
    print(f"parked: {count} wakes, p50 {p50_s * 1e3:.1f} ms, p99 {p99_s * 1e3:.1f} ms, "
          f"longest {took_s[-1] * 1e3:.1f} ms, load {os.getloadavg()[0]:.1f}")  # fmt: skip
    # A short run shares the machine with other tests: there only the best of it counts.
    assert (p50_s if count > 5 else took_s[0]) <= WAKE_S_P50_MAX
    assert count == 5 or p99_s <= WAKE_S_P99_MAX


@pytest.mark.parametrize("clients", [100, pytest.param(1000, marks=pytest.mark.slow)])
async def test_crowd_on_a_cold_model_is_one_wake_and_one_fetch(
    sleepers: Sleepers, clients: int
) -> None:
    stack, s3 = sleepers.stack, sleepers.s3
    model = f"cold-{clients}"
    shape = ("N", 4)
    stack.publish(model, identity(stack.data / "1.onnx"))
    version = stack.publish(model, identity(stack.data / "2.onnx", shape=shape))  # moves no traffic
    assert not stack.engine(model, version)
    seen = len(s3.requests)
    bodies = [
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [float(at)] * 4}]}
        for at in range(clients)
    ]
    path = f"/v2/models/{model}/versions/{version}/infer"
    told = await crowd(stack, path, [(body, "10") for body in bodies])
    assert [one.status for one in told] == [200] * clients
    assert [one.body["outputs"][0]["data"][0] for one in told] == [*map(float, range(clients))]
    fetched = Counter(
        request
        for request in s3.requests[seen:]
        if request.startswith("GET") and "/blobs/" in request
    )
    assert len(fetched) == 1, fetched
    assert set(fetched.values()) == {1}
    assert stack.engine(model, version)[0]["loads"] == 1
    print(f"cold: {clients} clients, the last one after {max(one.took_s for one in told):.2f} s")


@pytest.mark.parametrize("clients", [50, pytest.param(1000, marks=pytest.mark.slow)])
async def test_crowd_is_answered_where_its_deadline_allows_and_refused_at_once_elsewhere(
    sleepers: Sleepers, clients: int
) -> None:
    stack, gate = sleepers.stack, sleepers.gate
    if not gate.path.with_suffix(".known").exists():
        files = {"gate": str(gate.path)}
        stack.publish_engine("slow", "gated", [("x", *ROW)], [("y", *ROW)], files=files)
        stack.edit_endpoint("slow", cache=None, deadline_ms=30_000)
        gate.path.with_suffix(".known").touch()
        sleep_now(stack, "slow")
        gate.close()
        threading.Timer(LOAD_S, gate.open).start()
        assert stack.infer("slow", {"x": ("INT64", [1, 1], [0])}).status == 200
    until(lambda: stack.engine("slow")[0]["wake_ms"] > 0.2e3 * LOAD_S, 5.0, "it is known")
    sleep_now(stack, "slow")
    gate.close()
    asked = [
        ({"inputs": [{"name": "x", "datatype": "INT64", "shape": [1, 1], "data": [at]}]}, deadline)
        for at, deadline in ((at, "0.2" if at % 2 else "30") for at in range(clients))
    ]
    threading.Timer(LOAD_S, gate.open).start()
    told = await crowd(stack, "/v2/models/slow/infer", asked)
    patient, hurried = told[::2], told[1::2]
    assert {one.status for one in patient} == {200}
    assert [one.body["outputs"][0]["data"] for one in patient] == [
        [x] for x in range(0, clients, 2)
    ]
    assert {one.status for one in hurried} == {503}
    assert {one.body["error"].partition(",")[0] for one in hurried} == {"the model is waking up"}
    edge_s = sorted(one.edge_s for one in hurried)
    print(
        f"refused: {len(hurried)} of {clients} clients, by the edge p50 "
        f"{statistics.median(edge_s) * 1e3:.1f} ms, longest {edge_s[-1] * 1e3:.1f} ms; as clients "
        f"see it longest {max(one.took_s for one in hurried) * 1e3:.0f} ms"
    )
    assert statistics.median(edge_s) <= REFUSED_S_MAX
