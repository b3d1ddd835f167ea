"""Calls are joined only along an axis that is the same one in every tensor of the graph."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import TensorProto, helper

from registry_sync.onnx_signature import read_signature
from tests.support import models


def graph(path: Path, inputs: tuple[str | int | None, ...], output: str | int | None) -> Path:
    """Write x + x with these first axes; None is a symbol without a name."""
    names = [f"x{index}" for index in range(len(inputs))]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [axis, 2])
        for name, axis in zip(names, inputs, strict=True)
    ]
    node = helper.make_node("Sum", names, ["y"])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, [output, 2])
    return models.save(path, [node], values, [made])


@pytest.mark.parametrize(
    ("inputs", "output", "is_batch"),
    [
        (("n",), "n", True),
        (("n", "n"), "n", True),
        ((None,), None, True),
        (("n",), "m", False),
        (("n", "k"), "n", False),
        ((4,), 4, False),
        (("n",), 4, False),
    ],
)
def test_batch_axis_is_one_symbol(
    tmp_path: Path,
    inputs: tuple[str | int | None, ...],
    output: str | int | None,
    is_batch: bool,
) -> None:
    path = graph(tmp_path / "model.onnx", inputs, output)
    assert read_signature(path, {}).has_batch_axis is is_batch
