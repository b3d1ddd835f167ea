"""Writes log lines from a thread, so that nobody waits for whoever reads them.

A pipe that nobody empties, or a disk that stands still, blocks the thread; lines then pile up to a
bound, and what comes beyond it is counted and left out.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable

ITEMS_MAX = 1024  # texts, or bundles of lines that the thread renders

Item = str | Callable[[], bytes]


class LogWriter:
    """The file that a process logs to; `write` never blocks.

    Args:
        descriptor: of an open file; the thread alone writes to it.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._items: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_forever, name="log", daemon=True)
        self.lost = 0  # items that nobody could be made to read
        self._thread.start()

    def write(self, text: str) -> int:
        """Take a text to be written soon."""
        self.put(text)
        return len(text)

    def flush(self) -> None:
        """Do nothing: the thread writes each item at once."""

    def put(self, item: Item) -> bool:
        """Take a text, or what renders one in the thread; False if it is lost."""
        if self._items.qsize() >= ITEMS_MAX:
            self.lost += 1
            return False
        self._items.put(item)
        return True

    def close(self, timeout_s: float) -> None:
        """Write what was taken, for at most `timeout_s`."""
        self._items.put(None)
        self._thread.join(timeout_s)

    def _write_forever(self) -> None:
        while (item := self._items.get()) is not None:
            data = item.encode(errors="replace") if isinstance(item, str) else item()
            try:
                while data:
                    data = data[os.write(self._descriptor, data) :]
            except OSError:  # a closed pipe or a full disk costs the lines, not the service
                self.lost += 1
