"""Bodies and signatures that the tests of edge.body share."""

from __future__ import annotations

import json
import struct
from typing import Any

from edge.body import InferRequest, Signature, parse_infer
from registry_sync.documents import TensorSpec

MLP = Signature.of(
    "mlp", [TensorSpec("x", "FP32", (-1, 4))], [TensorSpec("y", "FP32", (-1, 2))], rows_max=8
)


def signature(
    *inputs: tuple[str, str, tuple[int, ...]],
    outputs: tuple[tuple[str, str, tuple[int, ...]], ...] = (("y", "FP32", (-1, 2)),),
    rows_max: int = 8,
) -> Signature:
    """A signature of inputs and outputs given as (name, datatype, shape)."""
    return Signature.of(
        "m",
        [TensorSpec(*parts) for parts in inputs],
        [TensorSpec(*parts) for parts in outputs],
        rows_max,
    )


def tensor(name: str, datatype: str, shape: list[int], data: Any, **more: Any) -> dict[str, Any]:
    """A tensor of a JSON body."""
    return {"name": name, "shape": shape, "datatype": datatype, "data": data, **more}


def body(*inputs: Any, **fields: Any) -> bytes:
    """A JSON body."""
    return json.dumps({**fields, "inputs": list(inputs)}).encode()


def binary(head: dict[str, Any], *tails: bytes) -> tuple[bytes, str]:
    """A binary body and its header length."""
    text = json.dumps(head).encode()
    return text + b"".join(tails), str(len(text))


def read(data: Any, datatype: str = "FP32", shape: tuple[int, ...] = (1, 4)) -> InferRequest:
    """Read a single input of just this shape, given as JSON."""
    return parse_infer(
        body(tensor("x", datatype, list(shape), data)),
        None,
        signature(("x", datatype, shape), rows_max=1),
    )


def floats(*values: float) -> bytes:
    """FP32 values in binary form."""
    return struct.pack(f"<{len(values)}f", *values)
