"""Calls that nobody may mean: a 4xx that says why, in every form; nothing of them is run.

Framing and sockets are `test_bad_input`'s; here is what a well-framed body or path can do.
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.support import models
from tests.support.stack import REPOSITORY, Answer, Stack

MODEL = "calls-plain"
ROW: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 2, 3, 4]}
SUITE = REPOSITORY.parent / "shared" / "suites" / "msgpack-test-suite" / "msgpack-test-suite.json"

Send = Callable[..., Answer]


@pytest.fixture(scope="module", autouse=True)
def plain(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Publish ``y = x``: FP32 [N, 4], and one for each kind of integer."""
    folder = tmp_path_factory.mktemp("calls")
    stack.publish(MODEL, models.identity(folder / "p.onnx"))
    for datatype in INTEGERS:
        path = models.identity(folder / f"{datatype}.onnx", datatype, ["N", 1])
        stack.publish(f"calls-{datatype.lower()}", path)


@pytest.fixture(params=["json", "msgpack"])
def send(request: pytest.FixtureRequest, stack: Stack) -> Send:
    """Send a body in one of the two forms."""
    is_packed = request.param == "msgpack"

    def send(body: Any, model: str = MODEL) -> Answer:
        content = msgpack.packb(body) if is_packed else json.dumps(body)
        headers = {"content-type": f"application/{request.param}"}
        return stack.request("POST", f"/v2/models/{model}/infer", content, headers)

    return send


def _is_refused(answer: Answer) -> bool:
    assert answer.headers["content-type"] == "application/json"
    assert 0 < len(answer.error) <= 300
    return answer.status in (400, 422)


INTEGERS = {
    "UINT8": (0, 2**8 - 1),
    "UINT16": (0, 2**16 - 1),
    "UINT32": (0, 2**32 - 1),
    "UINT64": (0, 2**64 - 1),
    "INT8": (-(2**7), 2**7 - 1),
    "INT16": (-(2**15), 2**15 - 1),
    "INT32": (-(2**31), 2**31 - 1),
    "INT64": (-(2**63), 2**63 - 1),
}


def test_a_good_call_is_answered(send: Send) -> None:
    assert send({"inputs": [ROW]}).status == 200


def test_100_000_outputs_asked_for(send: Send) -> None:
    answer = send({"inputs": [ROW], "outputs": [{"name": "y"}] * 100_000})
    assert _is_refused(answer)
    assert "1024" in answer.error


def test_100_000_inputs(send: Send) -> None:
    assert _is_refused(send({"inputs": [ROW] * 100_000}))


def test_100_000_parameters(send: Send) -> None:
    parameters = {f"p{number}": number for number in range(100_000)}
    assert _is_refused(send({"inputs": [ROW], "parameters": parameters}))


def test_a_duplicate_input(send: Send) -> None:
    answer = send({"inputs": [ROW, ROW]})
    assert _is_refused(answer)
    assert "given twice" in answer.error


def test_a_duplicate_output(send: Send) -> None:
    answer = send({"inputs": [ROW], "outputs": [{"name": "y"}, {"name": "y"}]})
    assert _is_refused(answer)
    assert "twice" in answer.error


@pytest.mark.parametrize("datatype", INTEGERS)
def test_an_integer_out_of_its_range(send: Send, datatype: str) -> None:
    low, high = INTEGERS[datatype]

    def call(value: int) -> Answer:
        given = {"name": "x", "datatype": datatype, "shape": [1, 1], "data": [value]}
        return send({"inputs": [given]}, f"calls-{datatype.lower()}")

    assert [call(value).status for value in (low, high)] == [200, 200]
    for value in (low - 1, high + 1):
        if -(2**63) <= value < 2**64:  # what msgpack can say
            assert _is_refused(call(value))


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, 10**40])
def test_an_integer_beyond_64_bits(stack: Stack, value: int) -> None:
    given = {"name": "x", "datatype": "INT64", "shape": [1, 1], "data": [value]}
    assert _is_refused(stack.request("POST", "/v2/models/calls-int64/infer", {"inputs": [given]}))


