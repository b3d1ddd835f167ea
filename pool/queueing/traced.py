"""The spans of a worker: of a call, and of a run that several calls may have shared."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pool.queueing.ticket import Answer, Failed, Outcome, Overdue, Ticket
from registry_sync.tracing import Span


def trace_run(
    tickets: Sequence[Ticket], started_s: float, run_s: float, rows: int, engine: str
) -> None:
    """Add the span of a run that has ended, if one of its calls is traced.

    It is part of the first one's trace, and linked to all of them.

    Args:
        tickets: of the run.
        started_s: monotonic.
        run_s: how long it took.
        rows: of all its tickets.
        engine: its name.
    """
    traces = [ticket.trace for ticket in tickets if ticket.trace is not None]
    if traces:
        tracing = traces[0].tracing
        tracing.add(
            "batch",
            [trace.span.traceparent for trace in traces],
            started_s,
            started_s + run_s,
            {
                "tidepool.engine": engine,
                "tidepool.batch_rows": rows,
                "tidepool.batch_calls": len(tickets),
            },
        )


def end_span(span: Span, outcome: Outcome | None) -> None:
    """End the span of a call by what became of it; None: nobody waited any more."""
    found: dict[str, str | int | float | bool] = {}
    error = ""
    match outcome:
        case Answer():
            found["tidepool.queue_ms"] = outcome.queue_s * 1e3
            found["tidepool.infer_ms"] = outcome.infer_s * 1e3
            found["tidepool.batch_rows"] = outcome.batch_rows
        case Failed(status, detail):
            found["tidepool.status"] = status
            error = detail
        case Overdue(_, was_shed):
            error = "shed: its deadline could not be met" if was_shed else "overdue"
        case _:
            found["tidepool.outcome"] = type(outcome).__name__.lower()
    span.end(time.monotonic(), found, error)
