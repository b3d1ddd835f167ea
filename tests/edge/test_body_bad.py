"""Bad bodies: each is refused as the caller's fault, in short words and short time."""

from __future__ import annotations

import functools
import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.body import InferRequest, Signature, parse_infer
from edge.body_generate import parse_generate
from edge.errors import Refusal
from edge.tensors import join_bytes
from registry_sync.datatypes import DATATYPES, ITEMSIZE
from tests.edge.bodies import MLP, binary, body, floats, signature, tensor
from tests.support.cpu_time import least_s

STRINGS = signature(("s", "BYTES", (-1, 2)))
WIDE = signature(("x", "FP32", (-1, -1, -1)))

# Reading a small body takes microseconds, the worst of these 30 ms; the rest is for company.
TIME_S_MAX = 1.0


def refusal(
    raw: bytes,
    header_length: str | None = None,
    against: Signature = MLP,
    parse: Callable[..., InferRequest] = parse_infer,
) -> Refusal:
    """The refusal of a body, checked for what every refusal must be."""
    found: Refusal | None = None

    def refused() -> None:
        nonlocal found
        with pytest.raises(Refusal) as caught:
            parse(raw, header_length, against) if parse is parse_infer else parse(raw, against)
        found = caught.value

    assert least_s(refused, TIME_S_MAX) < TIME_S_MAX
    assert found is not None
    assert 400 <= found.status < 500
    assert 0 < len(found.text) <= 300
    return found


def x(**changes: Any) -> dict[str, Any]:
    return {**tensor("x", "FP32", [1, 4], [1, 2, 3, 4]), **changes}


def without(field: str) -> dict[str, Any]:
    given = x()
    del given[field]
    return given


# --- malformed JSON ------------------------------------------------------------------------------

GOOD = body(x())
NOT_JSON = {
    "empty": b"",
    "blank": b" \n",
    "null": b"null",
    "array": b"[]",
    "array of good": b"[" + GOOD + b"]",
    "scalar": b"5",
    "string": b'"x"',
    "truncated": GOOD[:-1],
    "trailing": GOOD + b"x",
    "trailing object": GOOD + b"{}",
    "trailing nul": GOOD + b"\x00",
    "byte order mark": b"\xef\xbb\xbf" + GOOD,
    "utf-16": GOOD.decode().encode("utf-16"),
    "utf-16-le": GOOD.decode().encode("utf-16-le"),
    "utf-16-be": GOOD.decode().encode("utf-16-be"),
    "utf-32": GOOD.decode().encode("utf-32"),
    "comment": b"/**/" + GOOD,
    "single quotes": GOOD.replace(b'"', b"'"),
    "trailing comma": GOOD[:-1] + b",}",
    "nan": GOOD.replace(b"[1, 2", b"[NaN, 2"),
    "infinity": GOOD.replace(b"[1, 2", b"[Infinity, 2"),
    "minus infinity": GOOD.replace(b"[1, 2", b"[-Infinity, 2"),
    "leading zero": GOOD.replace(b"[1, 2", b"[01, 2"),
    "plus": GOOD.replace(b"[1, 2", b"[+1, 2"),
    "bare point": GOOD.replace(b"[1, 2", b"[1., 2"),
    "hex": GOOD.replace(b"[1, 2", b"[0x1, 2"),
    "lone surrogate in a name": GOOD.replace(b'"x"', b'"\\ud800"'),
    "lone surrogate in the id": b'{"id":"\\udc00",' + GOOD[1:],
    "invalid utf-8 in the id": b'{"id":"\xff",' + GOOD[1:],
    "invalid utf-8 in an unknown field": b'{"note":"\xff",' + GOOD[1:],
    "invalid utf-8 in an unknown key": b'{"\xff":1,' + GOOD[1:],
    "lone surrogate in an unknown field": b'{"note":"\\ud800",' + GOOD[1:],
    "overlong utf-8": b'{"id":"\xc0\xaf",' + GOOD[1:],
    "infinity in an unknown field": b'{"note":1e999,' + GOOD[1:],
    "control character": b'{"id":"\x01",' + GOOD[1:],
}


