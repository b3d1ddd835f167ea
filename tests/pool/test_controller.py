"""The controller over real sockets; edges and workers here only speak its wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
from structlog.testing import capture_logs

from pool import controller as controller_module
from pool import last_good, placement, quota_shares
from pool.wire import control
from registry_sync.stores import StoreUnavailable
from tests.support.control import Member, beat, edge, engine, worker
from tests.support.control_stack import Stack, running_controller

SOON_S = 0.15  # long enough for what must not come, on a loopback socket


@pytest.fixture
async def stack(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stack]:
    monkeypatch.setattr(controller_module, "SETTLE_S", 0.0)
    async with running_controller() as made:
        yield made


def engines_of(routes: control.Routes) -> dict[str, control.EngineRoute]:
    return {one.version: one for one in routes.engines}


# registration


async def test_who_registers_is_welcomed_with_the_epoch(stack: Stack) -> None:
    for first in (edge(), worker()):
        member = await stack.join(first)
        assert await member.hear(control.Welcome) == control.Welcome(control.WIRE, 3)


async def test_edge_gets_documents_and_routes_at_once(stack: Stack) -> None:
    stack.put_spec()
    await stack.controller.poll()
    member = await stack.join(edge())
    documents = await member.hear(control.Documents)
    routes = await member.hear(control.Routes)
    assert documents.specs.keys() == {"e"}
    assert documents.manifests.keys() == {"m/1"}
    assert (documents.epoch, routes.epoch) == (3, 3)
    kinds = [type(message) for message in member.heard]
    assert kinds == [control.Welcome, control.Documents, control.Routes]


async def test_changed_document_is_pushed_once_to_every_edge(stack: Stack) -> None:
    await stack.controller.poll()
    one, other = await stack.joined(edge("e1")), await stack.joined(edge("e2"))
    stack.put_spec()
    await stack.controller.poll()
    await stack.controller.poll()
    for member in (one, other):
        await member.hear(control.Documents, lambda found: found.specs.keys() == {"e"})
        assert [found.seq for found in member.all(control.Documents)] == [1, 2]


async def test_worker_is_in_the_routes_until_it_drains_and_another_is_warm(
    stack: Stack,
) -> None:
    stack.put_spec()
    await stack.controller.poll()
    member = await stack.joined(edge())
    one = await stack.joined(worker("w1", engine()))
    routes = await member.hear(control.Routes, lambda r: len(r.workers) == 1)
    assert routes.workers[0].address == "unix:/run/w1-i1"
    assert engines_of(routes)["1"].warm == ("w1",)
    one.say(beat(engine(), draining=True))
    two = await stack.joined(worker("w2"))
    both = await member.hear(control.Routes, lambda r: len(r.workers) == 2)
    assert engines_of(both)["1"].warm == ("w1",)
    two.say(beat(engine()))
    gone = await member.hear(control.Routes, lambda r: r.seq > both.seq)
    assert [one.id for one in gone.workers] == ["w2"]
    assert engines_of(gone)["1"].warm == ("w2",)


async def test_worker_that_drained_is_forgotten_when_it_hangs_up(stack: Stack) -> None:
    await stack.controller.poll()
    one = await stack.joined(worker("w1"))
    one.say(beat(draining=True))
    one.peer.close()
    await stack.join(edge())
    async with asyncio.timeout(5):
        while stack.status()["workers"]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(("is_draining", "level"), [(True, "info"), (False, "warning")])
async def test_worker_that_has_ended_as_it_should_is_no_warning(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, is_draining: bool, level: str
) -> None:
    monkeypatch.setattr(controller_module, "WORKER_SILENCE_S_MAX", 0.2)
    monkeypatch.setattr(controller_module, "HEARTBEAT_S", 0.05)
    stack.put_spec()
    await stack.controller.poll()
    follower = await stack.joined(edge())
    one = await stack.joined(worker("w1"))
    await follower.hear(control.Routes, lambda r: bool(r.workers))
    with capture_logs() as logs:
        one.say(beat(draining=is_draining))
        one.peer.close()
        stack.go(stack.controller.tick_forever())
        async with asyncio.timeout(10.0):
            while not [line for line in logs if line["event"] == "worker_gone"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert [line["log_level"] for line in logs if line["event"] == "worker_gone"] == [level]


async def test_heartbeat_that_changes_nothing_pushes_no_routes(stack: Stack) -> None:
    stack.put_spec()
    await stack.controller.poll()
    member = await stack.joined(edge())
    one = await stack.joined(worker("w1", engine()))
    await member.hear(control.Routes, lambda r: bool(r.workers))
    before = len(member.all(control.Routes))
    for idle_s in (1.0, 2.0, 3.0):
        one.say(beat(engine(idle_s=idle_s)))
    await asyncio.sleep(SOON_S)
    assert len(member.all(control.Routes)) == before


async def test_successor_of_a_worker_takes_its_place(stack: Stack) -> None:
    stack.put_spec()
    await stack.controller.poll()
    member = await stack.joined(edge())
    old = await stack.joined(worker("w1", engine(), incarnation="i1"))
    await stack.joined(worker("w1", incarnation="i2"))
    await old.lost()
    routes = await member.hear(
        control.Routes, lambda r: [w.incarnation for w in r.workers] == ["i2"]
    )
    assert not engines_of(routes)["1"].warm
    await asyncio.sleep(SOON_S)
    assert [one["id"] for one in stack.status()["workers"]] == ["w1"]


async def test_end_of_a_worker_does_not_touch_its_successor(stack: Stack) -> None:
    await stack.controller.poll()
    old = await stack.joined(worker("w1", incarnation="i1"))
    old.say(beat(draining=True))
    await stack.joined(worker("w1", incarnation="i2"))
    await old.lost()
    await asyncio.sleep(0.05)
    assert [one["id"] for one in stack.status()["workers"]] == ["w1"]


async def test_peer_of_another_wire_is_refused(stack: Stack) -> None:
    member = await stack.join(edge(wire=control.WIRE + 1))
    await member.lost()
    assert not stack.status()["edges"]


async def test_ready_needs_the_expected_workers_once(stack: Stack) -> None:
    stack.make(workers_expected=2)
    await stack.controller.poll()
    member = await stack.joined(edge())
    await stack.joined(worker("w1"))
    assert not (await member.hear(control.Routes)).ready
    second = await stack.joined(worker("w2"))
    await member.hear(control.Routes, lambda r: r.ready)
    second.say(beat(draining=True))
    second.peer.close()
    async with asyncio.timeout(5):
        while len(stack.controller._workers) > 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert member.all(control.Routes)[-1].ready


# silence


async def test_silent_worker_leaves_the_routes(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller_module, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(controller_module, "WORKER_SILENCE_S_MAX", 0.2)
    stack.go(stack.controller.tick_forever())
    await stack.controller.poll()
    member = await stack.joined(edge())
    silent = await stack.joined(worker("w1"))
    await member.hear(control.Routes, lambda r: len(r.workers) == 1)
    await asyncio.sleep(0.3)
    # Nobody was heard: that says nothing about the worker.
    assert member.all(control.Routes)[-1].workers
    member.say(control.Counters("i1", ()))
    await silent.lost()
    await member.hear(control.Routes, lambda r: r.seq > 1 and not r.workers)


async def test_worker_that_hung_up_stays_routed_for_as_long_as_a_silent_one(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller_module, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(controller_module, "WORKER_SILENCE_S_MAX", 0.4)
    stack.go(stack.controller.tick_forever())
    await stack.controller.poll()
    member = await stack.joined(edge())
    gone = await stack.joined(worker("w1"))
    await member.hear(control.Routes, lambda r: len(r.workers) == 1)
    gone.peer.close()
    await asyncio.sleep(0.1)
    assert member.all(control.Routes)[-1].workers
    assert not stack.status()["workers"], "only live processes are listed"
    await member.hear(control.Routes, lambda r: r.seq > 1 and not r.workers)


async def test_silent_edge_is_waited_for_no_longer(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller_module, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(controller_module, "EDGE_SILENCE_S_MAX", 0.2)
    stack.go(stack.controller.tick_forever())
    await stack.controller.poll()
    silent = await stack.joined(edge())
    client = await stack.join(control.Ask("poke", "", 1))
    assert (await client.hear(control.Answer)).ok
    await silent.lost()


async def test_everybody_hears_that_the_controller_lives(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller_module, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(controller_module, "KEEPALIVE_S", 0.02)
    stack.go(stack.controller.tick_forever())
    for member in (await stack.joined(edge()), await stack.joined(worker())):
        await member.heard_often(control.Welcome, 3)


# placement carried out


async def test_missing_engine_is_commanded(stack: Stack) -> None:
    stack.put_spec()
    await stack.controller.poll()
    one = await stack.joined(worker("w1"))
    assert await one.hear(control.Command) == control.Command(3, "load", "m", "1")


async def test_command_is_repeated_until_it_is_done(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller_module, "COMMAND_AGAIN_S", 0.1)
    stack.put_spec()
    await stack.controller.poll()
    one = await stack.joined(worker("w1"))
    await one.hear(control.Command)
    for _ in range(3):
        stack.controller.act()
    await asyncio.sleep(0.03)
    assert len(one.all(control.Command)) == 1, "not with every round"
    await asyncio.sleep(0.1)
    stack.controller.act()
    await one.until(lambda: one.all(control.Command)[1:])
    await asyncio.sleep(0.11)
    one.say(beat(engine(state="loading")))
    await asyncio.sleep(SOON_S)
    assert len(one.all(control.Command)) == 2


async def test_command_that_takes_another_back_is_not_late(stack: Stack) -> None:
    """Replicas may be wanted and not wanted several times within `COMMAND_AGAIN_S`."""
    await stack.controller.poll()
    one = await stack.joined(worker("w1"))
    (held,) = stack.controller._workers.values()
    load, unload = placement.Load("w1", ("m", "1")), placement.Unload("w1", ("m", "1"), True)
    for step in (load, load, unload, unload, load, unload):
        stack.controller._command(step)
    await one.heard_often(control.Command, 4)
    assert [c.op for c in one.all(control.Command)] == ["load", "unload"] * 2
    assert [c.is_elsewhere for c in one.all(control.Command)] == [False, True] * 2
    assert len(held.commanded_s) == 1


async def test_idle_engine_is_unloaded(stack: Stack) -> None:
    stack.put_spec(idle_s=60.0)
    await stack.controller.poll()
    one = await stack.joined(worker("w1", engine(idle_s=61.0)))
    assert (await one.hear(control.Command)).op == "unload"


async def test_commands_that_are_remembered_are_bounded(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller_module, "COMMANDS_MAX", 3)
    await stack.controller.poll()
    await stack.joined(worker("w1", *(engine(str(n), idle_s=1e6) for n in range(1, 9))))
    (held,) = stack.controller._workers.values()
    assert len(held.commanded_s) == 3


# acks


async def test_poke_answers_when_every_edge_goes_by_the_documents(stack: Stack) -> None:
    await stack.controller.poll()
    edges = [await stack.joined(edge(name)) for name in ("e1", "e2")]
    stack.put_spec()
    client = await stack.join(control.Ask("poke", "", 7))
    for member in edges:
        assert not client.all(control.Answer)
        documents = await member.hear(control.Documents, lambda found: bool(found.specs))
        member.say(control.Ack(documents.epoch, documents.seq))
        await asyncio.sleep(0.03)
    answer = await client.hear(control.Answer)
    assert (answer.ok, answer.id, msgspec.json.decode(answer.data)["edges"]) == (True, 7, 2)


async def test_poke_names_the_edge_that_does_not_follow(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller_module, "ACKS_S_MAX", 0.1)
    stack.put_spec()
    await stack.joined(edge("slow"))
    client = await stack.join(control.Ask("poke", "", 1))
    answer = await client.hear(control.Answer)
    assert not answer.ok
    assert "slow/i1" in answer.detail


async def test_ack_of_another_epoch_does_not_count(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller_module, "ACKS_S_MAX", 0.1)
    stack.put_spec()
    await stack.controller.poll()
    member = await stack.joined(edge())
    member.say(control.Ack(2, 99))
    client = await stack.join(control.Ask("poke", "", 1))
    assert not (await client.hear(control.Answer)).ok


async def test_edge_that_leaves_is_not_waited_for(stack: Stack) -> None:
    stack.put_spec()
    leaver = await stack.joined(edge())
    client = await stack.join(control.Ask("poke", "", 1))
    await leaver.hear(control.Documents)
    leaver.peer.close()
    assert (await client.hear(control.Answer)).ok


async def test_poke_says_when_the_registry_cannot_be_read(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*, is_asked: bool = False) -> bool:
        raise StoreUnavailable("no answer from the bucket")

    monkeypatch.setattr(stack.watch, "poll", down)
    client = await stack.join(control.Ask("poke", "", 1))
    answer = await client.hear(control.Answer)
    assert not answer.ok
    assert "no answer from the bucket" in answer.detail


# a registry that does not answer


async def test_what_was_never_read_is_not_pushed_as_empty(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*, is_asked: bool = False) -> bool:
        raise StoreUnavailable("no answer")

    monkeypatch.setattr(stack.watch, "poll", down)
    member = await stack.joined(edge())
    await stack.controller.poll()
    await stack.joined(worker("w1"))
    await asyncio.sleep(SOON_S)
    assert not member.all(control.Documents)
    assert not member.all(control.Routes)


async def test_documents_are_kept_for_the_next_start(stack: Stack) -> None:
    stack.put_spec()
    await stack.controller.poll()
    assert last_good.load(stack.local) == stack.watch.snapshot


async def test_bug_while_polling_is_seen_and_ends_nothing(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*, is_asked: bool = False) -> bool:
        raise KeyError("bug")

    with monkeypatch.context() as patch:
        patch.setattr(stack.watch, "poll", bug)
        await stack.controller.poll()
        await asyncio.sleep(SOON_S)
        await stack.controller.poll()
    assert "KeyError" in stack.status()["controller"]["registry_error"]
    age_s = stack.status()["controller"]["registry_age_s"]
    assert age_s >= SOON_S, "what failed is no reading"
    await stack.controller.poll()
    assert stack.status()["controller"]["registry_error"] == ""
    assert stack.status()["controller"]["registry_age_s"] < age_s


async def test_bug_while_answering_hangs_up_on_who_asked(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(model: str, version: str) -> None:
        raise KeyError("bug")

    monkeypatch.setattr(stack.watch, "resolve", bug)
    member = await stack.joined(edge())
    member.say(control.Resolve("m", "1"))
    await member.lost()


# leadership


async def test_who_does_not_lead_answers_nobody(stack: Stack) -> None:
    stack.leads = False
    for first in (edge(), worker(), control.Ask("status", "", 1)):
        member = await stack.join(first)
        await member.lost()
        assert not member.heard


async def test_who_leads_no_more_lets_everybody_go(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller_module, "HEARTBEAT_S", 0.01)
    stack.go(stack.controller.tick_forever())
    await stack.controller.poll()
    members = [await stack.joined(first) for first in (edge(), worker())]
    stack.leads = False
    for member in members:
        await member.lost()
    assert (stack.status()["workers"], stack.status()["edges"]) == ([], [])


async def test_new_reign_begins_with_nothing_of_the_old_one(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller_module, "HEARTBEAT_S", 0.01)
    stack.put_spec()
    stack.go(stack.controller.tick_forever())
    await stack.controller.poll()
    old = await stack.joined(edge())
    await stack.joined(worker())
    assert not stack.controller.lapsed.is_set()
    stack.epoch = 4  # lost and won again between two looks
    await old.lost()
    assert stack.controller.lapsed.is_set(), "or the next look may be minutes away"
    await stack.controller.poll()
    again = await stack.join(edge())
    assert (await again.hear(control.Documents)).epoch == 4
    assert (await again.hear(control.Routes)).epoch == 4


async def test_change_that_was_seen_in_a_break_of_the_reign_is_told_after_it(stack: Stack) -> None:
    await stack.controller.poll()
    member = await stack.joined(edge())
    stack.leads = False
    stack.put_spec()
    assert await stack.controller.poll() is True
    stack.leads = True
    assert await stack.controller.poll() is False
    await member.hear(control.Documents, lambda found: found.specs.keys() == {"e"})


async def test_look_that_did_not_read_the_keys_counts_as_none(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(key: str, etag: str | None) -> None:
        raise StoreUnavailable(f"{key}: no answer")

    assert await stack.controller.poll() is False
    member = await stack.joined(edge())
    monkeypatch.setattr(stack.store, "get_if_changed", unread, raising=False)
    stack.put_spec()
    assert await stack.controller.poll() is None
    await member.hear(control.Documents, lambda found: found.specs.keys() == {"e"})
    monkeypatch.undo()
    assert await stack.controller.poll() is True
    assert await stack.controller.poll() is False


async def test_new_leader_waits_for_the_workers_of_the_old_one(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller_module, "SETTLE_S", 0.4)
    monkeypatch.setattr(controller_module, "HEARTBEAT_S", 0.02)
    stack.go(stack.controller.tick_forever())
    stack.put_spec()
    await stack.controller.poll()
    member = await stack.joined(edge())
    one = await stack.joined(worker("w1", engine()))
    await asyncio.sleep(SOON_S)
    assert not member.all(control.Routes)
    assert not one.all(control.Command)
    one.say(beat(engine()))
    assert (await member.hear(control.Routes)).workers


async def test_new_leader_does_not_wait_when_all_expected_are_there(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller_module, "SETTLE_S", 1e9)
    stack.make(workers_expected=2)
    await stack.controller.poll()
    member = await stack.joined(edge())
    await stack.joined(worker("w1"))
    await asyncio.sleep(0.05)
    assert not member.all(control.Routes)
    await stack.joined(worker("w2"))
    assert len((await member.hear(control.Routes)).workers) == 2


# questions


async def test_version_called_by_number_is_resolved_documents_first(stack: Stack) -> None:
    await stack.controller.poll()
    member = await stack.joined(edge())
    member.say(control.Resolve("m", "1"))
    assert (await member.hear(control.Resolved)).found
    kinds = [type(message) for message in member.heard]
    assert kinds.index(control.Documents) < kinds.index(control.Resolved)
    assert member.all(control.Documents)[-1].manifests.keys() == {"m/1"}
    assert engines_of(member.all(control.Routes)[-1]).keys() == {"1"}


async def test_version_that_is_known_is_not_pushed_again(stack: Stack) -> None:
    stack.put_spec()
    await stack.controller.poll()
    member = await stack.joined(edge())
    member.say(control.Resolve("m", "1"))
    assert (await member.hear(control.Resolved)).found
    assert len(member.all(control.Documents)) == 1


@pytest.mark.parametrize("ref", [("m", "9"), ("no/name", "1")])
async def test_version_that_nobody_published_is_not_found(
    stack: Stack, ref: tuple[str, str]
) -> None:
    await stack.controller.poll()
    member = await stack.joined(edge())
    member.say(control.Resolve(*ref))
    assert not (await member.hear(control.Resolved)).found


async def test_warm_loads_where_a_call_would_wake(stack: Stack) -> None:
    stack.put_spec(idle_s=60.0)
    await stack.controller.poll()
    one = await stack.joined(worker("w1"))
    client = await stack.join(control.Ask("warm", "e", 1))
    assert (await client.hear(control.Answer)).ok
    assert (await one.hear(control.Command)).op == "load"


async def test_warm_says_what_is_wrong(stack: Stack) -> None:
    stack.put_spec()
    await stack.controller.poll()
    client = await stack.join(control.Ask("warm", "e", 1))
    assert "no worker" in (await client.hear(control.Answer)).detail
    client.say(control.Ask("warm", "nobody", 2))
    assert "'nobody'" in (await client.hear(control.Answer, lambda a: a.id == 2)).detail


async def test_what_is_unloaded_by_request_sleeps_until_it_is_woken(stack: Stack) -> None:
    stack.put_spec(replicas_min=2)  # which never sleeps by its policy
    await stack.controller.poll()
    one, follower = await stack.joined(worker("w1", engine())), await stack.joined(edge())
    client = await stack.join(control.Ask("unload", "e", 1))
    answer = await client.hear(control.Answer)
    assert (answer.ok, msgspec.json.decode(answer.data)) == (True, [["m", "1"]])
    assert (await one.hear(control.Command)).op == "unload"
    one.say(beat())
    await follower.hear(control.Routes, lambda r: engines_of(r)["1"].detail == control.UNLOADED)
    await stack.controller.poll()
    one.say(beat())
    await asyncio.sleep(SOON_S)
    assert [command.op for command in one.all(control.Command)] == ["unload"]
    two = await stack.joined(worker("w2"))
    one.say(beat(engine(state="loading")))  # a call was its wake
    assert (await two.hear(control.Command)).op == "load"


async def test_what_is_wanted_again_before_it_was_gone_is_not_unloaded(stack: Stack) -> None:
    stack.put_spec()
    await stack.controller.poll()
    one = await stack.joined(worker("w1", engine(calls=1)))
    client = await stack.join(control.Ask("unload", "e", 1))
    await client.hear(control.Answer)
    client.say(control.Ask("warm", "e", 2))
    await client.hear(control.Answer, lambda a: a.id == 2)
    one.say(beat(engine(calls=0)))
    await asyncio.sleep(SOON_S)
    assert one.all(control.Command) == []


async def test_unload_says_what_is_wrong(stack: Stack) -> None:
    client = await stack.join(control.Ask("unload", "nobody", 1))
    answer = await client.hear(control.Answer)
    assert (answer.ok, "'nobody'" in answer.detail) == (False, True)


async def test_unknown_question_is_answered_with_no(stack: Stack) -> None:
    client = await stack.join(control.Ask("dance", "", 5))
    answer = await client.hear(control.Answer)
    assert (answer.ok, answer.id) == (False, 5)


async def test_status_is_the_document_of_the_design(stack: Stack) -> None:
    stack.put_spec()
    stack.store.put_new("endpoints/bad.json", b"{")
    await stack.controller.poll()
    member = await stack.joined(edge())
    await stack.joined(worker("w1", engine(calls=2), engine("7", state="loading")))
    counts = (control.VariantCount("e", 0, "a", "1", 9, 2, 4),)
    member.say(control.Counters("i1", counts, 7, away={"w1": "silent"}))
    member.say(control.Ask("status", "", 1))
    found = msgspec.json.decode((await member.hear(control.Answer)).data)
    age_s = found["controller"].pop("registry_age_s")
    assert 0 <= age_s < 60
    assert found["controller"] == {"epoch": 3, "leader": True, "registry_error": ""}
    (shown,) = found["workers"]
    assert {"id", "pid", "device", "state", "engines"} <= shown.keys()
    assert (shown["id"], shown["pid"], shown["state"]) == ("w1", 22, "ready")
    assert {"model", "version", "engine", "state", "bytes"} <= shown["engines"][0].keys()
    (endpoint,) = found["endpoints"]
    assert {"name", "revision", "held", "wakes", "variants"} <= endpoint.keys()
    (variant,) = endpoint["variants"]
    assert (variant["weight"], variant["replicas"]) == (100.0, 1)
    assert (variant["requests"], variant["errors"], variant["hits"]) == (9, 2, 4)
    assert found["edges"] == [{"id": "e1", "pid": 11, "in_flight": 7, "away": {"w1": "silent"}}]
    assert found["rejected"].keys() == {"endpoints/bad.json"}


async def test_counts_of_an_arm_are_those_of_its_version(stack: Stack) -> None:
    stack.put_spec()
    await stack.controller.poll()
    member = await stack.joined(edge())
    for ended in (0, 60):
        seconds = (0,) * 7 + (ended,) + (0,) * 14
        now = control.VariantCount("e", 1, "a", "1", 9, 2, 4)
        before = control.VariantCount("e", 0, "a", "0", ended, 5, 0, ended, seconds)
        member.say(control.Counters("i1", (now, before)))
    member.say(control.Ask("status", "", 1))
    found = msgspec.json.decode((await member.hear(control.Answer)).data)
    (endpoint,) = found["endpoints"]
    (variant,) = endpoint["variants"]
    assert (variant["requests"], variant["errors"], variant["hits"]) == (9, 2, 4)
    assert variant["recent"]["requests_per_s"] == 0.0
    assert endpoint["recent"]["requests_per_s"] == 60.0  # whatever arm answered them


async def test_counts_of_an_edge_that_has_ended_stay(stack: Stack) -> None:
    stack.put_spec()
    await stack.controller.poll()
    for incarnation, requests in (("i1", 3), ("i1", 5), ("i2", 4)):
        member = await stack.joined(edge("e1", incarnation))
        count = control.VariantCount("e", 0, "a", "1", requests, 0, 0)
        member.say(control.Counters(incarnation, (count,)))
        member.say(control.Ask("status", "", 1))
        await member.hear(control.Answer)
        member.peer.close()
    assert stack.status()["endpoints"][0]["variants"][0]["requests"] == 9


# peers that do not keep to the wire

GARBAGE = [
    control.encode(beat()),
    control.encode(control.Routes(9, 1, (), ())),
    [b"\x00\x00\x00\x00\x00\x00\x00\x05hello"],
    [b"GET / HTTP/1.1\r\n\r\n" + b"x" * 64],
    [b"\xff" * 64],
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
@pytest.mark.parametrize("first", [None, edge("bad"), worker("bad"), control.Ask("status")])
async def test_garbage_closes_its_own_connection_and_no_other(
    stack: Stack, first: control.Message | None, garbage: list[bytes]
) -> None:
    await stack.controller.poll()
    good = await stack.joined(edge("good"))
    bad = await stack.join(first)
    if isinstance(first, control.RegisterWorker) and garbage == GARBAGE[0]:
        return  # a worker may well say that
    bad.peer.send(garbage)
    await bad.lost()
    good.say(control.Ask("status", "", 1))
    await good.hear(control.Answer)
    assert [one["id"] for one in stack.status()["edges"]] == ["good"]


# quotas


def parts(of_key: str, part: float) -> control.QuotaParts:
    return control.QuotaParts(of_key, part, part, part)


def edge_with(name: str, *held: control.QuotaParts) -> control.Message:
    return control.RegisterEdge(control.WIRE, name, "i1", 11, held)


async def follow(member: Member, count: int) -> dict[str, float]:
    """Confirm an edge's shares number `count` and return them, of requests."""
    shares = (await member.heard_often(control.QuotaShares, count))[count - 1]
    member.say(control.QuotaAck(shares.epoch, shares.seq))
    return {of_key.key: round(of_key.requests, 3) for of_key in shares.parts}


