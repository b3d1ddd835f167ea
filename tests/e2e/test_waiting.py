"""Calls that wait for an engine: whose turn it is, when they give up, and who leaves early."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from registry_sync import keys
from tests.support.observed_engine import Diary
from tests.support.stack import Answer, Stack, observed_inputs, tensors, until

FREE_S_MAX = 0.1  # from a client's leaving until its place in the queue is free
BUSY_MS = 1500
TARDY_S_MAX = 0.15  # how long after its deadline a call ends: tens of ms, and a loaded machine


@pytest.fixture(scope="module")
def single(stack: Stack) -> Diary:
    """Of a model that runs one call at a time."""
    diary = stack.publish_observed("single")
    stack.edit_endpoint("single", cache=None)
    return diary


@pytest.fixture(scope="module")
def batched(stack: Stack) -> Diary:
    """Of a model that runs up to 8 rows at a time."""
    diary = stack.publish_observed("batched", rows_max=8)
    stack.edit_endpoint("batched", cache=None)
    return diary


@pytest.fixture(scope="module")
def cached(stack: Stack) -> Diary:
    """Of a model whose equal calls share a run."""
    diary = stack.publish_observed("cached", rows_max=1, deterministic=True)
    stack.edit_endpoint("cached", cache={"ttl_s": 60})
    return diary


class Client:
    """A client on a socket of its own, which may leave at any time."""

    def __init__(self, stack: Stack, model: str, x: int, delay_ms: int = 0) -> None:
        content = json.dumps({"inputs": tensors(observed_inputs(x, delay_ms))})
        self.socket = socket.create_connection(("127.0.0.1", stack.port), timeout=30)
        self.socket.sendall(
            f"POST /v2/models/{model}/infer HTTP/1.1\r\nhost: e2e\r\n"
            f"authorization: Bearer {stack.key}\r\ncontent-length: {len(content)}\r\n\r\n"
            f"{content}".encode()
        )

    def status(self) -> int:
        """Wait for the answer."""
        with self.socket:
            return int(self.socket.recv(65536).split()[1])

    def leave(self) -> None:
        """Hang up."""
        self.socket.close()


@contextmanager
def busy(stack: Stack, diary: Diary, model: str, delay_ms: int = BUSY_MS) -> Iterator[float]:
    """Keep the engine busy with one run; gives the moment by which it has begun."""
    runs = diary.count("run")
    with ThreadPoolExecutor(1) as thread:
        headers = {"cache-control": "no-store"}
        first = thread.submit(stack.infer_observed, model, 0, headers, delay_ms=delay_ms)
        until(lambda: diary.count("run") == runs + 1, what="the engine runs", pause_s=0.002)
        yield time.monotonic()
        assert first.result().status == 200


# Leaving.


@pytest.mark.rule("F7")
def test_place_of_a_client_that_leaves_is_free_in_100_ms(stack: Stack, single: Diary) -> None:
    with busy(stack, single, "single", 600) as began_s:
        runs = single.count("run")
        client = Client(stack, "single", 1)
        # As late as may be: its turn comes as soon as the engine is free.
        time.sleep(max(0.0, began_s + 0.6 - FREE_S_MAX - time.monotonic()))
        client.leave()
    assert stack.infer_observed("single", 2).status == 200
    assert single.count("run") == runs + 1


@pytest.mark.rule("F7")
@pytest.mark.parametrize("model", ["single", "batched"])
def test_100_clients_that_leave_waste_no_more_than_a_batch(
    stack: Stack, single: Diary, batched: Diary, model: str
) -> None:
    diary = {"single": single, "batched": batched}[model]
    with busy(stack, diary, model):
        runs = diary.count("run")
        clients = [Client(stack, model, i) for i in range(100)]
        until(lambda: stack.calls(model) == 101, what="all wait in the worker")
        for client in clients:
            client.leave()
        until(lambda: stack.calls(model) == 1, what="their places are free")
        assert diary.count("run") == runs  # before the engine was: none of them ran
    assert stack.infer_observed(model, 2).status == 200
    assert diary.count("run") == runs + 1


def test_equal_calls_whose_clients_all_leave_run_never(stack: Stack, cached: Diary) -> None:
    with busy(stack, cached, "cached"):
        runs = cached.count("run")
        clients = [Client(stack, "cached", 7) for _ in range(20)]
        until(lambda: stack.calls("cached") == 2, what="they wait as one")
        for client in clients:
            client.leave()
        until(lambda: stack.calls("cached") == 1, what="its place is free")
    assert stack.infer_observed("cached", 8).status == 200
    assert cached.count("run") == runs + 1


def test_leader_that_leaves_takes_no_answer_from_its_followers(stack: Stack, cached: Diary) -> None:
    with busy(stack, cached, "cached"):
        runs = cached.count("run")
        leader = Client(stack, "cached", 9)
        until(lambda: stack.calls("cached") == 2, what="it waits")
        followers = [Client(stack, "cached", 9) for _ in range(5)]
        time.sleep(0.1)
        leader.leave()
        followers.pop().leave()
    assert [follower.status() for follower in followers] == [200] * 4
    assert cached.count("run") == runs + 1


# Deadlines.


def timed(stack: Stack, model: str, timeout_s: float) -> tuple[Answer, float]:
    began_s = time.monotonic()
    headers = {"x-request-timeout-seconds": str(timeout_s)}
    answer = stack.infer_observed(model, 1, headers)
    return answer, time.monotonic() - began_s


def test_waiting_call_is_504_at_its_deadline_while_the_engine_is_busy(
    stack: Stack, single: Diary
) -> None:
    with busy(stack, single, "single"):
        runs = single.count("run")
        for timeout_s in (0.2, 0.05):
            answer, took_s = timed(stack, "single", timeout_s)
            assert answer.status == 504, answer.body
            assert timeout_s <= took_s < timeout_s + TARDY_S_MAX
    assert single.count("run") == runs


def test_call_is_504_at_its_deadline_while_the_worker_hangs(stack: Stack, single: Diary) -> None:
    pid = stack.pids()["worker-0"]
    os.kill(pid, signal.SIGSTOP)
    try:
        for timeout_s in (0.2, 0.05):
            answer, took_s = timed(stack, "single", timeout_s)
            assert answer.status == 504, answer.body
            assert timeout_s <= took_s < timeout_s + TARDY_S_MAX
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: stack.status()["workers"], what="the worker is back")
    assert stack.infer_observed("single", 1).status == 200


# Priority.


def test_turns_go_by_priority_and_no_key_exceeds_its_own(stack: Stack, single: Diary) -> None:
    low_key, record = keys.make_key("default", ["infer:*"], priority=60)
    stack.secrets.append(low_key)
    keys.add_key(stack.store, record)
    stack.poke()
    order: list[str] = []
    asked: list[Future[None]] = []

    def ask(name: str, priority: int, key: str) -> None:
        fields = {"parameters": {"priority": priority}} if priority else {}
        answer = stack.infer("single", observed_inputs(1, 30), key=key, **fields)
        assert answer.status == 200, answer.body
        order.append(name)

    with ThreadPoolExecutor(8) as threads:
        with busy(stack, single, "single"):
            for name, priority, key in (
                ("last", 100, ""),
                ("capped", 1, low_key),
                ("default", 0, ""),
                ("second", 49, ""),
                ("first", 1, ""),
                ("as default", 50, ""),
            ):
                asked.append(threads.submit(ask, name, priority, key))
                time.sleep(0.05)  # so that they arrive in this order
            until(lambda: stack.calls("single") == 7, what="all wait")
        for one in asked:
            one.result()
    assert order == ["first", "second", "default", "as default", "capped", "last"]