@pytest.mark.parametrize("raw", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_what_is_no_json_object_is_malformed(raw: bytes) -> None:
    assert refusal(raw).status == 400
    assert refusal(raw, str(len(raw)) if raw else None).status == 400


@pytest.mark.parametrize("depth", [101, 500, 1_000, 5_000, 100_000])
@pytest.mark.parametrize(
    "frame",
    [
        b'{"note":%b,' + GOOD[1:],
        GOOD.replace(b"[1, 2, 3, 4]", b"%b"),
        GOOD.replace(b'"shape"', b'"note": %b, "shape"'),
        b'{"parameters":%b,' + GOOD[1:],
        b'{"id":%b,' + GOOD[1:],
        b'{"inputs":%b}',
        b"%b",
    ],
    ids=["unknown", "data", "inside", "parameters", "id", "inputs", "top"],
)
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_deep_nesting_is_malformed(
    depth: int, frame: bytes, opening: bytes, closing: bytes
) -> None:
    closed = frame % (opening * depth + b"1" + closing * depth)
    assert refusal(closed).status == 400
    assert refusal(frame % (opening * depth)).status == 400


def test_100_levels_are_not_too_deep() -> None:
    # 99 inside of the object itself.
    assert parse_infer(b'{"note":' + b"[" * 99 + b"]" * 99 + b"," + GOOD[1:], None, MLP).rows == 1
    assert refusal(b'{"note":' + b"[" * 100 + b"]" * 100 + b"," + GOOD[1:]).status == 400


def test_deep_nesting_is_found_behind_many_shallow_ones() -> None:
    shallow = b"[" + b"[]," * 5000 + b"[" * 100 + b"]" * 100 + b"]"
    assert "100 levels" in refusal(b'{"note":' + shallow + b"," + GOOD[1:]).text


def test_much_that_nobody_asked_for_is_refused() -> None:
    raw = b'{"note":[' + b"0," * 150_000 + b"0]," + GOOD[1:]
    assert "256 KiB" in refusal(raw).text


@pytest.mark.parametrize("note", [b"[],", b'{"a":0},', b'"\\"",', b"0,"])
def test_what_nobody_asked_for_takes_little_time(note: bytes) -> None:
    raw = b'{"note":[' + note * ((255 << 10) // len(note)) + b"0]," + GOOD[1:]
    assert parse_infer(raw, None, MLP).rows == 1
    assert least_s(lambda: parse_infer(raw, None, MLP), TIME_S_MAX) < TIME_S_MAX


@pytest.mark.parametrize("data", [b"0," * 4_000_000 + b"0", b"[0]," * 2_000_000 + b"[0]"])
def test_elements_are_counted_before_they_are_made(data: bytes) -> None:
    raw = GOOD.replace(b"1, 2, 3, 4", data)
    tracemalloc.start()
    found = refusal(raw)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "elements, its shape [1,4] needs '4'" in found.text
    assert peak_bytes < 2 * len(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"id":"a","id":"b",' + GOOD[1:],
        b'{"inputs":[],' + GOOD[1:],
        GOOD.replace(b'"name": "x"', b'"name": "y", "name": "x"'),
        GOOD.replace(b'"shape": [1, 4]', b'"shape": [1, 5], "shape": [1, 4]'),
        GOOD.replace(b'"data": [1', b'"data": [9, 9, 9, 9], "data": [1'),
        GOOD.replace(b'"data": [1', b'"d\\u0061ta": [9, 9, 9, 9], "data": [1'),
        b'{"parameters":{"a":1,"a":2},' + GOOD[1:],
        b'{"parameters":{},"parameters":{},' + GOOD[1:],
        b'{"note":{"a":1,"a":2},' + GOOD[1:],
        b'{"outputs":[],"outputs":[],' + GOOD[1:],
        b'{"outputs":[{"name":"y","name":"y"}],' + GOOD[1:],
        b'{"outputs":[{"name":"y","parameters":{"binary_data":true,"binary_data":false}}],'
        + GOOD[1:],
    ],
)
def test_doubled_keys_are_malformed(raw: bytes) -> None:
    assert refusal(raw).code == "doubled_key"


def test_doubled_key_is_found_beside_colons_in_strings() -> None:
    raw = body(tensor("s", "BYTES", [1, 2], ["a:b", ":::" * 300]), id="a:b:c")
    assert parse_infer(raw, None, STRINGS).id == "a:b:c"
    assert refusal(raw[:-1] + b',"id":"z"}', None, STRINGS).code == "doubled_key"


# --- malformed requests --------------------------------------------------------------------------

MALFORMED: dict[str, Any] = {
    "no inputs": {},
    "inputs null": {"inputs": None},
    "inputs object": {"inputs": {}},
    "input null": {"inputs": [None]},
    "no name": {"inputs": [without("name")]},
    "no shape": {"inputs": [without("shape")]},
    "no datatype": {"inputs": [without("datatype")]},
    "no data": {"inputs": [without("data")]},
    "name number": {"inputs": [x(name=1)]},
    "datatype null": {"inputs": [x(datatype=None)]},
    "datatype unknown": {"inputs": [x(datatype="FLOAT")]},
    "datatype in lower case": {"inputs": [x(datatype="fp32")]},
    "shape number": {"inputs": [x(shape=4)]},
    "shape string": {"inputs": [x(shape="[1,4]")]},
    "dimension -1": {"inputs": [x(shape=[-1, 4])]},
    "dimension float": {"inputs": [x(shape=[1.0, 4])]},
    "dimension bool": {"inputs": [x(shape=[True, 4])]},
    "dimension string": {"inputs": [x(shape=["1", 4])]},
    "dimension 2^31": {"inputs": [x(shape=[2**31, 4])]},
    "dimension 2^64": {"inputs": [x(shape=[2**64, 4])]},
    "rank 17": {"inputs": [x(shape=[1] * 17)]},
    "data null": {"inputs": [x(data=None)]},
    "data number": {"inputs": [x(data=5)]},
    "data string": {"inputs": [x(data="1234")]},
    "data object": {"inputs": [x(data={"a": 1})]},
    "data empty": {"inputs": [x(data=[])]},
    "data short": {"inputs": [x(data=[1, 2, 3])]},
    "data long": {"inputs": [x(data=[1, 2, 3, 4, 5])]},
    "data ragged": {"inputs": [x(shape=[2, 4], data=[[1, 2, 3, 4], [1, 2, 3, 4, 5]])]},
    "data ragged, right in all": {"inputs": [x(shape=[2, 4], data=[[1, 2, 3], [1, 2, 3, 4, 5]])]},
    "data transposed": {"inputs": [x(shape=[2, 4], data=[[1, 2]] * 4)]},
    "data too deep": {"inputs": [x(data=[[[1, 2, 3, 4]]])]},
    "data mixed depth": {"inputs": [x(data=[[1, 2, 3, 4], 5])]},
    "data mixed depth, flat first": {"inputs": [x(data=[1, 2, 3, [4]])]},
    "data with null": {"inputs": [x(data=[1, 2, 3, None])]},
    "data with bool": {"inputs": [x(data=[1, 2, 3, True])]},
    "data with string": {"inputs": [x(data=[1, 2, 3, "4"])]},
    "data with object": {"inputs": [x(data=[1, 2, 3, {}])]},
    "twice": {"inputs": [x(), x()]},
    "1025 inputs": {"inputs": [x()] * 1025},
    "id number": {"inputs": [x()], "id": 5},
    "id of 1025 bytes": {"inputs": [x()], "id": "a" * 1025},
    "id of 1025 bytes in UTF-8": {"inputs": [x()], "id": "é" * 512 + "a"},
    "parameters array": {"inputs": [x()], "parameters": []},
    "parameter null": {"inputs": [x()], "parameters": {"a": None}},
    "parameter array": {"inputs": [x()], "parameters": {"a": [1]}},
    "parameter object": {"inputs": [x()], "parameters": {"a": {}}},
    "timeout string": {"inputs": [x()], "parameters": {"timeout": "5"}},
    "timeout float": {"inputs": [x()], "parameters": {"timeout": 5.0}},
    "timeout bool": {"inputs": [x()], "parameters": {"timeout": True}},
    "timeout negative": {"inputs": [x()], "parameters": {"timeout": -1}},
    "timeout of 40 digits": {"inputs": [x()], "parameters": {"timeout": 10**40}},
    "priority 101": {"inputs": [x()], "parameters": {"priority": 101}},
    "priority negative": {"inputs": [x()], "parameters": {"priority": -1}},
    "priority string": {"inputs": [x()], "parameters": {"priority": "high"}},
    "binary_data_output 1": {"inputs": [x()], "parameters": {"binary_data_output": 1}},
    "outputs object": {"inputs": [x()], "outputs": {}},
    "output without a name": {"inputs": [x()], "outputs": [{}]},
    "output twice": {"inputs": [x()], "outputs": [{"name": "y"}, {"name": "y"}]},
    "1025 outputs": {"inputs": [x()], "outputs": [{"name": "y"}] * 1025},
    "1025 parameters": {"inputs": [x()], "parameters": {f"p{n}": n for n in range(1025)}},
    "headers of a number": {"inputs": [x()], "parameters": {"headers": 5}},
    **{
        f"classification {count!r}": {
            "inputs": [x()],
            "outputs": [{"name": "y", "parameters": {"classification": count}}],
        }
        for count in (-1, "3", True, 2.0, 10**6, 10**40)
    },
    "binary_data 1": {
        "inputs": [x()],
        "outputs": [{"name": "y", "parameters": {"binary_data": 1}}],
    },
    "shared memory in": {
        "inputs": [x(parameters={"shared_memory_region": "r", "shared_memory_byte_size": 16})]
    },
    "shared memory out": {
        "inputs": [x()],
        "outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}],
    },
    "binary size without a header": {
        "inputs": [{**without("data"), "parameters": {"binary_data_size": 16}}]
    },
}


@pytest.mark.parametrize("request_", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_request_is_400(request_: Any) -> None:
    assert refusal(json.dumps(request_).encode()).status == 400


@pytest.mark.parametrize("shape", [[-1, -1, 4], [2**31, 0, 1]])
def test_dimension_out_of_bounds_is_malformed_even_if_the_product_fits(shape: list[int]) -> None:
    loose = signature(("x", "FP32", (-1, -1, -1)), rows_max=1)
    data = [1, 2, 3, 4] if 0 not in shape else []
    found = refusal(body(x(shape=shape, data=data)), None, loose)
    assert (found.status, "$.inputs[0].shape[0]" in found.text) == (400, True)


@pytest.mark.parametrize("field", ["inputs", "outputs"])
def test_more_than_1024_tensors_are_refused_as_such(field: str) -> None:
    found = refusal(json.dumps({"inputs": [x()], field: [x()] * 1025}).encode())
    assert found.text == f"Expected `array` of length <= 1024 - at `$.{field}`"


def test_binary_size_without_a_header_is_named() -> None:
    raw, _ = binary({"inputs": [{**without("data"), "parameters": {"binary_data_size": 0}}]})
    assert "Inference-Header-Content-Length is missing" in refusal(raw).text


def test_id_of_1024_bytes_is_not_too_long() -> None:
    assert parse_infer(body(x(), id="é" * 512), None, MLP).id == "é" * 512


@pytest.mark.parametrize(
    ("datatype", "data", "says"),
    [
        ("INT8", "[300]", "inputs[0].data: element 0, 300, is out of range for INT8"),
        ("INT8", "[1,-129]", "inputs[0].data: element 1, -129, is out of range for INT8"),
        ("UINT8", "[-1]", "inputs[0].data: element 0, -1, is out of range for UINT8"),
        ("UINT64", "[18446744073709551616]", "inputs[0].data: element 0, 18446744073709551616"),
        ("INT64", "[9223372036854775808]", "inputs[0].data: element 0, 9223372036854775808"),
        ("INT32", "[1.0]", "inputs[0].data[0]: Expected `int`, got `float`, for INT32"),
        ("INT32", "[1e0]", "inputs[0].data[0]: Expected `int`, got `float`"),
        ("INT32", "[true]", "inputs[0].data[0]: Expected `int`, got `bool`"),
        ("INT32", "[[1],[2.5]]", "inputs[0].data[1][0]: Expected `int`, got `float`"),
        ("FP16", "[65520]", "inputs[0].data: element 0, 65520.0, is out of range for FP16"),
        ("FP32", "[1e39]", "inputs[0].data: element 0, a number, is out of range for FP32"),
        ("FP32", "[1e999]", "inputs[0].data[0]: Number out of range, for FP32"),
        ("FP64", "[-1e999]", "inputs[0].data[0]: Number out of range, for FP64"),
        ("FP32", '["1"]', "inputs[0].data[0]: Expected `float`, got `str`"),
        ("BOOL", "[1]", "inputs[0].data[0]: Expected `bool`, got `int`"),
        ("BYTES", "[1]", "inputs[0].data[0]: Expected `str`, got `int`"),
        ("BYTES", '["a", null]', "inputs[0].data[1]: Expected `str`, got `null`"),
        ("BYTES", '["\\ud800"]', "the body is not JSON"),
        ("BYTES", '["\\ud800\\u0041"]', "the body is not JSON"),
        ("BYTES", '["\\ud800\\ud800"]', "the body is not JSON"),
        ("BYTES", '["\\udc00"]', "the body is not JSON"),
        ("BYTES", '["\xff"]', "inputs[0].data: a string is not valid UTF-8"),
        ("BF16", "[1.0]", "input 'x': BF16 has no JSON form; send it as binary data"),
        ("INT64", "[" + "9" * 5000 + "]", "inputs[0].data[0]: Integer value out of range"),
        ("INT64", "[" + "9" * 4000 + "]", "inputs[0].data: element 0, a number, is out of range"),
        ("FP64", "[" + "9" * 5000 + "]", "inputs[0].data[0]: Number out of range"),
        ("FP32", "[" + "9" * 300 + "]", "inputs[0].data: element 0, a number, is out of range"),
    ],
)
def test_element_that_does_not_fit_its_datatype_is_named(
    datatype: str, data: str, says: str
) -> None:
    shape = [2, 1] if data.startswith("[[") else [max(1, data.count(",") + 1)]
    raw = json.dumps({"inputs": [{"name": "x", "shape": shape, "datatype": datatype}]}).encode()
    raw = raw[:-3] + b',"data":' + data.encode("latin-1") + b"}]}"
    found = refusal(raw, None, signature(("x", datatype, tuple(shape)), rows_max=1))
    assert found.status == 400
    assert found.text.startswith(says)


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
@pytest.mark.parametrize("data", ["[NaN]", "[1e999]", "[null]", "[{}]", "[[]]", "{}", '"x"', "1"])
def test_what_no_datatype_takes_is_refused_by_each(datatype: str, data: str) -> None:
    raw = b'{"inputs":[{"name":"x","shape":[1],"datatype":"%b","data":%b}]}'
    one = signature(("x", datatype, (1,)))
    assert refusal(raw % (datatype.encode(), data.encode()), None, one).status == 400


# --- not this signature --------------------------------------------------------------------------


def unfit(*inputs: Any, against: Signature = MLP, **fields: Any) -> Refusal:
    found = refusal(body(*inputs, **fields), None, against)
    assert found.status == 422
    return found


def test_unknown_input_is_422() -> None:
    assert "unexpected inference input 'z' for model 'mlp'" in unfit(x(name="z")).text


def test_missing_input_is_422() -> None:
    two = signature(("x", "FP32", (-1, 4)), ("b", "INT32", (-1, 1)))
    assert unfit(against=MLP).text.startswith("expected 1 inputs but got 0 inputs")
    assert "Missing: 'b'" in unfit(x(), against=two).text


def test_wrong_datatype_is_422() -> None:
    assert unfit(x(datatype="FP64")).text == (
        "inference input 'x' data-type is 'FP64', but model 'mlp' expects 'FP32'"
    )


@pytest.mark.parametrize("shape", [[1, 5], [4], [1, 1, 4], [1, 4, 1], [], [1, 0]])
def test_wrong_shape_is_422(shape: list[int]) -> None:
    got = "[" + ",".join(map(str, shape)) + "]"
    assert unfit(x(shape=shape)).text == (
        f"unexpected shape for input 'x' for model 'mlp'. Expected [-1,4], got {got}"
    )


@pytest.mark.parametrize("rows", [0, 9])
def test_rows_outside_of_the_models_bounds_are_422(rows: int) -> None:
    assert unfit(x(shape=[rows, 4], data=[0] * 4 * rows)).code == "rows"


def test_rows_up_to_the_models_bounds_fit() -> None:
    assert parse_infer(body(x(shape=[8, 4], data=[0] * 32)), None, MLP).rows == 8


def test_inputs_with_different_rows_are_422() -> None:
    two = signature(("x", "FP32", (-1, 4)), ("b", "INT32", (-1, 1)))
    found = unfit(x(), tensor("b", "INT32", [2, 1], [1, 2]), against=two)
    assert "same first axis" in found.text


def test_unknown_output_is_422() -> None:
    assert "unexpected inference output 'z'" in unfit(x(), outputs=[{"name": "z"}]).text


def test_output_without_a_json_form_must_be_asked_for_as_binary() -> None:
    half = signature(("x", "FP32", (-1, 4)), outputs=(("y", "BF16", (-1, 2)),))
    assert "no JSON form" in refusal(body(x()), None, half).text
    assert parse_infer(body(x(), parameters={"binary_data_output": True}), None, half).rows == 1
    as_binary = {"name": "y", "parameters": {"binary_data": True}}
    assert parse_infer(body(x(), outputs=[as_binary]), None, half).binary == {"y"}
    assert "no JSON form" in refusal(b'{"x":[1,2,3,4]}', None, half, parse_generate).text


# --- nothing is made of a length before it is checked ---------------------------------------------


@pytest.mark.parametrize(
    "shape", [[2**31 - 1] * 3, [2**31 - 1, 2**31 - 1, 4], [2**21, 2**21, 2**22], [8, 2**30, 2**30]]
)
@pytest.mark.rule("SEC-5")
def test_huge_shapes_are_refused_without_memory(shape: list[int]) -> None:
    bodies: list[tuple[bytes, str | None]] = [
        (body(tensor("x", "FP32", shape, [1])), None),
        (body(tensor("x", "FP32", shape, [])), None),
        binary(
            {
                "inputs": [
                    {
                        "name": "x",
                        "shape": shape,
                        "datatype": "FP32",
                        "parameters": {"binary_data_size": 4},
                    }
                ]
            },
            b"1234",
        ),
    ]
    for raw, length in bodies:
        tracemalloc.start()
        found = refusal(raw, length, WIDE)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert found.status in (400, 422)
        assert peak_bytes < 1 << 20


@pytest.mark.rule("SEC-5")
def test_product_that_wraps_around_is_not_zero() -> None:
    # In 64 bits this is 0 elements, which 0 bytes would satisfy.
    raw, length = binary(
        {
            "inputs": [
                {
                    "name": "x",
                    "shape": [2**30, 2**30, 2**4],
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": 0},
                }
            ]
        }
    )
    assert refusal(raw, length, signature(("x", "FP32", (-1, -1, -1)), rows_max=1)).status == 400


@pytest.mark.parametrize("field", ["name", "datatype", "id", "output", "parameter", "key"])
@pytest.mark.rule("SEC-2")
def test_errors_never_echo_much_of_the_input(field: str) -> None:
    secret = "s3cr3t" * 100_000
    raws = {
        "name": body(x(name=secret)),
        "datatype": body(x(datatype=secret)),
        "id": body(x(), id=secret),
        "output": body(x(), outputs=[{"name": secret}]),
        "parameter": body(x(), parameters={"timeout": secret}),
        "key": body(x(), parameters={secret: None}),
    }
    assert refusal(raws[field]).text.count("s3cr3t") <= 80 // 6


# --- binary --------------------------------------------------------------------------------------


def head(size: Any = 16, **changes: Any) -> dict[str, Any]:
    given = {**without("data"), "parameters": {"binary_data_size": size}, **changes}
    return {"inputs": [given]}


TAIL = floats(1, 2, 3, 4)


@pytest.mark.parametrize(
    "length", ["", "-1", "+5", " 5", "5 ", "1.0", "0x10", "five", "1_0", "٣", "²", "9" * 5000]
)
def test_header_length_must_be_a_whole_number(length: str) -> None:
    assert refusal(GOOD, length).status == 400


def test_header_length_must_not_pass_the_end() -> None:
    assert f"has {len(GOOD)} bytes" in refusal(GOOD, str(len(GOOD) + 1)).text


@pytest.mark.parametrize(
    "size", [-1, 1.0, "16", True, None, 15, 17, 0, 2**31, 2**63 - 1, 2**63, 2**64, 10**4000]
)
def test_binary_size_must_be_the_tensors(size: Any) -> None:
    assert refusal(*binary(head(size), TAIL)).status == 400


def test_bytes_behind_the_last_tensor_are_refused() -> None:
    assert "1 bytes of the body are left" in refusal(*binary(head(), TAIL + b"x")).text


def test_bytes_behind_json_are_refused() -> None:
    assert refusal(GOOD + b"x", str(len(GOOD))).status == 400


def test_missing_bytes_are_refused() -> None:
    assert "15 bytes are left" in refusal(*binary(head(), TAIL[:-1])).text


def test_data_and_binary_size_together_are_refused() -> None:
    assert "both" in refusal(*binary(head(data=[1, 2, 3, 4]), TAIL)).text


def test_two_tensors_cannot_share_their_bytes() -> None:
    two = signature(("a", "FP32", (1, 4)), ("b", "FP32", (1, 4)))
    inputs = [{**head()["inputs"][0], "name": name} for name in "ab"]
    assert refusal(*binary({"inputs": inputs}, TAIL), two).status == 400
    assert parse_infer(*binary({"inputs": inputs}, TAIL * 2), two).rows == 1


@pytest.mark.parametrize("data", [b"\x02", b"\xff"])
def test_boolean_byte_must_be_0_or_1(data: bytes) -> None:
    flags = signature(("x", "BOOL", (2,)))
    raw, length = binary(head(2, datatype="BOOL", shape=[2]), b"\x01" + data)
    assert "0 or 1" in refusal(raw, length, flags).text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 7,
        b"\x00" * 9,
        b"\x01\x00\x00\x00a\x00\x00\x00",
        b"\x05\x00\x00\x00a\x00\x00\x00\x00",
        b"\xff\xff\xff\xff\x00\x00\x00\x00",
        b"\x00\x00\x00\x00\xff\xff\xff\xff",
        join_bytes([b"a", b"b", b"c"]),
    ],
)
def test_binary_strings_must_add_up(data: bytes) -> None:
    raw, length = binary(head(len(data), name="s", datatype="BYTES", shape=[1, 2]), data)
    assert "malformed BYTES" in refusal(raw, length, STRINGS).text


