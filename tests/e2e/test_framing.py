"""A request is what it says that it is, or nothing of it runs."""

from __future__ import annotations

import json
import time
from contextlib import closing
from urllib.parse import quote as percent

import pytest

from tests.support.observed_engine import Diary
from tests.support.raw_http import Connection, chunked, head, send
from tests.support.stack import Stack, observed_inputs, tensors

MODEL = "framed"
PATH = f"/v2/models/{MODEL}/infer"
CHUNKED = "transfer-encoding: chunked"
BODY = json.dumps({"inputs": tensors(observed_inputs(1))}).encode()
LENGTH = f"content-length: {len(BODY)}"


@pytest.fixture(scope="module")
def diary(stack: Stack) -> Diary:
    return stack.publish_observed(MODEL)


@pytest.fixture(autouse=True)
def _published(diary: Diary) -> None:
    """Every test calls it."""


def _binary() -> tuple[str, bytes]:
    inputs = [
        {
            "name": name,
            "shape": [1, 1],
            "datatype": "INT64",
            "parameters": {"binary_data_size": 8},
        }
        for name in ("x", "delay_ms")
    ]
    text = json.dumps({"inputs": inputs}).encode()
    return f"inference-header-content-length: {len(text)}", text + b"\1" + bytes(15)


# What runs.


def test_a_chunked_body_runs_once(stack: Stack, diary: Diary) -> None:
    """As curl with `-H 'Transfer-Encoding: chunked'` sends it."""
    before = diary.count("run")
    answer = send(stack, head(stack, PATH, CHUNKED), chunked(BODY[:7], BODY[7:]))
    assert (answer.status, diary.count("run")) == (200, before + 1)


def test_a_chunked_body_of_binary_tensors_runs(stack: Stack) -> None:
    line, body = _binary()
    answer = send(stack, head(stack, PATH, CHUNKED, line), chunked(body[:100], body[100:]))
    assert answer.status == 200, answer.body


def test_a_body_that_is_expected_to_be_asked_for_is_asked_for(stack: Stack) -> None:
    with closing(Connection(stack)) as connection:
        connection.send(head(stack, PATH, LENGTH, "expect: 100-continue"))
        received = connection.socket.recv(100)
        assert received.startswith(b"HTTP/1.1 100 Continue\r\n")
        connection.send(BODY)
        assert connection.read().status == 200


def test_an_expected_body_that_is_refused_is_not_asked_for(stack: Stack) -> None:
    """So that a client need not send 64 MiB to be told that they are too many."""
    for lines, status in (((f"content-length: {1 << 30}",), 413), (("content-length: 9",), 401)):
        with closing(Connection(stack)) as connection:
            key = status != 401
            connection.send(head(stack, PATH, *lines, "expect: 100-continue", key=key))
            assert connection.socket.recv(12) == f"HTTP/1.1 {status}".encode()


def test_pipelined_requests_are_answered_in_order(stack: Stack) -> None:
    requests = []
    for x, delay_ms in ((1, 150), (2, 0), (3, 50), (4, 0)):
        body = json.dumps({"id": str(x), "inputs": tensors(observed_inputs(x, delay_ms))}).encode()
        requests.append(head(stack, PATH, f"content-length: {len(body)}") + body)
    with closing(Connection(stack)) as connection:
        connection.send(b"".join(requests))
        assert [json.loads(connection.read().body)["id"] for _ in requests] == ["1", "2", "3", "4"]


# What does not.


def _nothing_runs(stack: Stack, diary: Diary, before: int) -> None:
    """Hold that what was sent has not run: what is sent after it has."""
    assert stack.infer_observed(MODEL, 1).status == 200
    assert diary.count("run") == before + 1


