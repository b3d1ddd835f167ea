"""TensorRT for RTX builds real plans on this CPU, refuses what it cannot build, and says why."""

from __future__ import annotations

import importlib
import importlib.util
import json
import resource
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from onnx import TensorProto, helper, numpy_helper

from pool.engines.base import BuildSpec, Built, CannotBuild
from pool.engines.tensorrt_build import build_plan, config_of
from pool.engines.tensorrt_engine import TensorRtEngine
from pool.engines.tensorrt_log import Said, listening
from pool.engines.tensorrt_profiles import TENSORRT_DTYPES, WORKSPACE_BYTES_MAX
from registry_sync.documents import AxisRange, TensorSpec
from tests.support import models
from tests.support.build_specs import sequence, spec_for, spec_of

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
RTX = TensorRtEngine("tensorrt_rtx", "cpu")


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    folder.mkdir()
    return folder / "model.onnx"


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return tmp_path / "plan"


def build(spec: BuildSpec, plan: Path) -> Built:
    return RTX.build(spec, plan, plan.parent / "caches")


def refused(spec: BuildSpec, plan: Path) -> str:
    """Build what cannot be built; return the reason."""
    with pytest.raises(CannotBuild) as caught:
        build(spec, plan)
    assert not plan.exists()
    text = str(caught.value)
    assert str(spec.folder) not in text, "a path leaves the machine"
    return text


def odd(
    graph: Path, nodes: Sequence[Any], opset: int = 21, weights: Sequence[Any] = ()
) -> BuildSpec:
    """Write a graph that no checker has seen, from x to y, both FP32 [N, 4]."""
    tensors = [[helper.make_tensor_value_info(name, FLOAT, ["N", 4])] for name in ("x", "y")]
    made = helper.make_graph(list(nodes), "odd", *tensors, initializer=list(weights))
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("acme", 1)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=10)
    graph.write_bytes(model.SerializeToString())
    specs = [[TensorSpec(name, "FP32", (-1, 4))] for name in ("x", "y")]
    return spec_for(graph, *specs)


# -- what is built


@pytest.mark.parametrize("device_class", RTX.probe().builds_for)
def test_builds_for_every_device_class_of_its_list_without_a_device(
    graph: Path, plan: Path, device_class: str
) -> None:
    build(spec_of(models.identity(graph), device_class=device_class), plan)
    assert plan.stat().st_size > 1000


def test_what_a_device_class_cannot_compute_is_said_in_the_builders_words(
    graph: Path, plan: Path
) -> None:
    text = refused(spec_of(models.mlp(graph), device_class="sm_75"), plan)
    assert "FP32 GEMM is not supported" in text


def test_real_model_is_built_for_two_device_classes_with_a_profile_for_each_bucket(
    tmp_path: Path,
) -> None:
    found = importlib.util.find_spec("magika")
    assert found is not None
    assert found.origin is not None
    (graph,) = (Path(found.origin).parent / "models").rglob("*.onnx")
    only = tmp_path / "artifact" / "model.onnx"
    only.parent.mkdir()
    only.symlink_to(graph)
    plans = []
    for device_class in ("sm_86", "sm_120"):
        spec = spec_of(only, rows_max=32, device_class=device_class)
        assert len(RTX.identity(spec).profiles) == 6
        plan = tmp_path / device_class
        layers = json.loads(build(spec, plan).inspector)["layers"]
        assert ["[profile 5]" in layer for layer in layers] == 5 * [False] + [True]
        assert plan.stat().st_size > graph.stat().st_size
        plans.append(plan.read_bytes())
    assert plans[0] != plans[1]


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", False), ("fp16", True)])
def test_builder_is_told_to_compute_fp32_exactly_and_to_leave_memory_to_others(
    graph: Path, precision: str, tf32: bool
) -> None:
    trt = importlib.import_module("tensorrt_rtx")
    builder = trt.Builder(listening(trt, Said()))
    config = config_of(trt, builder, spec_of(models.mlp(graph), precision=precision))
    assert config.get_flag(trt.BuilderFlag.TF32) == tf32
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == WORKSPACE_BYTES_MAX
    assert config.get_compute_capability(0) == trt.ComputeCapability.SM86


