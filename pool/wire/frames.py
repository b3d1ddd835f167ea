"""The framing of both wires: two lengths, a msgpack header, raw bytes.

    frame  =  header_bytes: u32 | body_bytes: u32 | header | body        (big-endian lengths)
    header =  one msgpack array, [kind, field, field, ...]               (see data.py, control.py)
    body   =  data wire: the tensors' bytes in header order, each padded with zeros to 8 bytes
              control wire: the message itself, which may be longer than a header; no header

    summed frame  =  header_bytes: u32 | body_bytes: u32 | sum of these 8 bytes: 8 bytes
                     | sum of header and body: 8 bytes | header | body

Between hosts frames carry sums (XXH3 of 64 bits): what a network card, a switch or a memory has
changed on the way must not become an answer, and TCP's own 16 bits let too much pass.  The lengths
have a sum of their own: with a wrong one we would wait for bytes that never come.  On one host, and
under TLS, frames carry none.

The body is never touched on its way: it is received into a buffer of its own, which begins on a
16-byte boundary, so that every tensor in it is aligned for every datatype.
This module knows nothing of messages, sockets or time.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import TypeAlias

from xxhash import xxh3_64, xxh3_64_digest

Buffer: TypeAlias = "bytes | bytearray | memoryview"

PREFIX = struct.Struct("!II")
_unpack_prefix = PREFIX.unpack_from
SUMMED_PREFIX_BYTES = PREFIX.size + 16
ALIGN_BYTES = 8  # the largest OIP element
HEADER_BYTES_MAX = 1 << 20  # 1,024 tensors with names of 900 bytes would fit
BODY_BYTES_MAX = 256 << 20  # four times the largest HTTP body (64 MiB), for outputs
COALESCE_BYTES_MAX = 64 << 10  # below this one write of a joined copy beats several buffers
_PADDING = bytes(ALIGN_BYTES)


class WireError(Exception):
    """The peer sent bytes that are no message of this wire; the connection must be closed."""


def padded(count_bytes: int) -> int:
    """Return the room that a tensor of `count_bytes` takes in a body."""
    return (count_bytes + ALIGN_BYTES - 1) & -ALIGN_BYTES


def encode(header: bytes, parts: Sequence[Buffer] = ()) -> list[Buffer]:
    """Return the buffers to write for one frame, tensors' bytes uncopied when they are large.

    Raises:
        ValueError: the frame is over the wire's bounds, or a part is a view of anything but
            single bytes, whose length would not be its size.
    """
    body_bytes = 0
    for part in parts:
        if type(part) is memoryview and part.nbytes != len(part):
            raise ValueError(f"a part must be a view of bytes, not of {part.format!r}")
        body_bytes += (len(part) + 7) & -8
    buffers: list[Buffer] = [_prefix(len(header), body_bytes) + header]
    for part in parts:
        buffers.append(part)
        if len(part) & 7:
            buffers.append(_PADDING[: -len(part) & 7])
    if body_bytes <= COALESCE_BYTES_MAX and len(buffers) > 1:
        return [b"".join(buffers)]
    return buffers


def encode_message(message: bytes) -> list[Buffer]:
    """Return the buffers to write for one frame without a header, whose body is `message`.

    Raises:
        ValueError: the frame is over the wire's bounds.
    """
    prefix = _prefix(0, len(message))
    return [prefix + message] if len(message) <= COALESCE_BYTES_MAX else [prefix, message]


def _prefix(header_bytes: int, body_bytes: int) -> bytes:
    if header_bytes > HEADER_BYTES_MAX or body_bytes > BODY_BYTES_MAX:
        raise ValueError(
            f"a frame of {header_bytes} + {body_bytes} bytes is over the wire's bounds "
            f"({HEADER_BYTES_MAX} + {BODY_BYTES_MAX})"
        )
    return PREFIX.pack(header_bytes, body_bytes)


def summed(buffers: Sequence[Buffer]) -> list[Buffer]:
    """Return the buffers of a frame of `encode` with its sums; large parts stay uncopied."""
    first = bytes(buffers[0])
    lengths, start = first[:8], first[8:]
    if len(buffers) == 1:
        return [lengths + xxh3_64_digest(lengths) + xxh3_64_digest(start) + start]
    rest = buffers[1:]
    return [lengths + xxh3_64_digest(lengths) + _sum_of(start, *rest) + start, *rest]


def _sum_of(*buffers: Buffer) -> bytes:
    found = xxh3_64()
    for buffer in buffers:
        found.update(buffer)
    return found.digest()


class FrameReader:
    """Cuts what a socket delivers into frames.  Sans I/O: the caller owns the socket.

    Small frames are read through one scratch buffer and copied out; a body that does not fit
    there gets a buffer of its own, into which the socket then writes directly.
    Memory is bounded by the two limits: a length over them raises before anything is allocated.
    """

    SCRATCH_BYTES = 128 << 10

    def __init__(
        self,
        on_frame: Callable[[bytes, Buffer], None],
        header_bytes_max: int = HEADER_BYTES_MAX,
        body_bytes_max: int = BODY_BYTES_MAX,
    ) -> None:
        self.on_frame = on_frame
        self.header_bytes_max = header_bytes_max
        self.body_bytes_max = body_bytes_max
        # The whole mutable state: whether frames carry sums; the scratch buffer and how much of it
        # is filled; and while a large frame is under way, its header, sum and own buffer.
        self._prefix_bytes = 8
        self._scratch = bytearray(self.SCRATCH_BYTES)
        self._view = memoryview(self._scratch)
        self._filled_bytes = 0
        self._needed_bytes = 8  # before there is anything to do: a prefix, a frame, a header
        self._large: bytearray | None = None
        self._large_view = memoryview(b"")
        self._large_header = b""
        self._large_sum = b""
        self._large_filled_bytes = 0

    def expect_sums(self) -> None:
        """Take every frame from the next one on for a summed one."""
        self._prefix_bytes = self._needed_bytes = SUMMED_PREFIX_BYTES

    def buffer(self) -> memoryview:
        """Return where the next bytes of the stream belong; never empty."""
        if self._large is not None:
            return self._large_view[self._large_filled_bytes :]
        return self._view[self._filled_bytes :]

    def received(self, count_bytes: int) -> None:
        """Take note that `count_bytes` were written to `buffer()`; deliver complete frames.

        Raises:
            WireError: a length is over its limit, or a sum does not fit.
        """
        if self._large is not None:
            self._large_filled_bytes += count_bytes
            if self._large_filled_bytes == len(self._large):
                header, body = self._large_header, self._large
                self._large = None
                self._large_view = memoryview(b"")
                if self._prefix_bytes != 8 and _sum_of(header, body) != self._large_sum:
                    raise _damaged(len(header), len(body))
                self.on_frame(header, body)
            return
        self._filled_bytes += count_bytes
        self._cut()

    def _cut(self) -> None:
        start, filled = 0, self._filled_bytes
        if filled < self._needed_bytes:
            return
        prefix_bytes = self._prefix_bytes
        header_bytes, body_bytes = self._lengths(self._view, 0)
        end = prefix_bytes + header_bytes + body_bytes
        # One copy for all frames of this read; slices of bytes are the cheapest there are.
        read = bytes(self._view[:filled]) if end <= filled else b""
        while end <= filled:
            begin = start + prefix_bytes
            if prefix_bytes != 8 and xxh3_64_digest(read[begin:end]) != read[start + 16 : begin]:
                raise _damaged(header_bytes, body_bytes)
            self.on_frame(read[begin : begin + header_bytes], read[begin + header_bytes : end])
            start = end
            prefix_bytes = self._prefix_bytes  # the end of a handshake changes it
            if filled - start < prefix_bytes:
                self._keep(start, prefix_bytes)
                return
            header_bytes, body_bytes = self._lengths(read, start)
            end = start + prefix_bytes + header_bytes + body_bytes
        self._await(start, header_bytes, body_bytes)

    def _lengths(self, buffer: Buffer, start: int) -> tuple[int, int]:
        header_bytes, body_bytes = _unpack_prefix(buffer, start)
        if self._prefix_bytes != 8 and (
            xxh3_64_digest(buffer[start : start + 8]) != buffer[start + 8 : start + 16]
        ):
            raise _damaged(header_bytes, body_bytes)
        if header_bytes > self.header_bytes_max or body_bytes > self.body_bytes_max:
            raise WireError(
                f"a frame announces {header_bytes} + {body_bytes} bytes; "
                f"at most {self.header_bytes_max} + {self.body_bytes_max} are taken"
            )
        return header_bytes, body_bytes

    def _await(self, start: int, header_bytes: int, body_bytes: int) -> None:
        """Make ready for the rest of the frame that begins at `start`."""
        header_end = start + self._prefix_bytes + header_bytes
        needed_bytes = header_end - start + body_bytes
        if needed_bytes > self.SCRATCH_BYTES:
            if header_end <= self._filled_bytes:
                self._begin_large(start, header_end, self._filled_bytes, body_bytes)
                return
            needed_bytes = header_end - start
            self._grow(needed_bytes)
        self._keep(start, needed_bytes)

    def _keep(self, start: int, needed_bytes: int) -> None:
        """Move what is left to the front, and wait until `needed_bytes` are there."""
        if start:
            rest = bytes(self._view[start : self._filled_bytes])
            self._view[: len(rest)] = rest
            self._filled_bytes = len(rest)
        self._needed_bytes = needed_bytes

    def _begin_large(self, start: int, header_end: int, filled: int, body_bytes: int) -> None:
        begin = start + self._prefix_bytes
        self._large_header = bytes(self._view[begin:header_end])
        self._large_sum = bytes(self._view[start + 16 : begin])  # where there is one
        self._large = bytearray(body_bytes)
        self._large_view = memoryview(self._large)
        count = filled - header_end
        self._large_view[:count] = self._view[header_end:filled]
        self._large_filled_bytes = count
        self._filled_bytes = 0
        self._needed_bytes = self._prefix_bytes

    def _grow(self, count_bytes: int) -> None:
        """Make room for a header that is itself larger than the scratch buffer (rare)."""
        if len(self._scratch) >= count_bytes:
            return
        larger = bytearray(count_bytes)
        larger[: self._filled_bytes] = self._view[: self._filled_bytes]
        self._scratch = larger
        self._view = memoryview(larger)


def _damaged(header_bytes: int, body_bytes: int) -> WireError:
    return WireError(
        f"a frame of {header_bytes} + {body_bytes} bytes came damaged: its sum differs"
    )