@pytest.mark.parametrize("datatype", sorted(ITEMSIZE))
def test_every_datatype_needs_its_exact_number_of_bytes(datatype: str) -> None:
    five = signature(("x", datatype, (5,)))
    exact = 5 * ITEMSIZE[datatype]
    for size in (0, exact - 1, exact, exact + 1):
        raw, length = binary(head(size, datatype=datatype, shape=[5]), bytes(size))
        if size == exact:
            assert parse_infer(raw, length, five).inputs[0].shape == (5,)
        else:
            assert refusal(raw, length, five).status == 400


@pytest.mark.parametrize(
    ("raw", "against"),
    [
        (b"", MLP),
        (bytes(15), MLP),
        (bytes(17), MLP),
        (bytes(9 * 16), MLP),
        (bytes(8), signature(("a", "INT8", (-1,)), ("b", "INT8", (-1,)))),
        (bytes(8), signature(("x", "INT8", (-1, -1, -1)))),
        (bytes(8), signature(("x", "INT8", (-1, 0)))),
        (bytes(3), signature(("x", "INT8", (2, 2)))),
        (bytes(3), signature(("x", "BYTES", (-1, 2)))),
        (b"\x02", signature(("x", "BOOL", (1,)))),
    ],
)
def test_raw_body_that_says_too_little_or_too_much_is_refused(
    raw: bytes, against: Signature
) -> None:
    refusal(raw, "0", against)


