"""Bodies as msgpack: the same tensors as JSON gives, and every length bounded before it is paid."""

from __future__ import annotations

import functools
import random
import struct
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge import body_msgpack
from edge.body import InferRequest, Signature, parse_infer
from edge.body_msgpack import ELEMENTS_MAX, LISTS_MAX, parse_msgpack, render_msgpack
from edge.errors import Refusal, WorkerLost
from edge.tensors import CODES, Tensor, join_bytes
from tests.edge.bodies import MLP, body, floats, signature, tensor
from tests.support.cpu_time import least_s

ANY = signature(("x", "FP32", (-1, -1)), rows_max=1)
STRINGS = signature(("s", "BYTES", (-1, 2)))
TIME_S_MAX = 2.0

pack = functools.partial(msgpack.packb, use_bin_type=True)


def packed(*inputs: Any, **fields: Any) -> bytes:
    found: bytes = pack({**fields, "inputs": list(inputs)})
    return found


def read(raw: bytes, against: Signature = MLP, *, binary: bool = True) -> InferRequest:
    return parse_msgpack(raw, None, against, binary=binary)


def x(**changes: Any) -> dict[str, Any]:
    return {**tensor("x", "FP32", [1, 4], floats(1, 2, 3, 4)), **changes}


def without(field: str) -> dict[str, Any]:
    found = x()
    del found[field]
    return found


def refusal(raw: bytes, against: Signature = MLP) -> Refusal:
    """The refusal of a body, checked for what every refusal must be."""
    found: Refusal | None = None

    def refused() -> None:
        nonlocal found
        with pytest.raises(Refusal) as caught:
            read(raw, against)
        found = caught.value

    assert least_s(refused, TIME_S_MAX) < TIME_S_MAX
    assert found is not None
    assert 400 <= found.status < 500
    assert 0 < len(found.text) <= 300
    return found


def outcome(raw: bytes) -> int:
    """The status that a body would get from a model that answers."""
    try:
        read(raw)
    except Refusal as error:
        return error.status
    return 200


# --- what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [floats(1, 2, 3, 4), [1.0, 2, 3.0, 4], [[1, 2.0, 3, 4]]], ids=["bin", "flat", "nested"]
)
def test_data_comes_as_bytes_or_as_an_array(data: Any) -> None:
    (found,) = read(packed(x(data=data))).inputs
    assert bytes(found.data) == floats(1, 2, 3, 4)


def test_bytes_are_not_copied() -> None:
    raw = packed(x(shape=[8, 4], data=floats(*range(32))))
    (found,) = read(raw).inputs
    assert np.shares_memory(np.frombuffer(found.data, "u1"), np.frombuffer(raw, "u1"))


@pytest.mark.parametrize("datatype", [*CODES, "BOOL"])
def test_every_number_is_read_like_its_json(datatype: str) -> None:
    against = signature(("x", datatype, (-1, 3)))
    values: list[Any] = [True, False, True] if datatype == "BOOL" else [0, 1, 2]
    given_ = tensor("x", datatype, [1, 3], values)
    by_json = parse_infer(body(given_), None, against)
    assert read(packed(given_), against).inputs == by_json.inputs


@pytest.mark.parametrize("values", [["ä", ""], [b"\xff", b""]], ids=["text", "bytes"])
def test_elements_of_bytes_are_text_or_bytes(values: list[Any]) -> None:
    (found,) = read(packed(tensor("s", "BYTES", [1, 2], values)), STRINGS).inputs
    as_bytes = [v.encode() if isinstance(v, str) else v for v in values]
    assert bytes(found.data) == join_bytes(as_bytes)


