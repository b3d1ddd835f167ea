"""The runs of one session that are under way, and how long they take.

A session may have several lanes: runs that overlap, so that one copies while another computes.
They share the device, so a run takes longer beside others than alone; both are learned apart, or
a lone call would be given up for being as slow as a crowded one.  Decides and predicts; pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from pool.queueing.profile import LatencyProfile
from pool.queueing.streaming import Stream
from pool.queueing.ticket import Ticket


@dataclass(slots=True, eq=False)
class UnderWay:
    """One run."""

    tickets: list[Ticket]
    rows: int
    started_s: float
    expected_s: float
    stream: Stream | None = None
    was_alone: bool = True  # for all of its time


class Lanes:
    """At most `count` runs at once.  With one lane there is nothing to decide."""

    def __init__(self, count: int) -> None:
        assert count >= 1
        self.count = count
        # The whole mutable state: who runs, and how long runs take alone and beside others.
        self.under_way: list[UnderWay] = []
        self.is_full = False
        self._alone = LatencyProfile()
        self._beside = LatencyProfile()

    @property
    def profile(self) -> LatencyProfile:
        """How long runs take that begin now."""
        return self._beside if self.under_way and self._beside.runs_known else self._alone

    @property
    def at_once(self) -> int:
        """How many runs overlap, as far as runs have shown what that costs them."""
        return self.count if self._beside.runs_known else 1

    def takes(self, rows: int, rows_max: int) -> bool:
        """Say whether a batch is to begin now, or to grow until a run has ended.

        An idle session takes any.  Beside others a batch gains only as much as copies overlap
        with computation, and small ones would take the device from full ones: it must be full,
        or as large as the largest under way.  So half of the callers run while the other half
        comes back, and nobody waits for longer than with one lane.

        >>> lanes = Lanes(2)
        >>> lanes.takes(1, 32)
        True
        >>> lanes.begin(UnderWay([], rows=8, started_s=0.0, expected_s=0.01))
        >>> lanes.takes(7, 32), lanes.takes(8, 32), lanes.takes(4, 4)
        (False, True, True)
        """
        if not self.under_way:
            return True
        return rows >= min(rows_max, max([run.rows for run in self.under_way]))

    def begin(self, run: UnderWay) -> None:
        """Note that `run` is under way."""
        assert not self.is_full
        if self.under_way:
            run.was_alone = False
            for other in self.under_way:
                other.was_alone = False
                other.expected_s = max(other.expected_s, self._beside.run_s(other.rows))
        self.under_way.append(run)
        self.is_full = len(self.under_way) == self.count

    def end(self, run: UnderWay) -> None:
        """Note that `run` has ended."""
        self.under_way.remove(run)
        self.is_full = False

    def learn(self, run: UnderWay, run_s: float, now_s: float) -> None:
        """Learn from a run that took `run_s`; also from one that never was under way here."""
        profile = self._alone if run.was_alone else self._beside
        profile.record(run.rows, run_s, now_s)

    def run_of(self, ticket: Ticket) -> UnderWay | None:
        """Return the run that `ticket` is part of."""
        for run in self.under_way:
            if ticket in run.tickets:
                return run
        return None

    def begins_in_s(self, now_s: float, *, is_first: bool) -> float:
        """Predict when the next run may begin: of who comes `is_first`, or of who waits already.

        Who waits beside a free lane waits for a run to end, or would run already.
        """
        if not self.is_full and (is_first or not self.under_way):
            return 0.0
        end_s = min([run.started_s + run.expected_s for run in self.under_way])
        return max(0.0, end_s - now_s)

    @property
    def rows_per_s_max(self) -> float:
        """How many rows a second it has shown that it can do, on all lanes together; or 0."""
        beside = self._beside.rows_per_s_max * self.count
        return max(self._alone.rows_per_s_max, beside)

    def work_s(self, rows: int, rows_max: int) -> float:
        """Predict how long so many rows take that are run in batches, on all lanes together."""
        profile = self._beside if self._beside.runs_known else self._alone
        batches, rest = divmod(rows, rows_max)
        last_s = profile.run_s(rest) if rest else 0.0
        return (batches * profile.run_s(rows_max) + last_s) / self.at_once
