"""What the tests of connections share: real sockets, on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop

from pool.wire import handshake
from pool.wire.frames import PREFIX, Buffer, encode
from pool.wire.handshake import Secret, Secrets
from pool.wire.listening import Server, serve
from pool.wire.peer import Address, Peer, PeerLimits

SECRETS = Secrets(Secret.of("the fleet's current secret"))
OTHER = Secrets(Secret.of("another fleet's secret!"))
LOCALHOST = Address(host="127.0.0.1")

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine to its end on one kind of loop, for at most 20 s."""

    return lambda main: run_on(request.param, main)


def run_on(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], main: Coroutine[Any, Any, None]
) -> None:
    """Run a coroutine to its end on a loop of its own, for at most 20 s."""

    async def bounded() -> None:
        async with asyncio.timeout(20):
            await main

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(bounded())


@pytest.fixture
def folder() -> Iterator[str]:
    """Make a folder whose path is short enough for unix sockets, whatever the test's name."""
    made = tempfile.mkdtemp(prefix="tp")
    yield made
    shutil.rmtree(made)


@pytest.fixture(params=["unix", "tcp"])
def address(request: pytest.FixtureRequest, folder: str) -> Address:
    return Address(path=f"{folder}/s") if request.param == "unix" else LOCALHOST


class Ears:
    """Everything that one peer heard: its frames, and each time it was told of a loss."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.frames: asyncio.Queue[tuple[bytes, Buffer]] = asyncio.Queue()
        self.losses: list[Exception | None] = []
        self.is_lost = asyncio.Event()
        peer.on_frame = lambda header, body: self.frames.put_nowait((header, body))
        peer.on_lost = self._lost

    def _lost(self, error: Exception | None) -> None:
        self.losses.append(error)
        self.is_lost.set()

    async def lost(self) -> Exception | None:
        """Wait for the loss, and a little longer for a second one, which must not come."""
        await self.is_lost.wait()
        await asyncio.sleep(0.02)
        assert len(self.losses) == 1
        return self.losses[0]


class Accepted:
    """The peers that a server has handed over, in order."""

    def __init__(self) -> None:
        self.ears: asyncio.Queue[Ears] = asyncio.Queue()

    def __call__(self, peer: Peer) -> None:
        self.ears.put_nowait(Ears(peer))


@contextlib.asynccontextmanager
async def serving(
    address: Address,
    on_peer: Callable[[Peer], None],
    secrets: Secrets | None = SECRETS,
    limits: PeerLimits | None = None,
) -> AsyncIterator[Server]:
    server = await serve(address, None if address.path else secrets, on_peer, limits)
    try:
        yield server
    finally:
        await server.close()
        await asyncio.sleep(0.02)  # for the connections that are being closed


class Stranger:
    """A bare TCP connection that says whatever it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def dial(cls, address: Address) -> Stranger:
        return cls(*await asyncio.open_connection(address.host, address.port))

    async def frame(self) -> bytes:
        """Read one frame's header."""
        header_bytes, body_bytes = PREFIX.unpack(await self.reader.readexactly(8))
        await self.reader.readexactly(0)
        header = await self.reader.readexactly(header_bytes)
        await self.reader.readexactly(body_bytes)
        return header

    async def message(self) -> handshake.Message:
        return handshake.decode(await self.frame())

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    def tell(self, message: handshake.Message) -> None:
        self.say(b"".join(encode(handshake.encode(message))))

    async def is_cut_off(self, within_s: float = 3.0) -> bool:
        """Tell whether the other side closes the connection in time."""
        try:
            async with asyncio.timeout(within_s):
                with contextlib.suppress(ConnectionError):
                    while await self.reader.read(1 << 16):
                        pass
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


@contextlib.asynccontextmanager
async def stranger(address: Address) -> AsyncIterator[Stranger]:
    made = await Stranger.dial(address)
    try:
        yield made
    finally:
        await made.close()


@contextlib.asynccontextmanager
async def rogue_server(
    answer: Callable[[Stranger], Coroutine[Any, Any, None]],
) -> AsyncIterator[Address]:
    """Listen on loopback as somebody who does as `answer` says with each connection."""

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        one = Stranger(reader, writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await answer(one)
        await one.close()

    server = await asyncio.start_server(serve_one, "127.0.0.1", 0)
    try:
        yield Address(host="127.0.0.1", port=server.sockets[0].getsockname()[1])
    finally:
        server.close()
        await asyncio.sleep(0.05)
