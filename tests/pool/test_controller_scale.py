"""The controller as it scales: what it commands, what routes say, what it keeps and explains."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from pool import controller as controller_module
from pool import scale_orders
from pool.controller import Controller
from pool.learned import KEY, Learned
from pool.scale_desk import ScaleDesk
from pool.scaling import kept
from pool.wire import control
from registry_sync.documents import EndpointState
from registry_sync.endpoints import update_state
from registry_sync.stores import NotFound
from tests.support.artifacts import put_artifact
from tests.support.control import Member, beat, edge, engine, worker
from tests.support.control_stack import Stack, running_controller

SOON_S = 0.15  # long enough for what must not come, on a loopback socket


@pytest.fixture
async def stack(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stack]:
    monkeypatch.setattr(controller_module, "SETTLE_S", 0.0)
    async with running_controller() as made:
        yield made


def with_learned(stack: Stack) -> Controller:
    """Let the next controller of a stack know what the last one had learned."""
    stack.controller = Controller(
        stack.watch,
        may_act=lambda: stack.leads,
        epoch=lambda: stack.epoch,
        workers_expected=0,
        local=stack.local,
        learned=Learned(stack.store, stack.local),
    )
    return stack.controller


async def until(fits: Callable[[], object], what: str) -> None:
    async with asyncio.timeout(10.0):
        while not fits():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def ops(member: Member) -> list[tuple[str, bool]]:
    return [(command.op, command.is_elsewhere) for command in member.all(control.Command)]


async def test_new_endpoint_has_one_warm_replica(stack: Stack) -> None:
    members = [await stack.joined(worker(name)) for name in ("w1", "w2", "w3")]
    stack.put_spec()
    await stack.controller.poll()
    await until(lambda: any(ops(member) for member in members), "a command")
    await asyncio.sleep(SOON_S)
    assert sorted(ops(member) for member in members) == [[], [], [("load", False)]]


async def test_replica_too_many_leaves_the_routes_before_it_drains_under_calls(
    stack: Stack,
) -> None:
    stack.put_spec(idle_s=60.0, replicas_min=2)
    await stack.controller.poll()
    follower = await stack.joined(edge())
    busy = engine(calls=1)
    one, two = [await stack.joined(worker(name, busy)) for name in ("w1", "w2")]
    await follower.hear(control.Routes, lambda r: len(r.engines[0].warm) == 2)
    assert ops(one) == ops(two) == []
    stack.put_spec(idle_s=60.0, replicas_min=1)
    await stack.controller.poll()
    routes = await follower.hear(control.Routes, lambda r: r.engines[0].warm in (("w1",), ("w2",)))
    (kept,) = routes.engines[0].warm
    gone = two if kept == "w1" else one
    assert (await gone.hear(control.Command)).is_elsewhere
    assert ops(one) + ops(two) == [("unload", True)]


async def test_version_that_a_call_woke_stays_for_its_time(stack: Stack) -> None:
    stack.put_spec(idle_s=0.5)
    await stack.controller.poll()
    follower = await stack.joined(edge())
    one = await stack.joined(worker("w1"))
    one.say(beat(engine(state="loading", calls=1)))
    one.say(beat(engine(calls=1)))
    one.say(beat(engine(idle_s=0.0)))
    await follower.hear(control.Routes, lambda r: bool(r.engines and r.engines[0].warm))
    await asyncio.sleep(SOON_S)
    assert ops(one) == []
    await one.hear(control.Command)  # by the policy's own time, and no heartbeat
    assert ops(one) == [("unload", False)]


async def test_what_is_warm_by_request_stays_for_a_while(stack: Stack) -> None:
    stack.put_spec(idle_s=1.0)
    await stack.controller.poll()
    one = await stack.joined(worker("w1"))
    client = await stack.join(control.Ask("warm", "e", 7))
    assert (await client.hear(control.Answer)).ok
    await one.hear(control.Command)
    one.say(beat(engine(idle_s=30.0)))
    await asyncio.sleep(SOON_S)
    assert ops(one) == [("load", False)]
    stack.controller.act()  # as the next round does
    await asyncio.sleep(1.0)
    stack.controller.act()
    await one.hear(control.Command, lambda command: command.op == "unload")


async def test_endpoint_is_warm_until_the_time_in_its_state(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.put_spec(idle_s=60.0)
    now_s = 1_000_000.0
    monkeypatch.setattr(scale_orders.time, "time", lambda: now_s)

    def until_then(state: EndpointState | None) -> EndpointState:
        return EndpointState("e", 1, {}, warm_until_unix_s=now_s + 100.0)

    await asyncio.to_thread(update_state, stack.store, "e", until_then)
    await stack.controller.poll()
    one = await stack.joined(worker("w1"))
    assert (await one.hear(control.Command)).op == "load"
    one.say(beat(engine(idle_s=1e4)))
    await asyncio.sleep(SOON_S)
    assert ops(one) == [("load", False)]
    now_s += 101.0
    stack.controller.act()
    await one.hear(control.Command, lambda command: command.op == "unload")


async def test_endpoint_is_warm_in_the_hours_of_its_schedule(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    eight = 1_795_766_400.0  # Friday, 27 November 2026, 08:00 UTC
    now_s = eight - 60.0
    monkeypatch.setattr(scale_orders.time, "time", lambda: now_s)
    stack.put_spec(idle_s=60.0, warm="Mon-Fri 08:00-18:00 UTC")
    await stack.controller.poll()
    one = await stack.joined(worker("w1"))
    await asyncio.sleep(SOON_S)
    assert ops(one) == []
    now_s = eight - 0.5  # it is to be warm when its hours begin
    stack.controller.act()
    assert (await one.hear(control.Command)).op == "load"
    one.say(beat(engine(idle_s=1e4)))
    now_s = eight + 10 * 3600
    stack.controller.act()
    await one.hear(control.Command, lambda command: command.op == "unload")


async def test_clock_that_is_stepped_changes_nothing_else(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = time.time()
    monkeypatch.setattr(scale_orders.time, "time", lambda: now_s)
    stack.put_spec(idle_s=60.0)
    await stack.controller.poll()
    one = await stack.joined(worker("w1"))
    one.say(beat(engine(calls=1)))
    one.say(beat(engine(idle_s=0.1)))
    for step_s in (3600.0, -7200.0, 86_400.0):
        now_s += step_s
        one.say(beat(engine(idle_s=0.1)))
        stack.controller.act()
        await asyncio.sleep(SOON_S)
    assert ops(one) == []


async def test_routes_say_how_long_a_wake_takes(stack: Stack) -> None:
    stack.put_spec(idle_s=60.0)
    await stack.controller.poll()
    follower = await stack.joined(edge())
    one = await stack.joined(worker("w1", msgspec.structs.replace(engine(), wake_us=71_234)))
    one.say(beat())
    routes = await follower.hear(control.Routes, lambda r: bool(r.engines and r.engines[0].wake_ms))
    assert (routes.engines[0].state, routes.engines[0].wake_ms) == ("asleep", 71)


async def test_start_of_a_worker_that_dials_again_is_learned_once(stack: Stack) -> None:
    stack.put_spec(idle_s=60.0)
    await stack.controller.poll()
    started = (worker("w1"), worker("w2"), worker("w2"), worker("w2"))
    for start_s, register in zip((1, 9, 9, 9), started, strict=True):
        assert isinstance(register, control.RegisterWorker)
        phases = {"spawn": start_s * 1_000_000}
        await stack.joined(msgspec.structs.replace(register, phases=phases))
    client = await stack.join(control.Ask("why", "e", 5))
    why = msgspec.json.decode((await client.hear(control.Answer)).data)
    assert why["versions"][0]["learned"]["start_s"] == 1.0


async def test_dedicated_endpoint_has_a_worker_of_its_own(stack: Stack) -> None:
    put_artifact(stack.store, {"model.onnx": b"2"}, version="2")
    one, two = [await stack.joined(worker(name)) for name in ("w1", "w2")]
    stack.put_spec("e", dedicated=True, replicas_min=2)
    stack.put_spec("f", "2", replicas_min=2)
    await stack.controller.poll()
    follower = await stack.joined(edge())
    await one.hear(control.Command)
    await two.hear(control.Command)
    await asyncio.sleep(SOON_S)
    loads = [[command.version for command in m.all(control.Command)] for m in (one, two)]
    assert sorted(loads) == [["1"], ["2"]]
    routes = await follower.hear(control.Routes, lambda r: len(r.engines) == 2)
    assert [len(route.wake_at) for route in routes.engines] == [1, 1]
    assert routes.engines[0].wake_at != routes.engines[1].wake_at


# why


async def test_why_tells_what_is_wanted_of_every_version(stack: Stack) -> None:
    stack.put_spec(idle_s=60.0)
    await stack.controller.poll()
    one = await stack.joined(worker("w1"))
    one.say(beat(engine(calls=2)))
    await until(lambda: stack.status()["endpoints"][0]["variants"][0]["wanted"] == 1, "decided")
    client = await stack.join(control.Ask("why", "e", 5))
    answer = await client.hear(control.Answer)
    assert (answer.ok, answer.id) == (True, 5)
    why = msgspec.json.decode(answer.data)
    (version,) = why["versions"]
    assert (why["endpoint"], version["model"], version["wanted"]) == ("e", "m", 1)
    assert version["demand"]["running"] == 2
    assert version["log"][-1]["replicas"] == 1


async def test_why_of_an_unknown_endpoint_says_so(stack: Stack) -> None:
    await stack.controller.poll()
    client = await stack.join(control.Ask("why", "nope", 5))
    answer = await client.hear(control.Answer)
    assert (answer.ok, answer.detail) == (False, "there is no endpoint 'nope'")


async def test_unloading_is_told_and_ended_by_a_document_that_wants_a_minimum(
    stack: Stack,
) -> None:
    async def why() -> dict[str, object]:
        client = await stack.join(control.Ask("why", "e", 5))
        found = msgspec.json.decode((await client.hear(control.Answer)).data)
        version: dict[str, object] = found["versions"][0]
        return {**version, "workers": found["workers"]}

    def wanted() -> object:
        return stack.status()["endpoints"][0]["variants"][0]["wanted"]

    stack.put_spec(replicas_min=1)
    await stack.controller.poll()
    one = await stack.joined(worker("w1", engine()))
    await until(lambda: wanted() == 1, "decided")
    assert not (await why())["unloaded"]
    client = await stack.join(control.Ask("unload", "e", 1))
    assert (await client.hear(control.Answer)).ok
    await one.hear(control.Command, lambda command: command.op == "unload")
    one.say(beat())
    told = await why()
    assert (told["unloaded"], told["workers"], wanted()) == (True, 1, 0)
    stack.put_spec()  # a new document that wants no minimum leaves it unloaded
    await stack.controller.poll()
    assert (await why())["unloaded"]
    stack.put_spec(replicas_min=1)
    await stack.controller.poll()
    await one.hear(control.Command, lambda command: command.op == "load")
    assert not (await why())["unloaded"]
    assert wanted() == 1


# what was learned


async def test_next_controller_goes_on_with_what_was_learned(stack: Stack) -> None:
    stack.put_spec(idle_s=60.0)
    await with_learned(stack).poll()
    one = await stack.joined(worker("w1", msgspec.structs.replace(engine(), wake_us=50_000)))
    one.say(beat(engine(calls=1)))
    await until(lambda: stack.status()["endpoints"][0]["variants"][0]["wanted"] == 1, "decided")
    with pytest.raises(NotFound):
        stack.store.get(KEY)
    await stack.controller.finish(1.0)
    assert stack.store.get(KEY).data
    one.peer.close()

    await with_learned(stack).poll()
    follower = await stack.joined(edge())
    await stack.joined(worker("w1"))
    routes = await follower.hear(control.Routes, lambda r: bool(r.engines and r.engines[0].wake_ms))
    assert routes.engines[0].wake_ms == 50


async def test_what_was_learned_is_kept_every_few_minutes(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale_orders, "SAVE_S", 0.2)
    stack.put_spec(idle_s=60.0)
    await with_learned(stack).poll()
    await stack.joined(worker("w1"))
    stack.go(stack.controller.tick_forever())
    await until(lambda: [e for e in stack.store.list("control") if e.key == KEY], "it is kept")


async def test_registry_that_hangs_costs_what_was_learned_and_puts_nothing_to_sleep(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale_orders, "LOAD_S_MAX", 0.4)
    answers = threading.Event()
    monkeypatch.setattr(Learned, "load", lambda self: answers.wait(30.0))
    stack.put_spec(idle_s=60.0)
    await with_learned(stack).poll()
    one = await stack.joined(worker("w1", engine(idle_s=1e6)))
    await asyncio.sleep(SOON_S)
    assert ops(one) == []
    try:
        assert (await one.hear(control.Command)).op == "unload"
    finally:
        answers.set()


async def test_broken_checkpoint_is_learned_anew(stack: Stack) -> None:
    stack.store.put_new(KEY, b"\xc1garbage")
    stack.put_spec()
    await with_learned(stack).poll()
    one = await stack.joined(worker("w1"))
    assert (await one.hear(control.Command)).op == "load"


@pytest.mark.parametrize(("start_s", "wake_s"), [(math.inf, 0.05), (0.5, math.inf), (0.5, 1e300)])
async def test_bad_number_in_the_checkpoint_ends_no_round(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, start_s: float, wake_s: float
) -> None:
    monkeypatch.setattr(controller_module, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(controller_module, "KEEPALIVE_S", 0.1)
    bad = [time.time(), start_s, {"m/1": [b"", 0.0, 0.0, 0.0, wake_s], "m/2": [b""]}]
    stack.store.put_new(KEY, msgspec.msgpack.encode(bad))
    stack.put_spec(idle_s=60.0, replicas_min=1)
    controller = with_learned(stack)
    ticking = asyncio.get_running_loop().create_task(controller.tick_forever())
    await controller.poll()
    follower = await stack.joined(edge())
    absurd = msgspec.structs.replace(worker("w1"), phases={"spawn": 2**53})
    one = await stack.joined(absurd)
    await one.hear(control.Command)
    one.say(beat(msgspec.structs.replace(engine(), wake_us=2**53)))
    await follower.hear(control.Routes, lambda r: bool(r.engines and r.engines[0].warm))
    await follower.heard_often(control.Welcome, 3)  # every tick but one says one
    assert not ticking.done()
    ticking.cancel()


async def test_loop_has_other_turns_while_much_is_kept(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [(f"m{n}", "1") for n in range(100)]
    data = kept.pack(time.time(), 0.5, ((ref, kept.Version(b"")) for ref in names))
    stack.store.put_new(KEY, data)
    await with_learned(stack).poll()
    stack.put_spec()
    await stack.controller.poll()
    one = await stack.joined(worker("w1"))
    await one.hear(control.Command)  # so that it was restored
    turns, packed = 0, []
    pack = ScaleDesk.pack

    def turn() -> None:
        nonlocal turns
        turns += 1
        if not packed:
            asyncio.get_running_loop().call_soon(turn)

    def note(desk: ScaleDesk, *args: Any) -> bytes:
        packed.append(turns)
        return pack(desk, *args)

    monkeypatch.setattr(ScaleDesk, "pack", note)
    turn()
    await stack.controller.finish(1.0)
    assert len(packed) == 1
    assert packed[0] >= len(names) // scale_orders.SAVED_AT_ONCE
    kept_again = kept.read(stack.store.get(KEY).data)
    assert kept_again is not None
    assert len(kept_again.versions) == 1 + len(names)
