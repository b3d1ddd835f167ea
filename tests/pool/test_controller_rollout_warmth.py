"""The controller during a rollout: who loads the candidate, and who keeps the baseline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from pool import controller as controller_module
from pool.rollouts.needs import LEAVE_S
from pool.wire import control
from registry_sync.documents import EndpointSpec, EndpointState, Scale, Variant, write
from registry_sync.endpoints import update_state
from registry_sync.rollout_terms import Phase, Rollout, RolloutState, Step
from tests.support.artifacts import put_artifact
from tests.support.control import Member, beat, edge, engine, worker
from tests.support.control_stack import Stack, running_controller

SOON_S = 0.15  # long enough for what must not come, on a loopback socket
SPEC = EndpointSpec(
    "e",
    (Variant("stable", "m", "1", 100.0), Variant("canary", "m", "2", 0.0)),
    scale=Scale(idle_s=0.05),
    rollout=Rollout("r", steps=(Step(50, 600.0), Step(100, 600.0)), wish="pause"),
)


@pytest.fixture
async def stack(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stack]:
    """A controller over an endpoint whose rollout somebody has paused; nothing moves by itself."""
    monkeypatch.setattr(controller_module, "SETTLE_S", 0.0)
    async with running_controller() as made:
        put_artifact(made.store, {"model.onnx": b"2"}, version="2")
        made.store.put_new("endpoints/e.json", write(SPEC))
        await decide(made, 0, "paused")
        yield made


async def decide(stack: Stack, step: int, phase: Phase) -> None:
    """Let the controller have decided on a step."""
    weight = (0.0, 50.0, 100.0)[step]
    rollout = RolloutState("r", phase, step, segment=step)
    weights = {"stable": 100 - weight, "canary": weight}
    made = EndpointState("e", 0, weights, rollout=rollout)
    await asyncio.to_thread(update_state, stack.store, "e", lambda _: made)
    await stack.controller.poll()


def asked(member: Member) -> list[tuple[str, str]]:
    return [(command.op, command.version) for command in member.all(control.Command)]


async def test_candidate_is_loaded_before_it_has_weight_and_the_baseline_stays_without(
    stack: Stack,
) -> None:
    one = await stack.joined(worker("w1", engine("1", idle_s=1e4)))
    follower = await stack.joined(edge())
    assert (await one.hear(control.Command)).version == "2"
    one.say(beat(engine("1", idle_s=1e4), engine("2", idle_s=1e4)))
    await follower.hear(control.Routes, lambda r: [bool(e.warm) for e in r.engines] == [True] * 2)
    warmth = stack.controller._scale.warmth("e")
    assert (warmth.warm, warmth.wanted, warmth.waits_for) == (1, 1, "")
    for step in (1, 2):
        await decide(stack, step, "paused")
        await asyncio.sleep(SOON_S)
        assert asked(one) == [("load", "2")]  # though both have slept for longer than they may


async def test_candidate_gets_its_share_of_replicas_and_the_baseline_keeps_all_of_its_own(
    stack: Stack,
) -> None:
    old, new = engine("1", idle_s=1e4), engine("2", idle_s=1e4)
    two = [await stack.joined(worker(name, old)) for name in ("w1", "w2")]
    await asyncio.sleep(SOON_S)
    assert sorted(map(asked, two)) == [[], [("load", "2")]]  # a half of two, for the first step
    for member in two:
        member.say(beat(old, *[new] * len(asked(member))))
    await decide(stack, 1, "paused")
    await asyncio.sleep(SOON_S)
    assert list(map(asked, two)) == [[("load", "2")]] * 2
    for member in two:
        member.say(beat(old, new))
    phases: tuple[Phase, ...] = ("paused", "promoted")
    for phase in phases:
        await decide(stack, 2, phase)
        await asyncio.sleep(SOON_S)
        assert list(map(asked, two)) == [[("load", "2")]] * 2
    assert stack.status()["endpoints"][0]["variants"][0]["replicas"] == 2


@pytest.mark.parametrize(("phase", "step", "gone"), [("promoted", 2, ""), ("rolled_back", 0, "2")])
async def test_baseline_stays_after_the_end_and_a_candidate_that_failed_does_not(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, phase: Phase, step: int, gone: str
) -> None:
    later_s, loop = 0.0, asyncio.get_running_loop()
    time_s = loop.time
    monkeypatch.setattr(loop, "time", lambda: time_s() + later_s)
    both = (engine("1", idle_s=1e4), engine("2", idle_s=1e4))
    one = await stack.joined(worker("w1", *both))
    await decide(stack, 2, "paused")
    await decide(stack, step, phase)
    await asyncio.sleep(SOON_S)
    assert asked(one) == []  # edges may still send calls by older weights
    later_s = LEAVE_S
    stack.controller.act()
    await asyncio.sleep(SOON_S)
    assert asked(one) == ([("unload", gone)] if gone else [])


async def test_candidate_that_one_worker_cannot_load_is_tried_by_another(stack: Stack) -> None:
    two = [await stack.joined(worker(name, engine("1"))) for name in ("w1", "w2")]
    await asyncio.sleep(SOON_S)
    (first,) = [member for member in two if asked(member)]
    (other,) = [member for member in two if member is not first]
    broken = control.EngineState("m", "2", "test", "failed", detail="broken")
    first.say(beat(engine("1"), broken))
    assert (await other.hear(control.Command)).version == "2"
    assert stack.controller._scale.warmth("e").failed == ""
    other.say(beat(engine("1"), broken))
    async with asyncio.timeout(10.0):
        while not stack.controller._scale.warmth("e").failed:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert stack.controller._scale.warmth("e").failed == "broken"