def test_raw_body_that_is_no_whole_number_of_rows_is_named() -> None:
    assert "no whole number of FP32 rows of shape [-1,4]" in refusal(bytes(17), "0").text


# --- generate ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'{"x":[1,2,3,4]}x', 400),
        (b'{"x":[1,2,3,NaN]}', 400),
        (b'{"x":[1,2,3,null]}', 400),
        (b'{"x":null}', 400),
        (b'{"x":{}}', 400),
        (b'{"x":"a"}', 400),
        (b'{"x":true}', 400),
        (b'{"x":[[1,2,3,4],[1]]}', 400),
        (b'{"x":[1,2,3,4],"x":[1,2,3,4]}', 400),
        (b'{"x":[1,2,3,4],"id":"a","id":"b"}', 400),
        (b'{"x":[1,2,3,4],"id":5}', 400),
        (b'{"x":[1,2,3,4],"id":"\xff"}', 400),
        (b'{"x":[1,2,3,4],"id":"' + b"a" * 1025 + b'"}', 400),
        (b'{"x":[1,2,3,4],"parameters":[]}', 400),
        (b'{"x":[1,2,3,4],"parameters":{"a":1,"a":1}}', 400),
        (b'{"x":[1,2,3,4],"parameters":{"timeout":-1}}', 400),
        (b'{"x":' + b"[" * 100_000, 400),
        (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
        (b'{"x":' + b"[" * 17 + b"1" + b"]" * 17 + b"}", 400),
        (b'{"x":[[[1,2,3,4]]]}', 422),
        (b'{"x":[1,2,3]}', 422),
        (b'{"x":[]}', 422),
        (b'{"x":[[],[]]}', 422),
        (b'{"x":1}', 422),
        (b'{"x":[1,2,3,4],"z":1}', 422),
        (b"{}", 422),
        (json.dumps({str(number): 1 for number in range(1100)}).encode(), 400),
    ],
)
def test_bad_generate_bodies(raw: bytes, status: int) -> None:
    assert refusal(raw, None, MLP, parse_generate).status == status


