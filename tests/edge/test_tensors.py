"""The binary form of BYTES, and the tables of datatypes."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from edge.tensors import CODES, DTYPES, element_ends, join_bytes, shape_text, split_bytes
from registry_sync.datatypes import ITEMSIZE


def test_bytes_elements_have_their_lengths_in_front() -> None:
    assert join_bytes([b"ab", b"c"]) == bytes.fromhex("020000006162 0100000063")


@pytest.mark.parametrize("elements", [[], [b""], [b"ab", b"c"], [b"", b"", b"x" * 70_000]])
def test_bytes_survive_the_round_trip(elements: list[bytes]) -> None:
    joined = join_bytes(elements)
    assert split_bytes(joined, len(elements)) == elements
    assert split_bytes(memoryview(joined), len(elements)) == elements


def test_every_truncation_of_a_bytes_tensor_is_refused() -> None:
    joined = join_bytes([b"ab", b"", b"cde"])
    for end in range(len(joined)):
        with pytest.raises(ValueError, match=r"element|bytes"):
            split_bytes(joined[:end], 3)


def test_bytes_left_over_are_refused() -> None:
    with pytest.raises(ValueError, match="1 bytes before the end"):
        element_ends(join_bytes([b"ab"]) + b"x", 1)


def test_a_length_past_the_end_is_refused() -> None:
    with pytest.raises(ValueError, match="past the end"):
        element_ends(b"\xff\xff\xff\xff" + b"abc", 1)
    with pytest.raises(ValueError, match="element 1 runs past the end"):
        element_ends(b"\x05\x00\x00\x00" + b"abc" + b"\x00", 2)


def test_an_absurd_count_is_refused_before_anything_is_made_of_it() -> None:
    with pytest.raises(ValueError, match="cannot hold"):
        element_ends(b"\x00" * 8, 2**62)


def test_tables_agree_on_the_size_of_every_datatype() -> None:
    assert all(struct.calcsize("<" + code) == ITEMSIZE[name] for name, code in CODES.items())
    assert all(np.dtype(dtype).itemsize == ITEMSIZE[name] for name, dtype in DTYPES.items())


def test_tables_cover_all_that_json_can_carry() -> None:
    assert set(DTYPES) == set(ITEMSIZE) - {"BF16"}
    assert set(CODES) == set(DTYPES) - {"BOOL"}


def test_shapes_are_written_as_triton_does() -> None:
    assert shape_text((-1, 16)) == "[-1,16]"
    assert shape_text(()) == "[]"
