"""An edge's dispatch over real sockets, and workers that only speak the wire."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge.dispatching.calls import Answer, Call
from edge.dispatching.dispatch import Pool
from edge.errors import Refusal
from pool.wire import data
from pool.wire.control import EngineRoute, Routes, WorkerRoute
from pool.wire.data import Tensor
from pool.wire.frames import Buffer
from pool.wire.listening import Server, serve
from pool.wire.peer import Address, Peer

REF = ("m", "1")
X = Tensor("x", "FP32", (1,), bytes(4))


class FakeWorker:
    """Says what its test wants, in the wire's own words."""

    def __init__(self, name: str, address: Address) -> None:
        self.name = name
        self.address = address
        self.greets = True
        self.incarnation = "i"
        self.load_ms = 0  # it does not say how often it speaks
        self.server: Server | None = None
        self.peers: list[Peer] = []
        self.heard: list[data.Message] = []
        self.on_call: Callable[[Peer, data.Call], None] = self.answer

    async def up(self) -> None:
        self.server = await serve(self.address, None, self._on_peer)

    async def down(self) -> None:
        if self.server is not None:
            await self.server.close()
            self.server = None
        for peer in self.peers:
            peer.close()
        self.peers.clear()

    def _on_peer(self, peer: Peer) -> None:
        def frame(header: bytes, body: Buffer) -> None:
            message = data.decode(header)
            self.heard.append(message)
            if isinstance(message, data.Call):
                self.on_call(peer, message)
            elif isinstance(message, data.Hello) and self.greets:
                hello = data.Hello(
                    *(data.WIRE, "worker", self.name, self.incarnation), load_ms=self.load_ms
                )
                peer.send(data.encode(hello))

        self.peers.append(peer)
        peer.on_frame = frame

    def tell(self, message: data.Message) -> None:
        """Say something to every edge."""
        for peer in self.peers:
            peer.send(data.encode(message))

    @property
    def calls(self) -> list[data.Call]:
        return [message for message in self.heard if isinstance(message, data.Call)]

    @property
    def cancels(self) -> list[data.Cancel]:
        return [message for message in self.heard if isinstance(message, data.Cancel)]

    def answer(self, peer: Peer, call: data.Call, **fields: Any) -> None:
        """Give the inputs back."""
        tensors = [Tensor(h.name, h.datatype, h.shape, bytes(h.bytes)) for h in call.inputs]
        peer.send(
            data.encode(
                data.Reply(call.call_id, 200, "", data.heads(tensors), 5, 6, 7, **fields), tensors
            )
        )

    def keep(self, peer: Peer, call: data.Call) -> None:
        """Never answer."""

    def break_(self, peer: Peer, call: data.Call) -> None:
        """Hang up."""
        peer.close()


class Fleet:
    """Some workers, and a pool that goes by routes to them."""

    def __init__(self, folder: Path) -> None:
        self.workers = {n: FakeWorker(n, Address(path=f"{folder}/{n}")) for n in "abcd"}
        self.pool = Pool("e1", None)

    def __getitem__(self, name: str) -> FakeWorker:
        return self.workers[name]

    def route(
        self,
        warm: str = "",
        wake_at: str = "",
        workers: str = "abcd",
        *,
        cold: str = "",
        wake_ms: int = 0,
        state: str = "asleep",
        incarnation: str = "i",
    ) -> None:
        engine = EngineRoute(*REF, tuple(warm), tuple(wake_at), state, wake_ms=wake_ms)
        routes = [
            WorkerRoute(
                n, incarnation, str(self.workers[n].address), state="cold" if n in cold else "up"
            )
            for n in workers
        ]
        self.pool.update(Routes(1, 1, tuple(routes), (engine,)))

    async def up(self, names: str = "abcd") -> None:
        for name in names:
            await self.workers[name].up()

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not is_so():  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    async def connected(self, count: int) -> None:
        await self.until(lambda: self.pool.workers_up == count)

    def call(
        self,
        left_s: float = 10.0,
        on_chunk: Any = None,
        inputs: Any = (X,),
        on_held: Any = None,
        shadow: tuple[data.ShadowOf, ...] = (),
        hedge_share: float = 0.0,
    ) -> Call:
        call = Call(
            ref=REF,
            digest="d",
            request_id="r",
            inputs=inputs,
            outputs=("y",),
            deadline_s=time.monotonic() + left_s,
            on_chunk=on_chunk,
            on_held=on_held,
            hedge_share=hedge_share,
        )
        call.shadow = shadow
        self.pool.start(call)
        return call

    def served(self) -> str:
        """Return who got how many calls, as text."""
        return "".join(n * len(worker.calls) for n, worker in sorted(self.workers.items()))


async def outcome(call: Call) -> Answer | Refusal:
    async with asyncio.timeout(10):
        try:
            return await call.future
        except Refusal as refusal:
            return refusal
