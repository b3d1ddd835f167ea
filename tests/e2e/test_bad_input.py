"""Whatever is sent over the socket: a 4xx that says why, no process lost, no memory kept."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.counting_engine import MAGIC_VALUE
from tests.support.models import identity
from tests.support.stack import REPOSITORY, Stack, observed_inputs, tensors, until

MODEL = "bad-plain"
PATH = f"/v2/models/{MODEL}/infer"
GOOD = {"inputs": tensors({"x": ("FP32", [1, 4], [1.0, 2.0, 3.0, 4.0])})}
BODY_BYTES_MAX = 64 << 20
KEPT_BYTES_MAX = 32 << 20
SUITE = REPOSITORY.parent / "shared" / "suites" / "JSONTestSuite" / "test_parsing"


@dataclass
class Before:
    """What was true before anything bad was sent."""

    pids: dict[str, int]
    pss_bytes: int
    slow_head: socket.socket
    slow_body: socket.socket
    began_s: float


@pytest.fixture(scope="module", autouse=True)
def before(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Before]:
    """Publish the model; begin the two requests that never end, which the last tests look at."""
    stack.publish(MODEL, identity(tmp_path_factory.mktemp("models") / "i.onnx"))
    for _ in range(3):  # what a first use takes is no leak
        assert stack.request("POST", PATH, GOOD).status == 200
    slow_head, slow_body = (_connect(stack) for _ in range(2))
    slow_head.sendall(b"POST /v2 HTTP/1.1\r\nhost: e2e\r\nx-slow: ")
    slow_body.sendall(_head(stack, "content-length: 1000") + b'{"inputs": [')
    with closing(slow_head), closing(slow_body):
        yield Before(stack.pids(), _pss_bytes(stack), slow_head, slow_body, time.monotonic())


def _pss_bytes(stack: Stack) -> int:
    """Return what edge and worker hold, shared pages by their part."""
    total = 0
    for name, pid in stack.pids().items():
        if name.startswith(("edge", "worker")):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)[1]) * 1024  # type: ignore[index]
    return total


def _connect(stack: Stack) -> socket.socket:
    return socket.create_connection(("127.0.0.1", stack.port), timeout=30)


def _head(stack: Stack, *lines: str, path: str = PATH, method: str = "POST") -> bytes:
    found = [f"{method} {path} HTTP/1.1", "host: e2e", f"x-api-key: {stack.key}", *lines]
    return ("\r\n".join(found) + "\r\n\r\n").encode("latin-1")


@dataclass(frozen=True)
class Raw:
    """What came back on a connection; status 0: it was closed without an answer."""

    status: int
    received: bytes

    @property
    def error(self) -> str:
        text = json.loads(self.received.partition(b"\r\n\r\n")[2])["error"]
        assert isinstance(text, str)
        return text


def _send(stack: Stack, *pieces: bytes, ends: bool = False) -> Raw:
    """Send raw bytes and read one answer; `ends` closes our half of the connection."""
    with closing(_connect(stack)) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
            if ends:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it answers, or closes, before it has read everything
        return _read(connection)


def _read(connection: socket.socket) -> Raw:
    received = b""
    try:
        while not _is_whole(received) and (more := connection.recv(65536)):
            received += more
    except ConnectionResetError:
        pass
    status = re.match(rb"HTTP/1\.1 (\d+)", received)
    return Raw(int(status[1]) if status else 0, received)


def _is_whole(received: bytes) -> bool:
    head, blank, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return bool(blank) and length is not None and len(body) >= int(length[1])


def _json(*, shape: str = "[1,4]", datatype: str = '"FP32"', data: str = "[1,2,3,4]") -> str:
    given = f'{{"name":"x","shape":{shape},"datatype":{datatype},"data":{data}}}'
    return f'{{"inputs":[{given}]}}'


BODIES: dict[str, str | bytes] = {
    "empty": "",
    "blank": "  ",
    "no object": "[]",
    "cut": '{"inputs":[',
    "trailing": _json() + "x",
    "two objects": _json() + _json(),
    "doubled key": '{"inputs":[],"inputs":[]}',
    "doubled key in a tensor": _json().replace('"name"', '"name":"y","name"'),
    "NaN": _json(data="[NaN,2,3,4]"),
    "Infinity": _json(data="[1,-Infinity,3,4]"),
    "1e999": _json(data="[1e999,2,3,4]"),
    "5,000 digits": _json(data=f"[{'9' * 5000},2,3,4]"),
    "5,000 digits in a shape": _json(shape=f"[{'9' * 5000},4]"),
    "fraction in a shape": _json(shape="[1.5,4]"),
    "negative shape": _json(shape="[-1,4]"),
    "shape beyond its data": _json(shape="[2147483647,4]"),
    "shape that overflows": _json(shape="[4294967296,4294967296,4294967296]"),
    "rank 9": _json(shape="[1,1,1,1,1,1,1,1,4]"),
    "rank 1000": _json(shape=str([1] * 1000)),
    "deep": _json(data="[" * 100_000 + "]" * 100_000),
    "deep and cut": _json(data="[" * 100_000),
    "deep elsewhere": '{"inputs":[],"x":' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}",
    "ragged": _json(data="[[1,2],[3,4,5]]"),
    "too few": _json(data="[1,2,3]"),
    "too many": _json(data="[1,2,3,4,5]"),
    "texts for numbers": _json(data='["1","2","3","4"]'),
    "null": _json(data="[null,2,3,4]"),
    "true": _json(data="[true,2,3,4]"),
    "no data": _json(data="null"),
    "unknown datatype": _json(datatype='"FP8"'),
    "datatype of another kind": _json(datatype="7"),
    "other datatype": _json(datatype='"INT64"'),
    "lone surrogate": _json(datatype='"\\ud800"'),
    "invalid UTF-8": _json().encode().replace(b"FP32", b"\xff\xfe"),
    "UTF-16": _json().encode("utf-16"),
    "a mark": b"\xef\xbb\xbf" + _json().encode(),
    "NUL": _json() + "\0",
    "2,000 inputs": json.dumps({"inputs": GOOD["inputs"] * 2000}),
    "no inputs": '{"inputs":[]}',
    "long id": json.dumps({**GOOD, "id": "i" * 2000}),
    "id of another kind": json.dumps({**GOOD, "id": 7}),
    "unknown output": json.dumps({**GOOD, "outputs": [{"name": "nobody"}]}),
    "doubled output": json.dumps({**GOOD, "outputs": [{"name": "y"}, {"name": "y"}]}),
    "shared memory": json.dumps(
        {"inputs": [{**GOOD["inputs"][0], "parameters": {"shared_memory_region": "r"}}]}
    ),
    "negative timeout": json.dumps({**GOOD, "parameters": {"timeout": -1}}),
    "priority 101": json.dumps({**GOOD, "parameters": {"priority": 101}}),
    "parameters of another kind": json.dumps({**GOOD, "parameters": [1]}),
    "nested parameter": json.dumps({**GOOD, "parameters": {"a": {"b": 1}}}),
    "msgpack": b"\x81\xa6inputs\x90",
    "NULs": b"\0" * 1000,
}
WORDS = ("infer", "generate", "generate_stream")


@pytest.mark.rule("F25")
@pytest.mark.parametrize("name", BODIES)
@pytest.mark.rule("SEC-5")
def test_a_bad_body_is_the_caller_s_fault(stack: Stack, name: str) -> None:
    body = BODIES[name]
    content = body.encode() if isinstance(body, str) else body
    for word in WORDS:
        started_s = time.monotonic()
        answer = stack.request("POST", f"/v2/models/{MODEL}/{word}", content)
        assert answer.status in (400, 422), (word, answer.status, answer.body[:300])
        assert 0 < len(answer.error) <= 300
        assert time.monotonic() - started_s < 1.0
        assert answer.headers["x-request-id"]


def _binary(header: dict[str, Any], tail: bytes) -> tuple[bytes, int]:
    text = json.dumps(header).encode()
    return text + tail, len(text)


def _tensor(size: Any, shape: list[int] | None = None) -> dict[str, Any]:
    given = {"name": "x", "datatype": "FP32", "shape": shape or [1, 4]}
    return {"inputs": [{**given, "parameters": {"binary_data_size": size}}]}


BINARIES: dict[str, tuple[dict[str, Any], bytes, str | None]] = {
    "shorter": (_tensor(16), b"\0" * 15, None),
    "longer": (_tensor(16), b"\0" * 17, None),
    "another size": (_tensor(12), b"\0" * 12, None),
    "negative": (_tensor(-1), b"\0" * 16, None),
    "a text": (_tensor("16"), b"\0" * 16, None),
    "huge": (_tensor(2**62), b"\0" * 16, None),
    "beyond 64 bits": (_tensor(2**70), b"\0" * 16, None),
    "nothing": (_tensor(16), b"", None),
    "length beyond": (_tensor(16), b"\0" * 16, "100000"),
    "length negative": (_tensor(16), b"\0" * 16, "-1"),
    "length no number": (_tensor(16), b"\0" * 16, "1e2"),
    "length signed": (_tensor(16), b"\0" * 16, "+10"),
    "length cut": (_tensor(16), b"\0" * 16, "10"),
    "length long": (_tensor(16), b"\0" * 16, "9" * 400),
    "raw of no row": (_tensor(16), b"", "0"),
}


@pytest.mark.rule("F25")
@pytest.mark.parametrize("name", BINARIES)
def test_a_bad_binary_body_is_the_caller_s_fault(stack: Stack, name: str) -> None:
    header, tail, said = BINARIES[name]
    body, length = _binary(header, tail)
    headers = {"inference-header-content-length": said or str(length)}
    answer = stack.request("POST", PATH, body, headers)
    assert answer.status in (400, 422), answer.body
    assert answer.error


def test_lengths_within_a_bytes_tensor_must_add_up(stack: Stack, tmp_path: Path) -> None:
    stack.publish("bad-bytes", identity(tmp_path / "b.onnx", "BYTES", ["N", 1]))
    for tail in (b"\xff\xff\xff\xffab", b"\x01\x00\x00\x00", b"\x00\x00", b"\x00" * 5):
        given = _tensor(len(tail), [1, 1])
        given["inputs"][0]["datatype"] = "BYTES"
        body, length = _binary(given, tail)
        headers = {"inference-header-content-length": str(length)}
        answer = stack.request("POST", "/v2/models/bad-bytes/infer", body, headers)
        assert answer.status == 400, answer.body


@pytest.mark.parametrize(
    "value", ["0", "-1", "nan", "inf", "-inf", "x", "", "1,2", "1e400", "0x10", "9" * 400]
)
def test_a_timeout_that_is_none_is_refused(stack: Stack, value: str) -> None:
    answer = stack.request("POST", PATH, GOOD, {"x-request-timeout-seconds": value})
    assert answer.status in ((400, 200) if value == "9" * 400 else (400,)), answer.body


FRAMINGS: dict[str, tuple[list[str], bytes, bool]] = {
    "chunk size no number": (["transfer-encoding: chunked"], b"zz\r\nabc\r\n0\r\n\r\n", False),
    "chunk size negative": (["transfer-encoding: chunked"], b"-3\r\nabc\r\n0\r\n\r\n", False),
    "chunk size huge": (["transfer-encoding: chunked"], b"f" * 20 + b"\r\nabc\r\n", False),
    "chunk without its end": (["transfer-encoding: chunked"], b"3\r\nabcdef\r\n0\r\n\r\n", False),
    "chunks that stop": (["transfer-encoding: chunked"], b"5\r\nab", True),
    "chunks without the last": (["transfer-encoding: chunked"], b"3\r\nabc\r\n", True),
    "unknown transfer encoding": (["transfer-encoding: gzip"], b"abc", True),
    "body shorter than said": (["content-length: 100"], b'{"inputs":[]}', True),
    "no body": (["content-length: 100"], b"", True),
    "length negative": (["content-length: -1"], b"", False),
    "length no number": (["content-length: ten"], b"", False),
    "length signed": (["content-length: +2"], b"{}", False),
    "length huge": (["content-length: " + "9" * 30], b"{}", False),
    "two lengths": (["content-length: 2", "content-length: 3"], b"{} ", False),
    "length and chunks": (
        ["content-length: 4", "transfer-encoding: chunked"],
        b"0\r\n\r\nGET /v2 HTTP/1.1\r\n\r\n",
        False,
    ),
    "a header of NUL": (["x-a: \0"], b"", False),
    "a header without a name": ([": x"], b"", False),
    "a folded header": (["x-a: b", " c: d"], b"", False),
    "101 headers": ([f"x-{number}: 1" for number in range(101)], b"", False),
    "32 KiB of headers": (["x-a: " + "a" * (33 << 10)], b"", False),
    "1 MiB of headers": (["x-a: " + "a" * (1 << 20)], b"", False),
}


@pytest.mark.parametrize("name", FRAMINGS)
def test_broken_framing_is_refused_or_cut(stack: Stack, name: str) -> None:
    lines, body, ends = FRAMINGS[name]
    answer = _send(stack, _head(stack, *lines), body, ends=ends)
    assert answer.status == 0 or 400 <= answer.status < 500, answer.received[:300]
    assert answer.received.count(b"HTTP/1.1 ") <= 1


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nhost: e2e\r\n\r\n",
        b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\nhost: e2e\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"CONNECT a:1 HTTP/1.1\r\nhost: e2e\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nhost: e2e\r\n\r\n",
    ],
)
def test_a_broken_request_line_is_refused_or_cut(stack: Stack, line: bytes) -> None:
    answer = _send(stack, line, ends=True)
    assert answer.status == 0 or 400 <= answer.status < 500, answer.received[:300]


@pytest.mark.rule("SEC-3")
def test_a_body_over_the_limit_is_refused_before_it_is_read(stack: Stack) -> None:
    started_s = time.monotonic()
    answer = _send(stack, _head(stack, f"content-length: {BODY_BYTES_MAX + 1}"))
    assert (answer.status, str(BODY_BYTES_MAX) in answer.error) == (413, True)
    assert time.monotonic() - started_s < 2.0


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.rule("SEC-3")
def test_a_body_over_the_limit_in_chunks_is_refused(stack: Stack, word: str) -> None:
    head = _head(stack, "transfer-encoding: chunked", path=f"/v2/models/{MODEL}/{word}")
    chunk = b"%x\r\n%b\r\n" % (1 << 20, b" " * (1 << 20))
    answer = _send(stack, head, *[chunk] * 65, b"0\r\n\r\n")
    assert answer.status == 413, answer.received[:300]


def test_a_body_over_the_limit_is_refused_on_the_other_routes(stack: Stack) -> None:
    head = _head(stack, "content-length: 70000000", path="/v2", method="POST")
    answer = _send(stack, head, *[b" " * (1 << 20)] * 3)
    assert 400 <= answer.status < 500


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip"])
def test_an_encoding_that_is_not_spoken_is_refused(stack: Stack, encoding: str) -> None:
    bomb = zlib.compress(b" " * (10 << 20))
    answer = stack.request("POST", PATH, bomb, {"content-encoding": encoding})
    assert answer.status == 415
    assert answer.error


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "FOO"])
@pytest.mark.parametrize("word", WORDS)
def test_another_method_on_a_call_is_not_allowed(stack: Stack, method: str, word: str) -> None:
    for path in (f"/v2/models/{MODEL}", f"/v2/models/{MODEL}/versions/1"):
        answer = stack.request(method, f"{path}/{word}")
        assert (answer.status, answer.error) == (405, "Method Not Allowed")
        assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/v2", "/v2/health/live", f"/v2/models/{MODEL}"])
def test_another_method_on_a_route_is_not_allowed(stack: Stack, path: str) -> None:
    answer = stack.request("POST", path, b"{}")
    assert (answer.status, answer.error) == (405, "Method Not Allowed")


TRAVERSALS = [
    "/v2/models/../../../etc/passwd/infer",
    "/v2/models/%2e%2e%2f%2e%2e%2fkeys.json/infer",
    "/v2/models/..%2f..%2fkeys.json",
    "/v2/models/../infer",
    "/v2/models/%2e%2e/versions/%2e%2e/infer",
    f"/v2/models/{MODEL}/versions/../../x/infer",
    f"/v2/models/{MODEL}/versions/..%2f1/infer",
    f"/v2/models/{MODEL}%00/infer",
    f"/v2/models/{MODEL}%0d%0ax-a:%20b/infer",
    f"/v2/models/{MODEL}%ff%fe/infer",
    "/v2/models//infer",
    "/v2/models/a/b/infer",
    f"//v2/models/{MODEL}/infer",
    "/v2/models/" + "a" * 5000 + "/infer",
    "/v2/models/" + "a" * 5000,
    f"/v2/models/{MODEL}/versions/" + "1" * 5000 + "/infer",
    f"/v2/models/{MODEL}/versions/" + "1" * 39 + "/infer",
    "http://elsewhere/v2/models/x/infer",
    "/v2/health/../models/x",
    "/../v2",
]


@pytest.mark.rule("SEC-4")
@pytest.mark.parametrize("path", TRAVERSALS)
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_path_that_leads_elsewhere_leads_nowhere(stack: Stack, path: str, method: str) -> None:
    body = json.dumps(GOOD).encode() if method == "POST" else b""
    head = _head(stack, f"content-length: {len(body)}", path=path, method=method)
    answer = _send(stack, head, body)
    assert 400 <= answer.status < 500, answer.received[:300]
    if answer.status != 400:
        assert answer.error
    assert b"x-a" not in answer.received.partition(b"\r\n\r\n")[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-request-id", "\xff\xfe"),
        ("x-request-id", "a" * 5000),
        ("x-tidepool-variant", "\xff"),
        ("cache-control", "\xff, no-cache"),
        ("content-type", "\xff"),
        ("accept", "\xff"),
        ("x-user", "\xff"),
        ("cookie", "\xff" * 100),
    ],
)
def test_a_header_that_is_no_text_does_no_harm(stack: Stack, name: str, value: str) -> None:
    for method, path in (("POST", PATH), ("GET", f"/v2/models/{MODEL}")):
        answer = stack.request(method, path, GOOD if method == "POST" else None, {name: value})
        assert answer.status in (200, 400, 415), answer.body
        assert answer.headers.get("x-request-id", "") != value


if SUITE.exists():  # where the corpus lies beside the checkout

    def test_no_document_of_the_json_test_suite_is_more_than_a_bad_request(stack: Stack) -> None:
        files = sorted(SUITE.glob("*.json"))
        assert len(files) > 300
        for file in files:
            for word in ("infer", "generate"):
                answer = stack.request("POST", f"/v2/models/{MODEL}/{word}", file.read_bytes())
                assert answer.status in (400, 422), (file.name, word, answer.body)
                assert answer.error


# The model's fault.


@pytest.mark.parametrize("x", [MAGIC_VALUE, -MAGIC_VALUE])
@pytest.mark.rule("SEC-2")
def test_a_model_that_fails_is_a_500_that_counts_against_it(stack: Stack, x: int) -> None:
    """Whatever it raises."""
    name = f"bad-failing{'-' * (x < 0)}"
    stack.publish_observed(name)
    answer = stack.infer_observed(name, x)
    assert (answer.status, answer.headers["content-type"]) == (500, "application/json")
    assert "the model failed" in answer.error
    assert str(stack.data) not in answer.error
    assert stack.infer_observed(name, 1).status == 200
    stable = until(
        lambda: (v := stack.variants(name)["stable"])["requests"] == 2 and v, 5.0, "it is counted"
    )
    assert (stable["errors"], stable["requests"]) == (1, 2)


# Deadlines, and clients that leave.


@pytest.mark.parametrize("way", ["parameter", "header", "endpoint"])
def test_a_deadline_is_kept(stack: Stack, way: str) -> None:
    name = f"bad-late-{way}"
    stack.publish_observed(name)
    headers, fields = {}, {}
    if way == "parameter":
        fields = {"parameters": {"timeout": 300_000}}
    elif way == "header":
        headers = {"x-request-timeout-seconds": "0.3"}
    else:
        stack.edit_endpoint(name, deadline_ms=300)
    started_s = time.monotonic()
    answer = stack.infer_observed(name, 1, headers, delay_ms=1200, **fields)
    took_s = time.monotonic() - started_s
    assert answer.status == 504, answer.body
    assert "deadline" in answer.error
    assert 0.29 <= took_s < 0.8


def test_the_least_of_the_deadlines_holds(stack: Stack) -> None:
    stack.publish_observed("bad-least")
    started_s = time.monotonic()
    answer = stack.infer_observed(
        "bad-least",
        1,
        {"x-request-timeout-seconds": "9"},
        delay_ms=1200,
        parameters={"timeout": 300_000},
    )
    assert answer.status == 504
    assert time.monotonic() - started_s < 0.8


def test_a_call_that_waits_for_another_is_answered_at_its_deadline(stack: Stack) -> None:
    diary = stack.publish_observed("bad-queue")
    with closing(_call(stack, "bad-queue", 1, delay_ms=1000)):
        until(lambda: diary.count("run") == 1, what="the first one runs")
        started_s = time.monotonic()
        answer = stack.infer_observed("bad-queue", 2, {"x-request-timeout-seconds": "0.3"})
        assert answer.status in (503, 504), answer.body
        assert time.monotonic() - started_s < 0.5
    assert diary.count("run") == 1


def _call(stack: Stack, model: str, x: int, delay_ms: int = 0) -> socket.socket:
    """Send a call and return its connection without reading."""
    body = json.dumps({"inputs": tensors(observed_inputs(x, delay_ms))}).encode()
    connection = _connect(stack)
    path = f"/v2/models/{model}/infer"
    connection.sendall(_head(stack, f"content-length: {len(body)}", path=path) + body)
    return connection


def test_a_client_that_leaves_takes_its_waiting_call_with_it(stack: Stack) -> None:
    diary = stack.publish_observed("bad-leave")
    with closing(_call(stack, "bad-leave", 1, delay_ms=1500)) as first:
        until(lambda: diary.count("run") == 1, what="the first one runs")
        ends_s = time.monotonic() + 1.5
        others = [_call(stack, "bad-leave", x) for x in range(2, 7)]
        until(lambda: stack.calls("bad-leave") == 6, what="the others wait behind it")
        # A tenth of a second before they would run.
        time.sleep(max(0.0, ends_s - 0.12 - time.monotonic()))
        for other in others:
            other.close()
        assert _read(first).status == 200
    until(lambda: stack.calls("bad-leave") == 0, 2.0, "no call is left")
    assert stack.infer_observed("bad-leave", 9).status == 200
    assert diary.count("run") == 2


def test_a_client_that_leaves_is_counted(stack: Stack) -> None:
    stack.publish_observed("bad-gone")
    _call(stack, "bad-gone", 1, delay_ms=300).close()
    until(
        lambda: stack.metric("tidepool_requests_total", endpoint="bad-gone", status="499") == 1,
        5.0,
        "it is counted as 499",
    )


# What must be true at the end: these come last in the file.


def test_good_requests_are_answered_while_bad_ones_come(stack: Stack) -> None:
    statuses: list[int] = []
    is_over = threading.Event()

    def be_good() -> None:
        while not is_over.is_set():
            statuses.append(stack.request("POST", PATH, GOOD).status)

    good = threading.Thread(target=be_good)
    good.start()
    try:
        for _ in range(3):
            for body in BODIES.values():
                stack.request("POST", PATH, body)
            _send(stack, *FRAMINGS["chunks that stop"][:0], struct.pack("<Q", 0), ends=True)
    finally:
        is_over.set()
        good.join()
    assert len(statuses) > 20
    assert set(statuses) == {200}


def test_a_body_that_does_not_come_is_a_408(stack: Stack, before: Before) -> None:
    answer = _read(before.slow_body)
    assert answer.status == 408
    assert "no body" in answer.error
    assert time.monotonic() - before.began_s > 9.0


def test_a_head_that_does_not_come_is_cut(stack: Stack, before: Before) -> None:
    answer = _read(before.slow_head)
    assert answer.status == 0 or 400 <= answer.status < 500


@pytest.mark.rule("SEC-12")
def test_nothing_has_died(stack: Stack, before: Before) -> None:
    assert stack.pids() == before.pids
    assert stack.request("POST", PATH, GOOD).status == 200


def test_no_request_met_a_bug(stack: Stack) -> None:
    log = stack.log_text()
    assert '"event": "bug"' not in log
    assert "Traceback" not in log
    for status in ("500", "502", "503"):
        assert stack.metric("tidepool_requests_total", endpoint=MODEL, status=status) == 0


def test_the_memory_has_come_back(stack: Stack, before: Before) -> None:
    until(
        lambda: _pss_bytes(stack) - before.pss_bytes < KEPT_BYTES_MAX,
        10.0,
        f"edge and worker hold {before.pss_bytes} bytes, as before",
        pause_s=0.1,
    )
