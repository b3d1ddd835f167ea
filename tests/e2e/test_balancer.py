"""Pooled clients that pause between requests, behind a balancer with the idle time-out of an ALB.

A balancer closes what was silent for 60 s.  A server that closes sooner will, some day, close just
as the balancer sends the next request on that connection, and a POST may not be sent again.  So the
edge is told to keep connections for longer, and one that is not shows what happens then.

Between both is a network that takes its time: the window in which they miss each other is twice as
long as its way.  The short form is the same with all times divided.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.stack import Node
from tests.support.models import identity
from tests.support.nginx import balancer
from tests.support.nodes import Tier
from tests.support.stack import Stack, free_port, running_stack, until
from tests.support.toxics import toxic_proxy

IDLE_S = 60.0  # of an ALB, unless it is told otherwise
KEEP_ALIVE_S = 75.0  # as infra/terraform tells the edge
KEEP_ALIVE_S_DEFAULT = 5.0
PAUSE_S_MIN, PAUSE_S_MAX = 4.0, 70.0
DELAY_S = 0.025  # of the network, one way
WALL_S_MAX = 150.0  # the longest pause takes half of it; the rest is for company
CLIENTS = 120  # of an edge that is not told
# Where client and balancer may miss each other: a client looks before it sends, but not while.
FRONT_S = 3.0

pytestmark = pytest.mark.nginx


@dataclass(frozen=True)
class Seen:
    """What clients got: how often each status (0: the connection was closed), and how soon."""

    statuses: Counter[int]
    connections: int  # towards the edge
    wall_s: float

    @property
    def failed(self) -> int:
        return self.statuses.total() - self.statuses[200]


def pauses_s(divisor: float) -> list[float]:
    """Return a pause for each client: all over the range, but where it races itself.

    Every other one would miss the end of its connection if that came after a whole second.
    """
    front_s = max(FRONT_S, 0.15 * divisor)
    found = [PAUSE_S_MIN, PAUSE_S_MAX]
    for second in range(int(PAUSE_S_MIN), int(PAUSE_S_MAX)):
        found += [second + 0.5, second + 1 - DELAY_S * divisor]
    return [pause_s / divisor for pause_s in found if abs(pause_s - IDLE_S) > front_s]


def missing_s(keep_alive_s: float) -> list[float]:
    """Return pauses after which a request meets, on its way, the end of its connection."""
    return [keep_alive_s - 2 * DELAY_S * (at + 0.5) / CLIENTS for at in range(CLIENTS)]


class Caller:
    """A client that keeps its connection, and looks whether it is still open before it sends."""

    def __init__(self, port: int, path: str, key: str, body: bytes) -> None:
        self._port = port
        self._request = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self) -> int:
        """Return the status of one request; 0: the connection was closed instead."""
        if self._streams is None or self._streams[0].at_eof():
            await self.close()
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        try:
            writer.write(self._request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            [length] = re.findall(r"content-length: (\d+)", head)
            await reader.readexactly(int(length))
            return int(head.split()[1])
        except (OSError, asyncio.IncompleteReadError):
            await self.close()
            return 0

    async def close(self) -> None:
        if self._streams is not None:
            _, writer = self._streams
            self._streams = None
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _calling(
    callers: Sequence[tuple[Caller, float]], long_s: float, posts_min: int
) -> Counter[int]:
    """Let all call for so long, each at least so often; return how often which status came."""
    seen: Counter[int] = Counter()
    end_s = time.monotonic() + long_s

    async def calls(caller: Caller, pause_s: float) -> None:
        posts = 0
        while posts < posts_min or time.monotonic() + pause_s <= end_s:
            if posts:
                await asyncio.sleep(pause_s)
            seen[await caller.post()] += 1
            posts += 1
        await caller.close()

    async with asyncio.TaskGroup() as tasks:
        for caller, pause_s in callers:
            tasks.create_task(calls(caller, pause_s))
    return seen


@dataclass(frozen=True)
class Edges:
    """One stack, with an edge told of its balancer, and one that is not."""

    stack: Stack
    divisor: float
    told_port: int
    default_port: int
    folder: Path

    def seen(
        self, port: int, pauses_s: Sequence[float], *, long_s: float = 0.0, posts_min: int = 2
    ) -> Seen:
        """Let a client with each of the pauses call for so long, through balancer and network."""
        body = {
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]
        }
        began_s = time.monotonic()
        with (
            toxic_proxy(("127.0.0.1", port)) as network,
            balancer(
                self.folder / f"nginx-{uuid.uuid4().hex}",
                IDLE_S / self.divisor,
                [network.port] * len(pauses_s),
            ) as at,
        ):
            network.toxics.delay_s = DELAY_S
            callers = [
                (
                    Caller(at, f"/{number}/v2/models/echo/infer", self.stack.key, _json(body)),
                    pause_s,
                )
                for number, pause_s in enumerate(pauses_s)
            ]
            statuses = asyncio.run(_calling(callers, long_s, posts_min))
            return Seen(statuses, network.accepted, time.monotonic() - began_s)


@contextlib.contextmanager
def edges(folder: Path, divisor: float) -> Iterator[Edges]:
    keep_alive = ("--keep-alive-s", str(KEEP_ALIVE_S / divisor))
    with running_stack(folder / "stack", arguments=keep_alive) as stack:
        port = free_port()
        other = Tier(
            "edge",
            (
                *("edge", "--data", str(folder / "other"), "--port", str(port)),
                *("--admin-port", str(free_port()), "--lame-duck-s", "0"),
                *("--controller", Node(stack.data).control),
                *("--keep-alive-s", str(KEEP_ALIVE_S_DEFAULT / divisor)),
            ),
            {},
            folder / "edge.log",
        )
        try:
            other.start()
            stack.publish("echo", identity(folder / "echo.onnx"))
            stack.until_ready("echo")
            seen = Edges(stack, divisor, stack.port, port, folder)
            until(lambda: _answers(port, stack.key), 60.0, "the other edge answers")
            yield seen
        finally:
            other.stop()


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edges]:
    with edges(tmp_path_factory.mktemp("e"), 30.0) as found:
        yield found


def check(edges: Edges) -> Seen:
    """No request of clients that pause for any time fails; what they did is returned."""
    pauses = pauses_s(edges.divisor)
    seen = edges.seen(edges.told_port, pauses, long_s=PAUSE_S_MAX / edges.divisor)
    assert seen.failed == 0, seen.statuses
    # Connections were kept: who pauses for less than the balancer's time-out needed one.
    kept = sum(pause_s < IDLE_S / edges.divisor for pause_s in pauses)
    assert len(pauses) <= seen.connections <= kept + 2 * (len(pauses) - kept)
    assert seen.statuses.total() > 3 * len(pauses)
    return seen


def test_no_request_fails_whatever_the_pause(scaled: Edges) -> None:
    check(scaled)


def test_an_edge_that_closes_before_the_balancer_fails_requests(scaled: Edges) -> None:
    pauses = missing_s(KEEP_ALIVE_S_DEFAULT / scaled.divisor)
    seen = scaled.seen(scaled.default_port, pauses, posts_min=4)
    assert seen.statuses[502] > 0, seen.statuses


@pytest.mark.slow
def test_no_request_fails_at_the_real_times(tmp_path: Path) -> None:
    with edges(tmp_path, 1.0) as real, ThreadPoolExecutor() as beside:
        short = beside.submit(real.seen, real.default_port, missing_s(KEEP_ALIVE_S_DEFAULT))
        seen = check(real)
        assert seen.wall_s <= WALL_S_MAX
        assert short.result().statuses[502] > 0, short.result().statuses
        told, untold = dict(seen.statuses), dict(short.result().statuses)
        print(f"75 s: {told} on {seen.connections} connections; 5 s: {untold}")


def _json(body: object) -> bytes:
    return json.dumps(body).encode()


def _answers(port: int, key: str) -> bool:
    async def ask() -> int:
        with contextlib.suppress(OSError):
            caller = Caller(port, "/v2/models/echo/infer", key, b"{}")
            status = await caller.post()
            await caller.close()
            return status
        return 0

    return asyncio.run(ask()) == 400
