"""Which tickets an idle engine runs next: adaptive early drop.

What cannot be on time is dropped, then the largest batch that can be on time runs at once.
Nothing is held back for company and there are no timers: an engine that is busy is what lets
a batch grow.  Decides only; `pool.engine_queue` carries it out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final, TypeAlias

import msgspec

from pool.ticket import Ticket

# How far behind the head its company is looked for, in batches.  Bounds a decision when
# tickets of many shapes wait: a few shapes still fill their batches, many shapes get less.
SCAN_BATCHES_MAX: Final = 16


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


Decision: TypeAlias = Shed | Run


def decide(
    waiting: Iterable[Ticket], now_s: float, limits: Limits, arrival_rows_per_s: float
) -> Decision:
    """Choose the next step for an idle engine.

    Heads are shed while they would be late in the batch that this load calls for: its size
    is what keeps up with the arrivals (`target_rows`), or less if less waits.  Running them
    in a smaller batch would be on time, and make everybody behind them late.  Only who has
    the head's own priority counts as behind it: nobody is shed for the sake of a lower one.
    Then the longest prefix runs with which everybody in it is on time.

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
        for equal deadlines on one engine, by an exchange argument.
    """
    rows_max, run_s = limits.rows_max, limits.run_s
    mates, rows = _first_of_one_shape(waiting, rows_max)
    assert mates, "an empty queue has no next step"
    head = mates[0]

    target = target_rows(limits, head.deadline_s - head.arrived_s, arrival_rows_per_s)
    peers, rows_left = mates, rows
    if mates[-1].priority != head.priority:
        peers = [ticket for ticket in mates if ticket.priority == head.priority]
        rows_left = sum([ticket.rows for ticket in peers])
    shed = 0
    for ticket in peers:
        assert ticket.rows >= 1
        if now_s + run_s(max(ticket.rows, min(target, rows_left))) <= ticket.deadline_s:
            break
        shed += 1
        rows_left -= ticket.rows
    if shed:
        return Shed(shed)
    return Run(_longest_on_time(mates, rows, now_s, limits))


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
    first_s = limits.run_s(1)
    if limits.rows_max == 1:
        return 1
    per_row_s = (limits.run_s(limits.rows_max) - first_s) / (limits.rows_max - 1)
    fixed_s = max(0.0, first_s - per_row_s)
    rows = arrival_rows_per_s * (slo_s - fixed_s) / (1.0 + arrival_rows_per_s * per_row_s)
    return max(1, min(limits.rows_max, math.floor(rows)))


def _first_of_one_shape(waiting: Iterable[Ticket], rows_max: int) -> tuple[list[Ticket], int]:
    """Return the head and those that could join it, and their rows together."""
    mates: list[Ticket] = []
    rows = 0
    shape_key = None
    for ticket in islice(waiting, SCAN_BATCHES_MAX * rows_max):
        if not mates:
            shape_key = ticket.shape_key
        elif ticket.shape_key != shape_key:
            continue
        elif rows + ticket.rows > min(rows_max, ticket.rows_max):
            break
        rows_max = min(rows_max, ticket.rows_max)
        mates.append(ticket)
        rows += ticket.rows
        if rows >= rows_max:
            break
    return mates, rows


def _longest_on_time(mates: list[Ticket], rows: int, now_s: float, limits: Limits) -> int:
    """Count the longest prefix with which everybody in it is on time; at least the head."""
    # Nearly always all of them: one prediction instead of one for each ticket.
    if now_s + limits.run_s(rows) <= min([ticket.deadline_s for ticket in mates]):
        return len(mates)
    count, rows, deadline_s = 0, 0, math.inf
    for ticket in mates:
        rows += ticket.rows
        deadline_s = min(deadline_s, ticket.deadline_s)
        if count and now_s + limits.run_s(rows) > deadline_s:
            break
        count += 1
    return count
