"""Answers as bodies: JSON, JSON with binary tensors behind it, and server-sent events.

JSON never carries NaN or infinity: an output that holds one fails as JSON and passes as binary.
Numbers go from the worker's bytes to text without becoming Python objects (orjson over numpy),
which also writes a float32 in its own shortest digits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import orjson

from edge.body_request import InferRequest
from edge.errors import ModelFailed, WorkerLost, quote
from edge.tensors import DTYPES, TensorLike, split_bytes
from registry_sync.datatypes import ITEMSIZE

_JSON = ("content-type", "application/json")
_BINARY = ("content-type", "application/octet-stream")
_DTYPES = {datatype: np.dtype(name) for datatype, name in DTYPES.items()}


def render_infer(
    request: InferRequest, model_name: str, model_version: str, outputs: Sequence[TensorLike]
) -> tuple[bytes, list[tuple[str, str]]]:
    """Render the answer to an infer request.

    Args:
        request: whose id, outputs and binary flags are followed.
        model_name: as the caller named it.
        model_version: of the variant that answered.
        outputs: from the worker or the cache, at least those that are wanted.

    Returns:
        The body, and its headers in lower case, without content-length.

    Raises:
        ModelFailed: an output cannot be said in JSON.
        WorkerLost: an output is missing or has not the bytes of its shape.
    """
    if request.outputs:
        outputs = pick(outputs, request.outputs)
    binary = request.binary
    parts = [_head(model_name, model_version, request.id), b',"outputs":[']
    raw: list[bytes | bytearray | memoryview] = []
    comma = b""
    for tensor in outputs:
        data = tensor.data
        shape = orjson.dumps(tensor.shape)
        if tensor.name in binary:
            parts += (
                comma,
                _output_head(tensor.name, tensor.datatype),
                shape,
                b',"parameters":{"binary_data_size":%d}}' % len(data),
            )
            raw.append(data)
        else:
            parts += (
                comma,
                _output_head(tensor.name, tensor.datatype),
                shape,
                b',"data":',
                render_data(tensor),
                b"}",
            )
        comma = b","
    parts.append(b"]}")
    if not raw:
        return b"".join(parts), [_JSON]
    text = b"".join(parts)
    raw.insert(0, text)
    return b"".join(raw), [_BINARY, ("inference-header-content-length", str(len(text)))]


def render_generate(
    request: InferRequest, model_name: str, model_version: str, outputs: Sequence[TensorLike]
) -> bytes:
    """Render the answer to a generate request: one JSON object with a field per output.

    An output of one element becomes a scalar, another a flat array.  Raises as `render_infer`.
    """
    if request.outputs:
        outputs = pick(outputs, request.outputs)
    parts = [_head(model_name, model_version, request.id)]
    for tensor in outputs:
        data = render_data(tensor)
        if math.prod(tensor.shape) == 1:
            data = data[1:-1]
        parts += (b",", orjson.dumps(tensor.name), b":", data)
    parts.append(b"}")
    return b"".join(parts)


def render_event(
    request: InferRequest, model_name: str, model_version: str, outputs: Sequence[TensorLike]
) -> bytes:
    """Render one answer of a stream as a server-sent event; raises as `render_infer`."""
    return b"data: %b\n\n" % render_generate(request, model_name, model_version, outputs)


def render_error_event(text: str) -> bytes:
    """Render the event that ends a stream which failed after its first bytes were sent."""
    return b'data: {"error":%b}\n\n' % orjson.dumps(text)


def pick(outputs: Iterable[TensorLike], names: Sequence[str]) -> list[TensorLike]:
    """Take the wanted outputs, in the order in which they were asked for."""
    by_name = {tensor.name: tensor for tensor in outputs}
    try:
        return [by_name[name] for name in names]
    except KeyError as error:
        raise WorkerLost(f"the worker's answer lacks output {quote(error.args[0])}") from None


def render_data(tensor: TensorLike) -> bytes:
    """Write a tensor's elements as a flat JSON array; raises as `render_infer`."""
    dtype = _DTYPES.get(tensor.datatype)
    data = tensor.data
    count = math.prod(tensor.shape)
    if dtype is None:
        return _render_strings(tensor, count)
    if len(data) != count * dtype.itemsize:
        raise refuse_size(tensor)
    array = np.frombuffer(data, dtype) if count else np.empty(0, dtype)
    if not array.flags.aligned:
        array = array.copy()
    text = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)
    # orjson writes NaN and infinity as null, and nothing else with an n.
    if dtype.kind == "f" and b"n" in text:
        raise ModelFailed(
            f"non_finite_output: output {quote(tensor.name)} holds NaN or infinity, which JSON "
            "cannot carry; ask for it as binary data to see it",
            code="non_finite_output",
        )
    return text


def _render_strings(tensor: TensorLike, count: int) -> bytes:
    if tensor.datatype in ITEMSIZE:
        raise ModelFailed(
            f"output {quote(tensor.name)} is {tensor.datatype}, which has no JSON form; ask for "
            "it as binary data",
            code="no_json_form",
        )
    try:
        elements = split_bytes(tensor.data, count)
    except ValueError:
        raise refuse_size(tensor) from None
    try:
        return orjson.dumps([element.decode() for element in elements])
    except UnicodeDecodeError:
        raise ModelFailed(
            f"output {quote(tensor.name)} holds bytes that are not UTF-8, which JSON cannot "
            "carry; ask for it as binary data",
            code="not_utf8_output",
        ) from None


def refuse_size(tensor: TensorLike) -> WorkerLost:
    """Say that an output has not the bytes of its shape."""
    return WorkerLost(
        f"the worker's answer for output {quote(tensor.name)} has not the bytes of its shape"
    )


def _head(model_name: str, model_version: str, id_: str | None) -> bytes:
    if id_ is None:
        return _model_head(model_name, model_version)
    return b'%b,"id":%b' % (_model_head(model_name, model_version), orjson.dumps(id_))


@functools.lru_cache(maxsize=4096)
def _model_head(model_name: str, model_version: str) -> bytes:
    text = orjson.dumps({"model_name": model_name, "model_version": model_version})
    return text[:-1]


@functools.lru_cache(maxsize=4096)
def _output_head(name: str, datatype: str) -> bytes:
    text = orjson.dumps({"name": name, "datatype": datatype})
    return text[:-1] + b',"shape":'