def test_parameters_steer_and_are_kept_like_those_of_json() -> None:
    fields = {
        "id": "7",
        "parameters": {"timeout": 5, "priority": 3, "own": "word"},
        "outputs": [{"name": "y", "parameters": {"classification": 2}}],
    }
    found = read(packed(x(), **fields), binary=False)
    by_json = parse_infer(body(tensor("x", "FP32", [1, 4], [1, 2, 3, 4]), **fields), None, MLP)
    assert found == by_json


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"y"}),
        ({"outputs": [{"name": "y"}]}, {"y"}),
        ({"parameters": {"binary_data_output": False}}, set()),
        ({"outputs": [{"name": "y", "parameters": {"binary_data": False}}]}, set()),
        ({"id": None, "outputs": None, "parameters": None}, {"y"}),
    ],
)
def test_outputs_are_bytes_unless_asked_otherwise(fields: Any, expected: set[str]) -> None:
    assert read(packed(x(), **fields)).binary == expected


@given(st.integers(1, 8), st.randoms(use_true_random=False))
def test_arrays_give_the_bytes_that_they_mean(rows: int, chance: random.Random) -> None:
    values = np.array([chance.uniform(-9, 9) for _ in range(rows * 4)], "<f4").reshape(rows, 4)
    for data in (values.tobytes(), values.ravel().tolist(), values.tolist()):
        (found,) = read(packed(x(shape=[rows, 4], data=data))).inputs
        assert bytes(found.data) == values.tobytes()


# --- what is refused -----------------------------------------------------------------------------

