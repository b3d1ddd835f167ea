"""The tickets that wait for one engine, in the order in which they are served.

By priority, then fairly between tenants, then by arrival.  Priorities run from 1, the highest, to
100, the lowest; who names none has `PRIORITY_DEFAULT`, in the middle, so that others can step
behind as well as before.

Strict: a ticket waits for every one of a higher priority, however long it has waited.  Nothing
ages, because a ticket's wait has a bound of its own, its deadline: at that moment it is refused,
whatever its priority.  A low priority may cost an answer; it lets nobody wait for ever.

Tenants of one priority share the engine's predicted seconds by their weights: next is whoever has
used the least of it for its weight.  Who calls now and then and stays within his part gets ahead of
the others by up to `EARNED_S` of it and goes first, however many calls of others wait; who was away
comes back `CREDIT_S` ahead.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator
from itertools import chain
from typing import Final

from pool.queueing.profile import (
    DEVIATION_FIRST,
    DEVIATION_GAIN,
    DEVIATIONS,
    MEAN_GAIN,
    OUTLIER_FACTOR,
    PESSIMISM_MAX,
    trust_after,
)
from pool.queueing.ticket import Ticket
from registry_sync.documents import PRIORITY_DEFAULT

# Of the engine's time, times a tenant's share.  Whoever comes back with a flood may take the engine
# for so long from all who want more than their part; who stays within it has got further ahead.
CREDIT_S: Final = 1.5
# A tenant that uses nine tenths of its part, at random moments, needs 1 to 2 s to stay ahead.
EARNED_S: Final = 2.0
KNOWN_MAX: Final = 1024  # tenants of which is known what they have used
FIRST_ROWS: Final = 8  # of a tenant none of whose runs is known, that are not held against it
ROW_S: Final = 0.001  # what a row takes, before anything has run: only ratios count then
# Whoever has waited for more of its time than this, while calls are being refused, is late.
LATE_SHARE: Final = 0.75


class _Party:
    """The tickets of one tenant at one priority, by arrival."""

    __slots__ = (
        "came_s",
        "deviation_s",
        "margin_s",
        "ran_s",
        "row_s",
        "rows",
        "share",
        "spent_s",
        "tickets",
    )

    def __init__(self) -> None:
        self.tickets: OrderedDict[Ticket, None] = OrderedDict()
        self.rows = 0
        self.share = 1.0
        self.spent_s = 0.0  # of the engine's time, over its share
        self.came_s = 0.0  # what the level had spent when it last came
        # Where calls run one by one: what a row of its own runs takes in the mean, and how far
        # off that is; 0: not known.
        self.row_s = 0.0
        self.deviation_s = 0.0
        self.margin_s = 0.0  # how much longer nearly every one takes at most
        self.ran_s = 0.0  # when the last of them ended

    def learn(self, row_s: float, now_s: float) -> None:
        """Learn from a run of its own that took so long for each row."""
        mean_s = self.row_s
        is_news = row_s < mean_s and trust_after(now_s - self.ran_s) < 1.0
        if is_news or not mean_s:
            # What is not trusted any more gives way to better news.
            self.row_s, self.deviation_s = row_s, DEVIATION_FIRST * row_s
        else:
            error_s = min(row_s, OUTLIER_FACTOR * (mean_s + self.margin_s)) - mean_s
            self.row_s += MEAN_GAIN * error_s
            self.deviation_s += DEVIATION_GAIN * (abs(error_s) - self.deviation_s)
        self.margin_s = min(DEVIATIONS * self.deviation_s, PESSIMISM_MAX * self.row_s)
        self.ran_s = now_s


class _Level:
    """Everybody of one priority."""

    __slots__ = ("known", "spent_s", "waiting")

    def __init__(self) -> None:
        # The whole mutable state: tenants that were seen, those of them that wait, and what the
        # one had spent before that was served last.
        self.known: dict[str, _Party] = {}
        self.waiting: dict[str, _Party] = {}
        self.spent_s = 0.0

    def comes(self, ticket: Ticket) -> _Party:
        """Return the place of a tenant none of whose tickets has waited so far."""
        tenant = ticket.tenant
        starts_s = self.starts_s(tenant)
        party = self.known.get(tenant)
        if party is None:
            if len(self.known) >= KNOWN_MAX:
                self.known = dict(self.waiting)
            party = self.known[tenant] = _Party()
        party.spent_s, party.came_s = starts_s, self.spent_s
        party.share = ticket.share
        self.waiting[tenant] = party
        return party

    def is_only(self, tenant: str) -> bool:
        """Tell whether nobody else waits."""
        return len(self.waiting) == (tenant in self.waiting)

    def starts_s(self, tenant: str) -> float:
        """Return what a tenant is taken to have spent if it comes now."""
        party = self.known.get(tenant)
        if party is not None and party.tickets:
            return party.spent_s
        if party is None:
            return self.spent_s - CREDIT_S
        was_away = self.spent_s - party.came_s > EARNED_S
        return max(party.spent_s, self.spent_s - (CREDIT_S if was_away else EARNED_S))


class Line:
    """Tickets by (priority, fair turn of the tenant, arrival); each is in it once.

    As long as nobody names a priority and there is one tenant, it is one ordered dict and costs
    what that costs.

    Source:
        Start-time fair queueing (Goyal et al., SIGCOMM 1996), over seconds of the engine.  Does
        what a deficit round robin over seconds does, without rounds: who comes back need not wait
        for one to end.
    """

    __slots__ = ("_default", "_levels", "_now_s", "_order", "_row_s", "_standing", "rows")

    def __init__(self) -> None:
        # The whole mutable state: who waits with the default priority, and who with another one,
        # by priority; all of these in order while there is any but the default; rows that wait.
        self._default = _Level()
        self._levels: dict[int, _Level] = {}
        self._order: list[_Level] | None = None
        self.rows = 0
        # What a row takes by the last run; the last look at the clock, and what was known then.
        self._row_s = ROW_S
        self._now_s = 0.0
        self._standing: Container[str] = ()

    def add(self, ticket: Ticket) -> None:
        """Let `ticket` wait behind everybody of its tenant and priority, or of a higher one."""
        level = self._level_of(ticket)
        if level is None:
            level = self._levels[ticket.priority] = _Level()
            self._sort()
        if not self.rows:
            # Nobody has waited since the last look: that time was enough for everybody.
            idle_s = max(0.0, ticket.arrived_s - self._now_s)
            for one in (self._default, *self._levels.values()):
                one.spent_s += idle_s
        party = level.waiting.get(ticket.tenant)
        if party is None:
            party = level.comes(ticket)
        party.tickets[ticket] = None
        party.rows += ticket.rows
        self.rows += ticket.rows

    def remove(self, ticket: Ticket) -> bool:
        """Take `ticket` out; tell whether it was in."""
        level = self._level_of(ticket)
        party = None if level is None else level.waiting.get(ticket.tenant)
        if level is None or party is None or ticket not in party.tickets:
            return False
        del party.tickets[ticket]
        party.rows -= ticket.rows
        self.rows -= ticket.rows
        if not party.tickets:
            del level.waiting[ticket.tenant]
            if not level.waiting and level is not self._default:
                del self._levels[ticket.priority]
                self._sort()
        return True

    def _level_of(self, ticket: Ticket) -> _Level | None:
        priority = ticket.priority
        return self._default if priority == PRIORITY_DEFAULT else self._levels.get(priority)

    def _sort(self) -> None:
        if not self._levels:
            self._order = None
            return
        levels = {**self._levels, PRIORITY_DEFAULT: self._default}
        self._order = [levels[priority] for priority in sorted(levels)]

    def charge(self, tickets: Iterable[Ticket], row_s: float) -> None:
        """Note that `tickets` were taken for a run of so many seconds for each row."""
        if row_s > 0:
            self._row_s = row_s
        for ticket in tickets:
            level = self._level_of(ticket)
            party = None if level is None else level.known.get(ticket.tenant)
            if level is not None and party is not None:
                level.spent_s = max(level.spent_s, party.spent_s)
                party.spent_s += (party.row_s or self._row_s) * ticket.rows / party.share

    def learn(self, ticket: Ticket, run_s: float, now_s: float) -> None:
        """Note what a run of `ticket` alone has taken, that ended now."""
        party = self._known(ticket)
        if party is not None:
            party.learn(run_s / ticket.rows, now_s)

    def known_s(self, ticket: Ticket, now_s: float) -> tuple[float, float, float]:
        """Tell what runs of the tenant take: the mean, nearly the longest, how much to believe it.

        Zeros until one is known.  The belief halves with every second without a run of its own: a
        wrong figure, by which all its calls look hopeless, would else never be corrected while
        others keep the engine busy.
        """
        party = self._known(ticket)
        if party is None or not party.row_s:
            return 0.0, 0.0, 0.0
        mean_s = party.row_s * ticket.rows
        high_s = mean_s + party.margin_s * ticket.rows
        return mean_s, high_s, trust_after(now_s - party.ran_s)

    def work_before(
        self, ticket: Ticket, mean_s: float, margin_s: float
    ) -> tuple[int, float, float]:
        """Predict what runs before `ticket`, if it came now, each row by those of its tenant.

        Args:
            ticket: that does not wait yet.
            mean_s: of a row of whom nothing is known.
            margin_s: how much longer such a row may take.

        Returns:
            Rows; seconds, where those that take longer than the mean make up for the others; and
            how long its tenant would need for what it has waiting, with its part of the engine.
        """
        its = self._level_of(ticket)
        if its is self._default and self._order is None and len(its.waiting) == 1:
            own = its.waiting.get(ticket.tenant)
            if own is not None and own.row_s:
                own_s = own.row_s * own.rows
                return own.rows, own_s + own.margin_s * math.sqrt(own.rows), own_s
        rows, work_s, variance, own_s = 0, 0.0, 0.0, 0.0
        own = None if its is None else its.waiting.get(ticket.tenant)
        for party, count in self._before(ticket):
            rows += count
            row_s, off_s = (party.row_s, party.margin_s) if party.row_s else (mean_s, margin_s)
            if party is own and not party.row_s:
                # Its first calls are let in: nobody knows that they take as long as others.
                count = max(0, count - FIRST_ROWS)
            work_s += row_s * count
            variance += off_s * off_s * count
            if party is own and its is not None:
                shares = sum([one.share for one in its.waiting.values()])
                own_s = row_s * count * shares / party.share
        return rows, work_s + math.sqrt(variance), own_s

    def _known(self, ticket: Ticket) -> _Party | None:
        level = self._level_of(ticket)
        return None if level is None else level.known.get(ticket.tenant)

    def look(self, now_s: float, standing: Container[str]) -> None:
        """Go by this time, and by which tenants have more to do than can be done.

        One of these whose oldest ticket is late is then served from the newest on, which can still
        be in time for certain.
        """
        self._now_s = now_s
        self._standing = standing

    def has(self, tenant: str) -> bool:
        """Tell whether a tenant waits."""
        return any(tenant in level.waiting for level in (self._default, *self._levels.values()))

    def has_most(self, tenant: str) -> bool:
        """Tell whether a tenant waits, and no other has more seconds waiting for its share."""
        waiting: dict[str, float] = {}
        for level in (self._default, *self._levels.values()):
            for name, party in level.waiting.items():
                work_s = party.rows * (party.row_s or self._row_s)
                waiting[name] = waiting.get(name, 0.0) + work_s / party.share
        return tenant in waiting and waiting[tenant] >= max(waiting.values())

    def rows_before(self, ticket: Ticket) -> int:
        """Count the rows that are served before those of `ticket`, if it came now."""
        return sum([count for _, count in self._before(ticket)])

    def _before(self, ticket: Ticket) -> list[tuple[_Party, int]]:
        """Tell how many rows of whom are served before those of `ticket`, if it came now."""
        if self._order is None and self._default.is_only(ticket.tenant):
            return [(party, party.rows) for party in self._default.waiting.values()]
        before: list[tuple[_Party, int]] = []
        for priority, level in self._levels.items():
            if priority < ticket.priority:
                before += [(party, party.rows) for party in level.waiting.values()]
        if ticket.priority > PRIORITY_DEFAULT:
            before += [(party, party.rows) for party in self._default.waiting.values()]
        its = self._level_of(ticket)
        if its is None:
            return before
        turn_s = its.starts_s(ticket.tenant)
        own = its.waiting.get(ticket.tenant)
        if own is not None:
            turn_s += (own.row_s or self._row_s) * own.rows / ticket.share
            before.append((own, own.rows))
        for party in its.waiting.values():
            if party is not own:
                row_s = party.row_s or self._row_s
                count = int((turn_s - party.spent_s) * party.share / row_s)
                if count > 0:
                    before.append((party, min(party.rows, count)))
        return before

    def __iter__(self) -> Iterator[Ticket]:
        """Go through the tickets as they are to be served."""
        if self._order is None:
            if not self._standing and len(self._default.waiting) == 1:
                return iter(next(iter(self._default.waiting.values())).tickets)
            return self._in_turn(self._default)
        return chain.from_iterable(map(self._in_turn, self._order))

    def _in_turn(self, level: _Level) -> Iterator[Ticket]:
        if len(level.waiting) == 1:
            ((tenant, party),) = level.waiting.items()
            return self._own_order(tenant, party)
        return self._by_turns(level)

    def _by_turns(self, level: _Level) -> Iterator[Ticket]:
        turns = [
            (party.spent_s, index, party, self._own_order(tenant, party))
            for index, (tenant, party) in enumerate(level.waiting.items())
        ]
        heapq.heapify(turns)
        while turns:
            spent_s, index, party, tickets = turns[0]
            ticket = next(tickets, None)
            if ticket is None:
                heapq.heappop(turns)
                continue
            yield ticket
            spent_s += (party.row_s or self._row_s) * ticket.rows / party.share
            heapq.heapreplace(turns, (spent_s, index, party, tickets))

    def _own_order(self, tenant: str, party: _Party) -> Iterator[Ticket]:
        if tenant in self._standing:
            oldest = next(iter(party.tickets))
            slo_s = oldest.deadline_s - oldest.arrived_s
            if self._now_s - oldest.arrived_s > LATE_SHARE * slo_s:
                return reversed(party.tickets)
        return iter(party.tickets)

    def __contains__(self, ticket: object) -> bool:
        if not isinstance(ticket, Ticket):
            return False
        level = self._level_of(ticket)
        party = None if level is None else level.waiting.get(ticket.tenant)
        return party is not None and ticket in party.tickets

    def __len__(self) -> int:
        if self._order is None:
            return sum([len(party.tickets) for party in self._default.waiting.values()])
        return sum([len(one.tickets) for level in self._order for one in level.waiting.values()])

    def __bool__(self) -> bool:
        return self.rows > 0