# --- fuzz: no crash, no 5xx, bounded time --------------------------------------------------------

MIXED = signature(
    ("x", "FP32", (-1, 4)), ("s", "BYTES", (-1, 2)), ("b", "BOOL", (-1, 1)), ("k", "INT8", (-1, 2))
)


def mixed() -> tuple[bytes, str]:
    strings = join_bytes([b"ab", b"c"])
    return binary(
        {
            "id": "a1",
            "parameters": {"binary_data_output": True, "t": 1.5},
            "inputs": [
                {**without("data"), "parameters": {"binary_data_size": 16}},
                {
                    "name": "s",
                    "shape": [1, 2],
                    "datatype": "BYTES",
                    "parameters": {"binary_data_size": len(strings)},
                },
                tensor("k", "INT8", [1, 2], [[1, -2]]),
                {
                    "name": "b",
                    "shape": [1, 1],
                    "datatype": "BOOL",
                    "parameters": {"binary_data_size": 1},
                },
            ],
            "outputs": [{"name": "y", "parameters": {"binary_data": False}}],
        },
        TAIL,
        strings,
        b"\x01",
    )


def attempt(parse: Callable[[], InferRequest]) -> InferRequest | None:
    """Read a body that may be bad; a refusal must be the caller's fault and short."""
    refused = None
    try:
        return parse()
    except Refusal as error:
        refused = error
    assert 400 <= refused.status < 500
    assert 0 < len(refused.text) <= 300
    return None


