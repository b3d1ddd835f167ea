"""What has become of an engine's tickets and runs, counted."""

from __future__ import annotations

from dataclasses import dataclass

from pool.queueing.ticket import Answer, Cancelled, Failed, Outcome, Overdue, Returned


@dataclass(slots=True)
class QueueCounters:
    """Totals since the queue was made; they only grow."""

    submitted: int = 0
    answered: int = 0
    failed: int = 0
    overdue: int = 0  # the deadline passed while the ticket waited
    shed: int = 0  # given up before the deadline
    returned: int = 0  # not run, because the engine was unloaded
    cancelled: int = 0
    late: int = 0  # answered after the deadline; counted in `answered` too
    runs: int = 0
    runs_inline: int = 0
    rows_run: int = 0
    run_us: int = 0  # the engine's busy time
    refused: int = 0  # at their arrival, because they would have been late; counted in `failed`

    def count(self, outcome: Outcome) -> None:
        """Count a ticket that is settled."""
        match outcome:
            case Answer():
                self.answered += 1
            case Failed():
                self.failed += 1
            case Overdue(was_shed=True):
                self.shed += 1
            case Overdue():
                self.overdue += 1
            case Returned():
                self.returned += 1
            case Cancelled():
                self.cancelled += 1
