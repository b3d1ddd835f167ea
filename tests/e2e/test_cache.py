"""The cache and single flight as a client sees them, by the headers and by the engine's diary."""

from __future__ import annotations

import itertools
import json
import re
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from registry_sync import endpoints
from tests.support.counting_engine import MAGIC_VALUE
from tests.support.models import identity
from tests.support.observed_engine import Diary
from tests.support.stack import Answer, Stack, observed_inputs, tensors, until

HIT = re.compile(r"tidepool; hit; ttl=(\d+)")
MISS = "tidepool; fwd=uri-miss"
COLLAPSED = "tidepool; fwd=uri-miss; collapsed"
MODEL = "cache-observed"
_NEW = itertools.count(10_000)  # inputs that no other test sends


@pytest.fixture(scope="module")
def diary(stack: Stack) -> Diary:
    """Of a deterministic model, so that its first endpoint caches."""
    return stack.publish_observed(MODEL, deterministic=True)


def _state(answer: Answer) -> str:
    assert answer.status == 200, answer.body
    return answer.headers["cache-status"]


def _together(count: int, send: Callable[[int], Answer]) -> list[Answer]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(send, range(count)))


def test_the_second_call_is_a_hit_and_runs_nothing(stack: Stack, diary: Diary) -> None:
    runs = diary.count("run")
    first, second = (stack.infer_observed(MODEL, 1) for _ in range(2))
    assert _state(first) == MISS
    ttl = HIT.fullmatch(_state(second))
    assert ttl is not None
    assert 3590 <= int(ttl[1]) <= 3600
    assert (first.body, diary.count("run")) == (second.body, runs + 1)


def test_a_hit_has_the_headers_of_an_answer(stack: Stack, diary: Diary) -> None:
    always = ["auth", "parse", "cache", "respond", "total"]
    for computed in (["queue", "infer"], []):
        answer = stack.infer_observed(MODEL, 2, {"x-request-id": "mine-17"})
        assert answer.headers["x-request-id"] == "mine-17"
        assert answer.headers["x-tidepool-variant"] == "stable"
        phases = re.findall(r"\b([a-z]+);dur=[0-9.]+", answer.headers["server-timing"])
        assert phases == [*always[:3], *computed, *always[3:]]


def test_a_hit_is_rendered_as_it_is_asked_for(stack: Stack, diary: Diary) -> None:
    stack.infer_observed(MODEL, 3)
    answer = stack.infer_observed(
        MODEL, 3, id="my own", parameters={"binary_data_output": True, "timeout": 5_000_000}
    )
    assert HIT.match(_state(answer))
    length = int(answer.headers["inference-header-content-length"])
    assert json.loads(answer.body[:length])["id"] == "my own"
    assert np.frombuffer(answer.body[length:], np.int64).tolist() == [3, 0]


@pytest.mark.parametrize(
    "other",
    [
        {"outputs": [{"name": "y"}]},
        {"parameters": {"temperature": 1}},
        {"parameters": {"temperature": True}},
        {"parameters": {"temperature": "1"}},
    ],
)
def test_what_changes_the_answer_is_another_entry(
    stack: Stack, diary: Diary, other: dict[str, object]
) -> None:
    stack.infer_observed(MODEL, 4)
    assert _state(stack.infer_observed(MODEL, 4, **other)) == MISS
    assert HIT.match(_state(stack.infer_observed(MODEL, 4, **other)))


def test_no_cache_computes_and_stores(stack: Stack, diary: Diary) -> None:
    runs = diary.count("run")
    for _ in range(2):
        answer = stack.infer_observed(MODEL, 5, {"cache-control": "no-cache"})
        assert _state(answer) == "tidepool; fwd=request; detail=no-cache"
    assert HIT.match(_state(stack.infer_observed(MODEL, 5)))
    assert diary.count("run") == runs + 2


def test_no_store_neither_reads_nor_stores(stack: Stack, diary: Diary) -> None:
    runs = diary.count("run")
    for _ in range(2):
        answer = stack.infer_observed(MODEL, 6, {"cache-control": "No-Store, max-age=60"})
        assert _state(answer) == "tidepool; fwd=bypass; detail=no-store"
    assert _state(stack.infer_observed(MODEL, 6)) == MISS
    answer = stack.infer_observed(MODEL, 6, {"cache-control": "no-store"})
    assert _state(answer) == "tidepool; fwd=bypass; detail=no-store"
    assert diary.count("run") == runs + 4


