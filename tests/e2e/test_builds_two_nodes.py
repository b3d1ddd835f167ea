"""Many workers on two nodes want one plan: it is built once, and uploaded once."""

from __future__ import annotations

import re
import signal
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from registry_sync import wishes
from tests.support.faulty_s3 import FaultyS3, faulty_s3
from tests.support.models import mlp
from tests.support.nodes import Fleet, running_fleet
from tests.support.plan_engine import Studio
from tests.support.seaweed import BUCKET, S3Server
from tests.support.stack import until

ENGINE = "tests.support.plan_engine:OptimizedEngine"
BACK_S_MAX = 60.0  # many interpreters start, on a machine that other tests keep busy
SHORT, FULL = 2, 4  # workers on each of the two nodes


@dataclass
class Nodes:
    """Two nodes of workers, the way to S3, and what steers and counts builders."""

    fleet: Fleet
    s3: FaultyS3
    studio: Studio
    workers: int  # of both nodes

    def uploads(self, key: str) -> int:
        """Return how often the plan of a key was created or replaced in the registry.

        Two nodes that finish in the same moment both see none and both send theirs; the server
        takes one and refuses the other, which is no upload.
        """
        plan = re.compile(rf"PUT .*/engines/{key}/[^/]+/plan(\?|$)")
        answers = [status for request, status in list(self.s3.answers) if plan.match(request)]
        assert set(answers) <= {200, 412}, answers
        return answers.count(200)

    def builds(self) -> int:
        """Return how many builders have begun, of whatever plans."""
        return len(self.studio.at("begun"))

    def row(self, model: str) -> dict[str, Any]:
        """Return what the status shows of a model's plan; empty if nothing."""
        found = [row for row in self.fleet.status()["builds"] if row["model"] == model]
        assert len(found) <= 1, found
        return found[0] if found else {}

    def until_every_worker(self, model: str, field: str, value: str) -> None:
        """Wait until the model's engine is so in every worker."""

        def is_so() -> bool:
            engines = self.fleet.engine(model)
            return [engine[field] for engine in engines] == [value] * self.workers

        until(is_so, BACK_S_MAX, f"{field} of {model} is {value} everywhere", 0.1)

    def want(self, model: str) -> int:
        """Let every worker serve a new model and want its plan; returns `builds` before.

        Returns once one builder has begun; it does not go on before the studio lets it.
        """
        before = self.builds()
        self.studio.hold("begun")
        path = mlp(self.fleet.data / f"{model}.onnx", seed=zlib.crc32(model.encode()))
        self.fleet.publish(model, path)
        scale = {"replicas_min": self.workers, "replicas_max": self.workers}
        self.fleet.edit_endpoint(model, scale=scale)
        self.until_every_worker(model, "state", "warm")
        until(lambda: self.builds() > before, BACK_S_MAX, "one builds", 0.1)
        self.until_state(model, "building")
        return before

    def until_state(self, model: str, state: str) -> None:
        """Wait until the status says how the plan stands."""
        until(lambda: self.row(model).get("state") == state, BACK_S_MAX, state, 0.1)

    def finish(self, model: str) -> None:
        """Let builders go on; every worker comes to serve with the plan, uploaded once."""
        self.studio.release("begun")
        self.until_every_worker(model, "engine", "optimized")
        self.until_state(model, "built")
        row = self.row(model)
        assert (row["version"], row["engine"]) == ("1", "optimized")
        assert self.uploads(row["key"]) == 1


@pytest.fixture(scope="module", params=[SHORT, pytest.param(FULL, marks=pytest.mark.slow)])
def nodes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, seaweed: S3Server
) -> Iterator[Nodes]:
    """Two nodes of so many workers each."""
    folder = tmp_path_factory.mktemp("builds")
    studio = Studio(folder / "studio")
    registry = f"s3://{BUCKET}/{folder.name}"
    workers = request.param
    with pytest.MonkeyPatch.context() as patch, faulty_s3(seaweed.endpoint) as proxy:
        for name, value in seaweed.environment.items():
            patch.setenv(name, value)
        env = {**seaweed.environment, **studio.env, "AWS_ENDPOINT_URL": proxy.endpoint}
        with running_fleet(
            folder, registry, env, edges=1, pools=2, workers=workers, engines=[ENGINE]
        ) as fleet:
            yield Nodes(fleet, proxy, studio, 2 * workers)


@pytest.mark.rule("F22")
def test_plan_that_many_workers_want_is_built_and_uploaded_once(nodes: Nodes) -> None:
    before = nodes.want("calm")
    nodes.finish("calm")
    print(f"{nodes.workers} workers: {nodes.builds() - before} build, 1 upload")
    assert nodes.builds() - before == 1


def test_plan_is_uploaded_once_though_the_controller_is_killed_meanwhile(nodes: Nodes) -> None:
    before = nodes.want("killed")
    nodes.fleet.controller.stop(signal.SIGKILL)
    nodes.fleet.controller.start()
    nodes.until_state("killed", "building")  # its successor knows of it
    nodes.finish("killed")
    print(f"{nodes.workers} workers: {nodes.builds() - before} builds, 1 upload")


def test_wish_is_built_for_a_gpu_that_is_nowhere_here_and_uploaded_once(nodes: Nodes) -> None:
    """TensorRT for RTX builds real plans for other machines' GPUs, on a CPU."""
    nodes.fleet.publish("wished", mlp(nodes.fleet.data / "wished.onnx"))
    wishes.put(nodes.fleet.store, wishes.new_wish("wished", "1", "sm_86", "tensorrt_rtx"))
    wishes.put(nodes.fleet.store, wishes.new_wish("wished", "1", "sm_70"))
    nodes.fleet.poke()

    def rows() -> dict[str, dict[str, Any]]:
        found = nodes.fleet.status()["builds"]
        return {row["device_class"]: row for row in found if row["model"] == "wished"}

    until(lambda: rows().get("sm_86", {}).get("state") == "built", 120.0, "it is built", 0.2)
    row = rows()["sm_86"]
    assert (row["engine"], row["wished"]) == ("tensorrt_rtx", True)
    assert nodes.uploads(row["key"]) == 1
    assert rows()["sm_70"]["state"] == "waiting"
    assert "no worker is here that can build a plan for sm_70" in rows()["sm_70"]["reason"]
    (stored,) = [e for e in nodes.fleet.store.list(f"engines/{row['key']}") if "/plan" in e.key]
    assert stored.bytes > 1000


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [FULL], indirect=True)
def test_without_any_controller_each_node_builds_and_one_uploads(nodes: Nodes) -> None:
    before = nodes.want("alone")
    nodes.fleet.controller.stop(signal.SIGKILL)
    until(lambda: nodes.builds() > before + 1, BACK_S_MAX, "another node builds alone", 0.1)
    nodes.fleet.controller.start()
    nodes.finish("alone")
    print(f"{nodes.workers} workers: {nodes.builds() - before} builds, 1 upload")
