"""The hop from an edge to a worker alone: the real wire, two processes, nothing behind it.

Both ends are the product's own: the edge's connection with the memory that it shares, and the
worker's reading of a call up to its tensors.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from infra.bench import cpu
from infra.bench.processes import environment
from pool.wire import data
from pool.wire.arena import PLACE_BYTES_MIN, Arena, ArenaView
from pool.wire.data import Tensor
from pool.wire.frames import Buffer
from pool.wire.listening import serve
from pool.wire.peer import Address, Peer, dial

IN_FLIGHT = 64  # for small bodies, as many clients at once would have
IN_FLIGHT_LARGE = 8
LARGE_BYTES = 64 << 10
SECONDS = 1.0
START_S_MAX = 20.0


def hop_us(body_bytes: int) -> float:
    """Return the CPU time of both ends for one call and its small reply, in µs."""
    with tempfile.TemporaryDirectory(prefix="tidepool-hop-") as folder:
        path = Path(folder) / "hop.sock"
        process = subprocess.Popen(
            [sys.executable, "-m", "infra.bench.hop", str(path)], env=environment()
        )
        try:
            return uvloop.run(_measure(Address(path=str(path)), process.pid, body_bytes))
        finally:
            process.terminate()
            process.wait()


async def _dial(address: Address) -> Peer:
    deadline_s = time.monotonic() + START_S_MAX
    while True:
        try:
            return await dial(address, None)
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            await asyncio.sleep(0.01)


async def _measure(address: Address, other: int, body_bytes: int) -> float:
    peer = await _dial(address)
    tensor = Tensor("x", "UINT8", (1, body_bytes), bytes(body_bytes))
    heads = data.heads([tensor])
    pending: dict[int, asyncio.Future[None]] = {}
    loop = asyncio.get_running_loop()
    arena = Arena()

    def on_frame(header: bytes, body: Buffer) -> None:
        message = data.decode(header)
        if isinstance(message, data.Release):
            arena.released(message.places)
            return
        assert isinstance(message, data.Reply)
        data.tensors(message.outputs, body)
        pending.pop(message.call_id).set_result(None)

    peer.on_frame = on_frame
    peer.send(data.encode(data.Hello(data.WIRE, "edge", "e", "", arena.fd, arena.bytes_max)))
    made = 0

    async def call_until(end_s: float) -> int:
        nonlocal made
        count = 0
        while time.monotonic() < end_s:
            made += 1
            future = pending[made] = loop.create_future()
            at = (body_bytes >= PLACE_BYTES_MIN and arena.put([tensor.data], body_bytes)) or 0
            call = data.Call(made, "bench", "m", "1", "d" * 64, 1_000_000, 0, heads, arena_at=at)
            peer.send(data.encode(call, () if at else [tensor]))
            await future
            count += 1
        return count

    in_flight = IN_FLIGHT if body_bytes < LARGE_BYTES else IN_FLIGHT_LARGE
    await asyncio.gather(*(call_until(time.monotonic() + 0.3) for _ in range(in_flight)))
    pids = [os.getpid(), other]
    before = cpu.read(pids)
    end_s = time.monotonic() + SECONDS
    counts = await asyncio.gather(*(call_until(end_s) for _ in range(in_flight)))
    used_ns = cpu.used_ns(before, cpu.read(pids))
    peer.close()
    arena.close()
    return used_ns / 1e3 / sum(counts)


async def _answer(path: str) -> None:
    reply = [Tensor("y", "UINT8", (1, 64), bytes(64))]
    heads = data.heads(reply)

    def on_peer(peer: Peer) -> None:
        loop = asyncio.get_running_loop()
        views: list[ArenaView] = []

        def release() -> None:
            peer.send(data.encode(data.Release(views[0].take_released())))

        def on_frame(header: bytes, body: Buffer) -> None:
            call = data.decode(header)
            if isinstance(call, data.Hello):
                views.append(ArenaView(peer.local_pid or 0, call.arena_fd, call.arena_bytes))
                return
            assert isinstance(call, data.Call)
            if call.arena_at:
                body = views[0].look(
                    call.arena_at,
                    call.inputs[0].bytes,
                    lambda: loop.call_soon_threadsafe(release),
                )
            data.tensors(call.inputs, body)
            peer.send(data.encode(data.Reply(call.call_id, 200, "", heads), reply))

        peer.on_frame = on_frame

    await serve(Address(path=path), None, on_peer)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_answer(sys.argv[1]))