@pytest.mark.parametrize("datatype", TENSORRT_DTYPES)
def test_every_datatype_that_tensorrt_has_goes_in_and_out(
    graph: Path, plan: Path, datatype: str
) -> None:
    build(spec_of(models.identity(graph, datatype)), plan)


def test_open_axes_are_built_with_the_range_that_was_wished(graph: Path, plan: Path) -> None:
    axes = dict.fromkeys(("ids:1", "mask:1"), AxisRange(1, 16, 64))
    build(spec_of(sequence(graph), axes=axes), plan)
    assert plan.exists()


def test_converted_graph_computes_in_its_own_precision(graph: Path, plan: Path) -> None:
    models.mlp(graph)
    half = numpy_helper.from_array(np.ones((16, 10), np.float16), "w")
    nodes = [
        helper.make_node("Cast", ["x"], ["small"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["small", "w"], ["product"]),
        helper.make_node("Cast", ["product"], ["y"], to=FLOAT),
    ]
    ends = [[models.tensor("x", FLOAT, ["N", 16])], [models.tensor("y", FLOAT, ["N", 10])]]
    models.save(graph.with_name("model.fp16.onnx"), nodes, *ends, [half])
    spec = spec_of(graph)
    exact, fast = (replace(spec.wish, precision=one) for one in ("fp32", "fp16"))
    sizes = []
    for wish in (exact, fast):
        one = BuildSpec(spec.manifest, spec.folder, wish, spec.rows_max, spec.device_class)
        build(one, plan.with_name(str(wish.precision)))
        sizes.append((RTX.identity(one).key, plan.with_name(str(wish.precision)).read_bytes()))
    assert sizes[0][0] != sizes[1][0]
    assert sizes[0][1] != sizes[1][1]


def test_weights_beside_the_graph_are_built_in(graph: Path, plan: Path) -> None:
    weights = [numpy_helper.from_array(np.ones((4, 300), np.float32), "w")]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    ends = [[models.tensor("x", FLOAT, ["N", 4])], [models.tensor("y", FLOAT, ["N", 300])]]
    models.save(graph, nodes, *ends, weights, external="weights.bin")
    build(spec_of(graph), plan)
    assert plan.exists()


# -- what cannot be built


def test_every_operator_that_is_not_supported_is_named(graph: Path, plan: Path) -> None:
    nodes = [
        helper.make_node("Foo", ["x"], ["a"], domain="acme", name="first"),
        helper.make_node("Bar", ["a"], ["b"], domain="acme", name="second"),
        helper.make_node("Det", ["b"], ["y"], name="third"),
    ]
    text = refused(odd(graph, nodes), plan)
    for node in ('node 0 (Foo "first")', 'node 1 (Bar "second")', 'node 2 (Det "third")'):
        assert node in text


@pytest.mark.parametrize("opset", [3, 99])
def test_opset_that_tensorrt_would_read_without_knowing_it_is_refused(
    graph: Path, plan: Path, opset: int
) -> None:
    text = refused(odd(graph, [helper.make_node("Relu", ["x"], ["y"])], opset), plan)
    assert f"model.onnx is of opset {opset}; TensorRT reads 7 to" in text


def test_circle_is_named(graph: Path, plan: Path) -> None:
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    assert "Failed to sort the model topologically" in refused(odd(graph, nodes), plan)


@pytest.mark.parametrize(
    ("location", "why"),
    [("gone.bin", "Failed to open file: gone.bin"), ("../../x", "Relative paths to parent (../)")],
)
def test_weights_that_are_missing_or_outside_are_named(
    graph: Path, plan: Path, location: str, why: str
) -> None:
    weight = TensorProto(name="w", data_type=FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=location)
    spec = odd(graph, [helper.make_node("Add", ["x", "w"], ["y"])], weights=[weight])
    assert why in refused(spec, plan)


@pytest.mark.parametrize("cut", [0, 40])
def test_file_that_is_no_model_is_refused(graph: Path, plan: Path, cut: int) -> None:
    spec = spec_of(models.mlp(graph))
    graph.write_bytes(graph.read_bytes()[:cut])
    assert refused(spec, plan)


def test_graph_that_is_not_what_the_manifest_says_is_refused(graph: Path, plan: Path) -> None:
    models.identity(graph, "FP64")
    spec = spec_for(
        graph,
        [TensorSpec("x", "INT32", (-1, 4)), TensorSpec("more", "FP32", (-1, 1))],
        [TensorSpec("z", "FP32", (-1, 4))],
    )
    text = refused(spec, plan)
    assert 'input "x" is INT32 in the manifest and FLOAT for TensorRT' in text
    assert 'TensorRT finds no input "more" in the graph' in text
    assert 'TensorRT finds no output "z" in the graph' in text


def test_input_of_which_the_manifest_knows_nothing_is_refused(graph: Path, plan: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "extra"], ["y"])]
    inputs = [models.tensor(name, FLOAT, ["N", 4]) for name in ("x", "extra")]
    models.save(graph, nodes, inputs, [models.tensor("y", FLOAT, ["N", 4])])
    x, y = TensorSpec("x", "FP32", (-1, 4)), TensorSpec("y", "FP32", (-1, 4))
    assert 'wants an input "extra"' in refused(spec_for(graph, [x], [y]), plan)


