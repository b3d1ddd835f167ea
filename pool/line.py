"""The tickets that wait for one engine, in the order in which they are served.

By priority, then by arrival.  Priorities run from 1, the highest, to 100, the lowest; who names
none has `PRIORITY_DEFAULT`, in the middle, so that others can step behind as well as before.

Strict: a ticket waits for every one of a higher priority, however long it has waited.  Nothing
ages, because a ticket's wait has a bound of its own, its deadline: at that moment it is refused,
whatever its priority.  A low priority may cost an answer; it lets nobody wait for ever.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain

from pool.ticket import Ticket
from registry_sync.documents import PRIORITY_DEFAULT


class Line:
    """Tickets by (priority, arrival); each is in it once.

    As long as nobody names a priority it is one ordered dict and costs what that costs.  Besides,
    there is one for each priority that somebody waits with.
    """

    __slots__ = ("_default", "_levels", "_order")

    def __init__(self) -> None:
        # The whole mutable state: who waits with the default priority, and who with another one,
        # by priority; and all of these in order while there is any but the default.
        self._default: OrderedDict[Ticket, None] = OrderedDict()
        self._levels: dict[int, OrderedDict[Ticket, None]] = {}
        self._order: list[OrderedDict[Ticket, None]] | None = None

    def add(self, ticket: Ticket) -> None:
        """Let `ticket` wait behind everybody of its priority or a higher one."""
        priority = ticket.priority
        if priority == PRIORITY_DEFAULT:
            self._default[ticket] = None
            return
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = OrderedDict()
            self._sort()
        level[ticket] = None

    def remove(self, ticket: Ticket) -> bool:
        """Take `ticket` out; tell whether it was in."""
        if ticket in self._default:
            del self._default[ticket]
            return True
        level = self._levels.get(ticket.priority)
        if level is None or ticket not in level:
            return False
        del level[ticket]
        if not level:
            del self._levels[ticket.priority]
            self._sort()
        return True

    def _sort(self) -> None:
        if not self._levels:
            self._order = None
            return
        levels = {**self._levels, PRIORITY_DEFAULT: self._default}
        self._order = [levels[priority] for priority in sorted(levels)]

    def __iter__(self) -> Iterator[Ticket]:
        """Go through the tickets as they are to be served."""
        if self._order is None:
            return iter(self._default)
        return chain.from_iterable(self._order)

    def __contains__(self, ticket: object) -> bool:
        if ticket in self._default:
            return True
        return any(ticket in level for level in self._levels.values())

    def __len__(self) -> int:
        if self._order is None:
            return len(self._default)
        return sum(map(len, self._order))
