"""Who waits for one engine, and what is to be known of them.

Owns the tickets that wait, their deadlines, and how fast more of them arrive.  Settles nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from pool.queueing.admission import Admission, Ahead
from pool.queueing.batching import Limits
from pool.queueing.expiry import Expiries
from pool.queueing.line import Line
from pool.queueing.profile import ArrivalRate
from pool.queueing.ticket import Failed, Ticket

OVERLOADED = "overloaded: the deadline cannot be met; try again later, or allow more time"
OVER_SHARE = (
    "this key's tenant has more calls waiting than its share of the model's time can answer by "
    "their deadlines, while others wait; send fewer at a time"
)


def misfit(ticket: Ticket, output_names: frozenset[str], *, streams: bool) -> Failed | None:
    """Refuse a ticket that the engine cannot answer, whenever its turn is."""
    if not output_names.issuperset(ticket.outputs):
        unknown = next(name for name in ticket.outputs if name not in output_names)
        known = ", ".join(sorted(output_names))
        return Failed(422, f'there is no output "{unknown}"; the outputs are: {known}')
    if streams and ticket.on_chunk is None:
        return Failed(422, "this model answers in pieces: ask for a stream")
    return None


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
        arrived = self._arrived
        if arrived and self.line.rows:
            for ticket in arrived:
                if ticket in self.line:
                    self._expiries.watch(ticket)
        arrived.clear()

    def refusal(
        self,
        ticket: Ticket,
        now_s: float,
        ahead: Ahead,
        limits: Limits,
        arrival_rows_per_s: float,
    ) -> Failed | None:
        """Refuse a ticket that came last, if it would be answered after its deadline.

        Args:
            ticket: whose arrival was noted.
            now_s: on the tickets' clock.
            ahead: what it would wait for.
            limits: of the engine.
            arrival_rows_per_s: lately.
        """
        tenant = ticket.tenant
        if not self.line.has(tenant):
            self.admission.standing.discard(tenant)
        retry_after_s = self.admission.refused_s(
            tenant,
            ticket.rows,
            left_s=ticket.deadline_s - now_s,
            slo_s=ticket.deadline_s - ticket.arrived_s,
            ahead=ahead,
            limits=limits,
            arrival_rows_per_s=arrival_rows_per_s,
        )
        if not retry_after_s:
            return None
        if self.admission.has_rivals(now_s) and self.line.has_most(tenant):
            return Failed(429, OVER_SHARE, retry_after_s)
        return Failed(503, OVERLOADED, retry_after_s)

    def remove(self, ticket: Ticket) -> None:
        """Take a ticket out, if it is in."""
        if self.line.remove(ticket):
            self.bytes -= ticket.bytes

    def first(self, count: int) -> list[Ticket]:
        """Return the first tickets of the head's shape."""
        if count == 1:
            return [next(iter(self.line))]
        first: list[Ticket] = []
        for ticket in self.line:
            if not first or ticket.shape_key == first[0].shape_key:
                first.append(ticket)
                if len(first) == count:
                    break
        return first

    def take(self, tickets: Sequence[Ticket], row_s: float = 0.0) -> None:
        """Take tickets out; those that run are charged with so many seconds for each row."""
        line = self.line
        for ticket in tickets:
            if line.remove(ticket):
                self.bytes -= ticket.bytes
        line.charge(tickets, row_s)
        if not line.rows:
            self.admission.standing.clear()

    def succeed(self, old: Lobby) -> None:
        """Take over who waits in `old`, in order, and what was seen there."""
        self.arrivals = old.arrivals
        self.admission = old.admission
        for ticket in old.everybody():
            old.remove(ticket)
            self.add(ticket, is_next=False)

    def everybody(self) -> list[Ticket]:
        """Return all who wait, each tenant's by arrival."""
        self.line.look(0.0, ())
        return list(self.line)

    def close(self) -> None:
        """Forget all deadlines."""
        self._expiries.close()
