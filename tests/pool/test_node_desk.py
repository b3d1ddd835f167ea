"""A controller and nodes that start and end worker processes for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from pool import node_desk
from pool.node_desk import needed_of
from pool.wire import control
from pool.wire.control import Place, RegisterNode
from tests.support.control import Member, beat, edge, engine, worker
from tests.support.control_stack import Stack, running_controller

PATIENCE_S = 10.0


@pytest.fixture
async def stack(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stack]:
    monkeypatch.setattr("pool.controller.SETTLE_S", 0.0)
    monkeypatch.setattr("pool.controller.HEARTBEAT_S", 0.05)
    monkeypatch.setattr("pool.controller.KEEPALIVE_S", 0.1)
    monkeypatch.setattr(node_desk, "ROUTES_FIRST_S", 0.05)
    async with running_controller() as made:
        made.go(made.controller.tick_forever())
        yield made


def node(
    *states: str, up_min: int = 0, parked: int = 0, rest_s: float = 0.0, name: str = "n"
) -> RegisterNode:
    """The registration of a node with places in these states."""
    return RegisterNode(control.WIRE, name, "i1", 33, places(*states, name=name), up_min, parked,
                        rest_s)  # fmt: skip


def places(*states: str, name: str = "n") -> tuple[Place, ...]:
    return tuple(
        Place(f"{name}-{at}", f"unix:/run/{name}-{at}", "cpu", state, 0 if state == "cold" else 9)
        for at, state in enumerate(states)
    )


async def speak_forever(member: Member) -> None:
    """Let an edge be heard: a controller that hears nobody takes nobody for silent."""
    while member.peer.is_open:
        member.say(control.Counters("i1", ()))
        await asyncio.sleep(0.05)


async def told(member: Member, *up: str) -> control.Places:
    """Wait until the node was told last that these are to be up."""

    def found() -> list[control.Places]:
        last = member.all(control.Places)[-1:]
        return [one for one in last if one.up == up]

    return (await member.until(found))[0]


async def routes(member: Member, **states: str) -> control.Routes:
    """Wait for routes in which the workers have these states, by ids with "_" for "-"."""

    def fits(found: control.Routes) -> bool:
        return {w.id.replace("-", "_"): w.state for w in found.workers} == states

    return await member.hear(control.Routes, fits)


async def test_places_that_can_be_dialled_go_with_a_node_that_is_lost(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_desk, "NODE_SILENCE_S_MAX", 0.3)
    stack.put_spec(idle_s=5.0)
    await stack.controller.poll()
    lost = await stack.joined(node("cold", "cold"))
    member = await stack.joined(edge())
    stack.go(speak_forever(member))
    await routes(member, n_0="cold", n_1="cold")
    lost.peer.close()
    await routes(member)


async def test_cold_places_are_in_the_routes_and_wake_what_sleeps(stack: Stack) -> None:
    stack.put_spec(idle_s=5.0)
    await stack.controller.poll()
    await stack.joined(node("cold", "cold"))
    found = await routes(await stack.joined(edge()), n_0="cold", n_1="cold")
    assert [w.address for w in found.workers] == ["unix:/run/n-0", "unix:/run/n-1"]
    (one,) = found.engines
    assert (one.state, sorted(one.wake_at)) == ("asleep", ["n-0", "n-1"])


async def test_worker_with_a_process_is_named_before_those_without(stack: Stack) -> None:
    stack.put_spec(idle_s=5.0)
    await stack.controller.poll()
    await stack.joined(node("cold", "cold"))
    await stack.joined(worker("w"))
    found = await routes(await stack.joined(edge()), n_0="cold", n_1="cold", w="up")
    assert found.engines[0].wake_at[0] == "w"


async def test_node_is_told_to_start_what_a_replica_is_wanted_on(stack: Stack) -> None:
    stack.put_spec(idle_s=5.0, replicas_min=1)
    await stack.controller.poll()
    await told(await stack.joined(node("cold", "cold")), "n-0")


async def test_load_is_commanded_once_the_process_is_there(stack: Stack) -> None:
    stack.put_spec(idle_s=5.0, replicas_min=1)
    await stack.controller.poll()
    one = await stack.joined(node("cold", "cold"))
    await told(one, "n-0")
    one.say(control.NodeReport(places("up", "cold")))
    command = await (await stack.joined(worker("n-0"))).hear(control.Command)
    assert (command.op, command.model) == ("load", "m")


async def test_worker_that_nobody_needs_is_cold_in_the_routes_before_it_is_told_to_rest(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_desk, "ROUTES_FIRST_S", 0.6)
    stack.put_spec(idle_s=5.0)
    await stack.controller.poll()
    await stack.joined(worker("n-0"))
    listener = await stack.joined(edge())
    one = await stack.joined(node("up"))
    await routes(listener, n_0="cold")
    assert [message.up for message in one.all(control.Places)] == [("n-0",)]
    await told(one)


async def test_worker_that_rests_stays_cold_when_its_node_says_first_that_it_drains(
    stack: Stack,
) -> None:
    stack.put_spec(idle_s=5.0)
    await stack.controller.poll()
    member = await stack.joined(worker("n-0"))
    listener = await stack.joined(edge())
    one = await stack.joined(node("up"))
    await routes(listener, n_0="cold")
    await told(one)
    before = len(listener.all(control.Routes))
    one.say(control.NodeReport(places("draining")))
    await asyncio.sleep(0.2)  # a few rounds
    member.say(beat(draining=True))
    await asyncio.sleep(0.2)
    (place,) = stack.status()["nodes"][0]["places"]
    assert place["state"] == "draining"
    assert len(listener.all(control.Routes)) == before


async def test_worker_that_is_called_before_it_was_told_to_rest_stays(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_desk, "ROUTES_FIRST_S", 60.0)
    stack.put_spec(idle_s=5.0)
    await stack.controller.poll()
    member = await stack.joined(worker("n-0"))
    listener = await stack.joined(edge())
    one = await stack.joined(node("up"))
    await routes(listener, n_0="cold")
    member.say(beat(engine(state="loading", calls=1)))
    await listener.hear(
        control.Routes, lambda r: r.engines[0].state == "loading" and r.workers[0].state == "up"
    )
    assert [message.up for message in one.all(control.Places)] == [("n-0",)]


async def test_minimum_and_parked_workers_are_up_without_any_endpoint(stack: Stack) -> None:
    await stack.controller.poll()
    await told(await stack.joined(node("cold", "cold", up_min=1)), "n-0")
    await told(await stack.joined(node("cold", "cold", parked=1, name="o")), "o-0")


async def test_places_count_as_workers_that_are_expected(stack: Stack) -> None:
    stack.make(workers_expected=3)
    await stack.controller.poll()
    await stack.joined(worker("w"))
    listener = await stack.joined(edge())
    one = await stack.joined(node("cold", "starting"))
    one.say(control.NodeReport(places("cold", "cold")))
    await listener.hear(control.Routes, lambda found: found.ready)
    assert not [found for found in listener.all(control.Routes) if found.ready][1:]


async def test_node_that_did_not_do_it_is_told_again(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_desk, "AGAIN_S", 0.0)
    await stack.controller.poll()
    one = await stack.joined(node("cold", up_min=1))
    await one.heard_often(control.Places, 2)
    one.say(control.NodeReport(places("up")))
    await stack.joined(worker("n-0"))
    count = len(one.all(control.Places))
    await asyncio.sleep(0.3)
    assert len(one.all(control.Places)) <= count + 1  # one may have been on its way


async def test_places_of_a_node_that_has_gone_silent_are_named_no_more(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.put_spec(idle_s=5.0)
    await stack.controller.poll()
    listener = await stack.joined(edge())
    one = await stack.joined(node("cold"))
    await routes(listener, n_0="cold")
    one.peer.close()
    await asyncio.sleep(0.2)
    assert not [found for found in listener.all(control.Routes) if not found.workers][1:]
    monkeypatch.setattr(node_desk, "NODE_SILENCE_S_MAX", 0.1)
    await routes(listener)


async def test_node_that_dials_again_takes_its_own_place(stack: Stack) -> None:
    await stack.controller.poll()
    first = await stack.joined(node("cold", up_min=1))
    second = await stack.joined(node("cold", up_min=1))
    await first.lost()
    await told(second, "n-0")
    assert [one["id"] for one in stack.status()["nodes"]] == ["n"]


async def test_node_that_says_what_it_has_no_business_to_is_hung_up_on(stack: Stack) -> None:
    await stack.controller.poll()
    one = await stack.joined(node("cold"))
    one.say(beat())
    await one.lost()


async def test_status_shows_places_and_why_they_are_up(stack: Stack) -> None:
    await stack.controller.poll()
    one = await stack.joined(node("cold", "cold", up_min=1, parked=2, rest_s=7.0))
    await told(one, "n-0", "n-1")
    (shown,) = stack.status()["nodes"]
    assert (shown["id"], shown["up_min"], shown["parked"], shown["rest_s"]) == ("n", 1, 2, 7.0)
    assert [(p["worker"], p["state"], p["up"]) for p in shown["places"]] == [
        ("n-0", "cold", "minimum"), ("n-1", "cold", "parked"),
    ]  # fmt: skip


async def test_nodes_hear_that_the_controller_lives(stack: Stack) -> None:
    await stack.controller.poll()
    one = await stack.joined(node("cold"))
    await one.heard_often(control.Welcome, 2)


async def test_controller_that_leads_no_more_lets_its_nodes_find_who_does(stack: Stack) -> None:
    await stack.controller.poll()
    one = await stack.joined(node("cold"))
    stack.leads = False
    await one.lost()


def hung(state: str = "up", pid: int = 22) -> tuple[Place, ...]:
    """Two places; in the first one is the process of `worker`."""
    cold = places("cold", "cold")
    return (Place("n-0", "unix:/run/n-0", "cpu", state, pid), cold[1])


async def until_states(stack: Stack, *states: str) -> None:
    """Wait until the only node's places are shown like this."""

    def shown() -> list[str]:
        return [place["state"] for node in stack.status()["nodes"] for place in node["places"]]

    async with asyncio.timeout(PATIENCE_S):
        while shown() != [*states]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def last_routes(member: Member, **states: str) -> control.Routes:
    """Wait until these are the last routes; see `routes`."""

    def found() -> list[control.Routes]:
        last = member.all(control.Routes)[-1:]
        return [r for r in last if {w.id.replace("-", "_"): w.state for w in r.workers} == states]

    return (await member.until(found))[0]


