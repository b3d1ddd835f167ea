"""One engine of α·b + β in virtual time: what policies serve, and the most that anybody could.

For one engine and equal deadlines.  Nothing here is part of the product; the policies beside ours
are small renderings of what others do, with the best they could know: the run times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from pool.queueing.batching import Decision, Limits, Run, Shed, Wait, decide
from pool.queueing.profile import ArrivalRate
from pool.queueing.ticket import Ticket
from tests.support.tickets import asked


@dataclass(frozen=True)
class Case:
    """An engine, a deadline, and a load relative to what Nexus could serve."""

    per_row_s: float
    fixed_s: float
    slo_s: float
    load: float
    cv: float  # of the gaps between arrivals; 1: Poisson

    @property
    def rows_max(self) -> int:
        """How many rows can be on time at all."""
        return int((self.slo_s - self.fixed_s) / self.per_row_s + 1e-9)

    def run_s(self, rows: int) -> float:
        """How long a run of so many rows takes."""
        return self.per_row_s * rows + self.fixed_s

    @property
    def nexus_rows(self) -> int:
        """The largest batch of which two in a row are on time."""
        sizes = range(1, self.rows_max + 1)
        return max(b for b in sizes if 2 * self.run_s(b) <= self.slo_s + 1e-9)

    @property
    def rate(self) -> float:
        """Arrivals a second."""
        return self.load * self.nexus_rows / self.run_s(self.nexus_rows)

    def arrivals_s(self, seed: int, count: int) -> list[float]:
        """Make arrivals with gamma-distributed gaps; the same for the same seed."""
        shape = 1 / self.cv**2
        gaps = np.random.default_rng(seed).gamma(shape, 1 / shape / self.rate, count)
        return [float(at_s) for at_s in np.cumsum(gaps)]


Policy: TypeAlias = Callable[[Case, list[Ticket], float, float], Decision]


def ours(case: Case, waiting: list[Ticket], now_s: float, rows_per_s: float) -> Decision:
    """What the pool does."""
    return decide(waiting, now_s, Limits(case.rows_max, case.run_s), rows_per_s)


def triton(case: Case, waiting: list[Ticket], now_s: float, _rows_per_s: float) -> Decision:
    """Run as many as there are at once, but for those whose queue timeout has passed.

    Triton's dynamic batcher as it comes, with the deadline as `timeout_microseconds` and the
    action REJECT.
    """
    expired = [ticket for ticket in waiting if ticket.deadline_s <= now_s]
    return Shed(len(expired)) if expired else Run(min(len(waiting), case.rows_max))


def nexus(case: Case, waiting: list[Ticket], now_s: float, _rows_per_s: float) -> Decision:
    """Slide a window of a fixed size until its first is on time (SOSP 2019, early drop)."""
    for place, ticket in enumerate(waiting):
        rows = min(case.nexus_rows, len(waiting) - place)
        if now_s + case.run_s(rows) <= ticket.deadline_s:
            return Shed(place) if place else Run(rows)
    return Shed(len(waiting))


POLICIES = {"ours": ours, "Nexus": nexus, "Triton-style": triton}


def goodput(case: Case, arrivals_s: Sequence[float], policy: Policy = ours) -> int:
    """Count the tickets that `policy` serves on time."""
    rate = ArrivalRate()
    waiting: list[Ticket] = []
    now_s, arrived, served = 0.0, 0, 0
    while waiting or arrived < len(arrivals_s):
        if not waiting:
            now_s = max(now_s, arrivals_s[arrived])
        while arrived < len(arrivals_s) and arrivals_s[arrived] <= now_s:
            one = asked(0, arrived_s=arrivals_s[arrived], slo_s=case.slo_s).ticket
            rate.add(1, one.arrived_s, case.slo_s)
            waiting.append(one)
            arrived += 1
        match policy(case, waiting, now_s, rate.rows_per_s(now_s)):
            case Shed(count):
                del waiting[:count]
            case Run(count):
                now_s += case.run_s(count)
                on_time = [one for one in waiting[:count] if one.deadline_s >= now_s - 1e-9]
                # Ours shed who cannot be on time; nobody's time is spent on a late answer.
                assert policy is not ours or len(on_time) == count
                served += len(on_time)
                del waiting[:count]
            case Wait(until_s):
                assert until_s > now_s
                now_s = min([until_s, *arrivals_s[arrived : arrived + 1]])
    return served


def optimum(case: Case, arrivals_s: Sequence[float]) -> int:
    """Count the most tickets that anybody could serve on time who knew the future.

    With equal deadlines some optimal schedule has only batches of consecutive tickets: one
    dropped from the middle of a batch can change places with the batch's first.  So
    ``free[i][c]``, the earliest time at which the engine is free with the first i tickets
    looked at and c of them served, follows from dropping ticket i, or from running the next
    k tickets together.
    """
    count = len(arrivals_s)
    free = np.full((count + 1, count + 1), np.inf)
    free[0, 0] = 0.0
    for i in range(count):
        np.minimum(free[i + 1], free[i], out=free[i + 1])
        for k in range(1, min(case.rows_max, count - i) + 1):
            finish = np.maximum(free[i, : i + 1], arrivals_s[i + k - 1]) + case.run_s(k)
            finish[finish > arrivals_s[i] + case.slo_s] = np.inf
            np.minimum(free[i + k, k : i + k + 1], finish, out=free[i + k, k : i + k + 1])
    return int(np.nonzero(np.isfinite(free[count]))[0].max())
