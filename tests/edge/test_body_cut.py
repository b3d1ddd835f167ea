"""Arrays cut out of a body: read as they would have been in it, and refused as there."""

from __future__ import annotations

import json
import struct

import pytest

from edge import body_cut, body_json
from edge.body import parse_infer
from edge.body_cut import CUT_BYTES_MIN, cut
from edge.body_signature import Signature
from edge.errors import Refusal
from registry_sync.documents import TensorSpec

COUNT = 20_000
NUMBERS = [index * 0.5 for index in range(COUNT)]
SIGNATURE = Signature.of(
    "m", [TensorSpec("x", "FP32", (-1,)), TensorSpec("z", "INT64", (-1,))], [], 1
)
Z = {"name": "z", "shape": [1], "datatype": "INT64", "data": [7]}


def body(data: str, *more: str, count: int = COUNT) -> bytes:
    x = f'{{"name": "x", "shape": [{count}], "datatype": "FP32", "data": {data}}}'
    return f'{{"inputs": [{x}, {", ".join(more) or json.dumps(Z)}]}}'.encode()


def read(raw: bytes) -> list[bytes]:
    return [bytes(tensor.data) for tensor in parse_infer(raw, None, SIGNATURE).inputs]


def refusal(raw: bytes) -> str:
    with pytest.raises(Refusal) as caught:
        parse_infer(raw, None, SIGNATURE)
    return f"{caught.value.status} {caught.value.text}"


def test_large_array_is_cut_and_read_as_it_was_written() -> None:
    raw = body(json.dumps(NUMBERS))
    rest, arrays = cut(raw)
    assert len(rest) < 300
    assert list(arrays.values()) == [json.dumps(NUMBERS).encode()]
    assert read(raw) == [struct.pack(f"<{COUNT}f", *NUMBERS), struct.pack("<q", 7)]


def test_two_large_arrays_are_each_their_tensors() -> None:
    z = json.dumps({**Z, "shape": [COUNT], "data": list(range(COUNT))})
    raw = body(json.dumps(NUMBERS), z)
    assert len(cut(raw)[1]) == 2
    assert read(raw)[1] == struct.pack(f"<{COUNT}q", *range(COUNT))


def test_small_body_stays_whole() -> None:
    raw = body("[1.0]", count=1)
    assert cut(raw) == (raw, {})


@pytest.mark.parametrize("blank", ["", " ", "\n\t "])
def test_blanks_do_not_matter(blank: str) -> None:
    raw = body(json.dumps(NUMBERS)).replace(b'"data": [', f'"data"{blank}:{blank}['.encode(), 1)
    assert len(cut(raw)[1]) == 1
    assert read(raw)[0] == struct.pack(f"<{COUNT}f", *NUMBERS)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (json.dumps(NUMBERS)[:-1] + ",]", "not valid JSON"),
        (json.dumps(NUMBERS).replace(", 5.0", ",, 5.0"), "not valid JSON"),
        (json.dumps(NUMBERS).replace(" 5.0", " NaN"), "not valid JSON"),
        (json.dumps(NUMBERS).replace(" 5.0", " true"), "FP32"),
        (json.dumps(NUMBERS).replace(" 5.0", " 5.0 1"), "not valid JSON"),
        (json.dumps(NUMBERS).replace(" 5.0", " 01"), "not valid JSON"),
        (json.dumps(NUMBERS).replace(" 5.0", " {}"), "FP32"),
        (json.dumps(NUMBERS).replace(" 5.0", " 1e300"), "out of range"),
        (json.dumps(NUMBERS[1:]), "19999 elements"),
        (json.dumps(NUMBERS).replace(" 5.0", ' "5"'), "FP32"),
        (json.dumps(NUMBERS).replace(" 5.0", " [5.0]"), "FP32"),
    ],
)
def test_array_that_is_wrong_is_refused_when_cut_too(data: str, reason: str) -> None:
    found = refusal(body(data))
    assert found.startswith("400 ")
    assert reason in found


@pytest.mark.parametrize("comma", [(b"9999.5]", b"9999.5,]"), (b" 5.0", b", 5.0")])
def test_comma_too_many_is_refused_when_read_in_pieces(
    comma: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_json, "BULK_BYTES_MIN", 0)
    assert "20001 elements" in refusal(body(json.dumps(NUMBERS)).replace(*comma, 1))


def test_body_that_is_broken_beside_the_array_is_refused() -> None:
    raw = body(json.dumps(NUMBERS))
    assert refusal(raw[:-1]).startswith("400 ")
    assert refusal(raw.replace(b'"shape": [20000]', b'"shape": [20000', 1)).startswith("400 ")
    doubled = raw.replace(b'"name": "x"', b'"name": "x", "name": "x"', 1)
    assert refusal(doubled) == "400 the JSON has the same key twice in one object"


def test_data_given_twice_is_refused_where_one_is_cut() -> None:
    twice = f'"data": {json.dumps(NUMBERS)}'
    raw = body(json.dumps(NUMBERS)).replace(b'"data": [0.0', twice.encode() + b', "data": [0.0', 1)
    assert refusal(raw).startswith("400 ")


@pytest.mark.parametrize(
    "elsewhere", ['"parameters": {"data": %s}', '"other": {"data": %s}', '"a\\"data": %s']
)
def test_array_elsewhere_in_the_body_is_read_as_what_it_is(elsewhere: str) -> None:
    good = "[" + "1, " * CUT_BYTES_MIN + "1]"
    bad = "[" + "1, " * CUT_BYTES_MIN + "]"
    for array, is_json in ((good, True), (bad, False)):
        raw = body(json.dumps(NUMBERS)).replace(
            b'{"inputs"', b"{" + (elsewhere % array).encode() + b', "inputs"', 1
        )
        if is_json and "parameters" not in elsewhere:
            assert read(raw)[0] == struct.pack(f"<{COUNT}f", *NUMBERS)
        else:
            assert refusal(raw).startswith("400 ")


def test_word_for_an_array_cannot_be_guessed() -> None:
    assert len(body_cut._WORD) == 32
    raw = body(json.dumps(NUMBERS), json.dumps({**Z, "data": "0" * 32 + "-0"}))
    assert refusal(raw).startswith("400 ")
