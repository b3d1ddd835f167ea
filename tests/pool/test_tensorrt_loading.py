"""Loading a plan where there is no device, and what is kept of builds for the next time."""

from __future__ import annotations

import importlib
import threading
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from pool.engines.base import BuildSpec, PlanRefused
from pool.engines.local_caches import FILES_MAX, read_cache, write_cache
from pool.engines.tensorrt_engine import TensorRtEngine
from pool.engines.tensorrt_log import Said, listening
from tests.support import models
from tests.support.build_specs import spec_of

RTX = TensorRtEngine("tensorrt_rtx", "cpu")
VERSION = RTX.probe().version


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[BuildSpec, Path]:
    folder = tmp_path_factory.mktemp("built")
    (folder / "artifact").mkdir()
    spec = spec_of(models.mlp(folder / "artifact" / "model.onnx"))
    RTX.build(spec, folder / "plan", folder / "caches")
    return spec, folder / "plan"


def load(spec: BuildSpec, plan: Path, **other: Any) -> None:
    RTX.load_plan(spec, replace(RTX.identity(spec), **other), plan, plan.parent)


def test_plan_is_refused_without_a_device_with_what_tensorrt_says(
    built: tuple[BuildSpec, Path],
) -> None:
    assert not RTX.probe().available
    with pytest.raises(PlanRefused, match=r"does not load the plan: .*Cuda Runtime .*driver"):
        load(*built)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda data: b"", "empty memory buffer"),
        (lambda data: data[: len(data) // 2], "plan.header.size == blobSize failed"),
        (lambda data: bytes(len(data)), "incompatible serialization version"),
    ],
)
def test_damaged_plan_is_refused_with_what_tensorrt_says(
    built: tuple[BuildSpec, Path], tmp_path: Path, damage: Any, why: str
) -> None:
    spec, plan = built
    (tmp_path / "plan").write_bytes(damage(plan.read_bytes()))
    with pytest.raises(PlanRefused, match=why):
        load(spec, tmp_path / "plan")


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"runtime": "1.0.0.1"}, f"is for tensorrt_rtx 1.0.0.1, and here is {VERSION}"),
        ({"engine": "tensorrt"}, "is one of tensorrt, not of tensorrt_rtx"),
        ({"driver": 535}, "is for driver 535, and here is none"),
    ],
)
def test_foreign_plan_is_refused_before_tensorrt_sees_it(
    built: tuple[BuildSpec, Path], other: dict[str, Any], why: str
) -> None:
    with pytest.raises(PlanRefused, match=why):
        load(built[0], Path("/nowhere"), **other)


def test_framework_is_given_one_logger_that_stays() -> None:
    """It keeps the first for the whole process, and would call it after it is gone."""
    trt = importlib.import_module("tensorrt_rtx")
    assert listening(trt, Said()) is listening(trt, Said())


def test_each_thread_hears_what_comes_of_its_own_calls_although_there_is_one_logger() -> None:
    trt = importlib.import_module("tensorrt_rtx")
    heard = [Said() for _ in range(4)]
    together = threading.Barrier(4)

    def fail(said: Said, plan: bytes) -> None:
        runtime = trt.Runtime(listening(trt, said))
        together.wait()
        for _ in range(20):
            assert runtime.deserialize_cuda_engine(plan) is None

    plans = (b"", bytes(100), b"", bytes(100))
    threads = [threading.Thread(target=fail, args=pair) for pair in zip(heard, plans, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ["empty memory buffer" in said.reason() for said in heard] == [True, False, True, False]
    assert all(said.take_reason() for said in heard)
    assert heard[0].reason() == "TensorRT gave no reason"


def test_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    write_cache(tmp_path / "file" / "a.timing", b"x")
    assert read_cache(tmp_path / "file" / "a.timing", 10) == b""


def test_oldest_caches_of_a_kind_go(tmp_path: Path) -> None:
    for number in range(FILES_MAX + 3):
        write_cache(tmp_path / f"{number}.runtime", b"xy")
    write_cache(tmp_path / "1.timing", b"x")
    assert len(list(tmp_path.iterdir())) == FILES_MAX + 1
    assert read_cache(tmp_path / f"{FILES_MAX + 2}.runtime", 2) == b"xy"
    assert read_cache(tmp_path / f"{FILES_MAX + 2}.runtime", 1) == b"", "larger than it may be"
