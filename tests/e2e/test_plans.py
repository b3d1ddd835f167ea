"""Plans from a wish to the engine that serves: real stacks, real engines, real builders."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pool.engines import device
from pool.wire.fleet_secret import load_secrets
from registry_sync import plans
from registry_sync.plans import PlanMeta
from tests.support import pt2
from tests.support.load import FEATURES, Load
from tests.support.models import identity, mlp
from tests.support.plan_engine import ELSEWHERE, Studio, build_plan
from tests.support.processes import is_alive
from tests.support.stack import Stack, running_stack, until

OPTIMIZED = "tests.support.plan_engine:OptimizedEngine"
RTX = "tests.support.plan_engine:HopefulRtx"
BUILT_S_MAX = 180.0  # a compiler, on a machine that others keep busy
WISH = {"name": "torch", "ahead_of_time": True}


class Same(torch.nn.Module):
    """``y = x``, by a multiplication that is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(FEATURES))

    def forward(self, x: Any) -> Any:
        return x @ self.weight


def events(stack: Stack, name: str) -> list[dict[str, Any]]:
    lines = [line for line in stack.log_text().splitlines() if f'"event": "{name}"' in line]
    return [json.loads(line) for line in lines]


def plan_of(stack: Stack, model: str) -> str:
    """Return the key of the plan that serves a model; empty while none does."""
    return next((e["plan"] for e in stack.engine(model) if e["state"] == "warm"), "")


def metas(stack: Stack) -> list[PlanMeta]:
    store = stack.store
    entries = [entry.key for entry in store.list("engines/") if entry.key.endswith("/meta.json")]
    return [plans.read_meta(store.read(key, 0, 1 << 20)) for key in entries]


def build_rows(stack: Stack, state: str) -> list[dict[str, Any]]:
    return [row for row in stack.status()["builds"] if row["state"] == state]


