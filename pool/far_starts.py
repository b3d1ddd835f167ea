"""How long it takes until a worker is there whose machine has to be started first.

Pure: knows no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Container, Mapping
from statistics import median_low
from typing import Final

# Before anything is known: an instance, its image, the container's image, a process.
GUESS_S: Final = 240.0
STARTS: Final = 5  # of which the middle one is what a start takes
# One that takes longer than it should is expected in so much of a start.
OVERDUE: Final = 1 / 4


class FarStarts:
    """Learns from every start.

    >>> starts = FarStarts()
    >>> starts.look({"w": True}, (), 10.0)
    >>> starts.left_s(100.0, 40.0, ["v", "w"]), starts.left_s(100.0, 40.0, ["v"])
    (70.0, 100.0)
    >>> starts.look({}, ("w",), 90.0)
    >>> starts.start_s(100.0)
    80.0
    """

    def __init__(self) -> None:
        # The whole mutable state: since when each place is asked for, and how long the last took.
        self._since_s: dict[str, float] = {}
        self._took_s: deque[float] = deque(maxlen=STARTS)

    def look(self, asked: Mapping[str, bool], there: Container[str], now_s: float) -> None:
        """Take note of how things are.

        Args:
            asked: places that nobody can dial and that are to be up; whether that begins now, and
                is not the machine of a worker that was only lost for a moment.
            there: workers that have registered.
            now_s: monotonic.
        """
        self._took_s.extend(
            now_s - since_s for name, since_s in self._since_s.items() if name in there
        )
        self._since_s = {
            name: self._since_s.get(name, now_s)
            for name, begins in asked.items()
            if name not in there and (begins or name in self._since_s)
        }

    def start_s(self, guess_s: float) -> float:
        """Return how long a start takes.

        Args:
            guess_s: what it is taken for before the first one; 0: nobody can say.
        """
        return median_low(self._took_s) if self._took_s else guess_s or GUESS_S

    def left_s(self, guess_s: float, now_s: float, workers: Collection[str]) -> float:
        """Return how long it takes until one of these workers is there that is wanted at once."""
        start_s = self.start_s(guess_s)
        since_s = (self._since_s[name] for name in workers if name in self._since_s)
        waited_s = now_s - min(since_s, default=now_s)
        return max(start_s - waited_s, start_s * OVERDUE)
