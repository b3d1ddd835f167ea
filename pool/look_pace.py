"""When a controller looks at the registry, where a queue tells it of changes.

A message is a look at once.  Beside that there are looks at a slow pace, because messages are late
or lost at times; at the usual pace as long as the queue cannot be relied on: it does not answer, or
a look of the slow pace found what no message had told.  So it is after a look that the registry did
not answer in full, and each reign begins with one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

SLOW_S: Final = 300.0  # what a lost message costs at most
HEARD_S_MAX: Final = 60.0  # two receives of 20 s and their ways


@dataclass(frozen=True, slots=True)
class Pace:
    """What is known; all times are on the caller's monotonic clock, in seconds."""

    heard_s: float = float("-inf")  # when the queue answered last
    looked_s: float = float("-inf")  # when the last look began that the registry answered
    is_believed: bool = True  # False: it was silent about a change

    def is_due(self, now_s: float) -> bool:
        """Tell whether a round of the usual pace is to look.

        >>> Pace(heard_s=100.0, looked_s=100.0).is_due(110.0)
        False
        >>> Pace(heard_s=100.0, looked_s=100.0, is_believed=False).is_due(110.0)
        True
        """
        return not self._is_relied_on(now_s) or now_s - self.looked_s >= SLOW_S

    def could_tell(self, now_s: float) -> bool:
        """Tell whether a change since the last look should have been told by now."""
        return self._is_relied_on(now_s) and self.looked_s > float("-inf")

    def _is_relied_on(self, now_s: float) -> bool:
        return self.is_believed and now_s - self.heard_s <= HEARD_S_MAX

    def heard(self, now_s: float, *, is_event: bool) -> Pace:
        """Take in that the queue answered; `is_event`: with a change of this registry."""
        return replace(self, heard_s=now_s, is_believed=self.is_believed or is_event)

    def deaf(self) -> Pace:
        """Take in that the queue did not answer."""
        return replace(self, heard_s=float("-inf"))

    def looked(self, began_s: float, *, has_answered: bool) -> Pace:
        """Take in a look."""
        return replace(self, looked_s=began_s if has_answered else float("-inf"))

    def missed(self) -> Pace:
        """Take in that a look found what the queue, which answers, had not told."""
        return replace(self, is_believed=False)
