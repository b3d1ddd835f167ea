"""The models of the sessions' contract can be built: a GPU is all that its tests wait for."""

from __future__ import annotations

from pathlib import Path

import pytest

from pool.engines.base import BuildSpec, CannotBuild
from pool.engines.tensorrt_engine import TensorRtEngine
from registry_sync.documents import AxisRange, EngineWish
from tests.support.twins import FOUND, OPEN, TWINS, Twin

ON_ONNX = [twin for twin in TWINS.values() if twin.onnx is not None]


def build(twin: Twin, tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    folder.mkdir()
    assert twin.onnx is not None
    twin.onnx(folder / "model.onnx")
    axes = {"ids:1": AxisRange(1, 4, 16)} if twin is OPEN else {}
    wish = EngineWish(precision="fp32", axes=axes)
    spec = BuildSpec(twin.manifest(folder, "onnx"), folder, wish, twin.rows_max, "sm_86")
    TensorRtEngine("tensorrt_rtx", "cpu").build(spec, tmp_path / "plan", tmp_path)
    return tmp_path / "plan"


@pytest.mark.parametrize(
    "twin", [twin for twin in ON_ONNX if twin is not FOUND], ids=lambda twin: twin.name
)
def test_twin_is_built(twin: Twin, tmp_path: Path) -> None:
    assert build(twin, tmp_path).exists()


def test_outputs_whose_sizes_depend_on_values_cannot_be_built(tmp_path: Path) -> None:
    with pytest.raises(CannotBuild, match="NonZero"):
        build(FOUND, tmp_path)