EXT = msgpack.ExtType(5, b"abc")
BAD: dict[str, bytes] = {
    "empty": b"",
    "nil": pack(None),
    "array": pack([]),
    "number": pack(7),
    "ext": pack(EXT),
    "timestamp": pack(msgpack.Timestamp(1, 2)),
    "json": body(tensor("x", "FP32", [1, 4], [1, 2, 3, 4])),
    "never used byte": b"\xc1",
    "trailing": packed(x()) + b"\xc0",
    "cut": packed(x())[:-1],
    "no inputs": pack({}),
    "unknown field": packed(x(), more=1),
    "unknown field of a tensor": packed(x(more=1)),
    "unknown field of an output": packed(x(), outputs=[{"name": "y", "more": 1}]),
    "key of another kind": pack({1: 2, "inputs": [x()]}),
    "ext as a key": pack({"inputs": [x()]})[:-1] + b"",
    "doubled key": b"\x82\xa6inputs" + pack([x()]) + b"\xa6inputs" + pack([x()]),
    "doubled key in a tensor": b"\x81\xa6inputs\x91"
    + pack(x()).replace(b"\x84", b"\x85\xa4name\xa1y", 1),
    "doubled parameter": b"\x82\xa6inputs" + pack([x()]) + b"\xaaparameters\x82\xa1a\x01\xa1a\x02",
    "doubled key in an output": b"\x82\xa6inputs"
    + pack([x()])
    + b"\xa7outputs\x91\x82\xa4name\xa1y\xa4name\xa1y",
    "id of another kind": packed(x(), id=7),
    "id as bytes": packed(x(), id=b"7"),
    "long id": packed(x(), id="i" * 2000),
    "not UTF-8": packed(x()).replace(b"\xa1x", b"\xa1\xff"),
    "inputs no array": pack({"inputs": {"x": 1}}),
    "input no map": packed(7),
    "without data": packed(without("data")),
    "without shape": packed(without("shape")),
    "without datatype": packed(without("datatype")),
    "data nil": packed(x(data=None)),
    "data ext": packed(x(data=EXT)),
    "data a map": packed(x(data={})),
    "data a text": packed(x(data="abcdefghijklmnop")),
    "ext in data": packed(x(data=[1, 2, 3, EXT])),
    "maps in data": packed(x(data=[{}, {}, {}, {}])),
    "true in data": packed(x(data=[1, 2, 3, True])),
    "text in data": packed(x(data=[1, 2, 3, "4"])),
    "bytes in data": packed(x(data=[1, 2, 3, b"4"])),
    "too few bytes": packed(x(data=b"\0" * 15)),
    "too many bytes": packed(x(data=b"\0" * 17)),
    "too few": packed(x(data=[1, 2, 3])),
    "too many": packed(x(data=[1, 2, 3, 4, 5])),
    "ragged": packed(x(shape=[2, 4], data=[[1, 2, 3, 4], [5]])),
    "nested less": packed(x(shape=[2, 4], data=[[1, 2], [3, 4], [5, 6], [7, 8]])),
    "nested more": packed(x(data=[[[1, 2, 3, 4]]])),
    "mixed depth": packed(x(shape=[2, 4], data=[[1, 2, 3, 4], 5])),
    "beyond the range": packed(x(data=[1e39, 0, 0, 0])),
    "negative shape": packed(x(shape=[-1, 4])),
    "overflowing shape": packed(x(shape=[2**63, 2**63])),
    "dimension over 31 bits": packed(x(shape=[2**31, 4])),
    "shape beyond its data": packed(x(shape=[2**31 - 1, 4])),
    "fraction in a shape": packed(x(shape=[1.0, 4])),
    "true in a shape": packed(x(shape=[True, 4])),
    "rank 1,000": packed(x(shape=[1] * 1000)),
    "shape as bytes": packed(x(shape=b"\x01\x04")),
    "doubled input": packed(x(), x()),
    "unknown input": packed(x(name="nobody")),
    "missing input": packed(),
    "other datatype": packed(x(datatype="INT32")),
    "no such datatype": packed(x(datatype="FP8")),
    "unknown output": packed(x(), outputs=[{"name": "nobody"}]),
    "doubled output": packed(x(), outputs=[{"name": "y"}, {"name": "y"}]),
    "100,000 outputs": packed(x(), outputs=[{"name": "y"}] * 100_000),
    "2,000 inputs": packed(*[x()] * 2000),
    "timeout a text": packed(x(), parameters={"timeout": "5"}),
    "timeout negative": packed(x(), parameters={"timeout": -5}),
    "timeout beyond": packed(x(), parameters={"timeout": 2**60}),
    "timeout a fraction": packed(x(), parameters={"timeout": 5.0}),
    "priority a text": packed(x(), parameters={"priority": "high"}),
    "priority true": packed(x(), parameters={"priority": True}),
    "priority 101": packed(x(), parameters={"priority": 101}),
    "headers a number": packed(x(), parameters={"headers": 1}),
    "nested parameter": packed(x(), parameters={"a": {"b": 1}}),
    "parameter ext": packed(x(), parameters={"a": EXT}),
    "parameter bytes": packed(x(), parameters={"a": b"b"}),
    "parameters no map": packed(x(), parameters=[1]),
    "binary_data a text": packed(
        x(), outputs=[{"name": "y", "parameters": {"binary_data": "yes"}}]
    ),
    "classification a text": packed(
        x(), outputs=[{"name": "y", "parameters": {"classification": "3"}}]
    ),
    "shared memory": packed(x(parameters={"shared_memory_region": "r"})),
    "binary_data_size": packed(x(parameters={"binary_data_size": 16})),
    "33 rows": packed(x(shape=[33, 4], data=b"\0" * 33 * 16)),
    "no rows": packed(x(shape=[0, 4], data=b"")),
}
BAD["ext as a key"] = b"\x81\xc7\x03\x05abc\xc0"


@pytest.mark.parametrize("name", BAD)
def test_a_bad_body_is_the_caller_s_fault(name: str) -> None:
    assert refusal(BAD[name]).status in (400, 422)


@pytest.mark.parametrize("name", [name for name in BAD if name.startswith("unknown field")])
def test_an_unknown_field_is_called_so(name: str) -> None:
    assert "unknown field" in refusal(BAD[name]).text


def test_every_cut_is_refused() -> None:
    raw = packed(x(data=[[1, 2, 3, 4]]), id="7", parameters={"a": 1}, outputs=[{"name": "y"}])
    for end in range(len(raw)):
        refusal(raw[:end])


def test_a_header_length_does_not_belong_to_msgpack() -> None:
    with pytest.raises(Refusal, match="belongs to JSON"):
        parse_msgpack(packed(x()), "10", MLP, binary=True)


