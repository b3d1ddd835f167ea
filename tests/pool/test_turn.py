"""What calls of one read set off is done once, when all of them are taken in."""

from __future__ import annotations

import asyncio

from pool.turn import Turn


async def test_work_waits_for_the_end_of_the_read() -> None:
    done: list[str] = []
    turn = Turn()
    turn.begin()
    turn.soon(lambda: done.append("step"))
    assert done == []
    turn.end()
    assert done == ["step"]


async def test_work_outside_a_read_is_done_in_the_next_turn_of_the_loop() -> None:
    done: list[str] = []
    Turn().soon(lambda: done.append("step"))
    assert done == []
    await asyncio.sleep(0)
    assert done == ["step"]


async def test_work_that_sets_off_work_leaves_it_to_the_next_turn() -> None:
    done: list[str] = []
    turn = Turn()
    turn.begin()
    turn.soon(lambda: turn.soon(lambda: done.append("later")))
    turn.end()
    assert done == []
    await asyncio.sleep(0)
    assert done == ["later"]
