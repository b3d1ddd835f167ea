"""Bodies are read within their bounds, and whole or not at all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from edge import receive as receive_module
from edge.errors import BadRequest, Overloaded, TooLarge
from edge.receive import ALWAYS_BYTES_MAX, TIDY_BYTES, Room, receive


@dataclass
class Holding:
    held_bytes: int = 0
    body_due_s: float = 0.0
    owner: str = ""


class Proto:
    """Granian's side: an error of framing is one empty part more, or a RuntimeError."""

    def __init__(self, *parts: bytes, breaks: bool = False) -> None:
        self._parts, self._breaks = parts, breaks
        self.taken = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            self.taken += 1
            yield part
        yield b""
        if self._breaks:
            yield b""

    def __call__(self) -> Proto:
        return self

    def __await__(self):  # type: ignore[no-untyped-def]
        yield from ()
        if self._breaks:
            raise RuntimeError("RSGI transport is closed")
        return b"".join(self._parts)


async def read(proto: Proto, bytes_max: int = 1000, room: Room | None = None, **said: str) -> bytes:
    headers = {name.replace("_", "-"): value for name, value in said.items()}
    found = room or Room(1 << 20)
    return await receive(proto, headers.get, bytes_max, found, Holding(), 10.0)


CHUNKED = {"transfer_encoding": "chunked"}


async def test_body_of_a_known_length_comes_whole() -> None:
    assert await read(Proto(b"ab", b"c"), content_length="3") == b"abc"


async def test_chunked_body_comes_whole() -> None:
    assert await read(Proto(b"ab", b"c"), transfer_encoding=" Chunked") == b"abc"


async def test_without_length_and_chunks_there_is_no_body() -> None:
    proto = Proto(b"ab")
    assert (await read(proto), proto.taken) == (b"", 0)


@pytest.mark.parametrize("said", [CHUNKED, {"content_length": "3"}])
async def test_body_that_broke_is_refused(said: dict[str, str]) -> None:
    with pytest.raises(BadRequest, match="whole"):
        await read(Proto(b"abc", breaks=True), **said)


@pytest.mark.parametrize("size", [3, 4 << 20])
async def test_body_that_ended_early_is_refused(size: int) -> None:
    with pytest.raises(BadRequest, match="whole"):
        await read(Proto(b"x" * (size - 1)), 8 << 20, Room(8 << 20), content_length=str(size))


async def test_another_transfer_encoding_is_refused() -> None:
    with pytest.raises(BadRequest, match="gzip, chunked"):
        await read(Proto(b"abc"), transfer_encoding="gzip, chunked")


async def test_length_over_the_bound_is_refused_before_anything_is_read() -> None:
    proto = Proto(b"x")
    with pytest.raises(TooLarge):
        await read(proto, content_length="1001")
    assert proto.taken == 0


async def test_chunks_over_the_bound_are_refused_while_they_come() -> None:
    proto = Proto(*[b"x" * 100] * 100)
    with pytest.raises(TooLarge):
        await read(proto, **CHUNKED)
    assert proto.taken == 11


async def test_many_tiny_parts_are_refused() -> None:
    with pytest.raises(BadRequest, match="parts of less than 64 bytes"):
        await read(Proto(*[b"x"] * 2000), 1 << 20, **CHUNKED)
    assert len(await read(Proto(*[b"x" * 64] * 2000), 1 << 20, **CHUNKED)) == 128_000


def test_small_bodies_find_room_whoever_holds_the_rest() -> None:
    room = Room(1 << 20)
    room.take(Holding(), 1 << 20)
    small = Holding()
    room.take(small, ALWAYS_BYTES_MAX)
    with pytest.raises(Overloaded, match="other requests"):
        room.take(small, 1)


def test_no_tenant_holds_more_than_half() -> None:
    room, one, other = Room(1 << 20), Holding(owner="a"), Holding(owner="b")
    room.take(one, 1 << 19)
    with pytest.raises(Overloaded, match="this tenant's other bodies"):
        room.take(Holding(owner="a"), ALWAYS_BYTES_MAX + 1)
    room.take(other, 1 << 19)
    room.give_back(one, 1 << 19)
    room.take(one, 1 << 18)
    assert room.held_bytes == (1 << 19) + (1 << 18)


async def test_long_body_holds_only_what_has_come() -> None:
    room, holding = Room(64 << 20), Holding()
    headers = {"content-length": str(32 << 20)}
    with pytest.raises(BadRequest):
        await receive(Proto(b"x" * 100_000), headers.get, 64 << 20, room, holding, 10.0)
    assert holding.held_bytes == room.held_bytes == 100_000


@pytest.mark.parametrize("said", [CHUNKED, {"content_length": "600"}])
async def test_bodies_share_a_room(said: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive_module, "ALWAYS_BYTES_MAX", 0)
    room, first = Room(1000), Holding()
    headers = {name.replace("_", "-"): value for name, value in said.items()}
    await receive(Proto(b"x" * 600), headers.get, 1000, room, first, 10.0)
    with pytest.raises(Overloaded) as refused:
        await read(Proto(b"x" * 600), room=room, **said)
    assert dict(refused.value.headers)["retry-after"] == "1"
    room.give_back(first, first.held_bytes)
    assert first.held_bytes == 0
    await receive(Proto(b"x" * 600), headers.get, 1000, room, first, 10.0)


async def test_body_that_keeps_its_pace_may_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each 5 KiB more are worth 5 s; the first 10 s are free."""
    now_s = 100.0
    dues: list[float] = []
    holding = Holding()

    class Slow(Proto):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            nonlocal now_s
            async for part in super().__aiter__():
                yield part
                now_s += 4.0
                dues.append(holding.body_due_s)

    monkeypatch.setattr(receive_module.time, "monotonic", lambda: now_s)
    proto = Slow(*[b"x" * 3000] * 6)
    await receive(proto, {"transfer-encoding": "chunked"}.get, 1 << 20, Room(1 << 20), holding, 10)
    monkeypatch.undo()
    assert dues[:6] == [110.0, 110.0, 110.0, 117.0, 117.0, 125.0]


def test_memory_is_tidied_once_much_is_gone_and_little_is_held() -> None:
    room, small, large = Room(1 << 30), Holding(), Holding()
    room.take(small, 1000)
    room.give_back(small, 1000)
    assert not room.wants_tidying()
    room.take(large, TIDY_BYTES)
    room.take(small, TIDY_BYTES)
    room.give_back(small, TIDY_BYTES)
    assert not room.wants_tidying()  # much is held still
    room.give_back(large, TIDY_BYTES)
    assert room.wants_tidying()
    assert not room.wants_tidying()