BROKEN: dict[str, tuple[list[str], bytes]] = {
    "a chunk size that is none": ([CHUNKED], b"%x\r\n%b\r\nzz\r\n\r\n" % (len(BODY), BODY)),
    "a negative chunk": ([CHUNKED], b"%x\r\n%b\r\n-1\r\n\r\n" % (len(BODY), BODY)),
    "a chunk size that overflows": (
        [CHUNKED],
        b"%x\r\n%b\r\n%b\r\n\r\n" % (len(BODY), BODY, b"f" * 17),
    ),
    "a chunk longer than it says": ([CHUNKED], b"%x\r\n%bXX\r\n0\r\n\r\n" % (len(BODY), BODY)),
    "a chunk extension of 1 MB": (
        [CHUNKED],
        b"%x;a=%b\r\n%b\r\n0\r\n\r\n" % (len(BODY), b"x" * (1 << 20), BODY),
    ),
    "trailers": ([CHUNKED], chunked(BODY)[:-2] + b"x-a: b\r\n\r\n"),
    "a body behind the body": ([f"content-length: {len(BODY) + 2}"], BODY + b"{}"),
    "two bodies in chunks": ([CHUNKED], chunked(BODY, BODY)),
    "a coding under the chunks": (["transfer-encoding: gzip, chunked"], chunked(BODY)),
    "chunks in chunks": ([CHUNKED, CHUNKED], chunked(BODY)),
    "chunks that are not the last coding": (
        ["transfer-encoding: chunked, identity"],
        chunked(BODY),
    ),
    "two lengths": ([LENGTH, f"content-length: {len(BODY) + 1}"], BODY),
    "a list of lengths": ([f"content-length: {len(BODY)}, {len(BODY)}"], BODY),
    "a length with a sign": ([f"content-length: +{len(BODY)}"], BODY),
    "a space before the colon": ([f"content-length : {len(BODY)}"], BODY),
    "a folded line": ([LENGTH, "x-a: b", " c"], BODY),
    "a NUL in a header": ([LENGTH, "x-a: b\0c"], BODY),
    "two hosts": ([LENGTH, "host: elsewhere"], BODY),
    "two keys": ([LENGTH, "x-api-key: another"], BODY),
    "two kinds of content": (
        [LENGTH, "content-type: application/json", "content-type: application/msgpack"],
        BODY,
    ),
    "two codings": ([LENGTH, "content-encoding: gzip", "content-encoding: gzip"], BODY),
    "32 KiB of headers": ([LENGTH, "x-a: " + "a" * (32 << 10)], BODY),
    "32 KiB in many headers": ([LENGTH, *(f"x-{i}: {'a' * 1024}" for i in range(33))], BODY),
    "101 headers": ([LENGTH, *(f"x-{i}: a" for i in range(101))], BODY),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.rule("SEC-1", "SEC-11")
def test_what_is_not_whole_and_clear_does_not_run(stack: Stack, diary: Diary, name: str) -> None:
    lines, body = BROKEN[name]
    before = diary.count("run")
    answer = send(stack, head(stack, PATH, *lines), body)
    assert 400 <= answer.status < 500, answer
    _nothing_runs(stack, diary, before)


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("32 KiB of headers", 431),
        ("101 headers", 431),
        ("two codings", 415),
        ("two hosts", 400),
        ("trailers", 400),
        ("a chunk size that is none", 400),
    ],
)
@pytest.mark.rule("SEC-11")
def test_what_is_wrong_has_a_status_of_its_own(stack: Stack, name: str, status: int) -> None:
    lines, body = BROKEN[name]
    assert send(stack, head(stack, PATH, *lines), body).status == status


@pytest.mark.parametrize("admin", [False, True])
def test_a_request_has_exactly_one_host(stack: Stack, admin: bool) -> None:
    path = "/livez" if admin else "/v2/health/live"
    for host, lines, status in (
        ("a", [], 200),
        (None, [], 400),
        ("a", ["host: a"], 400),
        ("a", ["x-a: \xff", "host: b"], 400),
    ):
        asked = head(stack, path, *lines, method="GET", host=host)
        answer = send(stack, asked, admin=admin)
        assert answer.status == status, answer
        if status == 400:
            assert b"exactly one Host" in answer.body


def test_a_refusal_of_the_first_look_names_its_request(stack: Stack) -> None:
    answer = send(stack, head(stack, PATH, "x-request-id: mine", LENGTH, "host: b"), BODY)
    assert b"x-request-id: mine" in answer.headers
    assert (
        b"content-type: application/problem+json"
        in send(stack, head(stack, "/livez", host=None), admin=True).headers
    )


@pytest.mark.parametrize("length", [8_193, 70_000])
def test_a_target_is_bounded(stack: Stack, length: int) -> None:
    assert send(stack, head(stack, "/" + "a" * length, method="GET")).status in (414, 431)


@pytest.mark.parametrize("is_reset", [False, True])
def test_a_body_cut_anywhere_does_not_run(stack: Stack, diary: Diary, is_reset: bool) -> None:
    """Neither where its JSON is whole already nor where only the last line is missing."""
    before = diary.count("run")
    line, tail = _binary()
    bodies = [
        (head(stack, PATH, LENGTH), BODY, range(0, len(BODY), 5)),
        (head(stack, PATH, f"content-length: {len(tail)}", line), tail, range(0, len(tail), 9)),
    ]
    for pieces in ((BODY,), (BODY[:50], BODY[50:])):
        whole = chunked(*pieces)
        ends = [*range(0, len(whole), 9), *range(len(whole) - 9, len(whole))]
        bodies.append((head(stack, PATH, CHUNKED), whole, ends))
    for asked, body, ends in bodies:
        assert send(stack, asked, body).status == 200
        before += 1
        for end in ends:
            with closing(Connection(stack)) as connection:
                connection.send(asked, body[:end])
                if is_reset:
                    continue  # the client is gone
                connection.end()
                assert connection.read().status in (0, 400)
    _nothing_runs(stack, diary, before)


SMUGGLED = b"POST %b HTTP/1.1\r\nhost: a\r\nx-api-key: %b\r\ncontent-length: %d\r\n\r\n%b"