SHAPES: dict[str, Any] = {
    "negative": [-1, 4],
    "all negative": [-1, -4],
    "beyond 31 bits": [2**31, 4],
    "product beyond 64 bits": [2**31 - 1, 2**31 - 1, 2**31 - 1],
    "beyond 63 bits": [2**63, 4],
    "zero rows": [0, 4],
    "rank 17": [1] * 16 + [4],
    "rank 100,000": [1] * 100_000,
    "fraction": [1.5, 4],
    "whole fraction": [1.0, 4],
    "true": [True, 4],
    "text": ["1", 4],
    "null": [None, 4],
    "nested": [[1, 4]],
    "number": 4,
    "nothing": None,
    "missing": ...,
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.rule("SEC-5")
def test_a_shape_that_is_none(send: Send, name: str) -> None:
    given = {**ROW, "shape": SHAPES[name]}
    if SHAPES[name] is ...:
        del given["shape"]
    assert _is_refused(send({"inputs": [given]}))


@pytest.mark.parametrize("kind", [-1, 101, 2**53, 1.0, 0.5, "1", "high", True, [1], {"a": 1}, None])
def test_a_priority_of_a_wrong_kind(send: Send, kind: Any) -> None:
    answer = send({"inputs": [ROW], "parameters": {"priority": kind}})
    assert _is_refused(answer)


@pytest.mark.parametrize("kind", [-1, 2**63, 1.0, 0.5, "1", "1s", True, [1], {"a": 1}, None])
def test_a_timeout_of_a_wrong_kind(send: Send, kind: Any) -> None:
    assert _is_refused(send({"inputs": [ROW], "parameters": {"timeout": kind}}))


@pytest.mark.parametrize("kind", [1, 0.5, True, ["a"], {"x-user": "a"}, None])
def test_headers_of_a_wrong_kind(send: Send, kind: Any) -> None:
    assert _is_refused(send({"inputs": [ROW], "parameters": {"headers": kind}}))


@pytest.mark.parametrize("kind", [-1, 1 << 17, 1.0, "3", True, [3], None])
def test_a_classification_of_a_wrong_kind(send: Send, kind: Any) -> None:
    output = {"name": "y", "parameters": {"classification": kind}}
    assert _is_refused(send({"inputs": [ROW], "outputs": [output]}))


@pytest.mark.parametrize("kind", [1, 0, "true", [True], None])
def test_binary_data_of_a_wrong_kind(send: Send, kind: Any) -> None:
    output = {"name": "y", "parameters": {"binary_data": kind}}
    assert _is_refused(send({"inputs": [ROW], "outputs": [output]}))
    assert _is_refused(send({"inputs": [ROW], "parameters": {"binary_data_output": kind}}))


# --- paths ---------------------------------------------------------------------------------------

NAMES = [
    "..",
    ".",
    "%2e%2e",
    "%2E%2e%2Fkeys.json",
    "..%2f..%2fkeys.json",
    "..%5c..%5ckeys.json",
    "%252e%252e%252fkeys.json",
    "..;",
    "%00",
    f"{MODEL}%00",
    f"{MODEL}%2f..%2f{MODEL}",
    f"{MODEL}%0d%0ax-injected:%20yes",
    "%c0%ae%c0%ae%c0%af",
    "%ff",
    "A",
    "a" * 65,
    "a" * 5000,
    "keys.json",
    "-a",
    "~",
    "%7e",
    "c:",
    "%u002e%u002e",
]
VERSIONS = [*NAMES, "0", "-1", "01", "1.0", "1e0", "%31%00", "9" * 19, "9" * 400, "latest", "+1"]
ROUTES = [
    ("POST", "infer"),
    ("POST", "generate"),
    ("POST", "generate_stream"),
    ("GET", ""),
    ("GET", "ready"),
    ("GET", "config"),
    ("GET", "stats"),
    ("GET", "trace/setting"),
]


def _go(stack: Stack, method: str, path: str) -> Answer:
    body = {"inputs": [ROW]} if method == "POST" else None
    answer = stack.request(method, path, body)
    assert 400 <= answer.status < 500, (path, answer.status, answer.body)
    assert "x-injected" not in answer.headers
    # A path that the server's HTTP cannot read is refused before there is anybody to say why.
    assert answer.status == 400 or answer.error
    assert b"passwd" not in answer.body
    return answer


UP = ("..", "%2e%2e", ".%2e", "%252e%252e", "..;", "%c0%ae%c0%ae", "%ef%bc%8e%ef%bc%8e", "..%00")
SLASHES = ("/", "%2f", "%252f", "%5c", "%c0%af", "//", "/./", "%ef%bc%8f")
GOALS = ("keys.json", "etc/passwd", "secrets", f"models/{MODEL}/1/manifest.json")
SPELLINGS = [f"{up}{slash}{up}{slash}{goal}" for up in UP for slash in SLASHES for goal in GOALS]


@pytest.mark.rule("SEC-4")
def test_no_spelling_of_a_way_up_leads_anywhere(stack: Stack) -> None:
    assert len(SPELLINGS) > 200
    for spelling in SPELLINGS:
        _go(stack, "GET", f"/v2/models/{spelling}")
        answer = stack.request("GET", f"/admin/models/{spelling}", admin=True)
        assert answer.status in (400, 404, 405), (spelling, answer.status)
        assert b"sha256" not in answer.body, spelling


@pytest.mark.rule("SEC-4")
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_elsewhere_leads_nowhere(stack: Stack, name: str) -> None:
    for method, word in ROUTES:
        _go(stack, method, f"/v2/models/{name}/{word}".rstrip("/"))
    for word in ("load", "unload"):
        _go(stack, "POST", f"/v2/repository/models/{name}/{word}")


@pytest.mark.rule("SEC-4")
@pytest.mark.parametrize("version", VERSIONS)
def test_a_version_that_leads_elsewhere_leads_nowhere(stack: Stack, version: str) -> None:
    for method, word in ROUTES:
        _go(stack, method, f"/v2/models/{MODEL}/versions/{version}/{word}".rstrip("/"))


def test_an_unknown_route_and_a_wrong_method_have_the_protocol_s_errors(stack: Stack) -> None:
    for path in ("/v2/systemsharedmemory/status", "/v2/nothing", f"/v2/models/{MODEL}/nothing"):
        answer = stack.request("GET", path)
        assert (answer.status, answer.error) == (404, "Not Found")
    for method, path in (
        ("PUT", "/v2/repository/index"),
        ("POST", f"/v2/models/{MODEL}/config"),
        ("DELETE", "/v2/logging"),
    ):
        answer = stack.request(method, path)
        assert (answer.status, answer.error) == (405, "Method Not Allowed")


# --- msgpack alone -------------------------------------------------------------------------------


def _pack(stack: Stack, content: bytes, kept: http.client.HTTPConnection | None = None) -> Answer:
    headers, path = {"content-type": "application/msgpack"}, f"/v2/models/{MODEL}/infer"
    if kept is None:
        return stack.request("POST", path, content, headers)
    kept.request("POST", path, content, {**headers, **stack.auth()})
    response = kept.getresponse()
    found = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, found, response.read())


