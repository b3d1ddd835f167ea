"""The parts of one stream between the worker that sends them and the client that reads them.

Owns the bounds.  There is no flow control: not towards the worker, whose connection other calls
share, and not from the client, as granian 2.8 takes whatever a stream sends without waiting
(emmett-framework/granian#885; what came of it, #898, is for ASGI and WSGI).  So a stream as a whole
is bounded: what its client does not read lies in this process.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from pool.wire.data import TensorLike

Part = Sequence[TensorLike]

STREAM_BYTES_MAX = 64 << 20  # of events of one stream: as much as a request may have
UNSENT_BYTES_MAX = 8 << 20  # as much as a worker keeps for an edge that is behind
PART_BYTES = 256  # what a part costs beside its tensors' bytes
TAKEN_BYTES_MAX = 64 << 10  # are sent together; one write for each part would be slower than models


class Parts:
    """What has come and is not sent yet.

    Args:
        on_overfull: called once, when too much is unsent; nothing is taken in any more, and what
            was is forgotten.
    """

    def __init__(self) -> None:
        self.on_overfull: Callable[[], object] | None = None
        # The whole mutable state.
        self._parts: deque[tuple[int, Part]] = deque()
        self._unsent_bytes = 0
        self._is_ended = False
        self._is_overfull = False
        self._arrived = asyncio.Event()

    def put(self, part: Part) -> None:
        """Take in the next part."""
        if self._is_overfull:
            return
        cost_bytes = PART_BYTES + sum(len(tensor.data) for tensor in part)
        if self._parts and self._unsent_bytes + cost_bytes > UNSENT_BYTES_MAX:
            self._is_overfull = True
            self._parts.clear()
            if self.on_overfull is not None:
                self.on_overfull()
        else:
            self._parts.append((cost_bytes, part))
            self._unsent_bytes += cost_bytes
        self._arrived.set()

    def end(self) -> None:
        """Say that no more comes."""
        self._is_ended = True
        self._arrived.set()

    async def take(self) -> list[Part]:
        """Wait for parts and return those that are there, up to 64 KiB of them; [] at the end."""
        while not self._parts:
            if self._is_ended:
                return []
            self._arrived.clear()
            await self._arrived.wait()
        taken: list[Part] = []
        taken_bytes = 0
        while self._parts and taken_bytes < TAKEN_BYTES_MAX:
            cost_bytes, part = self._parts.popleft()
            taken_bytes += cost_bytes
            taken.append(part)
        self._unsent_bytes -= taken_bytes
        return taken
