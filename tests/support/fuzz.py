"""Requests that no client would send, by hypothesis.  What they may do says `tests.e2e.test_fuzz`.

The models that they call cannot fail: 500 is the status of a model's failure, and a JSON answer
with NaN counts as one, so that arbitrary bytes go only to a model of integers.
"""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass, field
from typing import Any

import msgpack
from hypothesis import strategies as st

INTS, FLOATS, TEXTS = "fuzz-ints", "fuzz-floats", "fuzz-texts"
DATATYPES = {INTS: "INT64", FLOATS: "FP32", TEXTS: "BYTES"}
WORDS = ("infer", "generate", "generate_stream")


@dataclass(frozen=True)
class Request:
    """One request, of which the key, the length and the end are added when it is sent."""

    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


# Parts of bodies.

_scalars: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
)
anything: st.SearchStrategy[Any] = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=8), inner, max_size=5)
    ),
    max_leaves=20,
)
_dims = st.integers(-2, 6) | st.sampled_from(
    [2**31 - 1, 2**31, 2**33, 2**63, 2**64, 1.0, "4", None]
)


def mostly(right: Any, wrong: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What is right, seven times out of eight; `one_of` takes equal branches for one."""
    good = right if isinstance(right, st.SearchStrategy) else st.just(right)
    return st.sampled_from(range(8)).flatmap(lambda drawn: wrong if drawn == 7 else good)


def _without_deadline(parameters: dict[str, Any]) -> dict[str, Any]:
    """A request that allows itself no time is a good one, whose answer is a 504."""
    timeout_us = parameters.get("timeout")
    if isinstance(timeout_us, int) and 0 < timeout_us < 30_000_000:
        parameters["timeout"] = -timeout_us
    return parameters


_parameters = st.dictionaries(
    st.sampled_from(
        [
            *("timeout", "priority", "binary_data_output", "binary_data_size", "binary_data"),
            *("classification", "sequence_id", "sequence_start", "shared_memory_region", "headers"),
            "x",
        ]
    ),
    _scalars | st.lists(_scalars, max_size=3),
    max_size=4,
).map(_without_deadline)


def _elements(model: str) -> st.SearchStrategy[Any]:
    if model == INTS:
        return st.integers(-(2**63), 2**63 - 1)
    if model == FLOATS:
        return st.floats(-1e30, 1e30) | st.integers(-1000, 1000)
    return st.text(max_size=12)


@st.composite
def _tensors(draw: st.DrawFn, model: str) -> dict[str, Any]:
    width = 1 if model == TEXTS else 4
    rows = draw(st.integers(1, 3))
    flat = draw(st.lists(_elements(model), min_size=rows * width, max_size=rows * width))
    nested = [flat[start : start + width] for start in range(0, len(flat), width)]
    tensor = {
        "name": draw(mostly("x", st.text(max_size=12))),
        "shape": draw(mostly([rows, width], st.lists(_dims, max_size=5) | _scalars)),
        "datatype": draw(mostly(DATATYPES[model], st.sampled_from(["FP16", "BF16", "x", ""]))),
        "data": draw(mostly(st.sampled_from([flat, nested]), anything)),
    }
    if draw(st.integers(0, 5)) == 0:
        tensor["parameters"] = draw(_parameters | _scalars)
    if draw(st.integers(0, 9)) == 0:
        del tensor[draw(st.sampled_from(sorted(tensor)))]
    return tensor


@st.composite
def documents(draw: st.DrawFn, model: str) -> dict[str, Any]:
    """The document of an infer request, as the protocol's grammar has it, most often."""
    inputs = draw(mostly(st.lists(_tensors(model), min_size=1, max_size=1), st.none()))
    if inputs is None:
        inputs = draw(st.lists(_tensors(model), max_size=4) | anything)
    document: dict[str, Any] = {"inputs": inputs}
    if draw(st.integers(0, 3)) == 0:
        document["id"] = draw(mostly(st.text(max_size=20), anything))
    if draw(st.integers(0, 3)) == 0:
        document["parameters"] = draw(mostly(_parameters, anything))
    if draw(st.integers(0, 3)) == 0:
        output = st.fixed_dictionaries(
            {"name": mostly("y", st.text(max_size=8))}, optional={"parameters": _parameters}
        )
        document["outputs"] = draw(mostly(st.lists(output, max_size=3), anything))
    if draw(st.integers(0, 9)) == 0:
        document[draw(st.text(max_size=8))] = draw(anything)
    return document


_models = st.sampled_from([INTS, FLOATS, TEXTS])
_headers = st.fixed_dictionaries(
    {},
    optional={
        "x-request-timeout-seconds": st.sampled_from(["5", "0", "nan", "-1", "1e9", "x"]),
        "cache-control": st.sampled_from(["no-store", "no-cache", "max-age=0", "x,,=", ""]),
        "accept": st.sampled_from(["application/json", "application/msgpack", "*/*", "x;q=9", ""]),
        "accept-encoding": st.sampled_from(["gzip", "deflate", "br", "gzip;q=x", "*"]),
        "x-request-id": st.text("abc-_ ./", max_size=200),
        "x-tidepool-variant": st.sampled_from(["stable", "", "other"]),
    },
)


def _path(model: str, word: str, version: str | None) -> str:
    middle = "" if version is None else f"/versions/{version}"
    return f"/v2/models/{model}{middle}/{word}"


@st.composite
def json_requests(draw: st.DrawFn) -> Request:
    """A body of the protocol's grammar, to any of the calls."""
    model = draw(_models)
    word = draw(st.sampled_from(["infer", "infer", "infer", "generate", "generate_stream"]))
    document = draw(documents(model))
    if word != "infer" and draw(st.booleans()):
        document = {"x": draw(st.lists(_elements(model), max_size=8) | anything)}
    version = draw(st.sampled_from([None, None, None, "1", "2", "01", "x"]))
    return Request(_path(model, word, version), json.dumps(document).encode(), draw(_headers))


@st.composite
def msgpack_requests(draw: st.DrawFn) -> Request:
    """The same as msgpack, also with what only msgpack has."""
    model = draw(_models)
    document = draw(documents(model))
    if model == INTS and draw(st.booleans()) and isinstance(document["inputs"], list):
        for tensor in document["inputs"]:
            if isinstance(tensor, dict):
                tensor["data"] = draw(st.binary(min_size=32, max_size=32) | st.binary(max_size=99))
    if draw(st.integers(0, 9)) == 0:
        document["id"] = msgpack.ExtType(draw(st.integers(0, 127)), draw(st.binary(max_size=9)))
    try:
        body = msgpack.packb(document)
    except (OverflowError, ValueError):  # what msgpack cannot say
        body = draw(st.binary(max_size=200))
    headers = {**draw(_headers), "content-type": "application/msgpack"}
    return Request(_path(model, "infer", None), body, headers)


# Valid requests, and what may happen to their bytes.


def valid_requests() -> list[Request]:
    """One valid request of each form that there is."""
    ints = {"name": "x", "shape": [2, 4], "datatype": "INT64"}
    plain = {"inputs": [{**ints, "data": list(range(8))}], "id": "a"}
    text = json.dumps(plain).encode()
    binary = {
        "inputs": [{**ints, "parameters": {"binary_data_size": 64}}],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    }
    head = json.dumps(binary).encode()
    path = _path(INTS, "infer", None)
    floats = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [[1.5, -2e-3, 0, 4]]}
    texts = {"name": "x", "shape": [2, 1], "datatype": "BYTES", "data": ["é", "\\n\u0000"]}
    packed = msgpack.packb({"inputs": [{**ints, "data": bytes(64)}], "parameters": {"a": 1}})
    length = {"inference-header-content-length": str(len(head))}
    return [
        Request(path, text),
        Request(path, head + bytes(range(64)), length),
        Request(path, bytes(32), {"inference-header-content-length": "0"}),
        Request(_path(FLOATS, "infer", "1"), json.dumps({"inputs": [floats]}).encode()),
        Request(_path(TEXTS, "infer", None), json.dumps({"inputs": [texts]}).encode()),
        Request(_path(FLOATS, "generate", None), b'{"x": [1, 2, 3, 4]}'),
        Request(_path(FLOATS, "generate_stream", None), b'{"x": [[1, 2, 3, 4]]}'),
        Request(path, packed, {"content-type": "application/msgpack"}),
        Request(path, gzip.compress(text, mtime=0), {"content-encoding": "gzip"}),
        Request(path, zlib.compress(text), {"content-encoding": "deflate"}),
    ]


