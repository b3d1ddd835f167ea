"""Whatever ONNX's own test models hold: a converted graph is valid and gives much the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper

from pool.engines.onnxruntime_engine import session_options
from pool.engines.widening import widen
from registry_sync import onnx_precision
from registry_sync.onnx_checks import check_model
from registry_sync.onnx_precision import convert, element_types

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
GRAPHS = sorted(
    path for kind in ("pytorch-converted", "pytorch-operator") for path in (DATA / kind).glob("*")
)
FAR = 0.01  # of an output's largest value


class Everything(frozenset[str]):
    """The names of all operators."""

    def __contains__(self, name: object) -> bool:
        return True


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every operator that has the precision change over, and none stay."""
    monkeypatch.setattr(onnx_precision, "HEAVY", Everything())
    monkeypatch.setattr(onnx_precision, "STAY", frozenset())


def run(model: Any, inputs: Mapping[str, Any]) -> list[Any]:
    session = ort.InferenceSession(model.SerializeToString(), session_options(1))
    return list(session.run(None, dict(inputs)))


def inputs_of(folder: Path, model: Any) -> dict[str, Any]:
    weights = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in weights]
    found = {}
    for number, name in enumerate(names):
        tensor = TensorProto()
        tensor.ParseFromString((folder / "test_data_set_0" / f"input_{number}.pb").read_bytes())
        found[name] = numpy_helper.to_array(tensor)
    return found


def distance(one: Any, other: Any) -> float:
    one, other = np.nan_to_num(one.astype(np.float64)), np.nan_to_num(other.astype(np.float64))
    return float(np.abs(one - other).max() / (np.abs(one).max() + 1e-6)) if one.size else 0.0


@pytest.mark.usefixtures("eager")
def test_models_of_all_operators_stay_valid_and_close() -> None:
    converted = ran = 0
    for folder in GRAPHS:
        model = onnx.load(folder / "model.onnx")
        check_model(model, folder.name)
        inputs = inputs_of(folder, model)
        try:
            expected = run(model, inputs)
        except Exception:
            expected = []  # older than what ONNX Runtime runs
        try:
            found = convert(model, "fp16", folder.name)
        except onnx_precision.BadModel:
            continue  # its opset has no fp16 for it
        onnx.checker.check_model(found.model, full_check=True)
        converted += 1
        if expected:
            wide = widen(found.model, element_types(found.model, ""))
            pairs = zip(expected, run(wide, inputs), strict=True)
            assert max(distance(*pair) for pair in pairs) < FAR, folder.name
            ran += 1
    assert converted > 70
    assert ran > 60
