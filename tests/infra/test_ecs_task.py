"""`ecs-task` as a host: what the task metadata endpoint tells, or what is missing, by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.ecs_task import VARIABLE, address
from infra.stack import free_port
from tests.support.commands import Commands
from tests.support.ecs_agent import EcsAgent, ecs_agent

OF_THE_TASK = "127.0.0.9"  # on loopback, and not the default


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[EcsAgent]:
    with ecs_agent(ipv4=OF_THE_TASK) as agent:
        monkeypatch.setenv(VARIABLE, agent.environment[VARIABLE])
        yield agent


def test_address_is_the_tasks_own(agent: EcsAgent) -> None:
    assert address() == OF_THE_TASK


def test_network_that_is_told_later_is_waited_for(agent: EcsAgent) -> None:
    agent.unready = 2
    assert address() == OF_THE_TASK
    assert agent.asked.total() == 3


def test_network_that_is_never_told_is_given_up(agent: EcsAgent) -> None:
    agent.unready = 1 << 30
    with pytest.raises(LookupError, match=r"tells no network after 0 s"):
        address(tried_s_max=0.1)


@pytest.mark.parametrize("mode", ["bridge", "host"])
def test_network_mode_without_an_address_of_its_own_is_named(agent: EcsAgent, mode: str) -> None:
    agent.mode = mode
    with pytest.raises(LookupError, match=rf"network mode is '{mode}'.*\"awsvpc\""):
        address()


def test_endpoint_that_says_something_else_is_named(
    agent: EcsAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, f"{agent.url}/nothing")
    with pytest.raises(LookupError, match="answers 404"):
        address(tried_s_max=0.1)
    monkeypatch.setenv(VARIABLE, f"http://127.0.0.1:{free_port()}")
    with pytest.raises(LookupError, match="answers nothing"):
        address(tried_s_max=0.1)


@pytest.mark.parametrize(
    "words",
    [
        ("edge", "--registry", "r", "--host", "ecs-task"),
        ("edge", "--registry", "r", "--admin-host", "ecs-task"),
        ("up", "--host", "ecs-task"),
        ("pool", "--registry", "r", "--listen-host", "ecs-task"),
        ("pool", "--registry", "r", "--listen-host", "0.0.0.0", "--advertise-host", "ecs-task"),
        ("controller", "--listen", "tcp://ecs-task:8010"),
        ("controller", "--advertise", "tls://ecs-task:8010"),
    ],
)
def test_outside_of_ecs_the_option_and_what_is_missing_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    said = Commands("--data", str(tmp_path)).fails(*words)
    assert said.startswith(f"{words[-2]} {words[-1]}: {VARIABLE} is not set")


def test_other_hosts_are_left_as_they_are(tmp_path: Path, agent: EcsAgent) -> None:
    words = ("controller", "--listen", "tcp://0.0.0.0:8010", "--listen", "tcp://my-ecs-task:1")
    assert "tcp://0.0.0.0:8010: say with --advertise" in Commands("--data", str(tmp_path)).fails(
        *words
    )
    assert not agent.asked
