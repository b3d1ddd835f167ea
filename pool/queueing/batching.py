"""Which tickets an idle engine runs next: adaptive early drop.

What cannot be on time is dropped, then the largest batch that can be on time runs at once.
An engine that is busy is what lets a batch grow: nothing is held back for company, unless
deadlines are so tight that a batch which began too soon cannot be made up for.  Decides only;
`pool.queueing.engine_queue` carries it out.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, islice
from typing import Final, TypeAlias

import msgspec

from pool.queueing.ticket import Ticket

# How far behind the head its company is looked for, in batches.  Bounds a decision when
# tickets of many shapes wait: a few shapes still fill their batches, many shapes get less.
SCAN_BATCHES_MAX: Final = 16
# A deadline below so many times what a run costs whatever its size is tight: who arrives while
# one batch runs has hardly the time for another.
TIGHT_RUNS: Final = 4.0
# With tight deadlines, the best batch is looked for also among so many rows behind the first.
ROWS_BEHIND_MAX: Final = 16
# Timers of a loop count in milliseconds: pauses that are shorter than this are not made, and
# what may not begin later than some moment is not to wait until then.
PAUSE_S_MIN: Final = 0.0005


class Limits(msgspec.Struct, frozen=True):
    """What an engine allows."""

    rows_max: int
    # Predicted duration of a run of so many rows, pessimistic (about p99), never falling.
    run_s: Callable[[int], float]


class Shed(msgspec.Struct, frozen=True):
    """Give up the first `count` tickets of the head's shape: they cannot be on time."""

    count: int


class Run(msgspec.Struct, frozen=True):
    """Run the first `count` tickets of the head's shape together, now."""

    count: int


class Wait(msgspec.Struct, frozen=True):
    """Do nothing until `until_s` or the next arrival; then decide again."""

    until_s: float


Decision: TypeAlias = Shed | Run | Wait


def decide(
    waiting: Iterable[Ticket], now_s: float, limits: Limits, arrival_rows_per_s: float
) -> Decision:
    """Choose the next step for an idle engine.

    Heads are shed while they would be late in the batch that is sought, or in all that waits
    if that is less.  Running them in a smaller batch would be on time, and make everybody
    behind them late.  Only who has the head's own priority counts as behind it: nobody is shed
    for the sake of a lower one.  Then the longest prefix runs with which everybody in it is on
    time.  Sought is the size that keeps up with the arrivals (`target_rows`).

    A head whose deadline is tight, below `TIGHT_RUNS` times the fixed part of a run, waits for
    one batch at most, so there is no rate to keep up with.  Then the largest batch is sought
    that those who wait can make on time (`largest_rows`).  And when all that wait would run,
    they wait until nobody has come for the time that one more row takes, as long as one more
    would still be on time: whoever comes during the run is mostly lost, so who comes in a burst
    is to be in one batch.

    Tickets count by their rows and are never split; one with more rows than `rows_max` runs
    alone.  Tickets that differ in shape never share a run: only those with the head's shape
    are looked at, the others keep their places.

    Args:
        waiting: tickets in the order in which they are to be served, by priority first; not
            empty.  Gone through once, and no further than a decision needs.
        now_s: the time of the decision, on the tickets' clock.
        limits: what the engine allows.
        arrival_rows_per_s: lately, of this engine; 0 if unknown.

    Returns:
        The one next step.  Calling again after carrying it out gives the next, so a caller
        loops and never has to combine decisions.

    Source:
        Early drop and its sliding window follow Nexus (SOSP 2019); the size that follows the
        arrival rate is derived in `target_rows`.  Runs of consecutive tickets are optimal
        for equal deadlines on one engine, by an exchange argument.  The pause is the deferral
        of Symphony (2023), ended by the first gap, not by the deadline.
    """
    rows_max, run_s = limits.rows_max, limits.run_s
    tickets = iter(waiting)
    head = next(tickets, None)
    assert head is not None, "an empty queue has no next step"
    slo_s = head.deadline_s - head.arrived_s
    fixed_s, per_row_s = _costs_s(limits)
    is_tight = slo_s < TIGHT_RUNS * fixed_s
    queue = _look(head, tickets, rows_max, ROWS_BEHIND_MAX if is_tight and rows_max > 1 else 0)

    peers, rows = queue.mates, queue.rows
    if queue.behind:
        peers = peers + queue.behind
        rows += sum([ticket.rows for ticket in queue.behind])
    if peers[-1].priority != head.priority:
        peers = [ticket for ticket in peers if ticket.priority == head.priority]
        rows = sum([ticket.rows for ticket in peers])
    if is_tight:
        sought = largest_rows(peers, now_s, limits)
    else:
        sought = _keeping_up(fixed_s, per_row_s, rows_max, slo_s, arrival_rows_per_s)
    shed = _count_late(peers, rows, now_s, run_s, sought)
    if shed:
        return Shed(shed)
    if is_tight and queue.has_room and per_row_s >= PAUSE_S_MIN:
        until_s = _pause_until_s(queue, per_row_s, run_s)
        if now_s < until_s:
            return Wait(until_s)
    return Run(_longest_on_time(queue.mates, queue.rows, now_s, run_s))


