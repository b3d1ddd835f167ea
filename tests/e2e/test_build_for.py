"""`publish --build-for` of real models on a real stack: its worker builds plans for two GPUs.

No GPU is here: TensorRT for RTX builds for those that it knows, and what is built waits in the
registry for a worker that has one.  Calls are answered by ONNX Runtime meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from infra.demo_model import model_path
from tests.support import minilm
from tests.support.stack import Stack, running_stack, until

# A builder gives way to all other tests on the machine.
BUILD_S_MAX = 240.0
LARGE_S_MAX = 600.0
TARGETS = ["sm_86", "sm_120"]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One edge and one worker, with the engines that are built in."""
    with running_stack(tmp_path_factory.mktemp("build-for")) as started:
        yield started


def rows_of(stack: Stack, model: str) -> list[dict[str, Any]]:
    """Return what `engines list` shows of a model."""
    found = json.loads(stack.cli("engines", "list", "--json"))
    return [row for row in found if row["model"] == model]


def publish_for(
    stack: Stack, model: str, path: Path, *options: str, build_s_max: float = BUILD_S_MAX
) -> list[dict[str, Any]]:
    """Publish with `--build-for` both targets; returns the plans once they are there."""
    words = ("--build-for", ",".join(TARGETS), *options)
    assert stack.cli("publish", model, str(path), *words).splitlines()[-1] == "1"

    def built() -> bool:
        builds = [row for row in stack.status()["builds"] if row["model"] == model]
        assert not [row for row in builds if row["state"] == "failed"], builds
        return sorted(row["device_class"] for row in builds if row["state"] == "built") == sorted(
            TARGETS
        )

    until(built, build_s_max, "both plans are built", 0.25)
    return rows_of(stack, model)


def check(rows: Sequence[dict[str, Any]], bytes_min: int) -> None:
    """Hold the rows of `engines list` against what was asked for."""
    assert [row["device"] for row in rows] == TARGETS
    assert len({row["key"] for row in rows}) == len(TARGETS)
    for row in rows:
        assert (row["version"], row["engine"], row["precision"]) == ("1", "tensorrt_rtx", "fp32")
        assert row["bytes"] > bytes_min
        assert (row["gate"], row["problem"]) == ("not_run", False)  # nobody here has such a GPU
        assert row["created"]
        assert row["used"]


def test_magika_is_built_for_two_gpus_and_served_meanwhile(stack: Stack) -> None:
    rows = publish_for(stack, "magika", model_path())
    check(rows, bytes_min=2 << 20)
    text = stack.cli("engines", "list")
    for row in rows:
        assert f"{row['key'][:12]}  magika/1  {row['device']}  tensorrt_rtx" in text
    (engine,) = stack.engine("magika")
    assert (engine["engine"], engine["state"]) == ("onnxruntime", "warm")
    # A worker's build and a person's are the same plan: nothing is built again.
    again = json.loads(
        stack.cli("engines", "build", "magika", "1", "--for", ",".join(TARGETS), "--json")
    )
    assert [(row["state"], row["key"]) for row in again] == [("there", r["key"]) for r in rows]


def test_a_wish_over_the_admin_port_is_built_too(stack: Stack) -> None:
    path = "/admin/models/magika/versions/1/builds"
    answer = stack.request("PUT", f"{path}/sm_89", admin=True)
    assert answer.status == 201, answer.body

    def built() -> list[dict[str, Any]]:
        shown = stack.request("GET", path, admin=True).json()
        return [row for row in shown["engines"] if row["device"] == "sm_89"]

    (row,) = until(built, BUILD_S_MAX, "the plan is there", 0.25)
    assert row["engine"] == "tensorrt_rtx"


@pytest.mark.slow
@pytest.mark.timeout(LARGE_S_MAX + 120)
def test_minilm_is_built_for_two_gpus(stack: Stack, tmp_path: Path) -> None:
    axes = [f"{name}:1=2,64,256" for name in ("input_ids", "attention_mask")]
    rows = publish_for(
        *(stack, "minilm", minilm.export(tmp_path / "minilm.onnx")),
        *(word for axis in axes for word in ("--axis", axis)),
        *("--rows-max", "4"),
        build_s_max=LARGE_S_MAX,
    )
    check(rows, bytes_min=4 * minilm.PARAMETERS)
    (engine,) = stack.engine("minilm")
    assert (engine["engine"], engine["state"]) == ("onnxruntime", "warm")
