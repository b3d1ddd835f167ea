"""Builder processes: what comes of them, and of those that die, are refused or have no room."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from pool import building
from pool.building import Bench, BuildFailed, build, try_out
from pool.config import BuilderResult
from pool.engines import choice, device
from pool.engines.choice import Option
from pool.wanted import wanted_of
from pool.wire.handshake import Secret
from registry_sync.documents import GateLimits
from registry_sync.local import LocalStore
from registry_sync.local_plans import LocalPlans
from registry_sync.open import open_store
from registry_sync.plans import PlanMeta, write
from registry_sync.publish import publish
from registry_sync.sync import fetch, fetch_golden, golden_path
from tests.support.disk_faults import filled, small_disk
from tests.support.models import mlp
from tests.support.plan_engine import (
    ELSEWHERE,
    PATIENT,
    STUDIO,
    OptimizedEngine,
    Studio,
    build_plan,
)
from tests.support.processes import is_alive
from tests.support.stack import until

SECRET = Secret.of("the secret of this fleet")
KEYS = {SECRET.id: SECRET.key}
ENGINE = "tests.support.plan_engine:OptimizedEngine"
PAUSE_S = 0.01


class Node:
    """A node's folder with one version in it, and a studio for its builders."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.store = open_store(str(folder / "registry"))
        self.folder = folder
        self.local = LocalStore(self.data / "store")
        self.plans = LocalPlans(self.data / "store" / "engines")
        self.studio = Studio(folder / "studio")
        self.bench = Bench(
            data=self.data, engines=(ENGINE,), threads=1, gives_way=False, pause_s=PAUSE_S
        )

    def option(self, device_class: str = "", **publishing: Any) -> Option:
        """Publish a version, bring it, and return what is to be built for it."""
        gate = publishing.pop("gate", None)
        version = publish(self.store, "m", mlp(self.folder / "m.onnx"), **publishing)
        manifest = replace(fetch(self.store, self.local, "m", version), gate=gate)
        self.local.save_manifest(manifest)
        fetch_golden(self.store, self.local, manifest)
        engine = OptimizedEngine()
        asked = device_class or device.cpu().device_class
        folder = self.local.folder_of(manifest)
        spec = choice.spec_of(manifest, folder, wanted_of(manifest), asked)
        return choice.option_for([engine], {engine.name: engine.probe()}, spec, "")

    def build(self, option: Option) -> PlanMeta:
        golden = golden_path(self.local, option.spec.manifest)
        return asyncio.run(build(self.bench, option, self.plans, SECRET, golden))


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    node = Node(tmp_path)
    monkeypatch.setenv(STUDIO, str(node.studio.folder))
    yield node
    assert not list((node.data / "store" / "engines" / ".scratch").iterdir())


async def arrival(node: Node, point: str) -> None:
    await asyncio.to_thread(until, lambda: node.studio.at(point), 60.0, f"a builder has {point}")


def test_plan_is_built_tried_out_and_vouched_for(node: Node) -> None:
    option = node.option()
    meta = node.build(option)
    found = node.plans.find(option.key, KEYS)
    assert found is not None
    assert found.meta == meta
    assert (found.gate.verdict, found.gate.inputs) == ("passed", "random")
    assert found.gate.reference.startswith("onnxruntime ")
    assert found.gate.device == device.cpu().device_class
    assert found.plan.with_name("inspector.json").read_bytes() == b'{"layers": []}'


def test_plan_for_a_device_that_is_not_here_is_not_tried_out(node: Node) -> None:
    assert node.build(node.option(ELSEWHERE)).gate.verdict == "not_run"


def test_golden_inputs_are_tried(node: Node, tmp_path: Path) -> None:
    golden = tmp_path / "golden.npz"
    np.savez(golden, x=np.ones((3, 16), np.float32))
    assert node.build(node.option(golden=golden)).gate.inputs == "golden"


def test_what_is_here_is_not_built_again(node: Node) -> None:
    option = node.option()
    assert node.build(option) == node.build(option)
    assert len(node.studio.at("begun")) == 1


