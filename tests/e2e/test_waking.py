"""Models that sleep and are called: who is held, who is refused, what is shown of it."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.test_stream import Reader
from tests.support.gated_engine import Gate
from tests.support.models import identity
from tests.support.stack import Answer, Stack, running_stack, until

ENGINES = [f"tests.support.gated_engine:{name}Engine" for name in ("Gated", "GatedCounting")]
ROW = ("INT64", (-1, 1))
HELD = 30


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("waking"), engines=ENGINES, workers=2) as one:
        yield one


@pytest.fixture(scope="module")
def gate(stack: Stack) -> Iterator[Gate]:
    """The gate of both models, which sleep half a second after their last call."""
    made = Gate(stack.data / "gate")
    files = {"gate": str(made.path)}
    stack.publish_engine("gated", "gated", [("x", *ROW)], [("y", *ROW)], rows_max=32, files=files)
    number = ("INT64", (1,))
    stack.publish_engine(
        "counter", "gated-counter", [("n", *number)], [("value", *number)], files=files
    )
    for model in ("gated", "counter"):
        stack.edit_endpoint(model, cache=None, scale={"idle_s": 0.5})
    yield made
    made.open()


@pytest.fixture
def asleep(stack: Stack, gate: Gate) -> Gate:
    """The gate, once both models sleep."""
    gate.open()
    until(lambda: not (stack.engine("gated") or stack.engine("counter")), 20.0, "both sleep")
    return gate


def ask(stack: Stack, x: int, **headers: str) -> Answer:
    return stack.infer("gated", {"x": ("INT64", [1, 1], [x])}, headers)


def loading(stack: Stack, calls: int, model: str = "gated", *, dead: int = 0) -> int:
    """Return the pid of the worker that loads a model, once so many calls wait for that."""

    def found() -> int:
        for worker in stack.status()["workers"]:
            for engine in worker["engines"]:
                is_it = (engine["model"], engine["state"]) == (model, "loading")
                if is_it and engine["waiting"] >= calls and worker["pid"] != dead:
                    return int(worker["pid"])
        return 0

    return until(found, 20.0, f"{calls} calls wait for {model}")


def answers(asked: list[Future[Answer]]) -> list[tuple[int, Any]]:
    return [
        (answer.status, answer.output() if answer.status == 200 else answer.error)
        for answer in (one.result(30) for one in asked)
    ]


def test_calls_that_wait_survive_the_worker_that_loads_for_them(stack: Stack, asleep: Gate) -> None:
    asleep.close()
    with ThreadPoolExecutor(HELD) as clients:
        asked = [clients.submit(ask, stack, x) for x in range(HELD)]
        first = loading(stack, HELD)
        os.kill(first, signal.SIGKILL)
        loading(stack, HELD, dead=first)
        asleep.open()
        assert answers(asked) == [(200, [x]) for x in range(HELD)]
    # Each once; alone, as any of them may have been what killed the worker.
    until(lambda: [e["rows"] for e in stack.engine("gated")] == [HELD], 10.0, "it says so")


def test_stream_that_waits_survives_it_too_and_is_kept_posted(stack: Stack, asleep: Gate) -> None:
    asleep.close()
    body = {"n": 3}
    reader = Reader(stack, body, "/v2/models/counter/generate_stream")
    first = loading(stack, 1, "counter")
    os.kill(first, signal.SIGKILL)
    loading(stack, 1, "counter", dead=first)
    reader.until(b": waking: deserialise")
    assert b"text/event-stream" in reader.received
    asleep.open()
    reader.until(b"\r\n0\r\n\r\n")
    reader.close()
    values = [json.loads(text)["value"] for text in re.findall(rb"data: (.*)\n", reader.received)]
    assert values == [0, 1, 2]


def test_stream_whose_wake_fails_after_a_comment_says_so_in_an_event(
    stack: Stack, asleep: Gate
) -> None:
    asleep.close()
    content = {"n": 3, "parameters": {"timeout": 1_600_000}}
    reader = Reader(stack, content, "/v2/models/counter/generate_stream")
    reader.until(b": waking: deserialise")
    reader.until(b"\r\n0\r\n\r\n")
    reader.close()
    (event,) = re.findall(rb"data: (.*)\n", reader.received)
    assert "deadline" in json.loads(event)["error"]


def test_call_that_cannot_be_awake_in_time_is_refused_at_once(stack: Stack, asleep: Gate) -> None:
    cold = stack.metric("tidepool_cold_calls_total", endpoint="gated")
    asleep.close()
    with ThreadPoolExecutor(2) as clients:
        slow = clients.submit(ask, stack, 1)
        loading(stack, 1)
        time.sleep(0.5)  # it is to be known that a wake takes a while
        asleep.open()
        assert slow.result(30).status == 200
    wake_ms = max(engine["wake_ms"] for engine in stack.engine("gated"))
    assert wake_ms >= 125
    assert stack.metric("tidepool_cold_calls_total", endpoint="gated") == cold + 1
    until(lambda: not stack.engine("gated"), 20.0, "it sleeps")
    began_s = time.monotonic()
    refused = ask(stack, 2, **{"x-request-timeout-seconds": "0.05"})
    assert (refused.status, refused.error.partition(",")[0]) == (503, "the model is waking up")
    assert time.monotonic() - began_s < 1.0  # not at the deadline of a queue, or of a socket
    assert int(refused.headers["retry-after-ms"]) >= 100
    assert int(refused.headers["retry-after"]) >= 1
    until(lambda: [e for e in stack.engine("gated") if e["state"] == "warm"], 20.0, "it woke")
    assert ask(stack, 3, **{"x-request-timeout-seconds": "5"}).output() == [3]


def test_phases_of_a_wake_add_up_to_what_its_call_waited(stack: Stack) -> None:
    path = identity(stack.data / "identity.onnx")
    stack.publish("real", path)
    stack.edit_endpoint("real", cache=None, scale={"idle_s": 0.3})
    until(lambda: not stack.engine("real"), 20.0, "it sleeps")
    answer = stack.infer("real", {"x": ("FP32", [1, 4], [1.0, 2.0, 3.0, 4.0])})
    assert answer.status == 200
    waited = re.search(r"queue;dur=([\d.]+)", answer.headers["server-timing"])
    assert waited is not None
    (engine,) = stack.engine("real")
    assert next(iter(engine["phases_ms"])) == "fetch"
    assert {"build_wait", "deserialise", "warm_up", "hand_over"} <= engine["phases_ms"].keys()
    assert sum(engine["phases_ms"].values()) >= 0.98 * float(waited[1])
    for worker in stack.status()["workers"]:
        assert list(worker["phases_ms"]) == ["spawn", "import", "context"]
    text = stack.request("GET", "/metrics?view=pool", admin=True, key=None).body.decode()
    assert 'tidepool_wake_phase_seconds_count{engine="onnxruntime",of="load",phase="fetch"}' in text
    assert 'tidepool_wake_seconds_bucket{engine="",le="0.001",of="start"} 0.0' in text
    assert "started in" in stack.cli("status")
