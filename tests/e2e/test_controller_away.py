"""Nobody needs the controller to be served, or to be woken: it is stopped, killed and doubled."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from registry_sync.leader import look
from tests.support.load import Load
from tests.support.models import identity
from tests.support.nodes import running_fleet
from tests.support.seaweed import BUCKET, S3Server
from tests.support.stack import Stack, running_stack, until

INPUT = {"x": ("FP32", [1, 4], [1.0, -2.0, 3.5, 0.25])}
BACK_S_MAX = 40.0  # interpreters start, on a machine that other tests keep busy
COLD = [f"cold-{n}" for n in range(4)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two workers, with one endpoint that stays warm and some that sleep after half a second."""
    data = tmp_path_factory.mktemp("away")
    with running_stack(data, workers=2) as made:
        made.publish("hot", identity(data / "m.onnx"))
        made.edit_endpoint("hot", scale={"replicas_min": 1}, cache=None)
        for name in COLD:
            made.publish(name, identity(data / "m.onnx"))
            made.edit_endpoint(name, scale={"idle_s": 0.5}, cache=None)
        until(lambda: all_asleep(made), BACK_S_MAX, "they sleep")
        until(lambda: warm(made, "hot") == 1, BACK_S_MAX, "one is warm")
        yield made


def warm(stack: Stack, model: str) -> int:
    try:
        return sum(engine["state"] == "warm" for engine in stack.engine(model))
    except (AssertionError, OSError):
        return -1  # no controller that could say


def all_asleep(stack: Stack) -> bool:
    return all(warm(stack, name) == 0 for name in COLD)


def others(stack: Stack) -> dict[str, int]:
    return {name: pid for name, pid in stack.pids().items() if name != "controller"}


@contextmanager
def stands_still(stack: Stack) -> Iterator[None]:
    pid = stack.pids()["controller"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def is_killed(stack: Stack) -> Iterator[None]:
    """Kill the controller and every successor meanwhile."""
    killed = set()
    ends_s = time.monotonic() + 1.0
    while time.monotonic() < ends_s:
        pid = stack.pids().get("controller", 0)
        if pid and pid not in killed:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        time.sleep(0.02)
    yield


def serve_without(
    stack: Stack,
    away: Callable[[Stack], AbstractContextManager[None]],
    away_s: float,
    cold: list[str],
) -> None:
    """Call what is warm all the time, and what sleeps one after the other."""
    until(lambda: all_asleep(stack), BACK_S_MAX, "they sleep")
    before = others(stack)
    loads = [engine["loads"] for engine in stack.engine("hot")]
    wakes_s = []
    with Load(stack.url, stack.key, "hot", threads=4, pause_s=0.005) as load:
        load.more(50)
        with away(stack):
            began_s = time.monotonic()
            for at, name in enumerate(cold):
                time.sleep(max(0.0, began_s + away_s * at / len(cold) - time.monotonic()))
                called_s = time.monotonic()
                answer = stack.infer(name, INPUT)
                wakes_s.append(time.monotonic() - called_s)
                assert (answer.status, answer.output()) == (200, INPUT["x"][2])
            time.sleep(max(0.0, began_s + away_s - time.monotonic()))
            load.more(50)
        until(lambda: warm(stack, "hot") == 1, BACK_S_MAX, "a controller answers")
        until(lambda: all_asleep(stack), BACK_S_MAX, "what was woken sleeps again")
        load.more(50)
    load.assert_clean()
    print(
        f"\n{load.answered} requests, slowest {max(load.latencies_s):.3f} s; "
        f"{len(wakes_s)} wakes, slowest {max(wakes_s):.3f} s"
    )
    assert others(stack) == before
    assert [engine["loads"] for engine in stack.engine("hot")] == loads


def test_without_a_controller_what_is_warm_is_served_and_what_sleeps_is_woken(
    stack: Stack,
) -> None:
    serve_without(stack, stands_still, 2.5, COLD[:2])


@pytest.mark.rule("F27")
def test_controller_killed_over_and_over_costs_no_request_and_no_wake(stack: Stack) -> None:
    serve_without(stack, is_killed, 0.0, COLD[2:])


@pytest.mark.rule("F27")
@pytest.mark.slow
def test_controller_that_stands_still_for_a_minute_costs_no_request_and_no_wake(
    stack: Stack,
) -> None:
    serve_without(stack, stands_still, 60.0, COLD)


@pytest.mark.slow
def test_two_controllers_that_both_believe_to_lead_cost_no_request(
    tmp_path: Path, seaweed: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first stands still until the second leads, and then goes on as if nothing were."""
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    registry = f"s3://{BUCKET}/doubled"
    with running_fleet(tmp_path, registry, dict(seaweed.environment), workers=2) as fleet:
        fleet.publish("hot", identity(tmp_path / "m.onnx"))
        fleet.edit_endpoint("hot", scale={"replicas_min": 1}, cache=None)
        fleet.publish("cold", identity(tmp_path / "m.onnx"))
        fleet.edit_endpoint("cold", scale={"idle_s": 0.5}, cache=None)
        until(lambda: warm(fleet, "cold") == 0, BACK_S_MAX, "it sleeps")
        second = fleet.tier(
            *("controller", "--data", str(tmp_path / "second"), "--registry", registry),
            *("--listen", "tcp://127.0.0.1:0"),
        )
        fleet.tiers.append(second)
        second.start()
        first = look(fleet.store).record
        assert first is not None
        with Load(fleet.url, fleet.key, "hot", threads=4, pause_s=0.005) as load:
            load.more(50)
            pids = fleet.controller.pids()
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)

            def is_taken_over() -> bool:
                record = look(fleet.store).record
                return record is not None and record.epoch > first.epoch

            until(is_taken_over, 60.0, "the second leads", 0.2)
            load.more(50)
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            for _ in range(3):
                answer = fleet.infer("cold", INPUT)
                assert (answer.status, answer.output()) == (200, INPUT["x"][2])
                time.sleep(2.0)
            load.more(50)
        load.assert_clean()
        until(lambda: warm(fleet, "hot") == 1, BACK_S_MAX, "a controller answers")
        print(f"\n{load.answered} requests, slowest {max(load.latencies_s):.3f} s")
