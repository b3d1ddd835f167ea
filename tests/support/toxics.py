"""A TCP proxy that spoils what passes through it, from another thread, while connections are open.

It stands for a network: late, slow, cut, reset, silent, or with a bit in between that is wrong.
Nothing is spoilt until `toxics` says so; both directions alike, unless `only` names one.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

UP = "to the server"
DOWN = "to the client"
_CHUNK_BYTES = 64 << 10
_CHUNKS_MAX = 64  # of one direction on their way; beyond, the sender waits as on any network
_LOOK_S = 0.005  # how soon a black hole that has closed is noticed
_RST = struct.pack("ii", 1, 0)


@dataclass
class Toxics:
    """What happens to bytes; change it at any time."""

    only: str = ""  # UP, DOWN or both
    delay_s: float = 0.0
    jitter_s: float = 0.0  # up to so much on top; bytes stay in order
    bytes_per_s: float = 0.0  # 0: as fast as they come
    cut_after_bytes: int | None = None  # of a connection and direction: then it is closed
    is_reset: bool = False  # what is cut is reset
    is_black_hole: bool = False  # nothing goes on and nothing is closed; it goes on afterwards
    flip_every_bytes: int = 0  # on average: one bit
    refuses: bool = False  # whoever dials is reset

    def on(self, direction: str) -> Toxics:
        """Return what holds for one direction."""
        return self if self.only in ("", direction) else _NONE


_NONE = Toxics()


@dataclass
class ToxicProxy:
    """One listening address, the one behind it, and what was done so far."""

    host: str
    port: int
    toxics: Toxics = field(default_factory=Toxics)
    accepted: int = 0
    flipped: int = 0
    cut: int = 0
    # The whole mutable state besides: the loop of its thread, and the open connections.
    _loop: asyncio.AbstractEventLoop | None = None
    _open: set[asyncio.StreamWriter] = field(default_factory=set)
    _random: random.Random = field(default_factory=lambda: random.Random(7))

    @property
    def connections(self) -> int:
        """How many sockets it holds open, two a connection."""
        return len(self._open)

    def heal(self) -> None:
        """Spoil nothing from now on."""
        self.toxics = Toxics()

    def reset(self) -> None:
        """Reset every open connection, on both sides."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(lambda: [_reset(writer) for writer in [*self._open]])

    async def carry(
        self, target: tuple[str, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Carry one connection to its end."""
        self.accepted += 1
        if self.toxics.refuses:
            _reset(writer)
            return
        try:
            back, forth = await asyncio.open_connection(*target)
        except OSError:
            _reset(writer)
            return
        both = (writer, forth)
        for one in both:
            one.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open.update(both)
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, forth, UP))
                pumps.create_task(self._pump(back, writer, DOWN))
        except* (ConnectionError, _Cut):
            for one in both:  # an end that breaks breaks the other, as it would without us
                _reset(one) if self.toxics.is_reset else one.transport.close()
        finally:
            self._open.difference_update(both)
            for one in both:
                one.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str
    ) -> None:
        lane: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS_MAX)
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._deliver(lane, writer, direction))
            while True:
                data = await reader.read(_CHUNK_BYTES)
                toxics = self.toxics.on(direction)
                late_s = toxics.delay_s + toxics.jitter_s * self._random.random()
                await lane.put((loop.time() + late_s, self._flipped(data, toxics)))
                if not data:
                    return

    async def _deliver(
        self, lane: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, direction: str
    ) -> None:
        loop = asyncio.get_running_loop()
        passed = 0
        while True:
            due_s, data = await lane.get()
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            # Another thread changes the toxics: there is no event to wait for.
            while (toxics := self.toxics.on(direction)).is_black_hole:  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_S)
            if toxics.bytes_per_s:
                await asyncio.sleep(len(data) / toxics.bytes_per_s)
            if not data:
                writer.write_eof()
                return
            if toxics.cut_after_bytes is not None and passed + len(data) > toxics.cut_after_bytes:
                writer.write(data[: max(0, toxics.cut_after_bytes - passed)])
                self.cut += 1
                raise _Cut
            writer.write(data)
            await writer.drain()
            passed += len(data)

    def _flipped(self, data: bytes, toxics: Toxics) -> bytes:
        if not toxics.flip_every_bytes:
            return data
        made, at = bytearray(data), 0
        while True:
            at += 1 + int(self._random.expovariate(1 / toxics.flip_every_bytes))
            if at > len(made):
                return bytes(made)
            made[at - 1] ^= 1 << self._random.randrange(8)
            self.flipped += 1


class _Cut(Exception):
    """A connection's bytes are used up."""


def _reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):  # it is closed already
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
    writer.transport.abort()


@contextlib.contextmanager
def toxic_proxy(
    target: tuple[str, int], listen: tuple[str, int] = ("127.0.0.1", 0)
) -> Iterator[ToxicProxy]:
    """Run a proxy in front of `target` in a thread; port 0 is any."""
    ready: list[ToxicProxy | BaseException] = []
    has_begun = threading.Event()
    end: list[Callable[[], object]] = []

    async def main() -> None:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        proxy = ToxicProxy(*listen, _loop=loop)
        server = await asyncio.start_server(
            lambda reader, writer: proxy.carry(target, reader, writer), *listen
        )
        proxy.port = server.sockets[0].getsockname()[1]
        end.append(lambda: loop.call_soon_threadsafe(ended.set))
        ready.append(proxy)
        has_begun.set()
        await ended.wait()
        server.close()
        for writer in [*proxy._open]:
            _reset(writer)
        await asyncio.sleep(0.02)  # for the connections that are being closed

    def work() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            ready.append(error)
            has_begun.set()

    thread = threading.Thread(target=work)
    thread.start()
    has_begun.wait()
    found = ready[0]
    if not isinstance(found, ToxicProxy):
        raise found
    try:
        yield found
    finally:
        end[0]()
        thread.join()
