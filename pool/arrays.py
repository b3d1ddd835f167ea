"""Tensors of the wire as numpy arrays, and back."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import numpy as np

from pool.engines.base import NUMPY_DTYPES, Array, Tensors
from pool.wire.data import Tensor, TensorLike

COPIED_BYTES_MAX = 4096  # a copy so small costs less than a view of it
_LENGTH = struct.Struct("<I")


class BadTensor(ValueError):
    """A tensor's bytes are not what its datatype and shape say."""


def to_array(tensor: TensorLike) -> Array:
    """Return a view of a tensor's bytes; of BYTES, an object array of `bytes`.

    Raises:
        BadTensor: the number of bytes does not fit.
    """
    dtype = NUMPY_DTYPES.get(tensor.datatype)
    if dtype is None:
        raise BadTensor(f"{tensor.name!r}: unknown datatype {tensor.datatype!r}")
    shape = tuple(tensor.shape)
    count = math.prod(shape)  # Python ints: no overflow
    if tensor.datatype == "BYTES":
        return _shaped(tensor, _elements(tensor, count))
    if len(tensor.data) != count * dtype.itemsize:
        raise BadTensor(
            f"{tensor.name!r}: {len(tensor.data)} bytes for shape {list(shape)} of "
            f"{tensor.datatype}, expected {count * dtype.itemsize}"
        )
    return _shaped(tensor, np.frombuffer(tensor.data, dtype) if count else np.empty(0, dtype))


def _shaped(tensor: TensorLike, array: Array) -> Array:
    try:
        return array.reshape(tensor.shape)
    except ValueError:
        # numpy multiplies the other sizes of an empty tensor too, and they may be anything.
        raise BadTensor(f"{tensor.name!r}: the shape {list(tensor.shape)} is too large") from None


def _elements(tensor: TensorLike, count: int) -> Array:
    data = memoryview(tensor.data)
    if count * _LENGTH.size > len(data):
        raise BadTensor(f"{tensor.name!r}: {len(data)} bytes cannot hold {count} elements")
    found = np.empty(count, dtype=object)
    start = 0
    for index in range(count):
        if start + _LENGTH.size > len(data):
            raise BadTensor(f"{tensor.name!r}: element {index} runs past the end")
        (length,) = _LENGTH.unpack_from(data, start)
        start += _LENGTH.size
        found[index] = bytes(data[start : start + length])
        start += length
    if start != len(data):
        raise BadTensor(f"{tensor.name!r}: the elements do not fill the {len(data)} bytes")
    return found


def to_tensors(arrays: Tensors, datatypes: dict[str, str]) -> list[Tensor]:
    """Return what an engine answered as tensors of the wire.

    Args:
        arrays: by output name; any real shape.  What is not declared is left out.
        datatypes: the declared datatype of each output, by which an array is cast if the engine
            answered another one.

    Raises:
        BadTensor: an array cannot be said in its datatype.
    """
    return [
        _to_tensor(name, datatypes[name], array)
        for name, array in arrays.items()
        if name in datatypes
    ]


def _to_tensor(name: str, datatype: str, array: Array) -> Tensor:
    shape = array.shape
    if datatype == "BYTES":
        return Tensor(name, datatype, shape, _joined(name, array.reshape(-1).tolist()))
    dtype = NUMPY_DTYPES[datatype]
    if array.dtype != dtype:
        if array.dtype == object:
            raise BadTensor(f"output {name!r} holds {array.dtype}, declared is {datatype}")
        try:
            array = array.astype(dtype)
        except (ValueError, TypeError):
            raise BadTensor(
                f"output {name!r} holds {array.dtype}, declared is {datatype}"
            ) from None
    if array.nbytes <= COPIED_BYTES_MAX:
        return Tensor(name, datatype, shape, array.tobytes())
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    return Tensor(name, datatype, shape, memoryview(array.reshape(-1).data).cast("B"))


def _joined(name: str, elements: Sequence[object]) -> bytes:
    parts = []
    for element in elements:
        if isinstance(element, str):
            element = element.encode()
        if not isinstance(element, bytes):
            raise BadTensor(f"output {name!r} holds {type(element).__name__}, declared is BYTES")
        parts.append(_LENGTH.pack(len(element)))
        parts.append(element)
    return b"".join(parts)
