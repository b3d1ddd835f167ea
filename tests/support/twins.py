"""Small models, each for torch and for ONNX, with what they must answer in numpy.

One thing that engines get wrong for each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper

from pool.engines.base import Tensors
from pool.engines.rows import from_bfloat16, to_bfloat16
from registry_sync.documents import File, Manifest, TensorSpec
from registry_sync.pt2_signature import publish_archive
from tests.support import models

WEIGHT = np.random.default_rng(7).standard_normal((4, 3)).astype(np.float32)
BIAS = np.array([0.5, -1, 2], np.float32)
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


@dataclass(frozen=True)
class Twin:
    """One model in two formats.

    `made(rows)` gives inputs, `expected(inputs)` what comes of them; `batches` is what a session
    must find out about it.
    """

    name: str
    module: Callable[[], torch.nn.Module]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    made: Callable[[int], Tensors]
    expected: Callable[[Tensors], Tensors]
    batches: bool = True
    onnx: Callable[[Path], Path] | None = None  # None: ONNX Runtime cannot run it
    rows_max: int = 8
    open_axes: dict[str, dict[int, Any]] = field(default_factory=dict)

    def manifest(self, folder: Path, format: str, **changed: Any) -> Manifest:
        """Describe the artifact in a folder."""
        files = tuple(
            File(one.name, "0" * 64, one.stat().st_size) for one in sorted(folder.iterdir())
        )
        fields: dict[str, Any] = {
            "model": self.name,
            "version": "1",
            "created": "",
            "format": format,
            "files": files,
            "inputs": self.inputs,
            "outputs": self.outputs,
            "rows_max": self.rows_max,
            "deterministic": True,
        }
        return Manifest(**(fields | changed))

    def archive(self, folder: Path) -> Path:
        """Export `model.pt2`, as publishing leaves it."""
        rows = torch.export.Dim("rows", min=1, max=4096)
        example = {
            name: _tensor(array, spec.datatype)
            for (name, array), spec in zip(self.made(3).items(), self.inputs, strict=True)
        }
        shapes = {
            spec.name: {0: rows} | self.open_axes.get(spec.name, {})
            if spec.shape[:1] == (-1,)
            else None
            for spec in self.inputs
        }
        program = torch.export.export(
            self.module().eval(), (), kwargs=example, dynamic_shapes=shapes
        )
        raw = folder.parent / f"{self.name}.raw.pt2"
        torch.export.save(program, raw)
        publish_archive(raw, folder / "model.pt2")
        return folder / "model.pt2"


def _tensor(array: Any, datatype: str) -> torch.Tensor:
    tensor = torch.from_numpy(array.copy())
    return tensor.view(torch.bfloat16) if datatype == "BF16" else tensor


def _dice(rows: int) -> np.random.Generator:
    return np.random.default_rng(rows)


class _Mixed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.from_numpy(WEIGHT.copy()))
        self.bias = torch.nn.Parameter(torch.from_numpy(BIAS.copy()))

    def forward(self, x: Any, i: Any, m: Any) -> Any:
        return {
            "y": x @ self.weight + self.bias,
            "j": torch.where(m, i * 2, i),
            "s": torch.relu(x).sum(1),
        }


def _mixed_onnx(path: Path) -> Path:
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["y"]),
        helper.make_node("Add", ["i", "i"], ["i2"]),
        helper.make_node("Where", ["m", "i2", "i"], ["j"]),
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("ReduceSum", ["r", "one"], ["s"], keepdims=0),
    ]
    weights = [
        numpy_helper.from_array(WEIGHT, "w"),
        numpy_helper.from_array(BIAS, "b"),
        numpy_helper.from_array(np.array([1], np.int64), "one"),
    ]
    inputs = [
        models.tensor("x", FLOAT, ["N", 4]),
        models.tensor("i", INT64, ["N", 2]),
        models.tensor("m", BOOL, ["N", 2]),
    ]
    outputs = [
        models.tensor("y", FLOAT, ["N", 3]),
        models.tensor("j", INT64, ["N", 2]),
        models.tensor("s", FLOAT, ["N"]),
    ]
    return models.save(path, nodes, inputs, outputs, weights)


MIXED = Twin(
    "mixed",
    _Mixed,
    (
        TensorSpec("x", "FP32", (-1, 4)),
        TensorSpec("i", "INT64", (-1, 2)),
        TensorSpec("m", "BOOL", (-1, 2)),
    ),
    (
        TensorSpec("y", "FP32", (-1, 3)),
        TensorSpec("j", "INT64", (-1, 2)),
        TensorSpec("s", "FP32", (-1,)),
    ),
    lambda rows: {
        "x": _dice(rows).standard_normal((rows, 4)).astype(np.float32),
        "i": _dice(rows).integers(-(2**40), 2**40, (rows, 2)),
        "m": _dice(rows).integers(0, 2, (rows, 2)).astype(bool),
    },
    lambda given: {
        "y": given["x"] @ WEIGHT + BIAS,
        "j": np.where(given["m"], given["i"] * 2, given["i"]),
        "s": np.maximum(given["x"], 0).sum(1),
    },
    onnx=_mixed_onnx,
)


class _Halves(torch.nn.Module):
    def forward(self, h: Any, g: Any) -> Any:
        return {"h2": h + h, "g2": g + g}


HALVES = Twin(
    "halves",
    _Halves,
    (TensorSpec("h", "FP16", (-1, 4)), TensorSpec("g", "BF16", (-1, 4))),
    (TensorSpec("h2", "FP16", (-1, 4)), TensorSpec("g2", "BF16", (-1, 4))),
    lambda rows: {
        "h": _dice(rows).standard_normal((rows, 4)).astype(np.float16),
        "g": to_bfloat16(_dice(rows).standard_normal((rows, 4))),
    },
    lambda given: {
        "h2": given["h"] + given["h"],
        "g2": to_bfloat16(from_bfloat16(given["g"]) * 2),
    },
)


class _Summed(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return {"y": x.sum(0, keepdim=True)}


SUMMED = Twin(
    "summed",
    _Summed,
    (TensorSpec("x", "FP32", (-1, 2)),),
    (TensorSpec("y", "FP32", (1, 2)),),
    lambda rows: {"x": _dice(rows).standard_normal((rows, 2)).astype(np.float32)},
    lambda given: {"y": given["x"].sum(0, keepdims=True)},
    batches=False,
    onnx=lambda path: models.save(
        path,
        [helper.make_node("ReduceSum", ["x", "zero"], ["y"], keepdims=1)],
        [models.tensor("x", FLOAT, ["N", 2])],
        [models.tensor("y", FLOAT, [1, 2])],
        [numpy_helper.from_array(np.array([0], np.int64), "zero")],
    ),
)


class _Centred(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return {"y": x - x.mean(0, keepdim=True)}


CENTRED = Twin(
    "centred",
    _Centred,
    (TensorSpec("x", "FP32", (-1, 2)),),
    (TensorSpec("y", "FP32", (-1, 2)),),
    lambda rows: {"x": _dice(rows).standard_normal((rows, 2)).astype(np.float32)},
    lambda given: {"y": given["x"] - given["x"].mean(0, keepdims=True)},
    batches=False,
    onnx=lambda path: models.save(
        path,
        [
            helper.make_node("ReduceMean", ["x", "zero"], ["mean"], keepdims=1),
            helper.make_node("Sub", ["x", "mean"], ["y"]),
        ],
        [models.tensor("x", FLOAT, ["N", 2])],
        [models.tensor("y", FLOAT, ["N", 2])],
        [numpy_helper.from_array(np.array([0], np.int64), "zero")],
    ),
)


class _Open(torch.nn.Module):
    def forward(self, ids: Any) -> Any:
        return {"y": ids.to(torch.float32) * 0.5}


OPEN = Twin(
    "open",
    _Open,
    (TensorSpec("ids", "INT64", (-1, -1)),),
    (TensorSpec("y", "FP32", (-1, -1)),),
    lambda rows: {"ids": _dice(rows).integers(0, 100, (rows, 1 + rows % 5))},
    lambda given: {"y": given["ids"].astype(np.float32) * np.float32(0.5)},
    onnx=lambda path: models.save(
        path,
        [
            helper.make_node("Cast", ["ids"], ["f"], to=FLOAT),
            helper.make_node("Constant", [], ["half"], value_floats=[0.5]),
            helper.make_node("Mul", ["f", "half"], ["y"]),
        ],
        [models.tensor("ids", INT64, ["N", "L"])],
        [models.tensor("y", FLOAT, ["N", "L"])],
    ),
    open_axes={"ids": {1: torch.export.Dim("length", min=1, max=512)}},
)


class _Found(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return {"y": (x > 0).nonzero()}


FOUND = Twin(
    "found",
    _Found,
    (TensorSpec("x", "FP32", (-1, 2)),),
    (TensorSpec("y", "INT64", (-1, 2)),),
    lambda rows: {"x": _dice(rows).standard_normal((rows, 2)).astype(np.float32)},
    lambda given: {"y": np.argwhere(given["x"] > 0)},
    batches=False,
    onnx=lambda path: models.save(
        path,
        [
            helper.make_node("Constant", [], ["zero"], value_float=0.0),
            helper.make_node("Greater", ["x", "zero"], ["is"]),
            helper.make_node("NonZero", ["is"], ["t"]),
            helper.make_node("Transpose", ["t"], ["y"]),
        ],
        [models.tensor("x", FLOAT, ["N", 2])],
        [models.tensor("y", INT64, ["found", 2])],
    ),
)


class _Fixed(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return {"y": x * 3}


FIXED = Twin(
    "fixed",
    _Fixed,
    (TensorSpec("x", "FP32", (1, 4)),),
    (TensorSpec("y", "FP32", (1, 4)),),
    lambda rows: {"x": _dice(rows).standard_normal((1, 4)).astype(np.float32)},
    lambda given: {"y": given["x"] * np.float32(3)},
    batches=False,
    rows_max=1,
    onnx=lambda path: models.save(
        path,
        [
            helper.make_node("Constant", [], ["three"], value_floats=[3.0]),
            helper.make_node("Mul", ["x", "three"], ["y"]),
        ],
        [models.tensor("x", FLOAT, [1, 4])],
        [models.tensor("y", FLOAT, [1, 4])],
    ),
)

TWINS = {one.name: one for one in (MIXED, HALVES, SUMMED, CENTRED, OPEN, FOUND, FIXED)}
