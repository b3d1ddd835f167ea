"""Streams as server-sent events: their order, their end, and everybody who leaves early."""

from __future__ import annotations

import json
import socket
import time
from contextlib import closing
from itertools import pairwise
from typing import Any

import pytest

from tests.support.observed_engine import DIARY, Diary
from tests.support.stack import Answer, Stack, until

MODEL = "stream-counter"
PATH = f"/v2/models/{MODEL}/generate_stream"
NOTICE_S_MAX = 0.2  # from a client's leaving until its engine has stopped


@pytest.fixture(scope="module")
def diary(stack: Stack) -> Diary:
    """Of a model that counts."""
    diary = Diary(stack.data / f"{MODEL}.diary")
    stack.publish_engine(
        MODEL,
        "observed-counter",
        [(name, "INT64", [1]) for name in ("n", "delay_ms", "fail", "width")],
        [("value", "INT64", [-1])],
        files={DIARY: str(diary.path)},
    )
    return diary


def _body(count: int, delay_ms: int = 0, fail: int = -1, **fields: Any) -> dict[str, Any]:
    return {"n": count, "delay_ms": delay_ms, "fail": fail, "width": 1, **fields}


def _events(answer: Answer) -> list[Any]:
    """Read a whole event stream; it must consist of nothing else."""
    blocks = answer.body.decode().split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def _stream(stack: Stack, body: Any, headers: dict[str, str] | None = None) -> Answer:
    return stack.request("POST", PATH, body, headers)


@pytest.mark.parametrize("n", [1, 5, 1000])
def test_the_events_come_in_order_and_end(stack: Stack, diary: Diary, n: int) -> None:
    ends = diary.count("end")
    answer = _stream(stack, _body(n, id="17"))
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert [event["value"] for event in _events(answer)] == list(range(n))
    assert diary.count("end") == ends + 1


def test_an_event_says_whose_it_is(stack: Stack, diary: Diary) -> None:
    answer = _stream(stack, _body(1, id="mine"), {"x-request-id": "r-1"})
    assert _events(answer) == [
        {"model_name": MODEL, "model_version": "1", "id": "mine", "value": 0}
    ]
    assert answer.headers["x-request-id"] == "r-1"
    assert answer.headers["x-tidepool-variant"] == "stable"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["cache-status"] == "tidepool; fwd=bypass; detail=stream"


def test_a_stream_of_nothing_is_empty_and_ends(stack: Stack, diary: Diary) -> None:
    answer = _stream(stack, _body(0))
    assert (answer.status, _events(answer)) == (200, [])


class Reader:
    """A client that reads a stream piece by piece."""

    def __init__(self, stack: Stack, body: dict[str, Any], path: str = PATH) -> None:
        content = json.dumps(body)
        self.socket = socket.create_connection(("127.0.0.1", stack.port), timeout=10)
        self.socket.sendall(
            f"POST {path} HTTP/1.1\r\nhost: e2e\r\nauthorization: Bearer {stack.key}\r\n"
            f"content-length: {len(content)}\r\n\r\n{content}".encode()
        )
        self.received = b""

    def until(self, piece: bytes) -> None:
        """Read until `piece` has come."""
        while piece not in self.received:
            more = self.socket.recv(65536)
            assert more, self.received
            self.received += more

    def rest_bytes(self) -> int:
        """Read to the end, keep only that, and return how much it was."""
        count = 0
        while not self.received.endswith(b"\r\n0\r\n\r\n"):
            more = self.socket.recv(1 << 20)
            assert more, self.received
            count += len(more)
            self.received = (self.received + more)[-1000:]
        return count

    def close(self) -> None:
        """Leave."""
        self.socket.close()


def test_each_event_comes_when_it_is_made(stack: Stack, diary: Diary) -> None:
    with closing(Reader(stack, _body(3, delay_ms=250))) as reader:
        times_s = []
        for value in range(3):
            reader.until(b'"value":%d}' % value)
            times_s.append(time.monotonic())
    assert all(0.1 < later - sooner < 0.6 for sooner, later in pairwise(times_s))


def test_a_client_that_leaves_stops_the_engine(stack: Stack, diary: Diary) -> None:
    stops = diary.count("stopped")
    reader = Reader(stack, _body(100_000, delay_ms=10))
    reader.until(b'"value":3}')
    left_s = time.monotonic()
    reader.close()
    until(lambda: diary.count("stopped") == stops + 1, what="the engine has stopped")
    stopped_s = float(_last(diary, "stopped"))
    assert stopped_s - left_s < NOTICE_S_MAX
    until(lambda: stack.calls(MODEL) == 0, 2.0, "no call is left in the worker")


def _last(diary: Diary, word: str) -> str:
    return [line.split()[1] for line in diary.lines() if line.split()[0] == word][-1]


def test_a_client_that_leaves_before_the_first_event_stops_the_engine(
    stack: Stack, diary: Diary
) -> None:
    stops = diary.count("stopped")
    reader = Reader(stack, _body(1000, delay_ms=150))
    until(lambda: stack.calls(MODEL) == 1, what="the call is in the worker")
    reader.close()
    until(lambda: diary.count("stopped") == stops + 1, 2.0, "the engine has stopped")
    until(lambda: stack.calls(MODEL) == 0, 2.0, "no call is left in the worker")


def test_others_go_on_when_one_client_leaves(stack: Stack, diary: Diary) -> None:
    leaver = Reader(stack, _body(100_000, delay_ms=5))
    leaver.until(b'"value":1}')
    leaver.close()
    answer = _stream(stack, _body(20))
    assert [event["value"] for event in _events(answer)] == list(range(20))


