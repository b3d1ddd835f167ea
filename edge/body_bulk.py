"""A large JSON array of numbers to its binary form, a piece at a time.

A JSON number of two characters becomes an object of 32 bytes before it is packed into four, so
that an array which is decoded whole costs up to twenty times its text.  In pieces it costs its text
once more, its result, and a few MB; and a thread that does it lets others run between two pieces.

The order of brackets and commas in an array that is nested as its shape says is known beforehand:
nesting is checked by comparing two strings, and the numbers are read as one flat row.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

COUNTED_BYTES = 256 << 10  # at a time: fits into the caches
PIECE_BYTES = 128 << 10  # of text; at most 4 MB of objects and a few milliseconds

_NOT_STRUCTURE = bytes(byte for byte in range(256) if byte not in b"[],")


def count_of(byte: bytes, text: bytes) -> int:
    """Count a byte that is frequent; `bytes.count` is made for rare ones and takes four times."""
    array = np.frombuffer(text, np.uint8)
    pieces = range(0, len(array), COUNTED_BYTES)
    return sum(int(np.count_nonzero(array[at : at + COUNTED_BYTES] == byte[0])) for at in pieces)


def is_nested_as(text: bytes, shape: Sequence[int]) -> bool:
    """Tell whether `text`, valid JSON, is an array of numbers nested as `shape` says.

    Strings with brackets in them may be taken for nesting; reading the numbers refuses them.
    """
    expected = b""
    for dim in reversed(shape):
        expected = b"[%b%b]" % ((expected + b",") * (dim - 1), expected)
    return text.translate(None, _NOT_STRUCTURE) == expected


def shape_of(text: bytes, depth: int) -> tuple[int, ...]:
    """Return the shape by which an array of numbers of this depth begins.

    >>> shape_of(b"[[1, 2, 3], [4, 5, 6]]", 2)
    (2, 3)
    """
    structure = text.translate(None, _NOT_STRUCTURE)
    dims: list[int] = []
    inner = 1
    for level in range(1, depth + 1):
        numbers = structure.count(b",", 0, structure.find(b"]" * level)) + 1
        dims.append(numbers // inner)
        inner = numbers
    return tuple(reversed(dims))


def pack_pieces(
    text: bytes,
    *,
    is_flat: bool,
    code: str,
    itemsize: int,
    count: int,
    decode: Callable[[bytes, int], list[Any]],
    refuse: Callable[[list[Any], int], Exception],
) -> bytes | None:
    """Return the numbers of an array in binary form; None if they are not `count`.

    Args:
        text: of an array whose elements `decode` accepts, or of one, valid JSON, for which
            `is_nested_as` holds.
        is_flat: it is the former.
        code: of `struct`; empty for what is one byte each as it is.
        itemsize: bytes of one number.
        count: how many numbers there are to be.
        decode: reads a flat array, whose first number is that of the given index; raises what is
            wrong with it.
        refuse: makes the error for numbers, the first being that of the given index, of which one
            is out of range.
    """
    packed = bytearray(count * itemsize)
    done = 0
    for piece in _flat_pieces(text[1:-1] if is_flat else text.translate(None, b"[]")):
        values = decode(piece, done)
        end = done + len(values)
        if end > count:
            return None
        try:
            if code:
                struct.pack_into(f"<{len(values)}{code}", packed, done * itemsize, *values)
            else:
                packed[done:end] = bytes(values)
        except (struct.error, OverflowError):
            raise refuse(values, done) from None
        done = end
    return bytes(packed) if done == count else None


def _flat_pieces(flat: bytes) -> Iterator[bytes]:
    start, end = 0, len(flat)
    while end - start > PIECE_BYTES:
        cut = flat.find(b",", start + PIECE_BYTES)
        if cut < 0:
            break
        yield b"[%b]" % flat[start:cut]
        start = cut + 1
    yield b"[%b]" % flat[start:]
