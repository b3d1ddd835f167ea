"""What calls cost that nobody waits for any more: their runs go on, and are paid for all the same.

The worker says so when such a run is over; until then somebody has to know whose call it was.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

CALLS_MAX: Final = 4096  # of one connection; most never ran, and of those nothing is heard


class LateBills:
    """Who pays for the calls of one connection that have ended before their runs, by their ids."""

    __slots__ = ("_payers",)

    def __init__(self) -> None:
        # The whole mutable state: where each call's device time is counted, the oldest first.
        self._payers: OrderedDict[int, dict[str, int]] = OrderedDict()

    def add(self, call_id: int, device_us: dict[str, int] | None) -> None:
        """Remember who pays for a call that has ended, and may be running still."""
        if device_us is not None:
            self._payers[call_id] = device_us
            if len(self._payers) > CALLS_MAX:
                self._payers.popitem(last=False)

    def take(self, call_id: int) -> dict[str, int] | None:
        """Return who pays for a call, and forget it."""
        return self._payers.pop(call_id, None)

    def clear(self) -> None:
        """Forget all: the worker is gone, and what it ran with it."""
        self._payers.clear()