@st.composite
def mutated(draw: st.DrawFn, raw: bytes) -> bytes:
    """`raw` after a few accidents: flipped, dropped, doubled, inserted and moved bytes, or cut."""
    found = bytearray(raw)
    for _ in range(draw(st.integers(1, 4))):
        if not found:
            break
        at = draw(st.integers(0, len(found) - 1))
        size = draw(st.integers(1, 12))
        match draw(st.integers(0, 6)):
            case 0:
                found[at] ^= 1 << draw(st.integers(0, 7))
            case 1:
                del found[at : at + size]
            case 2:
                found[at:at] = found[at : at + size]
            case 3:
                found[at:at] = draw(st.binary(min_size=1, max_size=12))
            case 4:
                found[at:at] = draw(st.sampled_from(TOKENS))
            case 5:
                to = draw(st.integers(0, len(found) - 1))
                found[to : to + size] = found[at : at + size]
            case 6:
                del found[at:]
    return bytes(found)


TOKENS = [
    *(b'"', b"[", b"]", b"{", b"}", b",", b":", b"null", b"1e999", b"-", b"NaN", b"\\ud800", b"\0"),
    *(b"9" * 400, b"[" * 200, b"\xff\xfe", b"\xc0\xaf", b'"inputs":', b'"data":[1],', b"\r\n"),
    *(
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\x7f\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc1",
        b"\x80" * 99,
    ),
]


