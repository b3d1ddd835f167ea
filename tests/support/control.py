"""Edges, workers and clients that speak the control wire, for tests of the controller."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from pool.wire import control
from pool.wire.frames import Buffer
from pool.wire.peer import Address, Peer, dial

M = TypeVar("M", bound=control.Message)
WAIT_S_MAX = 10.0


class Member:
    """One connection to a controller, and everything that came through it."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.heard: list[control.Message] = []
        self.is_lost = False
        self._news = asyncio.Event()
        peer.on_frame = self._frame
        peer.on_lost = self._lost

    @classmethod
    async def dial(cls, address: Address, first: control.Message | None = None) -> Member:
        """Connect, and say `first`."""
        member = cls(await dial(address, None))
        if first is not None:
            member.say(first)
        return member

    def _frame(self, header: bytes, body: Buffer) -> None:
        self.heard.append(control.decode(bytes(body)))
        self._news.set()

    def _lost(self, error: Exception | None) -> None:
        self.is_lost = True
        self._news.set()

    def say(self, message: control.Message) -> None:
        """Send a message."""
        self.peer.send(control.encode(message))

    def all(self, kind: type[M]) -> list[M]:
        """Return every message of one kind, in order."""
        return [message for message in self.heard if isinstance(message, kind)]

    async def hear(self, kind: type[M], fits: Callable[[M], bool] = lambda message: True) -> M:
        """Return the first message of a kind that fits, waiting for it if need be."""
        return (await self.until(lambda: [m for m in self.all(kind) if fits(m)]))[0]

    async def heard_often(self, kind: type[M], count: int) -> list[M]:
        """Return the messages of a kind once there are so many."""
        return await self.until(lambda: self.all(kind) if len(self.all(kind)) >= count else [])

    async def lost(self) -> None:
        """Wait until the controller has hung up."""
        await self.until(lambda: [True] if self.is_lost else [])

    async def until(self, found: Callable[[], list[M] | list[bool]]) -> list[M]:
        """Wait until there is something, by what comes through this connection."""
        async with asyncio.timeout(WAIT_S_MAX):
            while not (result := found()):
                self._news.clear()
                await self._news.wait()
        return result  # type: ignore[return-value]


def edge(name: str = "e1", incarnation: str = "i1", wire: int = control.WIRE) -> control.Message:
    """The registration of an edge."""
    return control.RegisterEdge(wire, name, incarnation, 11)


def worker(
    name: str = "w1", *engines: control.EngineState, incarnation: str = "i1"
) -> control.Message:
    """The registration of a worker."""
    address = f"unix:/run/{name}-{incarnation}"
    return control.RegisterWorker(control.WIRE, name, incarnation, 22, address, "cpu", engines)


def engine(
    version: str = "1", state: str = "warm", calls: int = 0, idle_s: float = 0.0
) -> control.EngineState:
    """An engine of the model `m`."""
    return control.EngineState("m", version, "test", state, 10, calls, idle_s)


def beat(*engines: control.EngineState, draining: bool = False) -> control.Message:
    """A worker's heartbeat."""
    return control.Heartbeat(1500, 2, engines, draining)