def test_two_that_want_the_same_plan_at_once_build_it_once(node: Node) -> None:
    option = node.option()

    async def both() -> list[PlanMeta]:
        work = (build(node.bench, option, node.plans, SECRET) for _ in range(2))
        return await asyncio.gather(*work)

    one, other = asyncio.run(both())
    assert one == other
    assert len(node.studio.at("begun")) == 1


def test_builder_that_was_killed_is_replaced(node: Node) -> None:
    node.studio.kill(times=2)
    option = node.option()
    node.build(option)
    assert len(node.studio.at("begun")) == 3
    assert node.plans.find(option.key, KEYS) is not None


def test_builder_that_dies_three_times_is_given_up_and_may_be_tried_again(node: Node) -> None:
    node.studio.kill(times=3)
    option = node.option()
    with pytest.raises(BuildFailed, match=r"died 3 times, the last time of SIGKILL") as caught:
        node.build(option)
    assert caught.value.retry
    assert node.plans.find(option.key, KEYS) is None
    node.build(option)


@pytest.mark.parametrize("point", ["begun", "written"])
def test_builder_killed_from_outside_leaves_nothing_wrong(node: Node, point: str) -> None:
    option = node.option()
    node.studio.hold(point)

    async def kill_the_first() -> PlanMeta:
        task = asyncio.create_task(build(node.bench, option, node.plans, SECRET))
        await arrival(node, point)
        os.kill(node.studio.at(point)[0], signal.SIGKILL)
        node.studio.release(point)
        return await task

    meta = asyncio.run(kill_the_first())
    assert len(node.studio.at(point)) == 2
    found = node.plans.find(option.key, KEYS)
    assert found is not None
    assert found.meta == meta


def test_builder_ends_with_who_wanted_the_plan(node: Node) -> None:
    node.studio.hold("begun")
    config = node.bench.task("build", node.option(), node.folder / "plan", None)
    # In between is a process that starts the builder, as a worker does, and is killed.
    script = (
        "import os, subprocess, sys, msgspec, time\n"
        "config = msgspec.json.decode(sys.argv[1])\n"
        "config['parent'] = os.getpid()\n"
        "subprocess.Popen([sys.executable, '-m', 'pool.builder', msgspec.json.encode(config)])\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, msgspec.json.encode(config)], stdout=subprocess.DEVNULL
    )
    pid = until(lambda: node.studio.at("begun"), 30.0, "the builder has begun")[0]
    parent.kill()
    parent.wait()
    until(lambda: not is_alive(pid), 10.0, "the builder has ended")


def test_whoever_gives_up_a_build_ends_its_builder(node: Node) -> None:
    node.studio.hold("begun")
    option = node.option()

    async def give_up() -> None:
        task = asyncio.create_task(build(node.bench, option, node.plans, SECRET))
        await arrival(node, "begun")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(give_up())
    until(lambda: not is_alive(node.studio.at("begun")[0]), 10.0, "the builder has ended")


def test_builder_gives_way_to_everything_that_serves(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATIENT, "yes")
    node.studio.hold("begun")
    node.bench = msgspec.structs.replace(node.bench, gives_way=True)
    option = node.option()

    async def look() -> set[tuple[int, int]]:
        task = asyncio.create_task(build(node.bench, option, node.plans, SECRET))
        await arrival(node, "begun")
        pid = node.studio.at("begun")[0]
        threads = map(int, os.listdir(f"/proc/{pid}/task"))
        found = {(os.sched_getscheduler(t), os.getpriority(os.PRIO_PROCESS, t)) for t in threads}
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return found

    assert asyncio.run(look()) == {(os.SCHED_IDLE, 19)}


def test_builder_is_the_first_that_a_machine_out_of_memory_takes(node: Node) -> None:
    node.studio.hold("begun")
    option = node.option()

    async def look() -> str:
        task = asyncio.create_task(build(node.bench, option, node.plans, SECRET))
        await arrival(node, "begun")
        found = Path(f"/proc/{node.studio.at('begun')[0]}/oom_score_adj").read_text()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return found.strip()

    assert asyncio.run(look()) == "800"


