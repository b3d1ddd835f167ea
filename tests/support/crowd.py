"""Many clients that call at the same moment, each on a connection of its own."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.support.stack import Stack

_LENGTH = re.compile(rb"(?i)content-length: (\d+)")
_TOTAL = re.compile(rb"total;dur=([\d.]+)")


@dataclass(frozen=True)
class Told:
    """What one client got, and when."""

    status: int
    body: Any
    took_s: float  # from the moment at which all began to send
    edge_s: float  # as the edge says in Server-Timing


async def crowd(
    stack: Stack, path: str, requests: list[tuple[Mapping[str, Any], str]]
) -> list[Told]:
    """Send requests at once over connections that are open already.

    Args:
        requests: bodies, and deadlines in seconds as text.
    """
    ends = []
    for _ in requests:
        ends.append(await asyncio.open_connection("127.0.0.1", stack.port, limit=1 << 20))
    began_s = time.monotonic()
    for (_, writer), (body, deadline_s) in zip(ends, requests, strict=True):
        content = json.dumps(body)
        writer.write(
            f"POST {path} HTTP/1.1\r\nhost: crowd\r\nauthorization: Bearer {stack.key}\r\n"
            f"x-request-timeout-seconds: {deadline_s}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(content)}\r\n\r\n{content}".encode()
        )
    told = await asyncio.gather(*(_read(reader, began_s) for reader, _ in ends))
    for _, writer in ends:
        writer.close()
    return told


async def _read(reader: asyncio.StreamReader, began_s: float) -> Told:
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    body = await reader.readexactly(int(length[1]) if length else 0)
    took_s = time.monotonic() - began_s
    total = _TOTAL.search(head)
    edge_s = float(total[1]) / 1e3 if total else 0.0
    return Told(int(head.split()[1]), json.loads(body), took_s, edge_s)
