"""The wake estimates of a node, kept in its data folder so that a new process knows them.

    DATA/loading/<worker>/wakes.json   written by one worker, read by all when they begin

Best effort: what cannot be read or written is learned again.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import msgspec
import structlog

from pool.wake_estimates import Ref, Wake, WakeEstimates

NAME: Final = "wakes.json"
BYTES_MAX: Final = 4 << 20

_log = structlog.get_logger()
_rows_of = msgspec.json.Decoder(list[Wake])


class WakeBook:
    """What one worker knows of wakes.

    Args:
        folder: of this worker, the same for every process of it; beside those of the others.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        # The whole mutable state: the estimates, and the task that keeps them, which is to do so
        # again if there was news meanwhile.
        self._estimates = WakeEstimates()
        self._keeping: asyncio.Task[None] | None = None
        self._has_news = False
        for path in (self._path, *sorted(folder.parent.glob(f"*/{NAME}"))):
            self._estimates.take(_read(path))

    def wake_s(self, ref: Ref) -> float:
        """Return how long a wake takes that begins now; 0: not known."""
        return self._estimates.wake_s(ref)

    def learn(self, ref: Ref, engine: str, wake_s: float) -> None:
        """Learn from a wake, and keep it in the background.  Call it on the loop."""
        self._estimates.learn(ref, engine, wake_s)
        self._has_news = True
        if self._keeping is None or self._keeping.done():
            self._keeping = asyncio.get_running_loop().create_task(self._keep())

    async def _keep(self) -> None:
        while self._has_news:
            self._has_news = False
            data = msgspec.json.encode(self._estimates.rows())
            try:
                await asyncio.to_thread(_write, self._path, data)
            except OSError as error:
                _log.warning("wakes_not_kept", error=error.strerror or str(error))


def _read(path: Path) -> list[Wake]:
    try:
        if path.stat().st_size > BYTES_MAX:
            return []
        return _rows_of.decode(path.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError) as error:
        _log.warning("wakes_unreadable", path=str(path), error=str(error))
        return []


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(data)
    partial.replace(path)