def test_a_fast_model_s_words_all_arrive(stack: Stack, diary: Diary) -> None:
    stack.publish_engine("stream-fast", "counter", [("n", "INT64", [1])], [("value", "INT64", [1])])
    answer = stack.request("POST", "/v2/models/stream-fast/generate_stream", {"n": 20_000})
    assert [event["value"] for event in _events(answer)] == list(range(20_000))


@pytest.mark.rule("F5")
def test_a_stream_is_bounded_and_says_so(stack: Stack, diary: Diary) -> None:
    """What its client does not read lies in the edge, so a stream may not grow forever."""
    stops = diary.count("stopped")
    with closing(Reader(stack, _body(1_000_000, width=5000))) as reader:
        reader.until(b"data:")
        until(lambda: diary.count("stopped") == stops + 1, 9.0, "the engine has stopped")
        until(lambda: stack.calls(MODEL) == 0, 2.0, "no call is left in the worker")
        assert reader.rest_bytes() < 80 << 20
        assert b'data: {"error":"the stream is longer' in reader.received


def test_a_part_may_be_larger_than_what_may_be_unsent(stack: Stack, diary: Diary) -> None:
    answer = _stream(stack, _body(2, width=1_200_000))
    assert [event["value"][-1] for event in _events(answer)] == [0, 1]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("{", 400),
        (_body(1, other=1), 422),
        ({"n": 1, "delay_ms": 0}, 422),
        (_body(1, n="one"), 400),
        (_body(3, fail=0), 500),
        (_body(3, delay_ms=1500, parameters={"timeout": 500_000}), 504),
    ],
)
@pytest.mark.parametrize("what", ["generate_stream", "generate"])
def test_a_failure_before_the_first_event_is_an_ordinary_answer(
    stack: Stack, diary: Diary, body: Any, status: int, what: str
) -> None:
    answer = stack.request("POST", f"/v2/models/{MODEL}/{what}", body)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
    assert answer.error
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("model", ["nobody", f"{MODEL}/versions/9"])
def test_an_unknown_model_is_an_ordinary_answer(stack: Stack, diary: Diary, model: str) -> None:
    answer = stack.request("POST", f"/v2/models/{model}/generate_stream", _body(1))
    assert answer.status == 404
    assert answer.error.startswith("Request for unknown model")


def test_a_failure_in_mid_stream_is_its_last_event(stack: Stack, diary: Diary) -> None:
    answer = _stream(stack, _body(10, fail=4))
    assert answer.status == 200
    *values, last = _events(answer)
    assert [event["value"] for event in values] == [0, 1, 2, 3]
    assert list(last) == ["error"]
    assert "lost its thread" in last["error"]


def test_a_failure_in_mid_stream_counts_against_the_variant(stack: Stack, diary: Diary) -> None:
    def errors() -> float:
        return stack.metric("tidepool_requests_total", endpoint=MODEL, status="500")

    before = errors()
    _stream(stack, _body(10, fail=4))
    assert errors() == before + 1


def test_a_deadline_in_mid_stream_is_its_last_event(stack: Stack, diary: Diary) -> None:
    stops = diary.count("stopped")
    started_s = time.monotonic()
    limit = {"x-request-timeout-seconds": "0.4"}
    *values, last = _events(_stream(stack, _body(1000, delay_ms=50), limit))
    took_s = time.monotonic() - started_s
    assert [event["value"] for event in values] == list(range(len(values)))
    assert 2 <= len(values) <= 8
    assert "deadline" in last["error"]
    assert 0.4 <= took_s < 1.0
    until(lambda: diary.count("stopped") == stops + 1, 2.0, "the engine has stopped")


def test_generate_answers_what_comes_in_one_part(stack: Stack, diary: Diary) -> None:
    answer = stack.request("POST", f"/v2/models/{MODEL}/generate", _body(1, id="17"))
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "model_name": MODEL,
        "model_version": "1",
        "id": "17",
        "value": 0,
    }


def test_generate_refuses_what_comes_in_several_parts(stack: Stack, diary: Diary) -> None:
    stops = diary.count("stopped")
    answer = stack.request("POST", f"/v2/models/{MODEL}/generate", _body(1000, delay_ms=5))
    assert answer.status == 400
    assert "generate_stream" in answer.error
    until(lambda: diary.count("stopped") == stops + 1, 2.0, "the engine has stopped")


def test_a_model_that_does_not_stream_answers_generate(stack: Stack, diary: Diary) -> None:
    stack.publish_observed("stream-plain")
    for what in ("generate", "generate_stream"):
        answer = stack.request("POST", f"/v2/models/stream-plain/{what}", {"x": 7, "delay_ms": 0})
        assert answer.status == 200, answer.body
        found = answer.json() if what == "generate" else _events(answer)[0]
        assert (found["y"], found["slept_ms"]) == (7, 0)


def test_infer_of_a_model_that_streams_is_refused_in_words(stack: Stack, diary: Diary) -> None:
    inputs = {name: ("INT64", [1], [value]) for name, value in _body(3).items()}
    answer = stack.infer(MODEL, inputs)
    assert answer.status == 422
    assert "stream" in answer.error


def test_streams_side_by_side_are_each_complete(stack: Stack, diary: Diary) -> None:
    readers = [Reader(stack, _body(5, delay_ms=2, id=str(index))) for index in range(4)]
    for index, reader in enumerate(readers):
        reader.until(b"\r\n0\r\n\r\n")  # the last chunk of its HTTP answer
        assert reader.received.count(b'"id":"%d"' % index) == 5
        reader.close()


def test_a_stream_is_counted_once(stack: Stack, diary: Diary) -> None:
    before = stack.metric("tidepool_requests_total", endpoint=MODEL)
    _stream(stack, _body(50))
    assert stack.metric("tidepool_requests_total", endpoint=MODEL) == before + 1