@given(st.binary(max_size=200))
def test_whatever_comes_is_refused_or_read(raw: bytes) -> None:
    assert outcome(raw) in (200, 400, 422)


@given(st.data())
def test_a_flipped_byte_is_refused_or_read(data: st.DataObject) -> None:
    raw = bytearray(packed(x(data=[[1, 2, 3, 4]]), id="7", outputs=[{"name": "y"}]))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    assert outcome(bytes(raw)) in (200, 400, 422)


# --- lengths -------------------------------------------------------------------------------------


def _array(count: int, element: bytes, *, said: int | None = None) -> bytes:
    return b"\xdd" + (count if said is None else said).to_bytes(4, "big") + element * count


def _with_data(raw: bytes, shape: list[int]) -> bytes:
    head = pack({"name": "x", "datatype": "FP32", "shape": shape, "data": None})
    return b"\x81\xa6inputs\x91" + head[:-1] + raw


MEGA = 8 << 20
BOMBS: dict[str, bytes] = {
    "empty maps as inputs": b"\x81\xa6inputs" + _array(MEGA, b"\x80"),
    "empty maps as data": _with_data(_array(MEGA, b"\x80"), [1, MEGA]),
    "empty maps in an unknown field": b"\x81\xa1a" + _array(MEGA, b"\x80"),
    "empty maps as a shape": b"\x81\xa6inputs\x91\x81\xa5shape" + _array(MEGA, b"\x80"),
    "empty maps as parameters": b"\x81\xaaparameters" + _array(MEGA, b"\x80"),
    "empty maps as outputs": b"\x82\xa6inputs\x90\xa7outputs" + _array(MEGA, b"\x80"),
    "empty arrays as data": _with_data(_array(MEGA, b"\x90"), [MEGA, 0]),
    "numbers as data": _with_data(_array(MEGA, b"\x01"), [1, MEGA]),
    "numbers in a nested array": _with_data(b"\x91" + _array(MEGA, b"\x01"), [1, 4]),
    "lists of one": _with_data(_array(MEGA // 2, b"\x91\x01"), [MEGA // 2, 1]),
    "a long parameter map": b"\x81\xaaparameters\xdf\x00\x20\x00\x00"
    + b"".join(b"\xa3%b\x01" % n.to_bytes(3, "big") for n in range(1 << 21)),
    "claimed inputs": b"\x81\xa6inputs\xdd\xff\xff\xff\xff",
    "claimed fields": b"\xdf\xff\xff\xff\xff\xa6inputs\x90",
    "claimed data": _with_data(b"\xdd\xff\xff\xff\xff", [2**31 - 1, 2]),
    "claimed bin": _with_data(b"\xc6\xff\xff\xff\xff", [2**31 - 1, 2]),
    "claimed text": b"\x81\xdb\xff\xff\xff\xff",
    "claimed ext": b"\xc9\xff\xff\xff\xff\x01",
    "arrays within arrays": _with_data(b"\x91" * 500_000 + b"\x90", [1, 4]),
    "maps within maps": b"\x81\xa1a" * 500_000 + b"\xc0",
    "arrays within a parameter": b"\x82\xa6inputs\x90\xaaparameters\x81\xa1a"
    + b"\x91" * 500_000
    + b"\x90",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_no_memory(name: str) -> None:
    raw = BOMBS[name]
    tracemalloc.start()
    refusal(raw, ANY)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_an_array_at_its_bounds_is_read() -> None:
    (found,) = read(_with_data(_array(ELEMENTS_MAX, b"\x01"), [1, ELEMENTS_MAX]), ANY).inputs
    assert len(found.data) == 4 * ELEMENTS_MAX
    nested = _with_data(_array(LISTS_MAX, b"\x91\x01"), [LISTS_MAX, 1])
    assert len(read(nested, ANY).inputs[0].data) == 4 * LISTS_MAX


def test_one_element_or_list_more_must_be_sent_otherwise() -> None:
    over = ELEMENTS_MAX + 1
    assert "sent as bin" in refusal(_with_data(_array(over, b"\x01"), [1, over]), ANY).text
    over = LISTS_MAX + 1
    assert "send it flat" in refusal(_with_data(_array(over, b"\x91\x01"), [over, 1]), ANY).text


def test_bytes_have_no_bound_of_their_own() -> None:
    count = ELEMENTS_MAX + 1
    raw = _with_data(b"\xc6" + (4 * count).to_bytes(4, "big") + bytes(4 * count), [1, count])
    assert len(read(raw, ANY).inputs[0].data) == 4 * count


MUCH: dict[str, tuple[bytes, bool]] = {
    "a small body": (packed(x()), False),
    "bin": (packed(x(data=bytes(2000))), False),
    "two of bin": (packed(x(data=bytes(2000)), x(name="z", data=bytes(2000))), False),
    "an array": (packed(x(data=[1] * 2000)), True),
    "bin and an array": (packed(x(data=bytes(2000)), x(data=[1] * 2000)), True),
    "much else": (packed(x(), more="a" * 2000), True),
    "nothing": (b"\x80" * 2000, True),
    "a key at the end": (b"\x80" * 2000 + b"\xa4data", True),
    "bin that claims more": (b"\xa4data\xc6\xff\xff\xff\xff" + bytes(2000), False),
    "many of nothing": (b"\xa4data\xc4\x00" * 10_000, True),
}


@pytest.mark.parametrize("name", MUCH)
def test_what_takes_long_is_told_from_what_is_passed_on(name: str) -> None:
    body_, expected = MUCH[name]
    assert body_msgpack.has_much_to_decode(body_, 1000) is expected


# --- answers -------------------------------------------------------------------------------------

Y = Tensor("y", "FP32", (1, 2), memoryview(floats(1.5, float("nan"))))


def answered(request: InferRequest, *outputs: Tensor) -> dict[str, Any]:
    content, headers = render_msgpack(request, "m", "3", outputs)
    assert headers == [("content-type", "application/msgpack")]
    found: dict[str, Any] = msgpack.unpackb(content, strict_map_key=True)
    return found


def test_an_answer_says_what_json_says_with_bytes_as_they_are() -> None:
    assert answered(read(packed(x(), id="7")), Y) == {
        "model_name": "m",
        "model_version": "3",
        "id": "7",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": bytes(Y.data)}],
    }


def test_an_answer_without_bytes_is_arrays() -> None:
    (output,) = answered(read(packed(x()), binary=False), Y)["outputs"]
    assert struct.pack("<2f", *output["data"]) == bytes(Y.data)


@pytest.mark.parametrize(
    ("datatype", "data", "expected"),
    [
        ("BOOL", b"\x01\x00", [True, False]),
        ("UINT64", struct.pack("<2Q", 2**64 - 1, 0), [2**64 - 1, 0]),
        ("BYTES", join_bytes([b"\xff", b""]), [b"\xff", b""]),
    ],
)
def test_arrays_hold_what_the_datatype_says(datatype: str, data: bytes, expected: Any) -> None:
    tensor_ = Tensor("y", datatype, (2,), data)
    assert answered(read(packed(x()), binary=False), tensor_)["outputs"][0]["data"] == expected


@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_an_answer_that_is_not_its_shape_is_the_worker_s_fault(datatype: str) -> None:
    short = Tensor("y", datatype, (9,), b"\0" * 12)
    with pytest.raises(WorkerLost):
        render_msgpack(read(packed(x()), binary=False), "m", "3", [short])


def test_the_wanted_outputs_come_in_their_order() -> None:
    request = read(packed(x(), outputs=[{"name": "y"}]))
    other = Tensor("z", "FP32", (1, 2), bytes(8))
    assert [o["name"] for o in answered(request, other, Y)["outputs"]] == ["y"]


def test_headers_of_an_answer_are_the_callers_to_change() -> None:
    for _ in range(2):
        _, headers = body_msgpack.render_msgpack(read(packed(x())), "m", "2", [])
        headers.append(("x", "y"))
        assert len(headers) == 2
