"""Which device classes the installed engines can ever build for, and how others are refused."""

from __future__ import annotations

import importlib

import pytest

from pool.engines.targets import BadTarget, Toolkit, check_targets, installed

RTX = Toolkit("tensorrt_rtx", "1.7.1.116", frozenset({"onnx"}), ("sm_75", "sm_86"))
TENSORRT = Toolkit("tensorrt", "11.4", frozenset({"onnx"}), sm_min=75)
TORCH = Toolkit("torch", "2.13.0+cpu", frozenset({"torch-export"}), cpu=True)


def of(**versions: str) -> tuple[Toolkit, ...]:
    return installed(lambda name: versions.get(name.replace("-", "_")))


def test_the_table_is_what_the_installed_package_says() -> None:
    (rtx,) = [toolkit for toolkit in installed() if toolkit.engine == "tensorrt_rtx"]
    trt = importlib.import_module("tensorrt_rtx")
    names = [name.lower().replace("sm", "sm_") for name in trt.ComputeCapability.__members__]
    assert sorted(rtx.device_classes) == sorted(name for name in names if "sm_" in name)
    assert rtx.version == trt.__version__


def test_every_engine_is_found_under_every_name_of_its_package() -> None:
    assert [t.engine for t in of(tensorrt_cu12="10.9", tensorrt_rtx="1.7", torch="2.13")] == [
        "tensorrt",
        "tensorrt_rtx",
        "torch",
    ]
    assert of() == ()


def test_the_lean_runtime_builds_nothing() -> None:
    assert of(tensorrt_lean_cu13="11.4") == ()


def test_an_older_release_builds_for_fewer_devices() -> None:
    (old,), (new,), (newer,) = (of(tensorrt_rtx_cu13=v) for v in ("1.1.1.26", "1.7.1.116", "2.0"))
    assert not old.covers("sm_121")
    assert new.covers("sm_121")
    assert newer.covers("sm_121")


@pytest.mark.parametrize(
    ("device_class", "is_covered"),
    [("sm_75", True), ("sm_90", True), ("sm_121", True), ("sm_70", False), ("sm_9", False),
     ("cpu_avx2", False), ("sm_90\n", False), ("", False)],
)  # fmt: skip
def test_tensorrt_builds_for_every_gpu_that_it_knows(device_class: str, is_covered: bool) -> None:
    assert TENSORRT.covers(device_class) == is_covered


def test_torch_without_cuda_builds_for_cpus_only() -> None:
    (without,), (with_cuda,) = of(torch="2.13.0+cpu"), of(torch="2.13.0+cu130")
    assert (without.covers("cpu_avx2"), without.covers("sm_90")) == (True, False)
    assert (with_cuda.covers("cpu_avx2"), with_cuda.covers("sm_90")) == (True, True)


def test_a_target_that_something_installed_builds_is_fine() -> None:
    check_targets(["sm_75", "sm_86"], "onnx", [RTX])
    check_targets(["sm_90"], "onnx", [RTX, TENSORRT])
    check_targets(["cpu_avx512"], "torch-export", [TORCH])


def test_a_target_that_nothing_can_build_is_refused_with_those_that_can() -> None:
    with pytest.raises(BadTarget) as refused:
        check_targets(["sm_86", "sm_90", "sm_20"], "onnx", [RTX, TORCH])
    assert str(refused.value) == (
        "sm_90, sm_20: nothing that is installed here or that a live worker has can ever build a "
        "plan for this from onnx; tensorrt_rtx 1.7.1.116 builds for sm_75, sm_86"
    )


def test_only_the_engine_that_is_wished_for_counts() -> None:
    with pytest.raises(BadTarget, match="no tensorrt_rtx that is installed"):
        check_targets(["sm_90"], "onnx", [RTX, TENSORRT], engine="tensorrt_rtx")


def test_where_nothing_is_installed_the_refusal_says_what_to_install() -> None:
    with pytest.raises(BadTarget, match="pip install tensorrt-rtx-cu13 "):
        check_targets(["sm_86"], "onnx", [])
    with pytest.raises(BadTarget, match="no engine builds from pickles"):
        check_targets(["sm_86"], "pickles", [RTX])


def test_an_engine_builds_only_from_its_own_formats() -> None:
    with pytest.raises(BadTarget, match="from onnx"):
        check_targets(["cpu_avx2"], "onnx", [RTX, TORCH])


def test_what_a_live_worker_can_build_is_fine_too() -> None:
    check_targets(["sm_90"], "onnx", [], ["tensorrt/sm_90"])
    check_targets(["sm_90"], "onnx", [RTX], ["tensorrt/sm_90"], engine="tensorrt")
    for announced in ("tensorrt/sm_89", "torch/sm_90", "sm_90"):
        with pytest.raises(BadTarget):
            check_targets(["sm_90"], "onnx", [], [announced])
    with pytest.raises(BadTarget):
        check_targets(["sm_90"], "onnx", [], ["tensorrt/sm_90"], engine="tensorrt_rtx")
