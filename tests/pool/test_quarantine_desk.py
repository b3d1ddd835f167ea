"""What one edge found out of a request that kills workers holds on every edge of the fleet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from pool import controller as controller_module
from pool import quarantine_desk
from pool.wire import control
from pool.wire.control import Poison, Quarantine, Quarantined, RegisterEdge
from tests.support.control import Member, edge
from tests.support.control_stack import Stack, running_controller

pytestmark = pytest.mark.rule("F20")

ONE = Quarantined(b"one", "m", "1", 60_000)
TWO = Quarantined(b"two", "m", "2", 30_000)


@pytest.fixture
async def stack(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stack]:
    monkeypatch.setattr(controller_module, "SETTLE_S", 0.0)
    async with running_controller() as made:
        await made.controller.poll()
        yield made


def edge_with(name: str, *rows: Quarantined) -> RegisterEdge:
    return RegisterEdge(control.WIRE, name, "i1", 11, (), rows, True)


async def told(member: Member, *rows: Quarantined) -> Quarantine:
    """Wait until an edge was told of just these; what is left of their time falls."""

    def fits(message: Quarantine) -> bool:
        got = {row.fingerprint: row for row in message.quarantined}
        return got.keys() == {row.fingerprint for row in rows} and all(
            got[row.fingerprint].model == row.model
            and 0 <= row.left_ms - got[row.fingerprint].left_ms < 20_000
            for row in rows
        )

    return await member.hear(Quarantine, fits)


async def test_what_one_edge_says_every_edge_is_told(stack: Stack) -> None:
    one, two = [await stack.joined(edge_with(name)) for name in ("e1", "e2")]
    one.say(Poison((ONE,)))
    for member in (one, two):
        assert (await told(member, ONE)).epoch == 3
    two.say(Poison((ONE, TWO)))
    await told(one, ONE, TWO)
    (row,) = [row for row in stack.status()["quarantined"] if row["model"] == "m"][:1]
    assert row["fingerprint"] == b"one".hex()
    assert row["version"] == "1"
    assert 30 < row["left_s"] <= 60


async def test_new_edge_is_told_before_it_knows_a_worker(stack: Stack) -> None:
    (await stack.joined(edge_with("e1"))).say(Poison((ONE,)))
    await told(stack.members[0], ONE)
    late = await stack.joined(edge_with("e2"))
    await told(late, ONE)
    await late.hear(control.Documents)
    kinds = [type(message) for message in late.heard]
    assert kinds.index(Quarantine) < kinds.index(control.Documents)


async def test_new_controller_learns_from_the_edges_that_register(stack: Stack) -> None:
    one = await stack.joined(edge_with("e1"))
    await stack.join(edge_with("e2", ONE))
    await told(one, ONE)
    stack.leads = False
    stack.go(stack.controller.tick_forever())
    await one.lost()
    stack.leads, stack.epoch = True, 4
    assert stack.status()["quarantined"] == []
    again = await stack.joined(edge_with("e1", ONE))
    assert (await told(again, ONE)).epoch == 4


async def test_edge_of_a_release_without_quarantine_is_told_nothing(stack: Stack) -> None:
    old = await stack.joined(edge("e1"))
    new = await stack.joined(edge_with("e2"))
    new.say(Poison((ONE,)))
    await told(new, ONE)
    old.say(control.Ask(control.HERE, "", 1))
    await old.hear(control.Answer)
    assert old.all(Quarantine) == []


async def test_what_is_over_is_told_to_nobody(stack: Stack) -> None:
    one = await stack.joined(edge_with("e1"))
    one.say(Poison((Quarantined(b"short", "m", "1", 50), ONE)))
    await one.hear(Quarantine)
    await asyncio.sleep(0.06)
    await told(await stack.joined(edge_with("e2")), ONE)


async def test_it_is_bounded(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine_desk, "ROWS_MAX", 3)
    one = await stack.joined(edge_with("e1"))
    rows = [Quarantined(b"%d" % n, "m", "1", 60_000 + 1000 * n) for n in range(5)]
    one.say(Poison(tuple(rows)))
    await told(one, *rows[2:])
