"""A model whose rows depend on one another is never batched, whatever its graph promises."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import NodeProto, TensorProto, helper

from pool.engines.onnxruntime_engine import OnnxRuntimeEngine
from registry_sync.documents import File, Manifest, TensorSpec
from tests.support import models

FLOATS = ("x", "FP32", TensorProto.FLOAT, ["n", 4])
INDEXED = ("x", "INT64", TensorProto.INT64, ["n"])
INDEX = ("s", "INT64", TensorProto.INT64, ["n"])


def batches(
    tmp_path: Path, nodes: list[NodeProto], *inputs: tuple[str, str, int, list[str | int]]
) -> bool:
    kind, shape = inputs[0][2], inputs[0][3]
    path = models.save(
        tmp_path / "model.onnx",
        nodes,
        [helper.make_tensor_value_info(name, kind_, dims) for name, _, kind_, dims in inputs],
        [helper.make_tensor_value_info("y", kind, shape)],
    )
    shapes = {name: tuple(-1 if d == "n" else d for d in dims) for name, _, _, dims in inputs}
    manifest = Manifest(
        model="m",
        version="1",
        created="",
        format="onnx",
        files=(File(path.name, "0" * 64, path.stat().st_size),),
        inputs=tuple(TensorSpec(name, word, shapes[name]) for name, word, _, _ in inputs),
        outputs=(TensorSpec("y", inputs[0][1], shapes[inputs[0][0]]),),
        rows_max=32,
        deterministic=True,
    )
    session = OnnxRuntimeEngine().load(tmp_path, manifest, 1)
    session.warmup()
    return session.batches


def test_rows_that_stand_alone_are_joined(tmp_path: Path) -> None:
    assert batches(tmp_path, [helper.make_node("Relu", ["x"], ["y"])], FLOATS)


def test_softmax_over_a_row_is_joined(tmp_path: Path) -> None:
    assert batches(tmp_path, [helper.make_node("Softmax", ["x"], ["y"], axis=1)], FLOATS)


def test_softmax_over_the_batch_is_not(tmp_path: Path) -> None:
    assert not batches(tmp_path, [helper.make_node("Softmax", ["x"], ["y"], axis=0)], FLOATS)


def test_rows_picked_by_index_are_not(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gather", ["x", "s"], ["y"], axis=0)]
    assert not batches(tmp_path, nodes, INDEXED, INDEX)


@pytest.mark.parametrize("axis", [0])
def test_running_sums_over_the_batch_are_not(tmp_path: Path, axis: int) -> None:
    axes = helper.make_node(
        "Constant", [], ["a"], value=helper.make_tensor("a", TensorProto.INT64, [], [axis])
    )
    assert not batches(tmp_path, [axes, helper.make_node("CumSum", ["x", "a"], ["y"])], FLOATS)
