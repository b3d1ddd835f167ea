"""Large JSON arrays, read in pieces: the bytes that reading them whole gives, at less memory."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge import body_bulk, body_json
from edge.body_bulk import is_nested_as, shape_of
from edge.body_json import pack_data, unfold_data
from edge.body_signature import InputRule, Signature
from edge.errors import BadRequest
from registry_sync.documents import TensorSpec

DATATYPES = ["FP32", "FP64", "INT8", "INT64", "UINT16", "BOOL"]


def rule_of(datatype: str, rank: int) -> InputRule:
    spec = TensorSpec(name="x", datatype=datatype, shape=(-1,) * rank)
    return Signature.of("m", [spec], [], 1).inputs["x"]


@contextmanager
def in_pieces(piece_bytes: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(body_json, "BULK_BYTES_MIN", 0)
        patch.setattr(body_bulk, "PIECE_BYTES", piece_bytes)
        yield


def outcome(read: Any, *arguments: Any) -> Any:
    """Return what reading gives, or that it is refused."""
    try:
        return read(*arguments)
    except BadRequest:
        return BadRequest


@st.composite
def arrays(draw: st.DrawFn) -> tuple[str, list[int], str]:
    """A datatype, a shape, and the JSON of an array, most often one of that shape."""
    datatype = draw(st.sampled_from(DATATYPES))
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    element: st.SearchStrategy[Any] = {
        "F": st.floats(-1e6, 1e6, width=32),
        "B": st.booleans(),
    }.get(datatype[0], st.integers(-130, 130))
    if draw(st.integers(0, 3)) == 0:
        element |= st.sampled_from(["]", "[1,2]", None, "1"]) | st.integers() | st.floats()

    def nested(dims: list[int]) -> Any:
        if not dims:
            return draw(element)
        length = dims[0] if draw(st.integers(0, 20)) else draw(st.integers(1, 4))
        return [nested(dims[1:]) for _ in range(length)]

    is_flat = draw(st.booleans())
    count = 1
    for dim in shape:
        count *= dim
    text = json.dumps(
        nested([count] if is_flat else shape), indent=draw(st.sampled_from([None, 1]))
    )
    return datatype, shape, text


@settings(max_examples=150, deadline=None)
@given(arrays(), st.integers(1, 40))
def test_pieces_give_what_the_whole_gives(given: tuple[str, list[int], str], piece: int) -> None:
    datatype, shape, text = given
    rule, data = rule_of(datatype, len(shape)), msgspec.Raw(text.encode())
    count = 1
    for dim in shape:
        count *= dim
    for read, arguments in (
        (pack_data, (rule, data, shape, count, 0)),
        (unfold_data, (rule, data, "x")),
    ):
        whole = outcome(read, *arguments)
        with in_pieces(piece):
            assert outcome(read, *arguments) == whole


def test_the_element_that_is_wrong_is_named() -> None:
    numbers: list[Any] = list(range(1000))
    rule = rule_of("INT16", 1)
    for wrong, said in ((40_000, "element 777, 40000"), ("x", "data[777]")):
        numbers[777] = wrong
        data = msgspec.Raw(json.dumps(numbers).encode())
        with in_pieces(100), pytest.raises(BadRequest) as refused:
            pack_data(rule, data, [1000], 1000, 0)
        assert said in refused.value.text


@pytest.mark.parametrize("shape", [(2_000_000,), (2000, 1000), (2_000_000, 1), (1, 2_000_000)])
def test_two_million_small_numbers_take_a_few_times_their_text(shape: tuple[int, ...]) -> None:
    row = b"[%b1]" % (b"1," * (shape[-1] - 1))
    text = row if len(shape) == 1 else b"[%b%b]" % ((row + b",") * (shape[0] - 1), row)
    data = msgspec.Raw(text)
    tracemalloc.start()
    packed = pack_data(rule_of("FP32", len(shape)), data, shape, 2_000_000, 0)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(packed) == 8_000_000
    assert peak_bytes < 6 * len(text)  # decoded whole: 20 times


def test_structure_of_a_nested_array_is_known_beforehand() -> None:
    rng = random.Random(1)
    for _ in range(200):
        shape = [rng.randint(1, 4) for _ in range(rng.randint(1, 5))]
        value: Any = 1
        for dim in reversed(shape):
            value = [value] * dim
        text = json.dumps(value).encode()
        assert is_nested_as(text, shape)
        assert shape_of(text, len(shape)) == tuple(shape)
        assert not is_nested_as(text, [*shape, 2])
        assert not is_nested_as(text.replace(b"1", b"1, 1", 1), shape)
