"""ONNX Runtime behind the engine contract: every datatype, odd models, honest errors."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from pool.engines.base import NUMPY_DTYPES, EngineError
from pool.engines.onnxruntime_engine import OnnxRuntimeEngine, OnnxRuntimeSession, session_options
from pool.queueing.engine_queue import EngineQueue
from pool.queueing.ticket import Answer
from registry_sync.documents import File, Manifest
from registry_sync.onnx_signature import read_signature
from tests.support import models
from tests.support.tickets import asked

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING


def manifest_of(path: Path, **changed: Any) -> Manifest:
    beside = {one.name: one.stat().st_size for one in path.parent.iterdir() if one != path}
    signature = read_signature(path, beside)
    may_batch = all(spec.shape[:1] == (-1,) for spec in signature.inputs)
    fields: dict[str, Any] = {
        "model": "m",
        "version": "1",
        "created": "2026-01-01T00:00:00Z",
        "format": "onnx",
        "files": tuple(
            File(one.name, "0" * 64, one.stat().st_size) for one in sorted(path.parent.iterdir())
        ),
        "inputs": signature.inputs,
        "outputs": signature.outputs,
        "rows_max": 32 if may_batch else 1,
        "deterministic": True,
    }
    return Manifest(**(fields | changed))


def load(path: Path, **changed: Any) -> OnnxRuntimeSession:
    session = OnnxRuntimeEngine().load(path.parent, manifest_of(path, **changed), 1)
    session.warmup()
    return session


def save(path: Path, nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> Path:
    return models.save(path, nodes, inputs, outputs)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "artifact").mkdir()
    return tmp_path / "artifact" / "model.onnx"


# Datatypes and shapes.


VALUES: dict[str, list[Any]] = {
    "BOOL": [True, False, True, True],
    "UINT64": [0, 1, 2**63, 2**64 - 1],
    "INT64": [0, -1, -(2**63), 2**63 - 1],
    "INT8": [0, -1, -128, 127],
    "FP16": [0.0, -0.0, 65504.0, float("inf")],
    "FP32": [0.1, float("-inf"), float("nan"), 1e-45],
    "FP64": [0.1, float("-inf"), float("nan"), 5e-324],
    "BF16": [0x3F80, 0x7FC0, 0x0001, 0xFF80],
    "BYTES": [b"", b"plain", "größe 🌊".encode(), b"a\0b\0"],
}


@pytest.mark.parametrize("datatype", sorted(NUMPY_DTYPES))
def test_every_datatype_comes_back_bit_for_bit(path: Path, datatype: str) -> None:
    session = load(models.identity(path, datatype, ("N", 2)))
    given = np.array(VALUES.get(datatype, [0, 1, 2, 3]), NUMPY_DTYPES[datatype]).reshape(2, 2)
    answer = session.infer({"x": given})["y"]
    assert answer.dtype == given.dtype
    assert answer.shape == given.shape
    if datatype == "BYTES":
        assert answer.tolist() == given.tolist()
    else:
        assert answer.tobytes() == given.tobytes()


@pytest.mark.parametrize("datatype", ["FP32", "BYTES", "BF16", "BOOL"])
def test_scalars_are_taken_and_given(path: Path, datatype: str) -> None:
    session = load(models.identity(path, datatype, ()))
    given = np.array(VALUES[datatype][2], NUMPY_DTYPES[datatype])
    answer = session.infer({"x": given})["y"]
    assert answer.shape == ()
    np.testing.assert_array_equal(answer, given)


@pytest.mark.parametrize("datatype", ["FP32", "BYTES", "BF16"])
def test_no_rows_are_taken_and_given(path: Path, datatype: str) -> None:
    session = load(models.identity(path, datatype, ("N", 2)))
    answer = session.infer({"x": np.empty((0, 2), NUMPY_DTYPES[datatype])})["y"]
    assert answer.shape == (0, 2)
    assert answer.dtype == NUMPY_DTYPES[datatype]


def test_bytes_that_are_not_utf_8_are_refused_and_not_changed(path: Path) -> None:
    session = load(models.identity(path, "BYTES", ("N",)))
    with pytest.raises(EngineError, match='input "x" holds bytes that are not UTF-8'):
        session.infer({"x": np.array([b"fine", b"\xff\xfe"], object)})


def test_inputs_may_be_read_only_strided_and_are_never_written(path: Path) -> None:
    session = load(models.identity(path, "FP32", ("N", 4)))
    raw = np.arange(32, dtype=np.float32).tobytes()
    given = np.frombuffer(raw, np.float32).reshape(4, 8)[:, ::2]
    np.testing.assert_array_equal(session.infer({"x": given})["y"], given)
    assert raw == np.arange(32, dtype=np.float32).tobytes()


def test_a_strided_bfloat16_is_read_as_it_is(path: Path) -> None:
    session = load(models.identity(path, "BF16", ("N",)))
    given = np.arange(8, dtype=np.uint16)[::2]
    np.testing.assert_array_equal(session.infer({"x": given})["y"], given)


def test_names_may_have_colons_slashes_and_spaces(path: Path) -> None:
    node = helper.make_node("Identity", ["serving/in put:0"], ["model/out:0"])
    tensors = [helper.make_tensor_value_info(n, FLOAT, ["N"]) for n in (*node.input, *node.output)]
    session = load(save(path, [node], tensors[:1], tensors[1:]))
    answer = session.infer({"serving/in put:0": np.ones(2, np.float32)}, ["model/out:0"])
    assert answer["model/out:0"].tolist() == [1, 1]


def test_an_output_may_have_another_rank_than_it_declares(path: Path) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    inputs = [helper.make_tensor_value_info("x", FLOAT, ["N", 2, 3])]
    session = load(save(path, [node], inputs, [helper.make_tensor_value_info("y", FLOAT, ["N"])]))
    assert session.infer({"x": np.ones((2, 2, 3), np.float32)})["y"].shape == (2, 2, 3)


def test_an_output_without_a_declared_rank_is_given_as_it_is(path: Path) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    inputs = [helper.make_tensor_value_info("x", FLOAT, ["N", 2])]
    session = load(save(path, [node], inputs, [helper.make_tensor_value_info("y", FLOAT, None)]))
    assert session.infer({"x": np.ones((3, 2), np.float32)})["y"].shape == (3, 2)
    assert session.batches


def test_many_outputs_are_given_in_order_and_only_those_wanted(path: Path) -> None:
    names = [f"y{i}" for i in range(100)]
    nodes = [helper.make_node("Identity", ["x"], [name]) for name in names]
    outputs = [helper.make_tensor_value_info(name, FLOAT, ["N"]) for name in names]
    session = load(save(path, nodes, [helper.make_tensor_value_info("x", FLOAT, ["N"])], outputs))
    given = {"x": np.ones(1, np.float32)}
    assert list(session.infer(given)) == names
    assert list(session.infer(given, ["y7", "y3"])) == ["y7", "y3"]


def test_several_dynamic_axes_may_have_any_size(path: Path) -> None:
    session = load(models.identity(path, "INT64", ("N", "length", 2)))
    for shape in [(1, 1, 2), (3, 5, 2), (2, 0, 2)]:
        assert session.infer({"x": np.zeros(shape, np.int64)})["y"].shape == shape


def test_weights_beside_the_graph_are_found(path: Path) -> None:
    weight = numpy_helper.from_array(np.full((2,), 3, np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, FLOAT, ["N", 2]) for name in "xy")
    node = helper.make_node("Mul", ["x", "w"], ["y"])
    models.save(path, [node], [x], [y], [weight], external="weights.bin")
    session = load(path)
    assert session.infer({"x": np.ones((1, 2), np.float32)})["y"].tolist() == [[3, 3]]
    assert session.memory_bytes == sum(one.stat().st_size for one in path.parent.iterdir())


# Batches.


def test_a_model_with_a_row_out_for_each_row_in_batches(path: Path) -> None:
    assert load(models.mlp(path)).batches


def test_a_batch_gives_what_the_rows_give_alone(path: Path) -> None:
    session = load(models.mlp(path))
    given = np.random.default_rng(0).standard_normal((5, 16)).astype(np.float32)
    together = session.infer({"x": given})["y"]
    alone = [session.infer({"x": given[i : i + 1]})["y"] for i in range(5)]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-5, atol=1e-6)


def test_a_fixed_first_axis_never_batches(path: Path) -> None:
    session = load(models.identity(path, "FP32", (1, 4)))
    assert not session.batches
    assert session.infer({"x": np.ones((1, 4), np.float32)})["y"].shape == (1, 4)


@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_model_that_sums_over_its_rows_never_batches(path: Path, keepdims: int) -> None:
    node = helper.make_node("ReduceSum", ["x"], ["y"], keepdims=keepdims)
    inputs = [helper.make_tensor_value_info("x", FLOAT, ["N", 2])]
    outputs = [helper.make_tensor_value_info("y", FLOAT, ["M", "K"] if keepdims else [])]
    assert not load(save(path, [node], inputs, outputs)).batches


def test_a_model_whose_first_output_axis_counts_what_it_finds_never_batches(path: Path) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["z"]),
        helper.make_node("Transpose", ["z"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", FLOAT, ["N", 2])]
    outputs = [helper.make_tensor_value_info("y", INT64, ["found", 2])]
    assert not load(save(path, nodes, inputs, outputs)).batches


def test_a_manifest_that_says_one_row_is_obeyed(path: Path) -> None:
    assert not load(models.mlp(path), rows_max=1).batches


def test_a_queue_in_front_of_it_answers_every_call_with_its_own_rows(path: Path) -> None:
    async def main() -> None:
        queue = EngineQueue(load(models.identity(path, "INT64", ("N",))), name="t", rows_max=32)
        everybody = [asked(i, arrived_s=time.monotonic()) for i in range(200)]
        for one in everybody:
            queue.submit(one.ticket)
        await asyncio.gather(*(one.settled.wait() for one in everybody))
        for i, one in enumerate(everybody):
            assert isinstance(one.outcome, Answer)
            assert one.outcome.outputs["y"].tolist() == [i]
        assert queue.counters.runs < 20
        await queue.close()

    asyncio.run(main())


# Loading, warming up, failing.


def test_its_probe_says_that_it_works() -> None:
    probe = OnnxRuntimeEngine().probe()
    assert probe.available
    assert probe.version == ort.__version__
    assert probe.device == "cpu"


@pytest.mark.parametrize("damage", [b"", b"garbage", b"\x08\x0a"])
def test_a_file_that_is_no_model_is_an_engine_error_without_a_path(
    path: Path, damage: bytes
) -> None:
    manifest = manifest_of(models.mlp(path))
    path.write_bytes(damage)
    with pytest.raises(EngineError, match=r"ONNX Runtime cannot load model\.onnx: \w") as caught:
        OnnxRuntimeEngine().load(path.parent, manifest, 1)
    assert str(path.parent) not in str(caught.value)


def test_missing_weights_are_an_engine_error_without_a_path(path: Path) -> None:
    weight = numpy_helper.from_array(np.full((2,), 3, np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, FLOAT, ["N", 2]) for name in "xy")
    node = helper.make_node("Mul", ["x", "w"], ["y"])
    models.save(path, [node], [x], [y], [weight], external="weights.bin")
    manifest = manifest_of(path)
    (path.parent / "weights.bin").unlink()
    with pytest.raises(EngineError) as caught:
        OnnxRuntimeEngine().load(path.parent, manifest, 1)
    assert str(path.parent) not in str(caught.value)


def test_an_operator_that_does_not_exist_is_named(path: Path) -> None:
    node = helper.make_node("NoSuchThing", ["x"], ["y"], domain="com.example")
    x, y = (helper.make_tensor_value_info(name, FLOAT, ["N"]) for name in "xy")
    with pytest.raises(EngineError, match="NoSuchThing"):
        load(models.save(path, [node], [x], [y], functions=[_function()]))


def _function() -> Any:
    # Makes the writer import the domain; it is another function than the one that is used.
    return helper.make_function(
        "com.example",
        "Other",
        ["a"],
        ["b"],
        [helper.make_node("Identity", ["a"], ["b"])],
        [helper.make_opsetid("", models.OPSET)],
    )


def test_a_manifest_that_promises_another_signature_is_an_engine_error(path: Path) -> None:
    other = manifest_of(models.identity(path, "FP32", ("N", 4)))
    models.mlp(path)
    # The same names and datatypes; only shapes differ, which may: a run shows it.
    OnnxRuntimeEngine().load(path.parent, other, 1)
    models.identity(path, "INT64", ("N", 4))
    with pytest.raises(EngineError, match='input "x" is INT64 in the model and FP32'):
        OnnxRuntimeEngine().load(path.parent, other, 1)


def test_an_artifact_with_several_graphs_needs_one_called_model(path: Path) -> None:
    models.mlp(path)
    manifest = manifest_of(path)
    files = tuple(File(name, "0" * 64, 1) for name in ("a.onnx", "b.onnx"))
    wrong = Manifest(
        **{name: getattr(manifest, name) for name in manifest.__struct_fields__} | {"files": files}
    )
    with pytest.raises(EngineError, match=r"expected model\.onnx .* found a\.onnx, b\.onnx"):
        OnnxRuntimeEngine().load(path.parent, wrong, 1)


def test_a_model_that_takes_no_zeros_loads_and_serves(path: Path) -> None:
    # Gather from a table that lies at 1…: index 0 is out of its bounds after the subtraction.
    nodes = [
        helper.make_node("Constant", [], ["five"], value_ints=[-5]),
        helper.make_node("Constant", [], ["table"], value_floats=[1.0, 2.0, 3.0]),
        helper.make_node("Add", ["x", "five"], ["index"]),
        helper.make_node("Gather", ["table", "index"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", INT64, ["N"])]
    outputs = [helper.make_tensor_value_info("y", FLOAT, ["N"])]
    session = load(save(path, nodes, inputs, outputs))
    assert session.infer({"x": np.array([5, 7])})["y"].tolist() == [1, 3]
    assert session.batches


def test_inputs_that_the_model_cannot_bear_are_an_engine_error_that_names_the_node(
    path: Path,
) -> None:
    nodes = [
        helper.make_node("Constant", [], ["table"], value_floats=[1.0, 2.0, 3.0]),
        helper.make_node("Gather", ["table", "x"], ["y"], name="/embedding/Gather"),
    ]
    inputs = [helper.make_tensor_value_info("x", INT64, ["N"])]
    outputs = [helper.make_tensor_value_info("y", FLOAT, ["N"])]
    session = load(save(path, nodes, inputs, outputs))
    with pytest.raises(EngineError, match=r"/embedding/Gather.*out of data bounds") as caught:
        session.infer({"x": np.array([9])})
    assert "ONNXRuntimeError" not in str(caught.value)


def test_no_thread_spins_between_the_runs() -> None:
    options = session_options(2)
    for kind in ("intra_op", "inter_op"):
        assert options.get_session_config_entry(f"session.{kind}.allow_spinning") == "0"


@pytest.mark.parametrize("threads", [1, 3])
def test_the_threads_that_are_asked_for_are_taken(threads: int) -> None:
    assert session_options(threads).intra_op_num_threads == threads


def test_without_a_wish_there_is_a_thread_for_every_core_that_we_may_use() -> None:
    assert session_options(0).intra_op_num_threads == len(os.sched_getaffinity(0))


def test_close_frees_the_threads(path: Path) -> None:
    manifest = manifest_of(models.mlp(path))
    before = len(list(Path("/proc/self/task").iterdir()))
    session = OnnxRuntimeEngine().load(path.parent, manifest, 4)
    assert len(list(Path("/proc/self/task").iterdir())) > before
    session.close()
    assert len(list(Path("/proc/self/task").iterdir())) <= before