def _rss_max_bytes(stack: Stack) -> int:
    """Return the most that the edge has ever held since this was last reset."""
    status = Path(f"/proc/{stack.pids()['edge-0']}/status").read_text()
    return int(re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)[1]) * 1024  # type: ignore[index]


def _reset_rss_max(stack: Stack) -> None:
    Path(f"/proc/{stack.pids()['edge-0']}/clear_refs").write_text("5")


def test_8_mb_of_empty_maps_cost_no_memory(stack: Stack) -> None:
    count = 8 << 20
    maps = b"\xdd" + count.to_bytes(4, "big") + b"\x80" * count
    tensor = msgpack.packb({**ROW, "shape": [count // 4, 4], "data": None})[:-1]
    for body in (
        maps,
        b"\x81\xa6inputs" + maps,
        b"\x81\xaaparameters" + maps,
        b"\x81\xa6inputs\x91" + tensor + maps,
        b"\x81\xa4more" + maps,
    ):
        assert _is_refused(_pack(stack, body))  # what a first body of this size takes
        _reset_rss_max(stack)
        before_bytes = _rss_max_bytes(stack)
        assert _is_refused(_pack(stack, body))
        # The body itself, twice at most; decoded, it would be 572 MB.
        assert _rss_max_bytes(stack) - before_bytes < 64 << 20


@pytest.mark.rule("F25")
@pytest.mark.parametrize("depth", [100, 10_000, 1_000_000])
def test_deep_msgpack_is_refused(stack: Stack, depth: int) -> None:
    tensor = msgpack.packb({**ROW, "data": None})[:-1]
    for body in (
        b"\x91" * depth,
        b"\x91" * depth + b"\xc0",
        b"\x81\xa6inputs" + b"\x91" * depth + b"\xc0",
        b"\x81\xa6inputs\x91" + tensor + b"\x91" * depth + b"\xc0",
        b"\x81\xa1a" * depth + b"\xc0",
    ):
        assert _is_refused(_pack(stack, body))


if SUITE.exists():  # where the corpus lies beside the checkout

    def test_no_value_of_the_msgpack_test_suite_is_more_than_a_bad_request(stack: Stack) -> None:
        groups = json.loads(SUITE.read_text())
        values = [
            bytes.fromhex(form.replace("-", ""))
            for group in groups.values()
            for case in group
            for form in case["msgpack"]
        ]
        assert len(values) > 100
        head = msgpack.packb({**ROW, "data": None})[:-1]
        kept = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=30)
        for value in values:
            for body in (
                value,
                b"\x81\xa6inputs" + value,
                b"\x81\xa6inputs\x91" + value,
                b"\x81\xa6inputs\x91" + head + value,
                b"\x82\xa6inputs\x91" + msgpack.packb(ROW) + b"\xa4more" + value,
                b"\x82\xa6inputs\x91" + msgpack.packb(ROW) + value + b"\xc0",
            ):
                assert _is_refused(_pack(stack, body, kept)), body
            for field in ("id", "parameters", "outputs"):
                body = b"\x82\xa6inputs\x91" + msgpack.packb(ROW) + msgpack.packb(field) + value
                assert _pack(stack, body, kept).status in (200, 400, 422), body
        kept.close()
