"""A load client for machines without wrk: keep-alive connections on one event loop.

Runs as `python -m infra.bench.client PLAN`, PLAN being JSON, and prints one line of
figures as wrk's script does.  It understands answers with a Content-Length only.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
import time
import urllib.parse
from pathlib import Path
from typing import cast

import msgspec
import uvloop

from infra.bench.tally import MARK, Tally

HEAD_END = b"\r\n\r\n"


class Plan(msgspec.Struct, frozen=True):
    """What to send, to whom, how often."""

    url: str
    method: str
    headers: dict[str, str]
    body_path: str
    vary_at: tuple[int, ...]
    start: int
    clients: int
    duration_s: float


class Count:
    """What all connections of a run have in common: the figures and the next varied body."""

    def __init__(self, plan: Plan) -> None:
        url = urllib.parse.urlsplit(plan.url)
        self.host = url.hostname or "127.0.0.1"
        self.port = url.port or (443 if url.scheme == "https" else 80)
        self.tls = ssl.create_default_context() if url.scheme == "https" else None
        body = Path(plan.body_path).read_bytes()
        headers = {"Host": url.netloc, **plan.headers, "Content-Length": str(len(body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        prefix = f"{plan.method} {url.path or '/'} HTTP/1.1\r\n{head}\r\n".encode()
        self._request = bytearray(prefix + body)
        self._vary_at = [len(prefix) + at for at in plan.vary_at]
        # The whole mutable state: the next body's number, and what was seen.
        self._next = plan.start
        self.latencies_s: list[float] = []
        self.connect = self.read = self.status = 0
        self.stopped = False

    def request(self) -> bytes:
        """Return the next request's bytes, the body varied where it should be."""
        rest = self._next
        self._next += 1
        for at in self._vary_at:
            self._request[at] = rest & 255
            rest >>= 8
        return bytes(self._request)


class Connection(asyncio.Protocol):
    """Sends a request, waits for the whole answer, sends the next."""

    def __init__(self, count: Count) -> None:
        self._count = count
        self._answer = bytearray()
        self._answer_bytes = 0  # of the answer under way; 0: its head has not come yet
        self._sent_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport does what asyncio.Transport says but is no subclass of it.
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def _send(self) -> None:
        self._answer.clear()
        self._answer_bytes = 0
        self._sent_s = time.perf_counter()
        self._transport.write(self._count.request())

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if not self._answer_bytes:
            head_bytes = self._answer.find(HEAD_END)
            if head_bytes < 0:
                return
            length = content_length(bytes(self._answer[:head_bytes]))
            if length is None:
                self._transport.close()
                return
            self._answer_bytes = head_bytes + len(HEAD_END) + length
        if len(self._answer) < self._answer_bytes or self._count.stopped:
            return
        self._count.latencies_s.append(time.perf_counter() - self._sent_s)
        if self._answer[9:10] != b"2":
            self._count.status += 1
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._count.stopped:
            self._count.read += 1


def content_length(head: bytes) -> int | None:
    """Return the length that an answer's head announces, or None."""
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return None


async def run(plan: Plan) -> Tally:
    """Carry out a plan and return what was seen."""
    count = Count(plan)
    loop = asyncio.get_running_loop()
    started_s = time.perf_counter()
    for _ in range(plan.clients):
        try:
            await loop.create_connection(
                lambda: Connection(count), count.host, count.port, ssl=count.tls
            )
        except OSError:
            count.connect += 1
    await asyncio.sleep(plan.duration_s)
    count.stopped = True
    seen = sorted(count.latencies_s)
    return Tally(
        requests=len(seen),
        duration_us=int((time.perf_counter() - started_s) * 1e6),
        connect=count.connect,
        read=count.read,
        write=0,
        timeout=0,
        status=count.status,
        p50_us=int(seen[len(seen) // 2] * 1e6) if seen else 0,
        p99_us=int(seen[len(seen) * 99 // 100] * 1e6) if seen else 0,
    )


def main() -> None:
    plan = msgspec.json.decode(sys.argv[1], type=Plan)
    tally = uvloop.run(run(plan))
    sys.stdout.write(f"{MARK}{msgspec.json.encode(tally).decode()}\n")


if __name__ == "__main__":
    main()