def test_what_cannot_be_built_is_told_with_every_error_and_not_retried(node: Node) -> None:
    with pytest.raises(BuildFailed, match=r"node 3 .* node 7 ") as caught:
        node.build(node.option(labels={"broken": "yes"}))
    assert not caught.value.retry


def test_plan_of_other_libraries_is_not_built(node: Node) -> None:
    option = node.option()
    other = Option(option.engine, option.spec, replace(option.identity, runtime="0.1"))
    with pytest.raises(BuildFailed, match="restart it"):
        node.build(other)


def test_full_disk_fails_the_build_and_leaves_nothing(node: Node) -> None:
    option = node.option()
    engines = node.data / "store" / "engines"
    with small_disk(engines, "size=64k"):
        plans = node.plans = LocalPlans(engines)
        with filled(engines), pytest.raises(BuildFailed, match="No space left") as caught:
            node.build(option)
        assert caught.value.retry
        assert str(node.data) in str(caught.value)
        assert plans.find(option.key, KEYS) is None
        node.build(option)
        assert plans.find(option.key, KEYS) is not None


def test_limit_on_the_size_of_files_is_a_full_disk_and_the_folder_is_named(node: Node) -> None:
    option = node.option()
    node.studio.limit()
    with pytest.raises(BuildFailed, match="File too large") as caught:
        node.build(option)
    assert caught.value.retry
    assert f"limit on it is reached: {node.data}" in str(caught.value)
    node.studio.unlimit()
    node.build(option)


def test_plan_that_the_node_cannot_keep_fails_the_build(node: Node) -> None:
    node.plans = LocalPlans(node.data / "store" / "engines", bytes_max=100)
    with pytest.raises(BuildFailed, match="at most 100 bytes of plans: raise --plans") as caught:
        node.build(node.option())
    assert not caught.value.retry


def test_version_that_is_not_on_the_node_is_a_failed_build(node: Node) -> None:
    option = node.option()
    lost = replace(option.spec.manifest, version="77")
    spec = choice.BuildSpec(
        lost, option.spec.folder, option.spec.wish, option.spec.rows_max, ELSEWHERE
    )
    with pytest.raises(BuildFailed, match="m version 77 is not on this node"):
        node.build(Option(option.engine, spec, option.identity))


# --- the gate ---


def wrong_plan(node: Node, option: Option) -> None:
    """Put the plan of a model with other weights under the key of this one, rightly signed."""
    with node.plans.scratch() as folder:
        build_plan(mlp(folder / "other.onnx", seed=7), folder / "plan")
        result = BuilderResult(
            state="built",
            plan_sha256=hashlib.sha256((folder / "plan").read_bytes()).hexdigest(),
            bytes=(folder / "plan").stat().st_size,
        )
        meta = building._meta_of(option, result, SECRET)
        (folder / "meta.json").write_bytes(write(meta))
        node.plans.add(option.key, SECRET.id, folder)


def tried(node: Node, option: Option) -> Any:
    plan = node.plans.find(option.key, KEYS)
    assert plan is not None
    return asyncio.run(try_out(node.bench, option, plan))


def test_wrong_plan_with_a_right_mac_fails_the_gate(node: Node) -> None:
    option = node.option()
    wrong_plan(node, option)
    report = tried(node, option)
    assert report.verdict == "failed"
    assert report.outputs[0].relative_error > 0.1
    assert 'output "y" is off by' in report.reason


def test_gate_goes_by_the_manifests_limits(node: Node) -> None:
    option = node.option(gate=GateLimits(relative_error_max=10.0, top1_agreement_min=0.0))
    wrong_plan(node, option)
    assert tried(node, option).verdict == "passed"


def test_plan_that_the_device_refuses_has_no_verdict(node: Node) -> None:
    option = node.option()
    node.build(option)
    node.studio.refuse()
    with pytest.raises(BuildFailed, match="this device does not like it"):
        tried(node, option)


def test_built_plan_that_its_builder_cannot_load_is_left_to_others(node: Node) -> None:
    node.studio.refuse()
    meta = node.build(node.option())
    assert meta.gate.verdict == "not_run"
    assert meta.gate.reason == "its builder could not load it: this device does not like it"