def target_rows(limits: Limits, slo_s: float, arrival_rows_per_s: float) -> int:
    """Say how many rows a batch needs at least, to keep up with the arrivals on time.

    With a run time of α·b + β, the head of a batch can wait at most SLO − (α·b + β) for its
    start, and only λ times as many rows arrive in that time: b ≤ λ(SLO − α·b − β), so
    b* = λ(SLO − β) / (1 + λα).

    Returns:
        b*, at least 1 and at most `limits.rows_max`.

    >>> target_rows(Limits(32, lambda b: 0.0005 * b + 0.004), 0.025, 1000.0)
    14
    """
    fixed_s, per_row_s = _costs_s(limits)
    return _keeping_up(fixed_s, per_row_s, limits.rows_max, slo_s, arrival_rows_per_s)


def largest_rows(waiting: Sequence[Ticket], now_s: float, limits: Limits) -> int:
    """Say how many rows the largest batch has that those who wait can make on time.

    A batch is some ticket with those right behind it.  The nearer to the end of the queue it
    begins, the fewer are left for it, and the later its deadline; so the largest begins with the
    first ticket that is on time with everybody behind it, or as many of them as a run takes.
    Exact for tickets of one row whose deadlines never fall; else near it.

    Returns:
        at least 1, though nobody be on time, and at most `limits.rows_max`.
    """
    rows_max, run_s = limits.rows_max, limits.run_s
    rest = list(accumulate([ticket.rows for ticket in reversed(waiting)]))
    count = len(rest)

    def is_on_time(place: int) -> bool:
        rows = min(rows_max, rest[count - 1 - place])
        return now_s + run_s(rows) <= waiting[place].deadline_s

    first = bisect_left(range(count), True, key=is_on_time)
    return min(rows_max, rest[count - 1 - first]) if first < count else 1


def _costs_s(limits: Limits) -> tuple[float, float]:
    """Return β and α: what a run costs whatever its size, and what each row adds."""
    first_s = limits.run_s(1)
    if limits.rows_max == 1:
        return first_s, 0.0
    per_row_s = (limits.run_s(limits.rows_max) - first_s) / (limits.rows_max - 1)
    return max(0.0, first_s - per_row_s), per_row_s


def _keeping_up(
    fixed_s: float, per_row_s: float, rows_max: int, slo_s: float, arrival_rows_per_s: float
) -> int:
    rows = arrival_rows_per_s * (slo_s - fixed_s) / (1.0 + arrival_rows_per_s * per_row_s)
    return max(1, min(rows_max, math.floor(rows)))


class _Queue(msgspec.Struct):
    """What a decision looks at."""

    mates: list[Ticket]  # the head and those that can join it in one run
    behind: list[Ticket]  # more of the head's shape
    rows: int  # of the mates
    has_room: bool  # everybody who waits is a mate, and one more row could be


def _look(head: Ticket, others: Iterator[Ticket], rows_max: int, rows_behind_max: int) -> _Queue:
    """Find the head's company; and up to so many rows of its shape that are more than it takes."""
    mates, behind = [head], list[Ticket]()
    rows, rows_bound, shape_key = head.rows, min(rows_max, head.rows_max), head.shape_key
    is_open = has_room = rows < rows_bound
    if not is_open and not rows_behind_max:
        return _Queue(mates, behind, rows, has_room=False)
    for ticket in islice(others, SCAN_BATCHES_MAX * rows_max - 1):
        if ticket.shape_key != shape_key:
            has_room = False
            continue
        if is_open:
            rows_joined = rows + ticket.rows
            if rows_joined <= rows_bound and rows_joined <= ticket.rows_max:
                mates.append(ticket)
                rows = rows_joined
                if ticket.rows_max < rows_bound:
                    rows_bound = ticket.rows_max
                is_open = rows < rows_bound
                if is_open or rows_behind_max:
                    continue
                break
            is_open = False
        rows_behind_max -= ticket.rows
        if rows_behind_max < 0:
            break
        behind.append(ticket)
    return _Queue(mates, behind, rows, has_room=has_room and is_open)


def _count_late(
    peers: Sequence[Ticket],
    rows_left: int,
    now_s: float,
    run_s: Callable[[int], float],
    sought: int,
) -> int:
    """Count the heads that would be late with as many rows as are sought, or as are left."""
    late = known = 0
    end_s = now_s
    for ticket in peers:
        assert ticket.rows >= 1
        rows = sought if sought < rows_left else rows_left
        if rows < ticket.rows:
            rows = ticket.rows
        if rows != known:
            known, end_s = rows, now_s + run_s(rows)
        if end_s <= ticket.deadline_s:
            break
        late += 1
        rows_left -= ticket.rows
    return late


def _pause_until_s(queue: _Queue, per_row_s: float, run_s: Callable[[int], float]) -> float:
    """Say until when to wait for one more: he would be on time with all others, and is near."""
    newest_s = max(queue.mates[0].arrived_s, queue.mates[-1].arrived_s)
    deadline_s = min([ticket.deadline_s for ticket in queue.mates])
    return min(newest_s + per_row_s, deadline_s - run_s(queue.rows + 1) - PAUSE_S_MIN)


def _longest_on_time(
    mates: list[Ticket], rows: int, now_s: float, run_s: Callable[[int], float]
) -> int:
    """Count the longest prefix with which everybody in it is on time; at least the head."""
    deadlines_s = [ticket.deadline_s for ticket in mates]
    # Nearly always all of them: one prediction instead of several.
    if now_s + run_s(rows) <= min(deadlines_s):
        return len(mates)
    ends = list(accumulate([ticket.rows for ticket in mates]))
    earliest_s = list(accumulate(deadlines_s, min))

    def is_late(last: int) -> bool:
        return now_s + run_s(ends[last]) > earliest_s[last]

    return max(1, bisect_left(range(len(mates)), True, key=is_late))