def test_range_that_the_graph_has_no_room_for_is_refused(graph: Path, plan: Path) -> None:
    models.mlp(graph)
    x, y = TensorSpec("x", "FP32", (-1, -1)), TensorSpec("y", "FP32", (-1, 10))
    spec = spec_for(graph, [x], [y], axes={"x:1": AxisRange(1, 8, 16)})
    assert "Dimension mismatch for tensor x and profile 0" in refused(spec, plan)


def test_input_that_is_a_shape_is_refused_with_what_tensorrt_says(graph: Path, plan: Path) -> None:
    nodes = [helper.make_node("Reshape", ["x", "s"], ["y"])]
    inputs = [models.tensor("x", FLOAT, ["N", 4]), models.tensor("s", INT64, [2])]
    models.save(graph, nodes, inputs, [models.tensor("y", FLOAT, ["A", "B"])])
    x, s = TensorSpec("x", "FP32", (1, 4)), TensorSpec("s", "INT64", (2,))
    spec = spec_for(graph, [x, s], [TensorSpec("y", "FP32", (-1, -1))], batched=False)
    assert refused(spec, plan)


def test_device_class_that_nothing_builds_for_is_refused_naming_those_it_can(
    graph: Path, plan: Path
) -> None:
    text = refused(spec_of(models.mlp(graph), device_class="sm_90"), plan)
    assert "sm_75, sm_80, sm_86, sm_89, sm_120, sm_121; not for sm_90" in text


# -- the disk


def test_plan_that_is_there_already_is_not_written_over(graph: Path, plan: Path) -> None:
    plan.write_bytes(b"another's")
    with pytest.raises(FileExistsError):
        build(spec_of(models.mlp(graph)), plan)
    assert plan.read_bytes() == b"another's"


def test_disk_that_is_full_leaves_no_part_of_a_plan(graph: Path, plan: Path) -> None:
    spec = spec_of(models.mlp(graph))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            build(spec, plan)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not plan.exists()


def test_timing_cache_is_kept_and_used_again(graph: Path, tmp_path: Path) -> None:
    """With RTX, which takes and gives one without using it; `tensorrt` has the same calls."""
    trt = importlib.import_module("tensorrt_rtx")
    spec = spec_of(models.mlp(graph))
    timing = tmp_path / "caches" / "tensorrt.timing"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of RTX: "operations are no-ops"
        for content in (None, b"no timing cache"):
            if content is not None:
                timing.write_bytes(content)
            plan = tmp_path / f"plan-{content is None}"
            build_plan(trt, spec, RTX.identity(spec).profiles, plan, timing, Said())
            assert timing.stat().st_size > len(b"no timing cache")
