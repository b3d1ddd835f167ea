"""Runs that are to be the only ones of their kind in the process, one after the other.

A process that dies of a run that was suspected must not take another suspect with it, of whatever
model: two would be blamed for what one has done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class Gate:
    """Lets one in at a time, in the order in which they came.

    >>> gate = Gate()
    >>> gate.enter(lambda: print("one"))
    one
    >>> gate.enter(lambda: print("two"))
    >>> gate.leave()
    two
    >>> gate.leave()
    """

    def __init__(self) -> None:
        # The whole mutable state: whether somebody is in, and who waits.
        self._is_taken = False
        self._waiting: deque[Callable[[], None]] = deque()

    def enter(self, begin: Callable[[], None]) -> None:
        """Call `begin` once nobody else is in; whoever is in leaves exactly once."""
        if self._is_taken:
            self._waiting.append(begin)
        else:
            self._is_taken = True
            begin()

    def leave(self) -> None:
        """Let the next one in."""
        if self._waiting:
            self._waiting.popleft()()
        else:
            self._is_taken = False
