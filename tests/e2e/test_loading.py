"""Loads that go wrong, in whole stacks: what is still served, what is said, and what is kept."""

from __future__ import annotations

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
