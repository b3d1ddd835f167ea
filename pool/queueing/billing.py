"""Tells the tickets of a run what part of the device's time each has had."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from pool.queueing.sharing import parts_of
from pool.queueing.ticket import Ticket

_log = structlog.get_logger(__name__)


def bill(tickets: Sequence[Ticket], spent_ns: Sequence[int], run_us: int, engine: str) -> None:
    """Tell each ticket of a run its part of it, also those that left meanwhile.

    By rows; or, where parts of the run had to be tried again, by what each was part of, so that a
    call pays for the tries that it has spoilt and others do not.

    Args:
        tickets: of the run, at least one.
        spent_ns: how long each had the device, if there were several tries; else empty.
        run_us: of all tries together, with what was between them; the parts add up to it.
        engine: its name, for the log.
    """
    if len(tickets) == 1:  # most runs of small models
        _tell(tickets[0], run_us, engine)
        return
    parts = parts_of(run_us, spent_ns or [ticket.rows for ticket in tickets])
    for ticket, part in zip(tickets, parts, strict=True):
        _tell(ticket, part, engine)


def _tell(ticket: Ticket, part_us: int, engine: str) -> None:
    if ticket.on_device is not None:
        try:
            ticket.on_device(part_us)
        except Exception:
            # A caller's fault must not reach the other tickets of the run.
            _log.exception("ticket_callback_failed", engine=engine)
