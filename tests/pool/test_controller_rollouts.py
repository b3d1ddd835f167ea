"""The controller carries rollouts out over real sockets; edges and workers only speak its wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from pool import controller as controller_module
from pool.wire import control
from registry_sync import endpoints
from registry_sync.documents import read_state
from tests.support.artifacts import put_artifact
from tests.support.control import Member, beat, edge, engine, worker
from tests.support.control_stack import Stack, running_controller
from tests.support.rollouts import ROLLOUT, row, spec_of


@pytest.fixture
async def stack(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stack]:
    monkeypatch.setattr(controller_module, "SETTLE_S", 0.0)
    async with running_controller() as made:
        put_artifact(made.store, {"model.onnx": b"2"}, version="2")
        yield made


async def step(member: Member, number: int) -> control.Documents:
    """Wait until the edge has the documents with that step, and confirm them."""

    def fits(documents: control.Documents) -> bool:
        if "e" not in documents.states:
            return False
        rollout = read_state(documents.states["e"]).rollout
        return rollout is not None and rollout.step == number

    found = await member.hear(control.Documents, fits)
    member.say(control.Ack(found.epoch, found.seq))
    return found


async def ask(member: Member, endpoint: str) -> tuple[control.Answer, dict[str, Any]]:
    """Ask for a rollout, after everything that the member has said."""
    number = len(member.all(control.Answer)) + 1
    member.say(control.Ask("rollout", endpoint, number))
    answer = await member.hear(control.Answer, lambda found: found.id == number)
    return answer, msgspec.json.decode(answer.data) if answer.ok else {}


async def test_evidence_of_edges_moves_weights_and_every_edge_hears_of_it(stack: Stack) -> None:
    endpoints.set_spec(stack.store, spec_of(50.0, 100.0, revision=0))
    await stack.controller.poll()
    member, other = await stack.joined(edge("e1")), await stack.joined(edge("e2"))
    one = await stack.joined(worker("w1", engine("1")))
    await step(member, 0)
    assert (await ask(member, "e"))[1]["waits_for"].startswith("0 of 1 replicas of m version 2")
    one.say(beat(engine("1"), engine("2")))  # warm, only now
    await step(member, 1)
    await step(other, 1)
    bad = (row("stable", 300, 1), row("canary", 300, 60))
    member.say(control.Evidence("i1", bad))
    ended = await other.hear(
        control.Documents,
        lambda found: (
            "e" in found.states
            and read_state(found.states["e"]).weights == {"stable": 100.0, "canary": 0.0}
            and b"rolled_back" in found.states["e"]
        ),
    )
    assert ended.specs["e"]  # as the user wrote it


async def test_answer_is_what_the_command_prints(stack: Stack) -> None:
    endpoints.set_spec(stack.store, spec_of(50.0, 100.0, hold_s=60.0, revision=0))
    await stack.controller.poll()
    member = await stack.joined(edge())
    await stack.joined(worker("w1", engine("1"), engine("2")))
    await step(member, 1)
    arms = (row("stable", 30, 1, seconds=(0,) * 7 + (30,) + (0,) * 14), row("canary", 30))
    member.say(control.Evidence("i1", arms))
    ended = (0,) * 7 + (61,) + (0,) * 14
    counts = control.VariantCount("e", 1, "stable", "1", 50, 2, 10, 9, ended, 6)
    member.say(control.Counters("i1", (counts,)))
    answer, found = await ask(member, "e")
    assert answer.ok
    assert (found["endpoint"], found["id"], found["state"]) == ("e", ROLLOUT, "running")
    assert (found["step"], found["segment"], found["live"]) == (1, 1, True)
    assert found["waits_for"].startswith("it holds for ")
    assert 0 < found["hold_left_s"] <= 60
    assert found["e_values"].keys() == {"errors", "mismatch"}
    assert found["e_values"]["errors"] < found["fires_at"]["errors"]
    stable, canary = found["variants"]
    assert (stable["role"], stable["version"], stable["weight"]) == ("baseline", "1", 50.0)
    assert (stable["requests"], stable["errors"], stable["failed"]) == (61, 6, 9)
    assert stable["calls"] == 30
    assert (stable["share_seen"], stable["replicas"], stable["p50_ms"]) == (50.0, 1, 0.75)
    assert stable["error_low"] < stable["error_rate"] < stable["error_high"]
    assert (canary["role"], canary["failed_calls"], canary["p50_ms"]) == ("candidate", 0, None)
    assert found["guard"]["alpha"] == 0.05
    (row_of_status,) = stack.status()["endpoints"]
    assert row_of_status["rollout"]["step"] == 1
    assert "segments" not in row_of_status["rollout"]


async def test_hold_begins_once_the_edge_has_confirmed_the_weights(stack: Stack) -> None:
    endpoints.set_spec(stack.store, spec_of(50.0, 100.0, hold_s=60.0, revision=0))
    await stack.controller.poll()
    member = await stack.joined(edge())
    await stack.joined(worker("w1", engine("1"), engine("2")))
    before = await step(member, 0)
    documents = await member.hear(control.Documents, lambda found: found.seq > before.seq)
    assert (await ask(member, "e"))[1]["hold_left_s"] is None
    member.say(control.Ack(documents.epoch, documents.seq))
    assert (await ask(member, "e"))[1]["hold_left_s"] > 0


async def test_answer_says_what_is_not_there(stack: Stack) -> None:
    stack.put_spec()
    await stack.controller.poll()
    member = await stack.joined(edge())
    answer, _ = await ask(member, "nobody")
    assert (answer.ok, answer.detail) == (False, "there is no endpoint 'nobody'")
    answer, _ = await ask(member, "e")
    assert (answer.ok, answer.detail) == (False, "endpoint 'e' has no rollout")
    assert [one["rollout"] for one in stack.status()["endpoints"]] == [None]


async def test_who_leads_no_more_forgets_what_was_counted(stack: Stack) -> None:
    endpoints.set_spec(stack.store, spec_of(50.0, 100.0, revision=0))
    await stack.controller.poll()
    member = await stack.joined(edge())
    await stack.joined(worker("w1", engine("1"), engine("2")))
    await step(member, 1)
    member.say(control.Evidence("i1", (row("stable", 5), row("canary", 5))))
    _, found = await ask(member, "e")
    assert [arm["calls"] for arm in found["variants"]] == [5, 5]
    stack.leads = False
    stack.controller._stand_down()
    assert stack.controller._rollouts.began() == {}
    stack.leads, stack.epoch = True, 4
    await stack.controller.poll()
    member = await stack.joined(edge(incarnation="i2"))
    await stack.joined(worker("w1", engine("1"), engine("2"), incarnation="i2"))
    await step(member, 1)
    _, found = await ask(member, "e")
    assert [arm["calls"] for arm in found["variants"]] == [0, 0]