def check(raw: bytes, length: str | None, against: Signature) -> bool:
    """Read a body that may be bad; what comes out must be whole."""
    request = attempt(lambda: parse_infer(raw, length, against))
    if request is None:
        return False
    assert request.id is None or type(request.id) is str
    assert type(request.rows) is int
    assert 1 <= request.rows <= against.rows_max
    assert request.binary <= set(against.outputs) >= set(request.outputs)
    assert type(request.timeout_us) is int
    assert 0 <= request.priority <= 100
    assert all(type(v) in (str, int, float, bool) for v in request.parameters.values())
    for rule, found in zip(against.inputs.values(), request.inputs, strict=True):
        assert (found.name, found.datatype) == (rule.name, rule.datatype)
        assert all(want in (-1, got) for want, got in zip(rule.shape, found.shape, strict=True))
        count = 1
        for dim in found.shape:
            assert type(dim) is int
            count *= dim
        assert not rule.itemsize or len(found.data) == count * rule.itemsize
    return True


def test_the_body_that_the_fuzz_tests_mutate_is_good() -> None:
    raw, length = mixed()
    assert check(raw, length, MIXED)


def test_every_truncation_is_refused() -> None:
    raw, length = mixed()
    for end in range(len(raw)):
        refusal(raw[:end], length, MIXED)
        refusal(raw[:end], str(min(end, int(length))) if end else None, MIXED)


