"""Tiny ONNX models for tests, written with `onnx.helper`; the same bytes each time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# Old enough for onnxruntime 1.23, which reads IR versions up to 11 and opsets up to 23.
IR_VERSION = 10
OPSET = 21

ELEMENT_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
}


def mlp(
    path: Path, features: int = 16, hidden: int = 64, classes: int = 10, *, seed: int = 0
) -> Path:
    """Write ``y = relu(x @ w1 + b1) @ w2 + b2``; x is FP32 [N, features], y FP32 [N, classes]."""
    random = np.random.default_rng(seed)
    weights = [
        _weights(random, "w1", (features, hidden)),
        _weights(random, "b1", (hidden,)),
        _weights(random, "w2", (hidden, classes)),
        _weights(random, "b2", (classes,)),
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"]),
    ]
    inputs = [tensor("x", TensorProto.FLOAT, ["N", features])]
    outputs = [tensor("y", TensorProto.FLOAT, ["N", classes])]
    return save(path, nodes, inputs, outputs, weights)


def conv(path: Path, size: int = 224, classes: int = 10, *, seed: int = 0) -> Path:
    """Write a small image classifier; x is FP32 [N, 3, size, size], y FP32 [N, classes]."""
    random = np.random.default_rng(seed)
    weights = [
        _weights(random, "k1", (8, 3, 3, 3)),
        _weights(random, "k2", (16, 8, 3, 3)),
        _weights(random, "w", (16, classes)),
        _weights(random, "b", (classes,)),
    ]
    thinned = {"strides": [4, 4], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "k1"], ["c1"], **thinned),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "k2"], ["c2"], **thinned),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["y"]),
    ]
    inputs = [tensor("x", TensorProto.FLOAT, ["N", 3, size, size])]
    outputs = [tensor("y", TensorProto.FLOAT, ["N", classes])]
    return save(path, nodes, inputs, outputs, weights)


def heavy(path: Path, layers: int = 24, size: int = 256, *, seed: int = 0) -> Path:
    """Write a model that takes long for one call and never runs two at once.

    x is FP32 [1, 4], y FP32 [1, size]; each layer multiplies two matrices of `size` by `size`.
    """
    random = np.random.default_rng(seed)
    weights = [
        _weights(random, "spread", (4, size * size)),
        _weights(random, "w", (size, size)),
        numpy_helper.from_array(np.array([size, size]), "square"),
        numpy_helper.from_array(np.array([0]), "rows"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "spread"], ["flat"]),
        helper.make_node("Reshape", ["flat", "square"], ["h0"]),
    ]
    for layer in range(layers):
        nodes += [
            helper.make_node("MatMul", [f"h{layer}", "w"], [f"m{layer}"]),
            helper.make_node("Tanh", [f"m{layer}"], [f"h{layer + 1}"]),
        ]
    nodes.append(helper.make_node("ReduceMean", [f"h{layers}", "rows"], ["y"]))
    inputs = [tensor("x", TensorProto.FLOAT, [1, 4])]
    outputs = [tensor("y", TensorProto.FLOAT, [1, size])]
    return save(path, nodes, inputs, outputs, weights)


def attention(path: Path, hidden: int = 16, classes: int = 4, *, seed: int = 0) -> Path:
    """Write a small masked transformer, the way exporters write one.

    ids and mask are INT64 [N, S], ids up to 127; y is FP32 [N, classes], a distribution.
    """
    random = np.random.default_rng(seed)
    weights = [
        _weights(random, "table", (128, hidden)),
        *(_weights(random, name, (hidden, hidden)) for name in ("wq", "wk", "wv")),
        _weights(random, "head", (hidden, classes)),
        numpy_helper.from_array(np.ones(hidden, np.float32), "gamma"),
        numpy_helper.from_array(np.array(1.0, np.float32), "one"),
        numpy_helper.from_array(np.array(np.finfo(np.float32).min), "lowest"),
        numpy_helper.from_array(np.array(1e-12, np.float32), "epsilon"),
        numpy_helper.from_array(np.array([1]), "first"),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("MatMul", ["e", "wq"], ["q"]),
        helper.make_node("MatMul", ["e", "wk"], ["k"]),
        helper.make_node("MatMul", ["e", "wv"], ["v"]),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"]),
        helper.make_node("Cast", ["mask"], ["seen"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["one", "seen"], ["unseen"]),
        helper.make_node("Mul", ["unseen", "lowest"], ["shut"]),
        helper.make_node("Unsqueeze", ["shut", "first"], ["shut_rows"]),
        helper.make_node("Add", ["scores", "shut_rows"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["part"]),
        helper.make_node("MatMul", ["part", "v"], ["mixed"]),
        helper.make_node("Add", ["mixed", "e"], ["residual"]),
        helper.make_node("LayerNormalization", ["residual", "gamma"], ["normal"]),
        helper.make_node("ReduceMean", ["normal", "first"], ["mean"], keepdims=0),
        helper.make_node("ReduceL2", ["mean", "first"], ["norm"]),
        helper.make_node("Add", ["norm", "epsilon"], ["safe"]),
        helper.make_node("Div", ["mean", "safe"], ["unit"]),
        helper.make_node("MatMul", ["unit", "head"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["y"]),
    ]
    inputs = [tensor(name, TensorProto.INT64, ["N", "S"]) for name in ("ids", "mask")]
    outputs = [tensor("y", TensorProto.FLOAT, ["N", classes])]
    return save(path, nodes, inputs, outputs, weights)


def identity(path: Path, datatype: str = "FP32", shape: Sequence[int | str] = ("N", 4)) -> Path:
    """Write ``y = x`` for an OIP datatype; a text in `shape` is a symbolic size, () a scalar."""
    element = ELEMENT_TYPES[datatype]
    return save(
        path,
        [helper.make_node("Identity", ["x"], ["y"])],
        [tensor("x", element, shape)],
        [tensor("y", element, shape)],
    )


def identity_that_fails(path: Path, above: float) -> Path:
    """Write ``y = x``, FP32 [1, 4], which onnxruntime fails wherever ``x[0, 0] > above``.

    The index of a table with one row is out of range then, which nobody can see in the graph.
    """
    weights = [
        numpy_helper.from_array(np.ones(1, np.float32), "table"),
        numpy_helper.from_array(np.array([above], np.float32), "above"),
        numpy_helper.from_array(np.array([0]), "column"),
    ]
    nodes = [
        helper.make_node("Gather", ["x", "column"], ["first"], axis=1),
        helper.make_node("Greater", ["first", "above"], ["is_above"]),
        helper.make_node("Cast", ["is_above"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["one"]),
        helper.make_node("Mul", ["x", "one"], ["y"]),
    ]
    inputs, outputs = ([tensor(name, TensorProto.FLOAT, [1, 4])] for name in ("x", "y"))
    return save(path, nodes, inputs, outputs, weights)


def tensor(name: str, element: int, shape: Sequence[int | str | None] | None) -> Any:
    """Describe an input or output; a `shape` of None leaves its rank out."""
    return helper.make_tensor_value_info(name, element, shape)


def save(
    path: Path,
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    weights: Sequence[Any] = (),
    *,
    functions: Sequence[Any] = (),
    external: str | None = None,
) -> Path:
    """Write a graph; `external` names the file beside it that takes the weights."""
    graph = helper.make_graph(list(nodes), path.stem, list(inputs), list(outputs), list(weights))
    domains = sorted({function.domain for function in functions})
    model = helper.make_model(
        graph,
        functions=list(functions),
        ir_version=IR_VERSION,
        opset_imports=[
            helper.make_opsetid("", OPSET),
            *(helper.make_opsetid(domain, 1) for domain in domains),
        ],
    )
    onnx.save_model(
        model,
        str(path),
        save_as_external_data=external is not None,
        location=external,
        size_threshold=0,
    )
    return path


def _weights(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> Any:
    scale = 1 / np.sqrt(np.prod(shape[:-1]) or 1)
    values = (random.standard_normal(shape) * scale).astype(np.float32)
    return numpy_helper.from_array(values, name)
