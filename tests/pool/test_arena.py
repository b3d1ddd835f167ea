"""Memory that edge and worker share: no bytes change while somebody looks at them."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import AsyncIterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool.wire import arena as arena_module
from pool.wire.arena import PLACE_BYTES_MIN, Arena, ArenaView, Places
from pool.wire.frames import WireError

SIZE = 4 << 20
PAYLOAD = bytes(range(256)) * 1024


def nothing() -> None:
    pass


@pytest.fixture
async def arena() -> AsyncIterator[Arena]:
    made = Arena(SIZE)
    yield made
    made.close()


def view_of(arena: Arena) -> ArenaView:
    return ArenaView(os.getpid(), arena.fd, arena.bytes_max)


@given(st.lists(st.integers(1, SIZE), max_size=40), st.randoms(use_true_random=False))
def test_places_in_use_never_overlap(sizes: list[int], dice: object) -> None:
    places = Places(SIZE)
    taken: dict[int, int] = {}
    for index, size in enumerate(sizes):
        at = places.take(size)
        if at is not None:
            assert 0 < at <= SIZE - size
            for other, length in taken.items():
                assert at + size <= other or other + length <= at
            taken[at] = size
        if taken and index % 3 == 2:
            at = next(iter(taken))
            del taken[at]
            places.give_back(at)
    assert places.is_empty == (not taken)


def test_full_arena_has_no_place_and_room_comes_back_for_any_size() -> None:
    places = Places(SIZE)
    found = [places.take(1) for _ in range(SIZE // PLACE_BYTES_MIN - 1)]
    assert None not in found
    assert places.take(1) is None
    for at in found:
        assert at is not None
        places.give_back(at)
    assert places.take(SIZE // 2) == PLACE_BYTES_MIN


def test_place_that_was_given_back_last_is_taken_first() -> None:
    places = Places(SIZE)
    places.take(1)
    warm = places.take(1)
    assert warm is not None
    places.give_back(warm)
    assert places.take(1) == warm


def test_place_is_given_back_once() -> None:
    places = Places(SIZE)
    at = places.take(1)
    assert at is not None
    places.give_back(at)
    with pytest.raises(KeyError):
        places.give_back(at)


async def test_what_was_put_is_seen_with_every_tensor_aligned(arena: Arena) -> None:
    at = arena.put([b"abc", PAYLOAD], 8 + len(PAYLOAD))
    assert at is not None
    seen = view_of(arena).look(at, 8 + len(PAYLOAD), nothing)
    assert bytes(seen[:3]) == b"abc"
    assert bytes(seen[8:]) == PAYLOAD


async def test_what_is_looked_at_cannot_be_written(arena: Arena) -> None:
    at = arena.put([PAYLOAD], len(PAYLOAD))
    assert at is not None
    assert view_of(arena).look(at, len(PAYLOAD), nothing).readonly


async def test_place_is_released_with_the_last_view_and_not_before(arena: Arena) -> None:
    at = arena.put([PAYLOAD], len(PAYLOAD))
    assert at is not None
    view, calls = view_of(arena), []
    seen = view.look(at, len(PAYLOAD), lambda: calls.append(1))
    array = np.frombuffer(seen[16:32], np.uint8)
    part = array.reshape(2, 8)[1:]
    del seen, array
    assert (view.take_released(), calls) == ((), [])
    assert part[0, 0] == PAYLOAD[24]
    del part
    assert (view.take_released(), calls) == ((at,), [1])
    assert view.take_released() == ()


async def test_view_that_ends_in_a_thread_releases_its_place(arena: Arena) -> None:
    at = arena.put([PAYLOAD], len(PAYLOAD))
    assert at is not None
    view = view_of(arena)
    held = [view.look(at, len(PAYLOAD), nothing)]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert view.take_released() == (at,)


async def test_place_in_use_is_not_looked_at_twice(arena: Arena) -> None:
    view = view_of(arena)
    held = view.look(0, 100, nothing)
    with pytest.raises(WireError, match="place 0 is in use"):
        view.look(0, 100, nothing)
    assert held


@pytest.mark.parametrize(("at", "size"), [(0, SIZE + 1), (SIZE, 1), (2**53, 1), (0, 0)])
async def test_bytes_outside_of_the_arena_are_refused(arena: Arena, at: int, size: int) -> None:
    with pytest.raises(WireError, match="not inside the arena"):
        view_of(arena).look(at, size, nothing)


async def test_release_of_what_was_not_given_is_the_workers_fault(arena: Arena) -> None:
    with pytest.raises(WireError, match="gives back place 65536"):
        arena.released([65536])


async def test_file_whose_size_may_change_is_refused() -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(SIZE)
        with pytest.raises(WireError, match="sealed"):
            ArenaView(os.getpid(), file.fileno(), SIZE)


async def test_arena_of_another_size_than_said_is_refused(arena: Arena) -> None:
    with pytest.raises(WireError, match="no arena of"):
        ArenaView(os.getpid(), arena.fd, SIZE // 2)


async def test_arena_that_is_not_there_is_an_os_error() -> None:
    with pytest.raises(OSError, match="No such file"):
        ArenaView(os.getpid(), 2**20, SIZE)


async def test_view_outlives_the_arena() -> None:
    made = Arena(SIZE)
    at = made.put([PAYLOAD], len(PAYLOAD))
    assert at is not None
    seen = view_of(made).look(at, len(PAYLOAD), nothing)
    made.close()
    assert bytes(seen) == PAYLOAD


async def test_memory_goes_back_when_the_arena_rests(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = arena.put([PAYLOAD], len(PAYLOAD))
    assert at is not None
    assert os.fstat(arena.fd).st_blocks > 0
    arena.released([at])
    monkeypatch.setattr(arena_module, "REST_S", 3600.0)
    arena._look()  # it was used since the last look
    assert os.fstat(arena.fd).st_blocks > 0
    arena._look()
    assert os.fstat(arena.fd).st_blocks == 0


async def test_memory_that_somebody_looks_at_stays(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = arena.put([PAYLOAD], len(PAYLOAD))
    assert at is not None
    monkeypatch.setattr(arena_module, "REST_S", 3600.0)
    arena._look()
    arena._look()
    assert bytes(view_of(arena).look(at, len(PAYLOAD), nothing)) == PAYLOAD
