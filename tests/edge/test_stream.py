"""The bounds of one stream's unsent parts."""

from __future__ import annotations

import asyncio

from edge.stream import PART_BYTES, TAKEN_BYTES_MAX, UNSENT_BYTES_MAX, Parts
from pool.wire.data import Tensor


def _part(size: int = 8) -> list[Tensor]:
    return [Tensor("value", "UINT8", (size,), b"\0" * size)]


async def test_parts_are_taken_in_order_and_together() -> None:
    parts, sent = Parts(), [_part(size) for size in range(1, 6)]
    for part in sent:
        parts.put(part)
    assert await parts.take() == sent


async def test_a_taker_waits_for_the_next_part() -> None:
    parts = Parts()
    taking = asyncio.create_task(parts.take())
    await asyncio.sleep(0)
    assert not taking.done()
    parts.put(_part())
    assert len(await taking) == 1


async def test_the_end_comes_after_the_last_part() -> None:
    parts = Parts()
    parts.put(_part())
    parts.end()
    assert len(await parts.take()) == 1
    assert await parts.take() == []


async def test_no_more_is_taken_at_once_than_the_bound() -> None:
    parts, size = Parts(), TAKEN_BYTES_MAX // 2
    for _ in range(5):
        parts.put(_part(size))
    assert [len(await parts.take()) for _ in range(3)] == [2, 2, 1]


async def test_a_single_part_may_be_of_any_size() -> None:
    parts = Parts()
    parts.put(_part(2 * UNSENT_BYTES_MAX))
    assert len(await parts.take()) == 1


async def test_too_much_unsent_is_forgotten_and_told_once() -> None:
    parts, told = Parts(), []
    parts.on_overfull = lambda: told.append(parts.end())
    for _ in range(UNSENT_BYTES_MAX // PART_BYTES):
        parts.put(_part())
    assert len(told) == 1
    assert await parts.take() == []


async def test_what_was_taken_makes_room() -> None:
    parts, told = Parts(), []
    parts.on_overfull = lambda: told.append(1)
    for _ in range(4):
        parts.put(_part(UNSENT_BYTES_MAX // 2))
        await parts.take()
    assert told == []
