"""Loads that go wrong, in whole stacks: what is still served, what is said, and what is kept."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.load import Load
from tests.support.models import identity
from tests.support.stack import Stack, running_stack, until

DEADLY = "tests.support.counting_engine:DeadlyEngine"
ONE = {"x": ("INT64", [1], [7])}


@pytest.fixture
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    data = tmp_path_factory.mktemp("loading")
    with running_stack(data, engines=[DEADLY]) as one:
        one.publish("echo", identity(data / "echo.onnx"))
        one.edit_endpoint("echo", cache=None)
        yield one


def publish_deadly(stack: Stack, file: str) -> str:
    tensor = ("INT64", (-1,))
    return stack.publish_engine(
        "poison",
        "deadly",
        [("x", *tensor)],
        [("y", *tensor)],
        files={"deadly": str(stack.data / file)},
    )


def state_of(stack: Stack, model: str, version: str) -> dict[str, Any]:
    try:
        found = stack.engine(model, version)
    except (AssertionError, OSError):
        return {}
    return found[0] if found else {}


@pytest.mark.rule("F21")
def test_version_that_kills_the_worker_three_times_is_backed_off_and_the_others_are_served(
    stack: Stack,
) -> None:
    publish_deadly(stack, "harmless")
    (stack.data / "kill").touch()
    second = publish_deadly(stack, "kill")

    def refusal() -> str:
        answer = stack.infer("poison", ONE, version=second)
        assert answer.status in (502, 503)  # 502: the worker broke
        return answer.error if "died" in answer.error else ""

    why = until(refusal, 30.0, "a refusal")
    assert "the worker died 3 times while loading it; the next try is in" in why
    assert stack.log_text().count('"died_while_loading"') == 3

    found = until(lambda: state_of(stack, "poison", second), 10.0, "it is in the status")
    until(lambda: state_of(stack, "poison", second)["state"] == "failed", 10.0, "failed")
    assert "the worker died 3 times" in state_of(stack, "poison", second)["detail"], found
    assert "died 3 times while loading it" in stack.cli("status")
    pid = stack.pids()["worker-0"]
    assert pid
    stack.until_ready("echo")
    stack.until_ready("poison")
    with Load(stack.url, stack.key, "echo") as load:
        for _ in range(20):
            assert stack.infer("poison", ONE, version=second).status == 503
            assert stack.infer("poison", ONE, version="1").output() == [7]
        load.more(100)
    load.assert_clean()
    assert stack.pids()["worker-0"] == pid, "it was not tried again"

    # The next process knows it from the start, before anybody asks.
    stack.restart()
    until(
        lambda: "died 3 times" in state_of(stack, "poison", second).get("detail", ""),
        10.0,
        "the status says why",
    )


def ask_for_heir(stack: Stack) -> int:
    """Have the worker replaced; returns its pid."""
    pid = stack.pids()["worker-0"]
    os.kill(pid, signal.SIGUSR1)
    return pid


def until_logged(stack: Stack, event: str, count: int = 1) -> None:
    until(lambda: stack.log_text().count(f'"event": "{event}"') >= count, 30.0, event)


def lines_of(stack: Stack) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stack.log_text().splitlines()]


def events_of(stack: Stack, *pids: int) -> list[str]:
    """Return what these processes have logged, in order."""
    lines = [line for line in lines_of(stack) if line.get("pid") in pids]
    return [line["event"] for line in sorted(lines, key=lambda line: str(line["timestamp"]))]


def test_worker_is_replaced_by_one_that_has_loaded_what_is_hot_and_nobody_notices(
    stack: Stack,
) -> None:
    with Load(stack.url, stack.key, "echo", threads=8) as load:
        load.more(50)
        for count in (1, 2):
            old = ask_for_heir(stack)
            until_logged(stack, "worker_down", count)
            load.more(50)
            heir = stack.pids()["worker-0"]
            assert heir != old
            # It was warm before it listened.
            assert events_of(stack, heir)[:2] == ["engine_warm", "worker_up"]
    load.assert_clean()
    assert "worker_gone" not in stack.log_text()
    until(lambda: state_of(stack, "echo", "1").get("state") == "warm", 10.0, "warm")


def test_worker_goes_on_when_its_heir_dies_of_what_it_is_to_load(stack: Stack) -> None:
    publish_deadly(stack, "later")
    with Load(stack.url, stack.key, "echo") as load:
        (stack.data / "later").touch()
        pid = ask_for_heir(stack)
        until_logged(stack, "heir_not_ready")
        load.more(50)
        assert stack.infer("poison", ONE).output() == [7]
    load.assert_clean()
    assert stack.pids()["worker-0"] == pid
    (stack.data / "later").unlink()
    ask_for_heir(stack)
    until_logged(stack, "worker_down")
    assert stack.infer("poison", ONE).output() == [7]


def test_heir_takes_over_when_its_predecessor_dies_meanwhile(stack: Stack) -> None:
    pid = ask_for_heir(stack)
    until_logged(stack, "heir_started")
    os.kill(pid, signal.SIGKILL)
    until_logged(stack, "worker_up", 2)
    stack.until_ready("echo")
    assert stack.log_text().count('"worker_up"') == 2
    assert stack.pids()["worker-0"] != pid


def test_stack_ends_while_an_heir_gets_ready(stack: Stack) -> None:
    ask_for_heir(stack)
    until_logged(stack, "heir_started")
    assert stack.stop() == 0
    heir = next(line["child_pid"] for line in lines_of(stack) if line["event"] == "heir_started")
    assert heir in [
        line["child_pid"] for line in lines_of(stack) if line["event"] == "process_ended"
    ]