async def test_edge_gets_its_part_of_the_quotas_before_it_knows_the_keys(stack: Stack) -> None:
    stack.put_spec()
    await stack.controller.poll()
    member = await stack.join(edge_with("e1", parts("", 1.0)))
    await member.hear(control.Documents)
    kinds = [type(message) for message in member.heard]
    assert kinds[:3] == [control.Welcome, control.QuotaShares, control.Documents]
    assert await follow(member, 1) == {"": 1.0}


async def test_edge_that_knows_of_no_leases_is_sent_none(stack: Stack) -> None:
    old = await stack.joined(edge())
    await stack.joined(edge_with("e2", parts("", 1.0)))
    await asyncio.sleep(SOON_S)
    assert not old.all(control.QuotaShares)


async def test_parts_move_to_where_the_demand_is(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota_shares, "SETTLE_S", 0.0)
    one = await stack.joined(edge_with("e1", parts("", 0.5)))
    other = await stack.joined(edge_with("e2", parts("", 0.5)))
    seen = [0, 0]
    one.say(control.QuotaDemand((parts("k", 1.0),)))

    async def until_part(member: Member, index: int, wanted: float) -> None:
        while True:
            seen[index] += 1
            found = await follow(member, seen[index])
            if found.get("k") == wanted:
                return

    async with asyncio.timeout(10):
        await asyncio.gather(until_part(one, 0, 0.99), until_part(other, 1, 0.01))


async def test_routes_say_how_many_edges_there_are(stack: Stack) -> None:
    stack.put_spec()
    await stack.controller.poll()
    member = await stack.joined(edge())
    await stack.joined(edge("e2"))
    stack.controller.act()
    await member.until(lambda: [r for r in member.all(control.Routes) if r.edges == 2])


async def test_who_no_longer_leads_forgets_all_leases(stack: Stack) -> None:
    stack.go(stack.controller.tick_forever())
    member = await stack.joined(edge_with("e1", parts("", 0.25)))
    stack.controller.act()
    stack.leads = False
    await member.lost()
    stack.leads, stack.epoch = True, 4
    again = await stack.joined(edge_with("e1", parts("", 0.25)))
    # Nothing grows at first: of a fleet that has not dialled yet this is one process.
    assert await follow(again, 1) == {"": 0.25}
