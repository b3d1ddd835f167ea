"""The models of the bench: one that is all overhead, one with a large input, one real."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

INPUT = "x"
MLP_SHAPE = (16,)
IMAGE_SHAPE = (3, 224, 224)  # 602,112 bytes as float32
OPSET = 17
IR_VERSION = 8  # what onnxruntime 1.23 reads, and anything newer


def write_mlp(path: Path) -> None:
    """Write a perceptron 16 → 64 → 10 with random weights; about 10 µs a run."""
    dice = np.random.default_rng(1)
    nodes = [
        helper.make_node("Gemm", [INPUT, "w1", "b1"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["h2"]),
        helper.make_node("Gemm", ["h2", "w2", "b2"], ["y"]),
    ]
    shapes = {"w1": (16, 64), "b1": (64,), "w2": (64, 10), "b2": (10,)}
    _write(path, nodes, shapes, dice, MLP_SHAPE)


def write_image(path: Path) -> None:
    """Write a small convolution net for 224x224 pixels; some 0.2 ms a run.

    It is kept cheap, so that what is measured is the way of 602 KB and not the model.
    """
    dice = np.random.default_rng(2)
    nodes = [
        helper.make_node("Conv", [INPUT, "k1"], ["h1"], strides=[8, 8], kernel_shape=[7, 7]),
        helper.make_node("Relu", ["h1"], ["h2"]),
        helper.make_node("GlobalAveragePool", ["h2"], ["h3"]),
        helper.make_node("Flatten", ["h3"], ["h4"]),
        helper.make_node("Gemm", ["h4", "w2", "b2"], ["y"]),
    ]
    shapes = {"k1": (8, 3, 7, 7), "w2": (8, 10), "b2": (10,)}
    _write(path, nodes, shapes, dice, IMAGE_SHAPE)


def _write(
    path: Path,
    nodes: list[onnx.NodeProto],
    shapes: dict[str, tuple[int, ...]],
    dice: np.random.Generator,
    shape: tuple[int, ...],
) -> None:
    weights = [
        numpy_helper.from_array(dice.normal(0, 0.1, size).astype(np.float32), name)
        for name, size in shapes.items()
    ]
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["rows", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 10])],
        weights,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))