@pytest.mark.rule("F24")
@pytest.mark.parametrize("x", [MAGIC_VALUE, -MAGIC_VALUE])
def test_a_failure_is_not_kept(stack: Stack, diary: Diary, x: int) -> None:
    runs = diary.count("run")
    answers = [stack.infer_observed(MODEL, x) for _ in range(2)]
    assert [answer.status for answer in answers] == [500, 500]
    assert diary.count("run") == runs + 2


@pytest.mark.rule("F23")
def test_two_hundred_identical_misses_are_one_run(stack: Stack, diary: Diary) -> None:
    runs = diary.count("run")
    computed = stack.metric("tidepool_infer_seconds_count", endpoint=MODEL)
    x = next(_NEW)  # where this is tried again, nobody has the answer yet
    answers = _together(200, lambda _: stack.infer_observed(MODEL, x, delay_ms=1200))
    states = [_state(answer) for answer in answers]
    assert diary.count("run") == runs + 1
    assert states.count(MISS) == 1
    assert states.count(COLLAPSED) >= 150  # the others came when it was there already
    assert {answer.body for answer in answers} == {answers[0].body}
    assert stack.metric("tidepool_infer_seconds_count", endpoint=MODEL) == computed + 1


def test_misses_that_differ_are_as_many_runs(stack: Stack, diary: Diary) -> None:
    runs = diary.count("run")
    answers = _together(20, lambda index: stack.infer_observed(MODEL, 1000 + index))
    assert [answer.output() for answer in answers] == [[1000 + index] for index in range(20)]
    assert diary.count("run") == runs + 20


@pytest.mark.rule("F23")
def test_a_leader_that_leaves_does_not_disturb_the_others(stack: Stack, diary: Diary) -> None:
    runs = diary.count("run")
    leader = send_and_stay(stack, MODEL, 8, delay_ms=500)
    until(lambda: diary.count("run") == runs + 1, what="the leader's run has begun")
    with ThreadPoolExecutor(10) as pool:
        others = [
            pool.submit(stack.infer_observed, MODEL, 8, delay_ms=500, id=str(index))
            for index in range(10)
        ]
        leader.close()
        answers = [other.result() for other in others]
    assert {answer.status for answer in answers} == {200}
    assert diary.count("run") == runs + 1


def send_and_stay(stack: Stack, model: str, x: int, delay_ms: int) -> socket.socket:
    """Send a call and return its connection without reading."""
    body = json.dumps({"inputs": tensors(observed_inputs(x, delay_ms))})
    connection = socket.create_connection(("127.0.0.1", stack.port))
    connection.sendall(
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nhost: e2e\r\nx-api-key: {stack.key}\r\n"
        f"content-length: {len(body)}\r\n\r\n{body}".encode()
    )
    return connection


def test_each_waits_by_its_own_deadline(stack: Stack, diary: Diary) -> None:
    runs = diary.count("run")

    def send(index: int) -> Answer:
        limit = {"x-request-timeout-seconds": "0.3"} if index % 2 else {}
        return stack.infer_observed(MODEL, 9, limit, delay_ms=900)

    answers = _together(6, send)
    assert [answer.status for answer in answers] == [200, 504] * 3
    assert diary.count("run") - runs <= 2  # a leader's own deadline ends its run, not the others'


@pytest.mark.rule("F24")
def test_tenants_never_share(stack: Stack, diary: Diary) -> None:
    keys = [stack.make_key(tenant=tenant) for tenant in ("red", "red", "blue")]
    states = [_state(stack.infer_observed(MODEL, 10, key=key)) for key in keys]
    assert states[0] == MISS
    assert HIT.match(states[1])
    assert states[2] == MISS


def test_tenants_never_share_a_flight(stack: Stack, diary: Diary) -> None:
    runs = diary.count("run")
    keys = [stack.make_key(tenant=tenant) for tenant in ("green", "white")]
    answers = _together(8, lambda i: stack.infer_observed(MODEL, 11, delay_ms=300, key=keys[i % 2]))
    assert {answer.status for answer in answers} == {200}
    assert diary.count("run") == runs + 2


def test_an_answer_expires(stack: Stack) -> None:
    diary = stack.publish_observed("cache-short", deterministic=True)
    stack.edit_endpoint("cache-short", cache={"ttl_s": 0.3})
    assert _state(stack.infer_observed("cache-short", 1)) == MISS
    assert _state(stack.infer_observed("cache-short", 1)) == "tidepool; hit; ttl=0"
    until(lambda: _state(stack.infer_observed("cache-short", 1)) == MISS, 5.0, "it expires")
    assert diary.count("run") == 2