@st.composite
def mutated_requests(draw: st.DrawFn) -> Request:
    """A valid request whose body met with accidents."""
    request = draw(st.sampled_from(valid_requests()))
    headers = {**request.headers, **draw(_headers)}
    return Request(request.path, draw(mutated(request.body)), headers)


@st.composite
def bombs(draw: st.DrawFn) -> Request:
    """A small body that becomes a large one, or says so."""
    encoding = draw(st.sampled_from(["gzip", "deflate"]))
    unit = draw(st.sampled_from([b"\0", b" ", b"[", b'{"a":', b"1,", b"\x80", b"\x90"]))
    size = draw(st.sampled_from([1 << 10, 1 << 20, 9 << 20, 40 << 20, 70 << 20]))
    inside = unit * (size // len(unit))
    if draw(st.integers(0, 3)) == 0:
        inside = gzip.compress(inside, 1, mtime=0)
    body = gzip.compress(inside, 1, mtime=0) if encoding == "gzip" else zlib.compress(inside, 1)
    if draw(st.integers(0, 3)) == 0:
        body = draw(mutated(body[: 1 << 16]))
    headers = {"content-encoding": draw(mostly(encoding, st.sampled_from(["br", "gzip,gzip"])))}
    if draw(st.booleans()):
        headers["content-type"] = "application/msgpack"
    return Request(_path(draw(_models), "infer", None), body, headers)


# What is no request.


@st.composite
def raw_bytes(draw: st.DrawFn, key: str) -> bytes:
    """Bytes on a connection: noise, or one or two requests whose heads met with accidents."""
    if draw(st.integers(0, 3)) == 0:
        return draw(st.binary(max_size=300))
    request = draw(st.sampled_from(valid_requests()))
    whole = rendered(request, key)
    head, blank, body = whole.partition(b"\r\n\r\n")
    found = draw(mutated(head)) + blank + body
    return found + whole if draw(st.booleans()) else found


@st.composite
def chunkings(draw: st.DrawFn, key: str) -> bytes:
    """A valid body in chunks, some of them wrong."""
    request = draw(st.sampled_from(valid_requests()))
    cuts = sorted(draw(st.lists(st.integers(0, len(request.body)), max_size=6)))
    pieces = [
        request.body[start:end]
        for start, end in zip([0, *cuts], [*cuts, len(request.body)], strict=True)
    ]
    body = bytearray()
    for piece in pieces:
        if not piece:
            continue
        size = draw(mostly(b"%x" % len(piece), st.sampled_from([b"", b"-1", b"zz", b"f" * 17])))
        extension = draw(mostly(b"", st.sampled_from([b";a=b", b" ", b";" + b"x" * 500, b"\0"])))
        end = draw(mostly(b"\r\n", st.sampled_from([b"\n", b"", b"x\r\n"])))
        body += size + extension + b"\r\n" + piece + end
    body += draw(
        mostly(b"0\r\n\r\n", st.sampled_from([b"", b"0\r\n", b"0\r\nx-a: b\r\n\r\n", b"00"]))
    )
    head = rendered(Request(request.path, b"", {**request.headers}), key, length=None)
    return head.replace(b"\r\n\r\n", b"\r\ntransfer-encoding: chunked\r\n\r\n", 1) + bytes(body)


def rendered(request: Request, key: str, length: int | None = -1) -> bytes:
    """Return the bytes of a request, after which the connection is to be closed."""
    lines = [
        f"POST {request.path} HTTP/1.1",
        "host: fuzz",
        f"x-api-key: {key}",
        "connection: close",
    ]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    if length is not None:
        lines.append(f"content-length: {len(request.body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + request.body
