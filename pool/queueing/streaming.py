"""One running stream: from an engine's iterator in its thread to the caller on the loop.

Owns the bound on what is under way between the two, and the stop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Final

from pool.engines.base import Session, Tensors, reason_of
from pool.queueing.ticket import Failed

# Pieces that may be on their way.  Enough that neither side waits for the other's wake-up;
# few enough that an engine cannot flood the loop or a slow reader's buffer.
CHUNKS_MAX: Final = 16


class Stream:
    """Runs one streaming call; `run` in the engine's thread, all else on the loop."""

    def __init__(
        self,
        session: Session,
        inputs: Tensors,
        outputs: tuple[str, ...],
        on_chunk: Callable[[Tensors], Awaitable[None] | None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._session = session
        self._inputs = inputs
        self._outputs = outputs
        self._on_chunk = on_chunk
        self._loop = loop
        # The whole mutable state: what may still be sent, whether to stop, and the tasks in
        # which a slow reader is waited for.
        self._room = threading.Semaphore(CHUNKS_MAX)
        self._is_stopped = False
        self._tasks: set[asyncio.Future[None]] = set()

    def stop(self) -> None:
        """Take nothing more from the engine and give nothing more to the caller."""
        self._is_stopped = True
        self._room.release()

    def run(self) -> Failed | None:
        """Take every piece from the engine; return None at its end.  Never raises."""
        try:
            pieces = self._session.stream(self._inputs)
            try:
                for piece in pieces:
                    self._room.acquire()
                    if self._is_stopped:
                        break
                    self._loop.call_soon_threadsafe(self._give, piece)
            finally:
                # A generator learns so that it was stopped; a plain iterator has no `close`.
                getattr(pieces, "close", _do_nothing)()
        except (Exception, SystemExit) as error:
            # Also an engine that wants to end the process: it is not its process.
            return Failed(500, f"the model failed: {reason_of(error)}")
        return None

    def _give(self, piece: Tensors) -> None:
        if self._is_stopped:
            return
        if self._outputs:
            piece = {name: piece[name] for name in self._outputs if name in piece}
        wait = self._on_chunk(piece)
        if wait is None:
            self._room.release()
            return
        task = asyncio.ensure_future(wait, loop=self._loop)
        self._tasks.add(task)
        task.add_done_callback(self._is_read)

    def _is_read(self, task: asyncio.Future[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # The reader is gone; its queue learns it as a cancel, in its own time.
            self._is_stopped = True
        self._room.release()


def _do_nothing() -> None:
    pass
