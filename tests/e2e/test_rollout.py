"""A rollout on a real stack under load: it goes on by itself, and back by itself."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pool.rollouts.guards import Guards
from registry_sync import endpoints, rollout_orders
from registry_sync.rollout_terms import Guard, RolloutState
from tests.support.load import FEATURES, Load
from tests.support.models import identity, identity_that_fails
from tests.support.rollouts import counts
from tests.support.stack import Stack, running_stack, until

NAME = "m"
ABOVE_A_FIFTH = 0.84162  # of what `Load` sends, a fifth begins with more
BACK_S_MAX = 10.0  # the figure
END_S_MAX = 60.0
SHAPE = (1, FEATURES)


@dataclass(frozen=True)
class Outcome:
    """How one call ended, at the client."""

    at_s: float
    arm: str
    status: int


class ArmLoad(Load):
    """Notes which arm answered what; an answer that the model failed is no reason to stop."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack.url, stack.key, NAME, threads=4, pause_s=0.004)
        self.outcomes: list[Outcome] = []

    def _ask(
        self, connection: http.client.HTTPConnection, values: list[float], began_s: float
    ) -> None:
        tensor = {"name": "x", "datatype": "FP32", "shape": SHAPE, "data": values}
        connection.request("POST", self._path, json.dumps({"inputs": [tensor]}), self._headers)
        response = connection.getresponse()
        body = response.read()
        arm = response.getheader("x-tidepool-variant") or ""
        self.outcomes.append(Outcome(time.monotonic(), arm, response.status))
        if response.status == 200:
            found = np.array(json.loads(body)["outputs"][0]["data"], np.float32).ravel()
            if not np.array_equal(found, np.array(values, np.float32)):
                self.wrong.append(f"{values} was answered with {body[:300]!r}")
        elif response.status != 500:
            self.failed.append(f"{response.status}: {body[:300]!r}")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two edges and two workers, which serve version 1 of a model that is never cached."""
    folder = tmp_path_factory.mktemp("rollout")
    with running_stack(folder / "up", edges=2, workers=2) as made:
        made.publish(NAME, identity(folder / "1.onnx", shape=SHAPE))
        made.edit_endpoint(NAME, cache=None, scale={"replicas_min": 1})
        yield made


def state_of(stack: Stack) -> RolloutState | None:
    found = endpoints.read_state(stack.store, NAME)
    return None if found is None else found[0].rollout


def has_ended(stack: Stack) -> bool:
    state = state_of(stack)
    return state is not None and state.state in ("promoted", "rolled_back")


def evidence_s(outcomes: list[Outcome], share: float, steps: int) -> float:
    """Return when what clients saw was enough for the guard, had it been told at once."""
    guards = Guards(Guard(), share=share, steps=steps, cached=False)
    calls = {"stable": [0, 0], "canary": [0, 0]}
    for outcome in outcomes:
        calls[outcome.arm][0] += 1
        calls[outcome.arm][1] += outcome.status == 500
        guards.look(outcome.at_s, *(counts(*arm) for arm in calls.values()))
        if guards.verdict().harms:
            return outcome.at_s
    raise AssertionError(f"never: {calls}")


def restart(stack: Stack, name: str, number: int) -> None:
    """End a process, and wait until another is there in its place and knows of both edges."""
    pid = stack.pids()[name]
    os.kill(pid, number)
    until(lambda: stack.pids().get(name, pid) != pid, END_S_MAX, "another")
    until(lambda: knows_both(stack), END_S_MAX, "both edges are known", 0.1)


def knows_both(stack: Stack) -> bool:
    answer = stack.request("GET", "/admin/pool", admin=True)
    return answer.status == 200 and len(answer.json()["edges"]) == 2


@pytest.mark.slow
def test_version_that_fails_a_fifth_of_its_inputs_is_rolled_back_soon(
    stack: Stack, tmp_path: Path
) -> None:
    bad = stack.publish(NAME, identity_that_fails(tmp_path / "bad.onnx", ABOVE_A_FIFTH))
    with ArmLoad(stack) as load:
        until(lambda: len(load.outcomes) > 200, END_S_MAX, "there is load")
        stack.cli("rollout", "start", NAME, "--to", bad, "--steps", "10,100", "--hold", "60s")
        until(lambda: any(o.arm == "canary" for o in load.outcomes), END_S_MAX, "it has begun")
        until(lambda: has_ended(stack), END_S_MAX, "it has ended")
        ended_s = time.monotonic()
        time.sleep(2.0)
    state = state_of(stack)
    assert state is not None
    assert (state.state, state.step) == ("rolled_back", 1), state
    assert not load.wrong
    assert not load.failed, load.failed[:3]
    begun = next(at for at, o in enumerate(load.outcomes) if o.arm == "canary")
    segment = [o for o in load.outcomes[begun:] if o.at_s <= ended_s]
    enough_s = evidence_s(segment, 0.1, 2)
    failed = sum(o.status == 500 for o in load.outcomes)
    late = [o for o in load.outcomes if o.arm == "canary" and o.at_s > ended_s + 1.0]
    calls = sum(o.arm == "canary" for o in load.outcomes)
    print(
        f"\nrolled back {ended_s - enough_s:.2f} s after the evidence sufficed, "
        f"{ended_s - segment[0].at_s:.2f} s after its first call; {calls} calls to it, "
        f"{failed} failed, of {len(load.outcomes)}; load {os.getloadavg()[0]:.1f}"
    )
    assert ended_s - enough_s <= BACK_S_MAX
    assert not late, "every edge sends its calls back to the old version"
    assert "calls fail" in state.reason, state.reason


@pytest.mark.slow
def test_good_version_is_promoted_though_the_controller_is_killed_and_edges_restart(
    stack: Stack, tmp_path: Path
) -> None:
    good = stack.publish(NAME, identity(tmp_path / "good.onnx", shape=SHAPE), labels={"v": "good"})
    with ArmLoad(stack) as load:
        until(lambda: len(load.outcomes) > 200, END_S_MAX, "there is load")
        began_s = time.monotonic()
        rollout_orders.start(stack.store, NAME, good, steps=(10, 50), hold_s=3.0)
        stack.poke()
        until(lambda: any(o.arm == "canary" for o in load.outcomes), END_S_MAX, "it has begun")
        restart(stack, "controller", signal.SIGKILL)
        for name in ("edge-0", "edge-1"):
            restart(stack, name, signal.SIGTERM)
        until(lambda: has_ended(stack), END_S_MAX, "it has ended")
        took_s = time.monotonic() - began_s
        time.sleep(1.5)
        seen = len(load.outcomes)
        until(lambda: len(load.outcomes) > seen + 100, END_S_MAX, "there is load")
    state = state_of(stack)
    assert state is not None
    assert (state.state, state.step) == ("promoted", 3), state
    load.assert_clean()
    assert {o.status for o in load.outcomes} == {200}
    assert {o.arm for o in load.outcomes[seen:]} == {"canary"}
    counted = dict.fromkeys(("stable", "canary"), 0)
    for segment in state.segments:
        for arm, found in segment.arms.items():
            counted[arm] += found.calls
    sent = {arm: sum(o.arm == arm for o in load.outcomes) for arm in counted}
    print(f"\npromoted after {took_s:.1f} s; counted {counted} of {sent} calls")
    for arm, calls in counted.items():
        assert calls <= sent[arm], "edges that restart count nothing twice"
    assert counted["canary"] > 0
