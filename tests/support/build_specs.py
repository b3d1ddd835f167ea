"""What is to be built of an ONNX graph in a folder of its own, and a graph with two axes open."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from pool.engines.base import BuildSpec
from registry_sync.documents import AxisRange, EngineWish, File, Manifest, TensorSpec
from registry_sync.onnx_signature import read_signature
from tests.support import models

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def spec_of(graph: Path, **changed: Any) -> BuildSpec:
    """Describe the build of a graph in a folder of its own."""
    beside = {one.name: one.stat().st_size for one in graph.parent.iterdir() if one != graph}
    signature = read_signature(graph, beside)
    batched = all(spec.shape[:1] == (-1,) for spec in signature.inputs)
    return spec_for(graph, signature.inputs, signature.outputs, batched=batched, **changed)


def spec_for(
    graph: Path,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    batched: bool = True,
    rows_max: int = 4,
    device_class: str = "sm_86",
    axes: dict[str, AxisRange] | None = None,
    precision: Any = "fp32",
) -> BuildSpec:
    """Describe the build of a graph with this signature; fp32 and sm_86 unless said otherwise."""
    manifest = Manifest(
        model="m",
        version="1",
        created="",
        format="onnx",
        files=tuple(File(one.name, "0" * 64, 1) for one in sorted(graph.parent.iterdir())),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        rows_max=rows_max if batched else 1,
        deterministic=True,
    )
    wish = EngineWish(precision=precision, axes=axes or {})
    return BuildSpec(manifest, graph.parent, wish, manifest.rows_max, device_class)


def sequence(graph: Path) -> Path:
    """Write a model with two axes open: the mean of the embeddings of the ids that count."""
    dice = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(dice.normal(size=(50, 8)).astype(np.float32), "table"),
        numpy_helper.from_array(np.array([2]), "last"),
        numpy_helper.from_array(np.array([1]), "along"),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Cast", ["mask"], ["counts"], to=FLOAT),
        helper.make_node("Unsqueeze", ["counts", "last"], ["wide"]),
        helper.make_node("Mul", ["rows", "wide"], ["some"]),
        helper.make_node("ReduceMean", ["some", "along"], ["y"], keepdims=0),
    ]
    inputs = [models.tensor(name, INT64, ["N", "S"]) for name in ("ids", "mask")]
    return models.save(graph, nodes, inputs, [models.tensor("y", FLOAT, ["N", 8])], weights)
