"""What the client of a stream is told while its call waits for an engine to wake: SSE comments.

A reader of events passes comments over, so that they harm no client; they show a person how far
the wake is, and keep proxies from taking the connection for a dead one.  Nothing is sent for a call
that does not wait for a wake, so that its failure stays an ordinary answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from edge.dispatching.calls import Call
from edge.stream import Part, Parts

COMMENT_S: Final = 1.0  # between two; and before the first, so that short wakes cost nothing


class Transport(Protocol):
    """A stream towards a client."""

    async def send_bytes(self, data: bytes) -> None: ...


class Waits:
    """What a call waits for, as it was last said."""

    def __init__(self) -> None:
        # The whole mutable state: what is not told yet.
        self._text = ""

    def hear(self, phase: str, left_s: float) -> None:
        """Take what the worker says of the load; 0 s: it does not know how long that takes."""
        words = "".join(c for c in phase if c.isalnum() or c in "_- ")
        self._text = f"waking: {words}" + (f", about {left_s:.1f} s left" if left_s else "")

    def comment(self, call: Call, *, has_begun: bool) -> bytes:
        """Return the next comment; empty if there is nothing new, or the call waits no more."""
        text, self._text = self._text, ""
        if call.conn is None and not call.future.done() and (has_begun or call.is_starting):
            text = "waiting for a worker"
        return f": {text}\n\n".encode() if text else b""


async def first_parts(
    parts: Parts, call: Call, waits: Waits, begin: Callable[[], Transport]
) -> tuple[list[Part], Transport | None]:
    """Wait for the first parts of a stream, and keep its client posted meanwhile.

    Args:
        begin: starts the answer.

    Returns:
        As `Parts.take`, and the answer's stream if it has begun.
    """
    transport: Transport | None = None
    taking = asyncio.ensure_future(parts.take())
    try:
        while True:
            await asyncio.wait([taking], timeout=COMMENT_S)
            if taking.done():
                return taking.result(), transport
            if comment := waits.comment(call, has_begun=transport is not None):
                transport = transport or begin()
                await transport.send_bytes(comment)
    finally:
        taking.cancel()
