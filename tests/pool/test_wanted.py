"""What a version is to run with when its manifest and several endpoints have their say."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from pool.placement import Ref
from pool.wanted import wanted, wanted_of
from registry_sync.builds import Wanted, open_axes
from registry_sync.documents import (
    AxisRange,
    Batch,
    EndpointSpec,
    EngineWish,
    File,
    Manifest,
    TensorSpec,
    Variant,
)

M1: Ref = ("m", "1")
IDS = TensorSpec("ids", "INT64", (-1, -1))
IMAGE = TensorSpec("image", "FP32", (-1, 3, -1, 224))


def manifest(version: str = "1", **changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "model": "m",
        "version": version,
        "created": "",
        "format": "onnx",
        "files": (File("model.onnx", "0" * 64, 1),),
        "inputs": (IDS,),
        "outputs": (TensorSpec("y", "FP32", (-1, 4)),),
        "rows_max": 32,
        "deterministic": True,
    }
    return Manifest(**{**fields, **changes})


def spec(
    name: str, wish: EngineWish | None = None, rows_max: int = 32, *, versions: str = "1"
) -> EndpointSpec:
    """An endpoint over some versions of the model `m`."""
    arms = [Variant(f"v{v}", "m", v, 100.0 / len(versions)) for v in versions]
    return EndpointSpec(name, tuple(arms), batch=Batch(rows_max), engine=wish or EngineWish())


def together(*specs: EndpointSpec, **changes: Any) -> Wanted:
    """What `m`/`1` is to run with; the same in whatever order the endpoints come."""
    manifests = {M1: manifest(**changes)}
    results = [wanted(some, manifests)[M1] for some in itertools.permutations(specs)]
    assert all(result == results[0] for result in results)
    return results[0]


def test_nobody_says_anything_so_the_manifest_holds() -> None:
    ours = EngineWish("tensorrt", "fp16", {"ids:1": AxisRange(1, 64, 128)})
    assert together(spec("a"), precision="fp16", engine=ours) == Wanted(ours, 32)


def test_version_without_a_wish_runs_as_exactly_as_it_promises() -> None:
    assert wanted_of(manifest(precision="bf16")) == Wanted(EngineWish(precision="bf16"), 32)


def test_endpoint_has_the_last_word() -> None:
    ours = EngineWish("tensorrt", None, {"ids:1": AxisRange(1, 64, 128)})
    wish = EngineWish("torch", "fp32", {"ids:1": AxisRange(8, 8, 8)}, ahead_of_time=True)
    assert together(spec("a", wish), precision="fp16", engine=ours).engine == wish


def test_more_exact_precision_wins() -> None:
    exact, own = spec("a", EngineWish(precision="fp32")), spec("b")
    assert together(exact, own, precision="fp16").engine.precision == "fp32"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_precision_that_the_version_does_not_have_is_passed_over(precision: Any) -> None:
    assert together(spec("a", EngineWish(precision=precision))).engine.precision == "fp32"


def test_engines_of_two_names_are_any() -> None:
    one, other = spec("a", EngineWish("torch")), spec("b", EngineWish("tensorrt"))
    assert together(one, other).engine.name == "auto"
    assert together(one, one).engine.name == "torch"


def test_ranges_cover_all_that_are_given() -> None:
    short = spec("a", EngineWish(axes={"ids:1": AxisRange(4, 16, 64)}))
    long = spec("b", EngineWish(axes={"ids:1": AxisRange(32, 128, 256)}))
    assert together(short, long, spec("c")).engine.axes == {"ids:1": AxisRange(4, 128, 256)}


def test_endpoint_that_gives_no_range_has_the_manifests() -> None:
    ours = EngineWish(axes={"ids:1": AxisRange(1, 64, 512)})
    short = spec("a", EngineWish(axes={"ids:1": AxisRange(1, 8, 8)}))
    assert together(short, engine=ours).engine.axes == {"ids:1": AxisRange(1, 8, 8)}
    assert together(short, spec("b"), engine=ours).engine.axes == {"ids:1": AxisRange(1, 64, 512)}


def test_axis_that_the_version_does_not_leave_open_is_passed_over() -> None:
    axes = {name: AxisRange(1, 1, 1) for name in ("image:1", "image:2", "image:3", "other:1")}
    found = together(spec("a", EngineWish(axes=axes)), inputs=(IMAGE,)).engine
    assert found.axes.keys() == {"image:2"} == open_axes(manifest(inputs=(IMAGE,)))


def test_largest_batch_wins_within_the_manifests() -> None:
    assert together(spec("a", rows_max=8), spec("b", rows_max=16)).rows_max == 16
    assert together(spec("a", rows_max=8), spec("b", rows_max=16), rows_max=4).rows_max == 4


def test_compiling_ahead_is_enough_for_one_to_want() -> None:
    assert together(spec("a", EngineWish(ahead_of_time=True)), spec("b")).engine.ahead_of_time


def test_every_arm_is_told_and_a_version_without_a_manifest_is_left_out() -> None:
    found = wanted([spec("a", versions="123")], {M1: manifest(), ("m", "2"): manifest("2")})
    assert found.keys() == {("m", "1"), ("m", "2")}
