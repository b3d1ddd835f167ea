"""Who waits for one engine, and what is to be known of them.

Owns the tickets that wait, their deadlines, and how fast more of them arrive.  Settles nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from pool.admission import Admission
from pool.expiry import Expiries
from pool.line import Line
from pool.profile import ArrivalRate
from pool.ticket import Ticket


class Lobby:
    """The tickets that wait.

    Args:
        expire: called with one whose deadline passes while it waits, once `watch` was said.
        clock: of the tickets' times.
        loop: for the timer.
    """

    def __init__(
        self,
        expire: Callable[[Ticket], None],
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        # The whole mutable state: who waits, in order, and which of them have come since the last
        # step; what was seen of arrivals and refusals.
        self.line = Line()
        self.bytes = 0
        self.admission = Admission()
        self.arrivals = ArrivalRate()
        self._arrived: list[Ticket] = []
        self._expiries = Expiries(self.line, expire, clock, loop)

    def __len__(self) -> int:
        return len(self.line)

    def __bool__(self) -> bool:
        return bool(self.line)

    @property
    def rows(self) -> int:
        """How many rows the tickets have together."""
        return self.line.rows

    def add(self, ticket: Ticket, *, is_next: bool) -> None:
        """Let a ticket wait; one that may be next is not watched before `watch_arrived`."""
        self.line.add(ticket)
        self.bytes += ticket.bytes
        if is_next:
            self._arrived.append(ticket)  # most run at once and never need watching
        else:
            self._expiries.watch(ticket)

    def watch_arrived(self) -> None:
        """Watch over the deadlines of those who came for the step that was done, and still wait."""
        for ticket in self._arrived:
            if ticket in self.line:
                self._expiries.watch(ticket)
        self._arrived.clear()

    def remove(self, ticket: Ticket) -> None:
        """Take a ticket out, if it is in."""
        if self.line.remove(ticket):
            self.bytes -= ticket.bytes

    def first(self, count: int) -> list[Ticket]:
        """Return the first tickets of the head's shape."""
        first: list[Ticket] = []
        for ticket in self.line:
            if not first or ticket.shape_key == first[0].shape_key:
                first.append(ticket)
                if len(first) == count:
                    break
        return first

    def take(self, tickets: Sequence[Ticket], row_s: float = 0.0) -> None:
        """Take tickets out; those that run are charged with so many seconds for each row."""
        for ticket in tickets:
            self.remove(ticket)
        if row_s:
            self.line.charge(tickets, row_s)
        if not self.line:
            self.admission.cleared()

    def succeed(self, old: Lobby) -> None:
        """Take over who waits in `old`, in order, and what was seen there."""
        self.arrivals = old.arrivals
        self.admission = old.admission
        for ticket in old.everybody():
            old.remove(ticket)
            self.add(ticket, is_next=False)

    def everybody(self) -> list[Ticket]:
        """Return all who wait, each tenant's by arrival."""
        self.line.look(0.0, is_standing=False)
        return list(self.line)

    def close(self) -> None:
        """Forget all deadlines."""
        self._expiries.close()