def test_every_other_header_length_is_refused() -> None:
    raw, length = mixed()
    for other in range(len(raw) + 2):
        if other != int(length):
            refusal(raw, str(other), MIXED)
    refusal(raw, None, MIXED)


def test_20_000_bit_flips_never_break_anything() -> None:
    raw, length = mixed()
    rng = random.Random(5)
    refused = 0
    for _ in range(20_000):
        flipped = bytearray(raw)
        for _ in range(rng.choice((1, 1, 1, 2, 8))):
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        refused += not check(bytes(flipped), length, MIXED)
    assert refused > 10_000


def test_bit_flips_of_a_generate_body_never_break_anything() -> None:
    raw = json.dumps({"id": "7", "x": [[1, 2.5, -3e4, 0]], "parameters": {"a": "b:c"}}).encode()
    rng = random.Random(6)
    for _ in range(10_000):
        flipped = bytearray(raw)
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        attempt(functools.partial(parse_generate, bytes(flipped), MLP))


odd_numbers = st.sampled_from([-1, 0, 1, 4, 2**31 - 1, 2**31, 2**63, 2**64, 1e300, -0.0, 0.5])
leaves = st.none() | st.booleans() | odd_numbers | st.text(max_size=8) | st.integers()
odd_json = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(
            st.sampled_from(["name", "shape", "datatype", "data", "parameters", "a:"]), inner
        )
    ),
    max_leaves=12,
)
odd_input = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "s", "b", "k", "q"]) | odd_json,
        "shape": st.lists(odd_numbers, max_size=4) | st.just([1, 2]) | odd_json,
        "datatype": st.sampled_from(sorted(DATATYPES)) | odd_json,
        "data": st.lists(leaves, max_size=5) | st.lists(st.integers(-200, 300)) | odd_json,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": odd_json}) | odd_json,
    },
)
odd_request = st.fixed_dictionaries(
    {"inputs": st.lists(odd_input, max_size=4) | odd_json},
    optional={
        "id": odd_json,
        "parameters": odd_json,
        "outputs": st.lists(
            st.fixed_dictionaries({"name": st.sampled_from(["y", "z"])}), max_size=2
        )
        | odd_json,
        "more": odd_json,
    },
)