@pytest.mark.parametrize("order", [0, 1])
def test_a_request_behind_one_with_two_framings_is_not_run(
    stack: Stack, diary: Diary, order: int
) -> None:
    """Whichever of the two a proxy went by: the connection ends with the first answer."""
    hidden = SMUGGLED % (PATH.encode(), stack.key.encode(), len(BODY), BODY)
    inside = b"0\r\n\r\n" + hidden
    lines = [f"content-length: {len(inside)}", CHUNKED]
    before = diary.count("run")
    with closing(Connection(stack)) as connection:
        connection.send(head(stack, PATH, *(lines[::-1] if order else lines)), inside)
        assert connection.read().status == 400
        assert connection.is_closed()
    # The same with a first body that is a good one: at most that one runs.
    inside = chunked(BODY) + hidden
    lines[0] = f"content-length: {len(inside)}"
    with closing(Connection(stack)) as connection:
        connection.send(head(stack, PATH, *(lines[::-1] if order else lines)), inside)
        first = connection.read().status
        assert first in (200, 400)
        assert connection.is_closed()
    _nothing_runs(stack, diary, before + (first == 200))


def test_two_requests_smuggled_behind_one_are_not_run(stack: Stack, diary: Diary) -> None:
    """Behind a body that broke, or was refused before it was read, nothing is a request."""
    before = diary.count("run")
    hidden = SMUGGLED % (PATH.encode(), stack.key.encode(), len(BODY), BODY)
    for asked, body in (
        (head(stack, PATH, CHUNKED), b"zz\r\n" + hidden * 2),
        (head(stack, PATH, "content-length: 99999999999"), hidden * 2),
        (head(stack, PATH, "content-length: 20000", key=False), hidden * 2),
        (head(stack, PATH, LENGTH, "x-api-key: another"), hidden * 2),
    ):
        with closing(Connection(stack, timeout_s=10)) as connection:
            connection.send(asked, body)
            connection.end()
            statuses = [connection.read().status for _ in range(3)]
            assert 400 <= statuses[0] < 500
            assert {*statuses[1:]} <= {0, 400}, (asked, statuses)
    _nothing_runs(stack, diary, before)


@pytest.mark.rule("SEC-1")
def test_70000_one_byte_chunks_are_refused_soon(stack: Stack, diary: Diary) -> None:
    before = diary.count("run")
    body = BODY + b" " * (70_000 - len(BODY))
    started_s = time.process_time()
    answer = send(
        stack, head(stack, PATH, CHUNKED), b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    )
    assert answer.status == 400
    assert "parts of less than" in answer.error
    assert time.process_time() - started_s < 5.0
    _nothing_runs(stack, diary, before)


# Names.

PARENTS = ["../x", "..%2fx", "%2e%2e/x", "%2e%2e%2fx", "..%5cx", "..\\x", "%252e%252e%252fx", ".."]
PARENTS += [
    "....//x",
    "..;/x",
    "..%00/x",
    "..%c0%afx",
    "%c0%ae%c0%ae/x",
    "..%ef%bc%8fx",
    "..%0d%0a",
]
ROOTS = [
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "//etc/passwd",
    "file:%2f%2f%2fetc",
    "~",
    "C:%5cx",
    "%00",
]
ODD = [
    "A",
    "-a",
    ".a",
    "_a",
    "a" * 65,
    "%d1%84",
    "%e2%80%ae",
    "a%20b",
    "a%0ab",
    "a;b",
    "a$b",
    "a%25b",
]
ODD += [f"{MODEL}%00", f"{MODEL}%2f", f"{MODEL}%20", f"{MODEL}.", f"%09{MODEL}", MODEL.upper()]
VERSIONS = [
    "0",
    "01",
    "-1",
    "+1",
    "1.0",
    "1e0",
    "latest",
    "%31%00",
    "1%2f..",
    "..",
    "1%20",
    "%d9%a1",
]


def test_200_spellings_of_another_place_lead_nowhere(stack: Stack, diary: Diary) -> None:
    before = diary.count("run")
    names = [*PARENTS, *ROOTS, *ODD, *(percent(name, safe="") for name in PARENTS + ROOTS)]
    paths = [
        *(f"/v2/models/{name}/{word}" for name in names for word in ("infer", "ready", "generate")),
        *(f"/v2/models/{name}" for name in names),
        *(f"/v2/models/{MODEL}/versions/{name}/infer" for name in names + VERSIONS),
    ]
    assert len(paths) > 200
    for path in paths:
        method = "POST" if path.endswith(("infer", "generate")) else "GET"
        lines = [LENGTH] if method == "POST" else []
        answer = send(stack, head(stack, path, *lines, method=method), BODY if lines else b"")
        assert answer.status in (400, 404), (path, answer)
        if answer.body:
            assert "passwd" not in answer.error or len(answer.error) <= 300
    assert not list(stack.data.rglob("passwd*"))
    _nothing_runs(stack, diary, before)
