"""Reading a request's body: within its bounds, and whole or not at all.

    Content-Length   over the bound: 413 before anything is read; ended before it: 400
    chunked          counted while it is read; broken, cut off or with trailers: 400
    neither          there is no body
    all bodies       that this process holds, together within `Room`: 503
    refused unread   taken in if it is small, see `pass_over`
    slow             408: `body_due_s` says until when; whoever calls carries it out

Granian's iterator hides errors of framing: it gives an empty part where a body broke, and another
where it ended.  A body that ended well gives exactly one, its last, so the empty parts are counted.
Trailers look like a break, and nobody needs them here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol

from edge.errors import BadRequest, Overloaded, TooLarge, quote

Lookup = Callable[[str], str | None]

WHOLE_BYTES_MAX = 2 << 20  # larger ones come in parts, so that their pace can be seen
STEP_BYTES = 5 << 10  # while so much comes in `STEP_S`, a body may take longer: 1 KiB/s
STEP_S = 5.0
PARTS_FREE = 1024  # of any size; from there on they must have `PART_BYTES_MIN` on average,
PART_BYTES_MIN = 64  # because each costs as much as half a small request
RETRY_S = 1.0
ALWAYS_BYTES_MAX = 64 << 10  # what one request gets of the room, whoever holds the rest
TIDY_BYTES = 32 << 20  # of bodies that are gone, after which freed memory is worth looking for

PASSED_BYTES_MAX = 64 << 10  # of a body that is read only to keep its connection
PASSED_S_MAX = 0.05

_BROKEN = "the body did not arrive whole"


class Holder(Protocol):
    """What is kept of one request's body while it is under way."""

    held_bytes: int  # of the room
    body_due_s: float  # when the body must be here, on the monotonic clock; 0: not yet known

    @property
    def owner(self) -> str:
        """Whose request it is: a tenant; "" where nobody knows."""


class Room:
    """Bounds the bytes of all bodies that a process holds at a time."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        # The whole mutable state.
        self.held_bytes = 0
        self._held_by: dict[str, int] = {}  # owner → bytes
        self._released_bytes = 0  # since `wants_tidying` last said so

    def take(self, holder: Holder, size_bytes: int) -> None:
        """Make room for so many bytes more.

        A request that holds little gets it always: however large others are, small ones go on.
        No owner gets more than half.

        Raises:
            Overloaded: there is none now; what the request holds is its owner's to give back.
        """
        owner = holder.owner
        its_bytes = self._held_by.get(owner, 0) + size_bytes
        if holder.held_bytes + size_bytes > ALWAYS_BYTES_MAX:
            if self.held_bytes + size_bytes > self.bytes_max:
                raise Overloaded(
                    "the bodies of other requests take all the room there is",
                    retry_after_s=RETRY_S,
                )
            if owner and its_bytes > self.bytes_max // 2:
                raise Overloaded(
                    "this tenant's other bodies take all the room that one may have",
                    retry_after_s=RETRY_S,
                )
        self.held_bytes += size_bytes
        self._held_by[owner] = its_bytes
        holder.held_bytes += size_bytes

    def give_back(self, holder: Holder, size_bytes: int) -> None:
        """Let go of so many bytes."""
        self.held_bytes -= size_bytes
        holder.held_bytes -= size_bytes
        left_bytes = self._held_by.get(holder.owner, 0) - size_bytes
        if left_bytes > 0:
            self._held_by[holder.owner] = left_bytes
        else:
            self._held_by.pop(holder.owner, None)
        self._released_bytes += size_bytes

    def wants_tidying(self) -> bool:
        """Tell whether much was released, and little is held: once for each time that it is so."""
        if self._released_bytes < TIDY_BYTES or self.held_bytes > TIDY_BYTES >> 2:
            return False
        self._released_bytes = 0
        return True


async def receive(
    proto: Any, header: Lookup, bytes_max: int, room: Room, holder: Holder, read_s_max: float
) -> bytes:
    """Return the whole body of a request.

    Args:
        proto: granian's side of the request.
        header: finds a header.
        bytes_max: of the body as it is sent.
        room: out of which the body is held.
        holder: of the request; gets what is held, and until when a long body may take.
        read_s_max: how long a body may take that does not keep its pace.

    Raises:
        BadRequest: it did not arrive whole.
        TooLarge: it is over `bytes_max`.
        Overloaded: there is no room for it now.
    """
    given = header("content-length")
    try:
        if given is None:
            encoding = header("transfer-encoding")
            if encoding is None:
                return b""
            if encoding.strip().lower() != "chunked":
                raise BadRequest(f"Transfer-Encoding {quote(encoding)} is not supported")
            return await _in_parts(proto, None, bytes_max, room, holder, read_s_max)
        length = int(given)  # hyper lets only digits pass
        if length > bytes_max:
            raise _too_large(bytes_max)
        if length > WHOLE_BYTES_MAX:  # what has not come yet takes no room
            return await _in_parts(proto, length, bytes_max, room, holder, read_s_max)
        room.take(holder, length)
        body: bytes = await proto()
    except RuntimeError:  # granian: the client left, or its framing broke
        raise BadRequest(_BROKEN) from None
    if len(body) != length:
        raise BadRequest(_BROKEN)
    return body


async def pass_over(proto: Any, header: Lookup) -> None:
    """Take in a small body that nobody wants, so that its connection goes on with the next request.

    Hyper closes a connection on which it has answered before a body was read.  Clients that are
    over their quota would have to dial anew each time, which costs them and us more than the body,
    that mostly is there already.
    """
    length = header("content-length")
    if length is None or int(length) > PASSED_BYTES_MAX or header("expect") is not None:
        return
    try:
        async with asyncio.timeout(PASSED_S_MAX):
            await proto()
    except (TimeoutError, RuntimeError):  # it is not there; granian: the client left
        pass


async def _in_parts(
    proto: Any,
    length: int | None,
    bytes_max: int,
    room: Room,
    holder: Holder,
    read_s_max: float,
) -> bytes:
    holder.body_due_s = time.monotonic() + read_s_max
    body = bytearray()  # in one piece, which goes back to the system when it is freed
    parts = empty = marked_bytes = 0
    async for part in proto:
        parts += 1
        if not part:
            empty += 1
            continue
        if len(body) + len(part) > bytes_max:
            raise _too_large(bytes_max)
        room.take(holder, len(part))
        body += part
        if parts > PARTS_FREE and len(body) < parts * PART_BYTES_MIN:
            raise BadRequest(f"the body comes in parts of less than {PART_BYTES_MIN} bytes")
        if len(body) - marked_bytes >= STEP_BYTES:
            marked_bytes = len(body)
            holder.body_due_s = max(holder.body_due_s, time.monotonic() + STEP_S)
    if empty != 1 or (length is not None and len(body) != length):
        raise BadRequest(_BROKEN)
    return bytes(body)


def _too_large(bytes_max: int) -> TooLarge:
    return TooLarge(f"the body is over {bytes_max} bytes")