@given(odd_request, st.binary(max_size=12), st.none() | st.integers(-1, 400))
@settings(max_examples=300, deadline=None)
def test_odd_requests_are_refused_or_read(request_: Any, tail: bytes, length: int | None) -> None:
    raw = json.dumps(request_).encode()
    check(raw, None, MIXED)
    check(raw + tail, str(len(raw)), MIXED)
    check(raw + tail, None if length is None else str(length), MIXED)


@given(odd_json | st.dictionaries(st.sampled_from(["x", "id", "parameters"]), odd_json))
@settings(max_examples=300, deadline=None)
def test_odd_generate_bodies_are_refused_or_read(request_: Any) -> None:
    attempt(lambda: parse_generate(json.dumps(request_).encode(), MLP))


@given(st.binary(max_size=200), st.none() | st.text(max_size=5))
@settings(max_examples=200, deadline=None)
def test_random_bytes_are_refused(raw: bytes, length: str | None) -> None:
    check(raw, length, MIXED)


SUITE = Path(__file__).parents[2].parent / "shared" / "suites" / "JSONTestSuite" / "test_parsing"
if SUITE.is_dir():

    @pytest.mark.parametrize("path", sorted(SUITE.glob("*.json")), ids=lambda path: path.name)
    def test_json_test_suite_is_refused(path: Path) -> None:
        raw = path.read_bytes()
        refusal(raw)
        refusal(raw, str(len(raw)) if raw else None)
        refusal(raw, None, MLP, parse_generate)

    @pytest.mark.parametrize("path", sorted(SUITE.glob("*.json")), ids=lambda path: path.name)
    def test_json_test_suite_as_data_is_refused_or_read(path: Path) -> None:
        check(GOOD.replace(b"[1, 2, 3, 4]", path.read_bytes()), None, MLP)

    @pytest.mark.parametrize("path", sorted(SUITE.glob("n_*.json")), ids=lambda path: path.name)
    def test_what_is_not_json_is_refused_in_every_place(path: Path) -> None:
        raw = path.read_bytes()
        if raw.strip():
            refusal(b'{"note":' + raw + b"," + GOOD[1:])
            refusal(GOOD.replace(b"[1, 2, 3, 4]", raw))
