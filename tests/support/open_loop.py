"""Load that does not wait for its answers, from a process of its own.

An open loop: each call is sent when it is due, however many are still under way, and its time
counts from then on.  `clients` instead is a closed loop, which finds what a server can do.  One
thread, raw sockets and no parsing but of the status and two headers.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from tests.support.stack import REPOSITORY

GIVE_UP_S = 10.0  # after a call's deadline


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """Who calls, how often, and for how long."""

    name: str
    key: str
    path: str
    body: str
    deadline_s: float = 0.5
    per_s: float = 0.0  # of an open loop, at random moments
    times: float = 0.0  # the rate at which the first stream was answered, instead
    clients: int = 0  # of a closed loop
    from_s: float = 0.0
    seconds: float = 1.0


class Told(msgspec.Struct, array_like=True, frozen=True):
    """What became of one call."""

    at_s: float  # when it was due, from the beginning
    took_s: float
    status: int  # 0: none came
    retry_after_ms: int
    infer_s: float  # of an answer: how long the engine ran

    @property
    def end_s(self) -> float:
        return self.at_s + self.took_s


@dataclass
class Load:
    """Streams under way in a process of their own."""

    process: subprocess.Popen[bytes]
    out_path: Path

    def is_over(self) -> bool:
        """Tell whether all calls have ended."""
        return self.process.poll() is not None

    def end(self) -> dict[str, list[Told]]:
        """Wait for the end; return what each stream was told, in the order of sending."""
        assert self.process.wait(timeout=300) == 0
        found = msgspec.json.decode(self.out_path.read_bytes(), type=dict[str, list[Told]])
        self.out_path.unlink()
        return found


def begin(port: int, streams: Sequence[Stream], seed: int = 0) -> Load:
    """Start the streams."""
    handle, path = tempfile.mkstemp(prefix="open-loop-")
    os.close(handle)
    plan = json.dumps([port, seed, path, msgspec.to_builtins(streams)])
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.open_loop", plan],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    return Load(process, Path(path))


def run(port: int, *streams: Stream, seed: int = 0) -> dict[str, list[Told]]:
    """Run the streams to their end."""
    return begin(port, streams, seed).end()


def answered_per_s(told: Sequence[Told], part: float = 0.8) -> float:
    """Return how many answers a second came to a closed loop in the last part of its time."""
    ends_s = sorted(one.end_s for one in told if one.status == 200)
    from_s = ends_s[-1] - part * (ends_s[-1] - told[0].at_s)
    return sum(end_s > from_s for end_s in ends_s) / (ends_s[-1] - from_s)


# The process.


@dataclass
class _Connection(asyncio.Protocol):
    pool: list[_Connection]
    transport: asyncio.Transport | None = None
    told: asyncio.Future[tuple[int, int, float]] | None = None
    head: bytearray = field(default_factory=bytearray)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, content: bytes) -> None:
        self.head += content
        end = self.head.find(b"\r\n\r\n")
        if end < 0:
            return
        lower = bytes(self.head[:end]).lower()
        if len(self.head) < end + 4 + _number(lower, b"\r\ncontent-length: "):
            return
        status = int(self.head[9:12])
        self.head.clear()
        infer_s = _number(lower, b"infer;dur=") / 1e3
        self._end((status, int(_number(lower, b"\r\nretry-after-ms: ")), infer_s))
        self.pool.append(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._end((0, 0, 0.0))
        if self in self.pool:
            self.pool.remove(self)

    def _end(self, told: tuple[int, int, float]) -> None:
        if self.told is not None and not self.told.done():
            self.told.set_result(told)


def _number(head: bytes, name: bytes) -> float:
    at = head.find(name)
    found = re.match(rb"[\d.]+", head[at + len(name) :]) if at >= 0 else None
    return float(found[0]) if found else 0.0


class _Sender:
    def __init__(self, port: int) -> None:
        self.port = port
        self.began_s = time.monotonic()
        self.free: list[_Connection] = []
        self.told: dict[str, list[Told]] = {}

    async def send(self, stream: Stream, due_s: float) -> None:
        request = (
            f"POST {stream.path} HTTP/1.1\r\nhost: load\r\nauthorization: Bearer {stream.key}\r\n"
            f"x-request-timeout-seconds: {stream.deadline_s}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(stream.body)}\r\n\r\n{stream.body}"
        ).encode()
        loop = asyncio.get_running_loop()
        status, retry_ms, infer_s = 0, 0, 0.0
        try:
            if self.free:
                connection = self.free.pop()
            else:
                _, connection = await loop.create_connection(
                    lambda: _Connection(self.free), "127.0.0.1", self.port
                )
            connection.told = loop.create_future()
            assert connection.transport is not None
            connection.transport.write(request)
            async with asyncio.timeout(stream.deadline_s + GIVE_UP_S):
                status, retry_ms, infer_s = await connection.told
        except (OSError, TimeoutError):
            pass
        took_s = time.monotonic() - self.began_s - due_s
        self.told.setdefault(stream.name, []).append(Told(due_s, took_s, status, retry_ms, infer_s))

    async def open_loop(self, stream: Stream, dice: random.Random) -> None:
        due_s = stream.from_s
        await self._until(due_s)
        first = next(iter(self.told.values()))
        per_s = stream.per_s or stream.times * answered_per_s(first)
        async with asyncio.TaskGroup() as group:
            while (due_s := due_s + dice.expovariate(per_s)) < stream.from_s + stream.seconds:
                await self._until(due_s)
                group.create_task(self.send(stream, due_s))

    async def closed_loop(self, stream: Stream) -> None:
        await self._until(stream.from_s)
        while (now_s := time.monotonic() - self.began_s) < stream.from_s + stream.seconds:
            await self.send(stream, now_s)

    async def _until(self, at_s: float) -> None:
        left_s = self.began_s + at_s - time.monotonic()
        if left_s > 0:
            await asyncio.sleep(left_s)

    async def run(self, streams: Sequence[Stream], seed: int) -> None:
        async with asyncio.TaskGroup() as group:
            for stream in streams:
                self.told[stream.name] = []
                for _ in range(stream.clients):
                    group.create_task(self.closed_loop(stream))
                if not stream.clients:
                    dice = random.Random(f"{seed} {stream.name}")
                    group.create_task(self.open_loop(stream, dice))


def main() -> None:
    """Run the plan in argv[1]; write down what came of it."""
    port, seed, path, given = json.loads(sys.argv[1])
    streams = msgspec.convert(given, list[Stream])
    sender = _Sender(port)
    asyncio.run(sender.run(streams, seed))
    Path(path).write_bytes(msgspec.json.encode(sender.told))


if __name__ == "__main__":
    main()