async def test_worker_that_goes_silent_is_named_no_more_until_it_speaks(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.put_spec(idle_s=5.0)
    await stack.controller.poll()
    listener = await stack.joined(edge())
    stack.go(speak_forever(listener))
    one = await stack.joined(node("cold", "cold", parked=1, rest_s=60.0))
    one.say(control.NodeReport(hung()))
    await stack.joined(worker("n-0"))
    found = await last_routes(listener, n_0="up", n_1="cold")
    assert found.engines[0].wake_at == ("n-0", "n-1")
    await told(one, "n-0")
    monkeypatch.setattr("pool.controller.WORKER_SILENCE_S_MAX", 0.1)
    assert (await last_routes(listener, n_1="cold")).engines[0].wake_at == ("n-1",)
    await until_states(stack, "silent", "cold")
    await told(one, "n-0", "n-1")  # another one is parked in its stead
    monkeypatch.setattr("pool.controller.WORKER_SILENCE_S_MAX", 60.0)
    await stack.joined(worker("n-0"))
    await last_routes(listener, n_0="up", n_1="cold")
    await until_states(stack, "up", "cold")


async def test_worker_whose_connection_is_lost_is_expected_back(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.put_spec(idle_s=5.0)
    await stack.controller.poll()
    listener = await stack.joined(edge())
    one = await stack.joined(node("cold", "cold", rest_s=60.0))
    one.say(control.NodeReport(hung()))
    member = await stack.joined(worker("n-0"))
    await last_routes(listener, n_0="up", n_1="cold")
    monkeypatch.setattr(node_desk, "UNHEARD_S_MAX", 60.0)
    monkeypatch.setattr("pool.controller.WORKER_SILENCE_S_MAX", 0.3)
    member.peer.close()
    await last_routes(listener, n_0="cold", n_1="cold")
    monkeypatch.setattr(node_desk, "UNHEARD_S_MAX", 0.1)
    await last_routes(listener, n_1="cold")
    await until_states(stack, "silent", "cold")


async def test_place_whose_process_starts_is_not_silent_until_it_has_had_its_time(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_desk, "UNHEARD_S_MAX", 0.0)
    stack.put_spec(idle_s=5.0)
    await stack.controller.poll()
    one = await stack.joined(node("cold", "cold", rest_s=60.0))
    one.say(control.NodeReport(hung("starting")))
    await until_states(stack, "starting", "cold")
    await asyncio.sleep(0.2)
    await until_states(stack, "starting", "cold")
    monkeypatch.setattr(node_desk, "START_S_MAX", 0.1)
    await until_states(stack, "silent", "cold")
    one.say(control.NodeReport(hung("draining")))
    await asyncio.sleep(0.2)
    await until_states(stack, "silent", "cold")
    # Its successor has its own time.
    monkeypatch.setattr(node_desk, "START_S_MAX", 60.0)
    one.say(control.NodeReport(hung("starting", pid=23)))
    await until_states(stack, "starting", "cold")


async def test_silent_worker_is_ended_after_a_while_and_is_silent_until_it_has(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pool.controller.WORKER_SILENCE_S_MAX", 0.1)
    monkeypatch.setattr("pool.scaling.fleet.SILENT_S_MAX", 0.3)
    stack.put_spec(idle_s=5.0)
    await stack.controller.poll()
    listener = await stack.joined(edge())
    stack.go(speak_forever(listener))
    one = await stack.joined(node("cold", "cold", up_min=2, rest_s=60.0))
    one.say(control.NodeReport(hung()))
    await stack.joined(worker("n-0"))
    await told(one, "n-1")
    assert one.all(control.Places)[-1].silent == ("n-0",)
    one.say(control.NodeReport(hung("draining")))
    await asyncio.sleep(0.2)
    await until_states(stack, "silent", "cold")
    one.say(control.NodeReport(places("cold", "cold")))
    await told(one, "n-0", "n-1")
    assert one.all(control.Places)[-1].silent == ()
    await last_routes(listener, n_0="cold", n_1="cold")


async def test_worker_that_hangs_when_it_is_told_to_rest_is_silent_until_it_has_ended(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.put_spec(idle_s=5.0)
    await stack.controller.poll()
    listener = await stack.joined(edge())
    stack.go(speak_forever(listener))
    one = await stack.joined(node("cold", "cold"))
    one.say(control.NodeReport(hung()))
    await stack.joined(worker("n-0"))
    await told(one)
    one.say(control.NodeReport(hung("draining")))
    await until_states(stack, "draining", "cold")
    monkeypatch.setattr("pool.controller.WORKER_SILENCE_S_MAX", 0.1)
    await last_routes(listener, n_1="cold")
    await until_states(stack, "silent", "cold")


def far(*states: str, pid: int = 0) -> RegisterNode:
    """The registration of a node whose places are on machines that come and go."""
    found = [Place(f"n-{at}", "", "cpu", state, pid) for at, state in enumerate(states)]
    return RegisterNode(control.WIRE, "n", "i1", 33, tuple(found))


async def test_place_on_a_machine_that_has_to_come_first_is_neither_dialled_nor_expected(
    stack: Stack,
) -> None:
    stack.make(workers_expected=1)
    stack.put_spec(idle_s=5.0)
    await stack.controller.poll()
    listener = await stack.joined(edge())
    await stack.joined(far("cold", "cold"))
    await until_states(stack, "cold", "cold")
    found = await listener.hear(control.Routes, lambda routes: bool(routes.engines))
    assert (found.workers, found.engines[0].wake_at, found.ready) == ((), (), False)
    await stack.joined(worker("n-0"))
    await listener.hear(control.Routes, lambda routes: routes.ready)


async def test_place_on_a_machine_that_has_to_come_first_may_start_for_minutes(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_desk, "UNHEARD_S_MAX", 0.0)
    monkeypatch.setattr(node_desk, "START_S_MAX", 0.0)
    await stack.controller.poll()
    one = await stack.joined(far("starting", pid=9))
    await asyncio.sleep(0.2)
    await until_states(stack, "starting")
    one.say(control.NodeReport(far("up", pid=9).places))
    await until_states(stack, "silent")


def test_replicas_of_who_has_no_workers_of_its_own_are_those_of_all_that_share() -> None:
    replicas = [("", 1), ("own", 2), ("own", 1), ("poor", 3)]
    assert needed_of(replicas, {"", "own"}) == {"": 3, "own": 2}
    assert needed_of(replicas[:3], {""}) == {"": 2}
