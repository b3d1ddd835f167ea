"""Quotas as a client meets them, on one edge process."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from registry_sync import keys
from registry_sync.documents import Quota
from registry_sync.keys import find_id
from tests.support.models import identity
from tests.support.observed_engine import DIARY
from tests.support.stack import Answer, Stack, observed_inputs, tensors, until

SLOW_PER_S = 0.02  # so slow that nothing comes back while a test runs
LONG_MS = 3_000
FREE_S_MAX = 5.0  # from a call's end to the next one's being let in, on a busy machine


@pytest.fixture(scope="module", autouse=True)
def models(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = identity(tmp_path_factory.mktemp("quota") / "i.onnx", shape=("N", 4))
    stack.publish("quota-echo", path)
    for name in ("quota-slow", "quota-brief"):
        stack.publish_observed(name)
    stack.publish_engine(
        "quota-stream",
        "observed-counter",
        [(name, "INT64", [1]) for name in ("n", "delay_ms", "fail", "width")],
        [("value", "INT64", [-1])],
        files={DIARY: str(stack.data / "quota-stream.diary")},
    )


def few(count: int, **limits: Any) -> Quota:
    """Return a quota of so many requests, and next to none after them."""
    return Quota(requests_per_s=SLOW_PER_S, burst_s=count / SLOW_PER_S, **limits)


def echo(stack: Stack, key: str, rows: int = 1, first: float = 0.0, **options: Any) -> Answer:
    data = [first] * 4 * rows
    return stack.infer("quota-echo", {"x": ("FP32", [rows, 4], data)}, key=key, **options)


def refused(answer: Answer, limit: str) -> None:
    """See that an answer is a 429 as it should be."""
    assert answer.status == 429, answer.body
    assert f"({limit})" in answer.error
    wait_ms = int(answer.headers["retry-after-ms"])
    assert 0 < wait_ms <= 120_000
    assert int(answer.headers["retry-after"]) == max(1, -(-wait_ms // 1000))
    assert answer.headers["x-request-id"]


def statuses(stack: Stack, key: str, count: int) -> list[int]:
    return [echo(stack, key).status for _ in range(count)]


def test_requests_beyond_the_limit_are_refused_and_others_are_not(stack: Stack) -> None:
    key, other = stack.make_key(quota=few(3)), stack.make_key(quota=few(3))
    before = stack.metric("tidepool_quota_refusals_total", limit="requests_per_s")
    assert statuses(stack, key, 5) == [200, 200, 200, 429, 429]
    refused(echo(stack, key), "requests_per_s")
    assert f"{SLOW_PER_S:g} requests a second" in echo(stack, key).error
    assert statuses(stack, other, 1) == [200]
    assert echo(stack, stack.key).status == 200
    after = stack.metric("tidepool_quota_refusals_total", limit="requests_per_s")
    assert after - before == 4


def test_who_waits_as_told_is_let_in(stack: Stack) -> None:
    key = stack.make_key(quota=Quota(requests_per_s=1))
    answer = until(lambda: None if (a := echo(stack, key)).status == 200 else a, 20.0)
    wait_ms = int(answer.headers["retry-after-ms"])
    assert wait_ms <= 1300
    time.sleep(wait_ms / 1000)
    assert echo(stack, key).status == 200


def test_a_refused_request_needs_no_body(stack: Stack) -> None:
    key = stack.make_key(quota=few(1))
    assert statuses(stack, key, 2) == [200, 429]
    head = (
        "POST /v2/models/quota-echo/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n"
        f"Content-Type: application/json\r\nAuthorization: Bearer {key}\r\n\r\n"
    )
    with closing(socket.create_connection(("127.0.0.1", stack.port), timeout=10)) as client:
        client.sendall(head.encode())
        assert client.recv(100).startswith(b"HTTP/1.1 429 ")


def test_a_refusal_leaves_the_connection_open(stack: Stack) -> None:
    key = stack.make_key(quota=few(1))
    path, body = "/v2/models/quota-echo/infer", json.dumps({"inputs": []})
    with closing(http.client.HTTPConnection("127.0.0.1", stack.port, timeout=10)) as client:
        for sent, status in ((key, 422), (key, 429), ("wrong", 401), (key, 429)):
            client.request("POST", path, body, stack.auth(sent))
            response = client.getresponse()
            response.read()
            assert (response.status, response.will_close) == (status, False)


def test_answers_out_of_the_cache_count_in_requests_and_rows(stack: Stack) -> None:
    key = stack.make_key(quota=few(3))
    answers = [echo(stack, key, first=7.0) for _ in range(4)]
    assert "hit" in answers[2].headers["cache-status"]
    assert [answer.status for answer in answers] == [200, 200, 200, 429]
    key = stack.make_key(quota=Quota(rows_per_s=SLOW_PER_S, burst_s=3 / SLOW_PER_S))
    answers = [echo(stack, key, rows=2, first=7.5) for _ in range(3)]
    assert "hit" in answers[1].headers["cache-status"]
    assert [answer.status for answer in answers] == [200, 200, 429]


def test_rows_are_a_debt(stack: Stack) -> None:
    key = stack.make_key(quota=Quota(rows_per_s=2, burst_s=1))
    assert echo(stack, key, rows=4).status == 200  # two more than there were
    answer = echo(stack, key)
    refused(answer, "rows_per_s")
    assert int(answer.headers["retry-after-ms"]) <= 1300
    until(lambda: echo(stack, key).status == 200, FREE_S_MAX, "the debt is paid off")


def test_only_calls_count(stack: Stack) -> None:
    key = stack.make_key(quota=few(1))
    for _ in range(5):
        assert stack.request("GET", "/v2/models/quota-echo", key=key).status == 200
        assert stack.request("GET", "/v2/models/quota-echo/ready", key=key).status == 200
    assert statuses(stack, key, 2) == [200, 429]


def test_generate_counts_too(stack: Stack) -> None:
    key = stack.make_key(quota=few(1))
    body = {"n": 1, "delay_ms": 0, "fail": -1, "width": 1}
    for path, wanted in (("generate", 200), ("generate_stream", 429)):
        answer = stack.request("POST", f"/v2/models/quota-stream/{path}", body, key=key)
        assert answer.status == wanted
    refused(answer, "requests_per_s")


# Calls under way: each end frees exactly one place.


@pytest.fixture
def single(stack: Stack) -> str:
    """A key that may have one call under way."""
    return stack.make_key(quota=Quota(concurrent=1))


def is_free(stack: Stack, key: str) -> bool:
    """See whether one call is let in, and no second beside it."""
    if echo(stack, key).status == 429:
        return False
    with under_way(stack, key):
        refused(echo(stack, key), "concurrent")
    return True


@contextmanager
def under_way(
    stack: Stack, key: str, path: str = "quota-stream/generate_stream"
) -> Iterator[socket.socket]:
    """Have a long call under way; at the end its client leaves."""
    slow = {"inputs": tensors(observed_inputs(1, LONG_MS))}
    body = {"n": 1000, "delay_ms": 100, "fail": -1, "width": 1} if "stream" in path else slow
    content = json.dumps(body)
    with closing(socket.create_connection(("127.0.0.1", stack.port), timeout=10)) as client:
        client.sendall(
            f"POST /v2/models/{path} HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
            f"Authorization: Bearer {key}\r\n\r\n{content}".encode()
        )
        until(lambda: echo(stack, key).status == 429, FREE_S_MAX, "it is under way")
        yield client


def until_free(stack: Stack, key: str) -> None:
    until(lambda: echo(stack, key).status == 200, FREE_S_MAX, "the place is free")


@pytest.mark.parametrize(
    "path", ["quota-slow/infer", "quota-stream/generate_stream", "quota-stream/generate"]
)
def test_a_client_that_leaves_frees_its_place(stack: Stack, single: str, path: str) -> None:
    for _ in range(2):
        with under_way(stack, single, path):
            refused(echo(stack, single), "concurrent")
        until_free(stack, single)
    assert is_free(stack, single)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("quota-echo/infer", {"inputs": tensors({"x": ("FP32", [1, 4], [0.0] * 4)})}, 200),
        ("quota-echo/infer", "{", 400),
        ("quota-echo/infer", {"inputs": tensors({"y": ("FP32", [1, 4], [0.0] * 4)})}, 422),
        ("nobody/infer", {}, 404),
        ("quota-stream/generate_stream", {"n": 3, "delay_ms": 0, "fail": -1, "width": 1}, 200),
        ("quota-stream/generate_stream", {"n": 3, "delay_ms": 0, "fail": 0, "width": 1}, 500),
        ("quota-stream/generate", {"n": 3, "delay_ms": 0, "fail": -1, "width": 1}, 400),
        ("quota-stream/generate", {"n": 1, "delay_ms": 0, "fail": -1, "width": 1}, 200),
    ],
    ids=lambda value: str(value)[:30],
)
def test_every_end_of_a_call_frees_its_place_once(
    stack: Stack, single: str, path: str, body: Any, status: int
) -> None:
    for _ in range(3):
        answer = stack.request("POST", f"/v2/models/{path}", body, key=single)
        assert answer.status == status, answer.body
    assert is_free(stack, single)


def test_a_deadline_that_passes_frees_the_place(stack: Stack, single: str) -> None:
    # The worker is busy with another key's call.
    with under_way(stack, stack.make_key(quota=Quota(concurrent=1)), "quota-slow/infer"):
        for _ in range(2):
            answer = stack.infer_observed(
                "quota-slow", 1, {"x-request-timeout-seconds": "0.1"}, key=single
            )
            assert answer.status in (503, 504)
    assert is_free(stack, single)


def test_as_many_calls_as_the_limit_says_are_under_way_at_once(stack: Stack) -> None:
    key = stack.make_key(quota=Quota(concurrent=3))
    found: list[int] = []

    def call() -> None:
        answer = stack.infer_observed("quota-brief", 1, key=key, delay_ms=100)
        found.append(answer.status)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [200] * 3


# Rotation.


def test_a_rotated_key_is_the_same_key_with_another_secret(stack: Stack) -> None:
    old = stack.make_key(quota=few(4))
    new = keys.rotate_key(stack.store, find_id(old), 3600.0, time.time())
    stack.secrets.append(new)
    stack.poke()
    assert [echo(stack, key).status for key in (old, new, old, new, old)] == [200] * 4 + [429]
    newest = keys.rotate_key(stack.store, find_id(old), 0.0, time.time())
    stack.secrets.append(newest)
    stack.poke()
    assert [echo(stack, key).status for key in (old, new, newest)] == [401, 401, 429]