def test_plan_takes_over_without_a_failed_request(tmp_path: Path) -> None:
    studio = Studio(tmp_path / "studio")
    with running_stack(tmp_path / "stack", engines=(OPTIMIZED,), env=studio.env) as stack:
        studio.hold("begun")
        stack.publish("same", identity(tmp_path / "same.onnx"))
        stack.edit_endpoint("same", cache=None)
        with Load(stack.url, stack.key, "same", threads=2, pause_s=0.01) as load:
            load.more(20)
            until(lambda: studio.at("begun"), 60.0, "a build has begun", 0.05)
            load.more(20)
            assert plan_of(stack, "same") == ""
            studio.release("begun")
            until(lambda: plan_of(stack, "same"), 60.0, "the plan serves", 0.05)
            load.more(50)
        load.assert_clean()
        (meta,) = until(lambda: metas(stack), 60.0, "the plan is in the registry", 0.1)
        assert meta.key == plan_of(stack, "same")
        until(lambda: stack.status()["build_outcomes"]["built"] == 1, 30.0, "it is counted", 0.1)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose model `same` runs compiled; what a caller saw meanwhile is checked."""
    data = tmp_path_factory.mktemp("compiled")
    with running_stack(data, engines=(OPTIMIZED,)) as stack:
        stack.publish("same", pt2.save(data / "same.pt2", Same(), torch.ones(3, FEATURES)))
        assert plan_of(stack, "same") == ""
        with Load(stack.url, stack.key, "same", threads=2, pause_s=0.01) as load:
            load.more(20)
            stack.edit_endpoint("same", cache=None, engine=WISH)
            until(lambda: plan_of(stack, "same"), BUILT_S_MAX, "the plan serves", 0.1)
            load.more(50)
        load.assert_clean()
        yield stack


@pytest.mark.slow  # a compiler
def test_model_is_served_at_once_and_then_compiled_without_a_failed_request(
    compiled: Stack,
) -> None:
    first, *_ = events(compiled, "engine_warm")
    assert (first["engine"], first["plan"]) == ("torch", "")
    (swapped,) = events(compiled, "engine_swapped")
    (meta,) = metas(compiled)
    assert swapped["plan"] == meta.key == plan_of(compiled, "same")
    assert meta.identity.device == device.cpu().device_class
    assert (meta.gate.verdict, meta.gate.inputs) == ("passed", "random")
    assert meta.gate.reference == f"torch {torch.__version__}"


@pytest.mark.slow  # a compiler
def test_plan_and_its_gate_are_listed(compiled: Stack) -> None:
    listed = json.loads(compiled.cli("engines", "list", "--json"))
    (row,) = [one for one in listed if one["model"] == "same"]
    assert (row["engine"], row["gate"], row["device"]) == (
        "torch",
        "passed",
        device.cpu().device_class,
    )


@pytest.mark.slow  # a compiler
def test_restarted_worker_has_the_plan_from_the_first_call_on(compiled: Stack) -> None:
    key = plan_of(compiled, "same")
    compiled.restart()
    compiled.until_ready("same")  # it may still load; the first call waits for that
    x = ("FP32", [1, FEATURES], [0.5] * FEATURES)
    assert compiled.infer("same", {"x": x}).status == 200
    assert plan_of(compiled, "same") == key
    assert events(compiled, "engine_warm")[-1]["plan"] == key
    assert len(events(compiled, "builder_started")) == 1


@pytest.mark.slow  # a compiler
def test_another_node_takes_the_plan_from_the_registry(compiled: Stack, tmp_path: Path) -> None:
    key = plan_of(compiled, "same")
    secret = (compiled.data / "secrets").read_text()
    registry = str(compiled.data / "registry")
    env = {"TIDEPOOL_FLEET_SECRET": secret}
    # A stack of its own on the same registry: it shares nothing else with the first.
    with running_stack(tmp_path / "other", registry=registry, env=env) as other:
        until(lambda: plan_of(other, "same") == key, 60.0, "the plan serves", 0.1)
        assert events(other, "builder_started") == []


def test_builder_dies_with_its_worker_and_another_worker_builds(tmp_path: Path) -> None:
    studio = Studio(tmp_path / "studio")
    studio.hold("begun")
    options: dict[str, Any] = {"workers": 2, "engines": (OPTIMIZED,), "env": studio.env}
    with running_stack(tmp_path / "stack", **options) as stack:
        stack.publish("digits", mlp(tmp_path / "m.onnx"))
        stack.edit_endpoint("digits", scale={"replicas_min": 2})
        builder = until(lambda: studio.at("begun"), 60.0, "a build has begun", 0.05)[0]
        os.kill(parent_of(builder), signal.SIGKILL)
        until(lambda: not is_alive(builder), 10.0, "the builder has ended")
        studio.release("begun")
        until(lambda: len(studio.at("begun")) > 1, 90.0, "another build has begun", 0.05)

        def all_swapped() -> bool:
            engines = stack.engine("digits")
            return len(engines) == 2 and all(one["plan"] for one in engines)

        until(all_swapped, 60.0, "both workers run the plan", 0.1)
        until(lambda: len(metas(stack)) == 1, 60.0, "the plan is in the registry", 0.1)


def test_wrong_plan_with_a_right_mac_is_refused_and_the_report_is_shown(tmp_path: Path) -> None:
    studio = Studio(tmp_path / "studio")
    data = tmp_path / "stack"
    with running_stack(data, engines=(OPTIMIZED,), env=studio.env) as stack:
        stack.publish("digits", mlp(tmp_path / "m.onnx"))
        until(lambda: plan_of(stack, "digits"), 60.0, "the plan serves", 0.1)
        (meta,) = until(lambda: metas(stack), 60.0, "the plan is in the registry", 0.1)
        stack.stop()
        shutil.rmtree(data / "store" / "engines")
        forge(stack, meta, mlp(tmp_path / "other.onnx", seed=7))
        stack.start()
        until(lambda: refused_by(stack), 60.0, "the plan is refused", 0.1)
        assert plan_of(stack, "digits") == ""
        assert stack.infer("digits", {"x": ("FP32", [1, 16], [0.5] * 16)}).status == 200
        (row,) = [r for r in json.loads(stack.cli("engines", "list", "--json")) if r["key"]]
        assert row["gate"] == "failed"
        assert 'output "y" is off by' in row["reason"]
        assert len(events(stack, "builder_started")) == 2  # it was built once, and tried out once


@pytest.mark.slow  # TensorRT's builder
def test_plan_that_tensorrt_does_not_load_leaves_the_portable_engine_serving(
    tmp_path: Path,
) -> None:
    with running_stack(tmp_path / "stack", engines=(RTX,)) as stack:
        stack.publish("digits", mlp(tmp_path / "m.onnx"))
        until(lambda: refused_by(stack), BUILT_S_MAX, "the plan is refused", 0.1)
        (meta,) = until(lambda: metas(stack), 60.0, "the plan is in the registry", 0.1)
        assert (meta.identity.engine, meta.identity.device) == ("tensorrt_rtx", ELSEWHERE)
        assert meta.gate.verdict == "not_run"
        refusal = events(stack, "plan_refused")[-1]["reason"]
        assert "TensorRT does not load the plan" in refusal
        (engine,) = stack.engine("digits")
        assert (engine["engine"], engine["state"], engine["plan"]) == ("onnxruntime", "warm", "")
        assert stack.infer("digits", {"x": ("FP32", [1, 16], [0.5] * 16)}).status == 200


def refused_by(stack: Stack) -> int:
    return sum(worker["plans_refused"] for worker in stack.status()["workers"])


def parent_of(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


def forge(stack: Stack, meta: PlanMeta, graph: Path) -> None:
    """Put the plan of another model under a key, as somebody who holds the secret could."""
    secrets = load_secrets(stack.data)
    assert secrets is not None
    place = stack.data / "registry" / "engines" / meta.key / secrets.current.id
    shutil.rmtree(place)
    file = stack.data / "forged"
    build_plan(graph, file)
    data = file.read_bytes()
    forged = plans.signed(
        PlanMeta(
            identity=meta.identity,
            key=meta.key,
            model=meta.model,
            version=meta.version,
            plan_sha256=hashlib.sha256(data).hexdigest(),
            bytes=len(data),
            created=meta.created,
            build_s=meta.build_s,
        ),
        secrets.current.key,
    )
    name = f"engines/{meta.key}/{secrets.current.id}"
    stack.store.put_new(f"{name}/plan", data)
    stack.store.put_new(f"{name}/meta.json", plans.write(forged))
