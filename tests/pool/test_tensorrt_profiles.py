"""Which profiles a TensorRT plan gets, and which models can have none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from pool.engines.base import BuildSpec, CannotBuild, EngineError
from pool.engines.tensorrt_profiles import (
    TENSORRT_DTYPES,
    flags_of,
    graph_of,
    profile_for,
    profiles_of,
)
from registry_sync.documents import AxisRange, EngineWish, File, Manifest, TensorSpec
from registry_sync.plans import ShapeRange

X = TensorSpec("x", "FP32", (-1, 4))
IDS = TensorSpec("ids", "INT64", (-1, -1))
MASK = TensorSpec("mask", "INT64", (-1, -1))
SEQUENCE = AxisRange(1, 128, 512)


def spec_of(
    *inputs: TensorSpec,
    rows_max: int = 8,
    axes: dict[str, AxisRange] | None = None,
    precision: Any = "fp32",
    files: tuple[str, ...] = ("model.onnx",),
    outputs: tuple[TensorSpec, ...] = (TensorSpec("y", "FP32", (-1, 4)),),
    **changed: Any,
) -> BuildSpec:
    manifest = Manifest(
        model="m",
        version="1",
        created="",
        format="onnx",
        files=tuple(File(path, "0" * 64, 1) for path in files),
        inputs=inputs,
        outputs=outputs,
        rows_max=changed.get("manifest_rows_max", rows_max),
        deterministic=True,
    )
    wish = EngineWish(precision=precision, axes=axes or {})
    return BuildSpec(manifest, Path(), wish, rows_max, "sm_86")


def rows(spec: BuildSpec, name: str = "x") -> list[tuple[int, int, int]]:
    ranges = [profile[name] for profile in profiles_of(spec)]
    return [(one.min[0], one.opt[0], one.max[0]) for one in ranges]


def test_there_is_a_profile_for_each_bucket_and_no_gap_between_them() -> None:
    assert rows(spec_of(X, rows_max=12)) == [
        (1, 1, 1),
        (2, 2, 2),
        (3, 4, 4),
        (5, 8, 8),
        (9, 12, 12),
    ]


def test_largest_batch_is_the_endpoints_and_not_the_manifests() -> None:
    assert rows(spec_of(X, rows_max=2, manifest_rows_max=64)) == [(1, 1, 1), (2, 2, 2)]


def test_open_axes_get_the_range_that_was_wished() -> None:
    axes = {"ids:1": SEQUENCE, "mask:1": SEQUENCE}
    last = profiles_of(spec_of(IDS, MASK, axes=axes))[-1]
    assert last == dict.fromkeys(("ids", "mask"), ShapeRange((5, 1), (8, 128), (8, 512)))


def test_open_axes_without_a_range_are_all_named_with_the_way_out() -> None:
    with pytest.raises(CannotBuild) as caught:
        profiles_of(spec_of(IDS, MASK, axes={}))
    assert 'input "ids": axis 1 may have any size' in str(caught.value)
    assert 'axes: {"mask:1": {min: 1, opt: 128, max: 512}}' in str(caught.value)


def test_model_that_is_not_batched_has_one_profile_of_its_fixed_shapes() -> None:
    fixed = TensorSpec("x", "FP32", (1, 4))
    assert profiles_of(spec_of(fixed, rows_max=1)) == ({"x": ShapeRange((1, 4), (1, 4), (1, 4))},)


@pytest.mark.parametrize("other", [(), (TensorSpec("k", "FP32", (3,)),)])
def test_open_first_axis_that_does_not_count_rows_is_1_unless_somebody_says(other: Any) -> None:
    spec = spec_of(X, *other, rows_max=8 if other else 1)
    (profile,) = profiles_of(spec)
    assert {profile["x"].min[0], profile["x"].max[0]} == {1}
    wish = replace(spec.wish, axes={"x:0": AxisRange(1, 2, 3)})
    (profile,) = profiles_of(msgspec.structs.replace(spec, wish=wish))
    assert (profile["x"].min[0], profile["x"].opt[0], profile["x"].max[0]) == (1, 2, 3)


@pytest.mark.parametrize("datatype", ["BYTES", "FP64", "INT16", "UINT16", "UINT32", "UINT64"])
def test_datatypes_that_tensorrt_does_not_have_are_named(datatype: str) -> None:
    odd = TensorSpec("odd", datatype, (-1, 4))
    with pytest.raises(CannotBuild) as caught:
        profiles_of(spec_of(odd, outputs=(odd,)))
    assert f'input "odd" is {datatype}, which TensorRT does not have' in str(caught.value)
    assert f'output "odd" is {datatype}' in str(caught.value)


@pytest.mark.parametrize("datatype", TENSORRT_DTYPES)
def test_datatypes_that_tensorrt_has_are_taken(datatype: str) -> None:
    assert profiles_of(spec_of(TensorSpec("x", datatype, (-1, 4))))


def test_converted_graph_is_the_one_that_is_built_from() -> None:
    both = ("model.fp16.onnx", "model.onnx")
    assert graph_of(spec_of(X, precision="fp16", files=both)) == "model.fp16.onnx"
    assert graph_of(spec_of(X, precision="fp32", files=both)) == "model.onnx"


def test_graph_of_a_precision_that_was_not_published_cannot_be_built() -> None:
    with pytest.raises(CannotBuild, match="publish the model with `--precision bf16`"):
        graph_of(spec_of(X, precision="bf16"))


def test_only_graph_may_have_any_name() -> None:
    assert graph_of(spec_of(X, files=("net.onnx", "w.bin"))) == "net.onnx"
    with pytest.raises(CannotBuild, match=r"expected model.onnx .* found a.onnx, b.onnx"):
        graph_of(spec_of(X, files=("a.onnx", "b.onnx")))


def test_fp32_is_built_without_tf32() -> None:
    assert "no_tf32" in flags_of(spec_of(X, precision="fp32"))
    assert "no_tf32" not in flags_of(spec_of(X, precision="fp16"))
    assert list(flags_of(spec_of(X))) == sorted(flags_of(spec_of(X)))


@pytest.mark.parametrize("count", range(1, 13))
def test_every_number_of_rows_has_its_profile(count: int) -> None:
    profiles = profiles_of(spec_of(X, rows_max=12))
    index, is_full = profile_for(profiles, {"x": (count, 4)})
    assert profiles[index]["x"].min[0] <= count <= profiles[index]["x"].max[0]
    assert is_full == (count in (1, 2, 4, 8, 12))


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        ({"ids": (1, 513), "mask": (1, 513)}, '"ids" has size 513 on axis 1; the plan was built'),
        ({"ids": (9, 5), "mask": (9, 5)}, '"ids" has size 9 on axis 0; .* for 1 to 8'),
        ({"ids": (1, 5), "mask": (1,)}, '"mask" has 1 axes; the plan has 2'),
        ({"ids": (1, 5), "mask": (8, 5)}, "no such combination of shapes"),
    ],
)
def test_shapes_beyond_the_profiles_are_refused_with_what_is_possible(
    shapes: dict[str, tuple[int, ...]], text: str
) -> None:
    profiles = profiles_of(spec_of(IDS, MASK, axes={"ids:1": SEQUENCE, "mask:1": SEQUENCE}))
    with pytest.raises(EngineError, match=text):
        profile_for(profiles, shapes)
