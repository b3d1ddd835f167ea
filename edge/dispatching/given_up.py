"""The calls that a worker was last told to drop: it may be running them still, and die of one.

Nobody hears how they end.  Without them whoever leaves before the worker dies would never be
suspected, however many workers it costs.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from edge.dispatching.calls import Call, Carrier

CALLS_MAX: Final = 16
BYTES_MAX: Final = 1 << 20  # of the inputs of one; a larger one is not kept
KEPT_S: Final = 10.0


class GivenUp:
    """Those of one connection, by their ids on it."""

    def __init__(self) -> None:
        # The whole mutable state: the calls, when they were given up, in that order.
        self._calls: OrderedDict[int, tuple[Call, float]] = OrderedDict()

    def add(self, call: Call, now_s: float) -> None:
        """Remember a call that its worker was told to drop."""
        if sum([len(tensor.data) for tensor in call.inputs]) <= BYTES_MAX:
            self._calls[call.id] = (call, now_s)
            if len(self._calls) > CALLS_MAX:
                self._calls.popitem(last=False)

    def began(self, call_id: int, *, is_only: bool) -> None:
        """Take note of the word that a call runs alone: any other such run is over."""
        for call, _ in self._calls.values():
            if call.has_begun or call.id == call_id:
                call.has_begun = call.id == call_id
                call.is_only = call.has_begun and is_only

    def take(self, carrier: Carrier, now_s: float) -> list[Call]:
        """Return those that `carrier` may have been running just now, and forget them all.

        Not those that were only sent elsewhere.
        """
        calls, self._calls = self._calls, OrderedDict()
        return [
            call
            for call, at_s in calls.values()
            if now_s - at_s < KEPT_S and call.future.done() and call.conn is carrier
        ]