def test_without_a_cache_in_the_endpoint_every_call_runs(stack: Stack) -> None:
    diary = stack.publish_observed("cache-none", deterministic=True)
    stack.edit_endpoint("cache-none", cache=None)
    for _ in range(3):
        answer = stack.infer_observed("cache-none", 1)
        assert _state(answer) == "tidepool; fwd=bypass; detail=off"
    assert diary.count("run") == 3


def test_what_is_not_deterministic_is_never_kept(stack: Stack, tmp_path: Path) -> None:
    stack.publish("cache-random", identity(tmp_path / "i.onnx"), nondeterministic=True)
    given = {"x": ("FP32", [1, 4], [1, 2, 3, 4])}
    off = "tidepool; fwd=bypass; detail=off"
    assert [_state(stack.infer("cache-random", given)) for _ in range(2)] == [off, off]
    # Not even if the endpoint asks for it.
    stack.edit_endpoint("cache-random", cache={"ttl_s": 60})
    assert [_state(stack.infer("cache-random", given)) for _ in range(2)] == [off, off]


def test_a_call_by_version_is_not_cached(stack: Stack, diary: Diary) -> None:
    stack.infer_observed(MODEL, 12)
    off = "tidepool; fwd=bypass; detail=off"
    assert _state(stack.infer_observed(MODEL, 12, version="1")) == off


def test_calls_of_the_cache_are_counted(stack: Stack) -> None:
    stack.publish_observed("cache-counted", deterministic=True)
    for _ in range(5):
        stack.infer_observed("cache-counted", 1)

    def counted() -> bool:
        stable = stack.variants("cache-counted")["stable"]
        return (stable["requests"], stable["hits"], stable["errors"]) == (5, 4, 0)

    until(counted, 5.0, "the status shows 5 requests, 4 of them hits")


def test_purge_holds_for_every_edge_when_the_command_returns(wide_stack: Stack) -> None:
    diary = wide_stack.publish_observed("cache-purged", deterministic=True)

    def states() -> set[str]:  # of both edges: connections are spread over them
        return {
            _state(wide_stack.infer_observed("cache-purged", 1)).split(";")[1] for _ in range(12)
        }

    states()
    until(lambda: states() == {" hit"}, 30.0, "both edges have it")
    runs = diary.count("run")
    assert wide_stack.cli("endpoint", "purge", "cache-purged") == "purged cache-purged"
    assert states() == {" hit", " fwd=uri-miss"}
    until(lambda: states() == {" hit"}, 30.0, "both edges have it again")
    assert diary.count("run") == runs + 2


def test_purge_of_a_version_leaves_the_answers_of_the_others(stack: Stack) -> None:
    name = "cache-versions"
    for _ in range(2):
        stack.publish_observed(name, deterministic=True)
    arms = [
        {"name": f"v{version}", "model": name, "version": version, "weight": 50}
        for version in ("1", "2")
    ]
    stack.edit_endpoint(name, variants=arms, assign={"header_may_pick": True})

    def states() -> list[str]:
        arm = "x-tidepool-variant"
        return [_state(stack.infer_observed(name, 1, {arm: f"v{v}"})).split(";")[1] for v in (1, 2)]

    assert states() == [" fwd=uri-miss"] * 2
    assert stack.cli("endpoint", "purge", name, "--version", "2") == f"purged {name} version 2"
    assert states() == [" hit", " fwd=uri-miss"]
    assert states() == [" hit"] * 2


def test_what_was_begun_before_a_purge_does_not_answer_after_it(stack: Stack) -> None:
    diary = stack.publish_observed("cache-begun", deterministic=True)
    with ThreadPoolExecutor(2) as pool:
        begun = pool.submit(stack.infer_observed, "cache-begun", 1, delay_ms=1500)
        until(lambda: diary.count("run") == 1, what="the run has begun")
        endpoints.purge(stack.store, "cache-begun")
        stack.poke()
        # Neither joins the flight from before, nor finds what it leaves.
        assert not begun.done()
        after = pool.submit(stack.infer_observed, "cache-begun", 1, delay_ms=1500)
        assert [_state(one.result()) for one in (begun, after)] == [MISS, MISS]
    assert diary.count("run") == 2
