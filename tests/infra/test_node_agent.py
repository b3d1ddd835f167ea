"""A node's agent between a controller and whoever starts processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection

import msgspec
import pytest

from infra.node_agent import NodeAgent, UpLimits
from infra.status_view import lines
from pool.wire import control
from pool.wire.control import Place
from pool.wire.listening import serve
from tests.support.control import Member, worker
from tests.support.control_stack import Stack, running_controller

PATIENCE_S = 10.0


class Launcher:
    """Has places in which a process is there as soon as it is wanted."""

    def __init__(self, count: int) -> None:
        self.changed = asyncio.Event()
        self.orders: list[set[str]] = []
        self._places = [Place(f"n-{at}", f"unix:/run/n-{at}", "cpu") for at in range(count)]
        self._ordered = asyncio.Event()

    def places(self) -> tuple[Place, ...]:
        return tuple(self._places)

    def counts(self) -> dict[str, int]:
        return {"starts": len(self.orders)}

    def trouble(self) -> str:
        return "no AMI" * 1000

    def hold_up(self, workers: Collection[str]) -> None:
        self.orders.append(set(workers))
        for at, place in enumerate(self._places):
            self.set(at, "up" if place.worker in workers else "cold")
        self._ordered.set()

    def set(self, at: int, state: str) -> None:
        """Let a place have another state, as if somebody had dialled it."""
        self._places[at] = msgspec.structs.replace(self._places[at], state=state)
        self.changed.set()

    async def told(self, *workers: str) -> None:
        """Wait until these are to be up."""
        async with asyncio.timeout(PATIENCE_S):
            while self.orders[-1:] != [set(workers)]:
                self._ordered.clear()
                await self._ordered.wait()


@pytest.fixture
async def stack(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stack]:
    monkeypatch.setattr("pool.controller.SETTLE_S", 0.0)
    monkeypatch.setattr("pool.controller.HEARTBEAT_S", 0.05)
    monkeypatch.setattr("infra.node_agent.REPORT_S", 1000.0)
    monkeypatch.setattr("pool.node_desk.NODE_SILENCE_S_MAX", 1000.0)
    async with running_controller() as made:
        yield made


def follow(stack: Stack, launcher: Launcher, limits: UpLimits) -> None:
    async def find() -> str:
        return str(stack.address)

    stack.go(NodeAgent("n", launcher, find, None, limits).run())


def shown(stack: Stack) -> list[str]:
    """Return the states of the places that the controller knows."""
    return [place["state"] for node in stack.status()["nodes"] for place in node["places"]]


async def until_shown(stack: Stack, *states: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while shown(stack) != list(states):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_agent_obeys_and_says_at_once_what_came_of_it(stack: Stack) -> None:
    await stack.controller.poll()
    stack.go(stack.controller.tick_forever())
    launcher = Launcher(3)
    follow(stack, launcher, UpLimits(up_min=1, parked=2))
    await launcher.told("n-0", "n-1")
    await until_shown(stack, "up", "up", "cold")
    (node,) = stack.status()["nodes"]
    assert node["counts"] == {"starts": len(launcher.orders)}
    assert node["trouble"].startswith("no AMI")
    assert len(node["trouble"]) == 1000
    assert any(line.startswith("  trouble: no AMI") for line in lines(stack.status()))


async def test_agent_says_at_once_that_somebody_has_dialled_a_place(stack: Stack) -> None:
    await stack.controller.poll()
    launcher = Launcher(2)
    follow(stack, launcher, UpLimits(up_min=0))
    await until_shown(stack, "cold", "cold")
    launcher.set(1, "starting")
    await launcher.told("n-1")  # who calls it knows what for


async def test_agent_that_has_lost_its_controller_goes_by_the_last_word_and_finds_the_next(
    stack: Stack,
) -> None:
    await stack.controller.poll()
    stack.go(stack.controller.tick_forever())
    launcher = Launcher(2)
    follow(stack, launcher, UpLimits(up_min=1))
    await launcher.told("n-0")
    count = len(launcher.orders)
    stack.leads = False
    await until_shown(stack)
    assert len(launcher.orders) == count
    stack.leads, stack.epoch = True, 4
    await stack.controller.poll()
    await until_shown(stack, "up", "cold")


async def test_agent_keeps_its_minimum_whatever_it_is_told() -> None:
    async with running_controller() as stack:
        dialled: asyncio.Queue[Member] = asyncio.Queue()
        address = msgspec.structs.replace(stack.address, path=f"{stack.folder}/other")
        server = await serve(address, None, lambda peer: dialled.put_nowait(Member(peer)))

        async def find() -> str:
            return str(address)

        launcher = Launcher(3)
        stack.go(NodeAgent("n", launcher, find, None, UpLimits(up_min=2)).run())
        async with asyncio.timeout(PATIENCE_S):
            member = await dialled.get()
        stack.members.append(member)
        member.say(control.Places(1, 1, ("n-2", "of-another-node")))
        await launcher.told("n-2", "n-0")
        member.say(control.Places(1, 2, ("n-0", "n-1", "n-2")))
        await launcher.told("n-0", "n-1", "n-2")
        member.say(control.Places(1, 3, ("n-2",), ("n-0",)))
        await launcher.told("n-2", "n-1")
        member.say(control.Places(1, 4, ("n-2",), ("n-0", "n-1")))
        await launcher.told("n-2")
        member.say(worker())  # which no controller says
        await member.lost()
        await server.close()
