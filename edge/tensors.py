"""How the edge holds a tensor, and what the protocol's datatypes are in `struct` and numpy.

A tensor stays in its binary form from the client's body to the worker and back: nothing here
or elsewhere in the edge computes with it.  It is the wire's own class, so that neither way has
a conversion.  JSON is decoded and rendered in `body_json` and `body_render`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from pool.wire.data import Tensor, TensorLike
from pool.wire.frames import Buffer

__all__ = [
    "CODES",
    "DTYPES",
    "Buffer",
    "Tensor",
    "TensorLike",
    "element_ends",
    "join_bytes",
    "shape_text",
    "split_bytes",
]

# `struct` codes of the numbers that JSON can carry: they are checked against the type's range
# as they are packed.  BF16 is absent: it has no JSON form.
CODES: Mapping[str, str] = MappingProxyType(
    {
        "UINT8": "B",
        "UINT16": "H",
        "UINT32": "I",
        "UINT64": "Q",
        "INT8": "b",
        "INT16": "h",
        "INT32": "i",
        "INT64": "q",
        "FP16": "e",
        "FP32": "f",
        "FP64": "d",
    }
)

# numpy's names of what it can show as JSON.
DTYPES: Mapping[str, str] = MappingProxyType(
    {
        "BOOL": "?",
        "UINT8": "u1",
        "UINT16": "<u2",
        "UINT32": "<u4",
        "UINT64": "<u8",
        "INT8": "i1",
        "INT16": "<i2",
        "INT32": "<i4",
        "INT64": "<i8",
        "FP16": "<f2",
        "FP32": "<f4",
        "FP64": "<f8",
    }
)

LENGTH_BYTES = 4  # before each element of a BYTES tensor, little-endian
_length_at = struct.Struct("<I").unpack_from


def shape_text(shape: Sequence[int]) -> str:
    """Write a shape as Triton's errors do: `[-1,16]`."""
    return f"[{','.join(map(str, shape))}]"


def join_bytes(elements: Sequence[bytes]) -> bytes:
    """Put the elements of a BYTES tensor into the protocol's binary form."""
    parts: list[bytes] = []
    for element in elements:
        parts.append(len(element).to_bytes(LENGTH_BYTES, "little"))
        parts.append(element)
    return b"".join(parts)


def element_ends(data: Buffer, count: int) -> list[int]:
    """Find where each element of a BYTES tensor ends, and check that they fill it.

    Args:
        data: the whole tensor in the protocol's binary form.
        count: how many elements its shape promises.

    Raises:
        ValueError: the lengths do not add up to exactly `count` elements; says where.
    """
    total = len(data)
    # Before anything is made of `count`, which comes from a stranger.
    if count * LENGTH_BYTES > total:
        raise ValueError(f"{total} bytes cannot hold {count} elements")
    ends: list[int] = []
    end = 0
    last = total - LENGTH_BYTES
    for index in range(count):
        if end > last:
            raise ValueError(f"element {index} runs past the end")
        end += LENGTH_BYTES + _length_at(data, end)[0]
        ends.append(end)
    if end != total:
        where = "past the end" if end > total else f"{total - end} bytes before the end"
        raise ValueError(f"the last element stops {where}")
    return ends


def split_bytes(data: Buffer, count: int) -> list[bytes]:
    """Take the elements of a BYTES tensor apart; raises ValueError as `element_ends` does."""
    elements: list[bytes] = []
    start = 0
    for end in element_ends(data, count):
        elements.append(bytes(data[start + LENGTH_BYTES : end]))
        start = end
    return elements
