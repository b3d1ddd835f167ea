"""A ticket is answered once."""

from __future__ import annotations

from pool.queueing.ticket import Cancelled, Failed
from tests.support.tickets import asked


def test_only_the_first_outcome_counts() -> None:
    one = asked(0)
    assert one.ticket.settle(Failed(500, "no"))
    assert not one.ticket.settle(Cancelled())
    assert one.outcome == Failed(500, "no")


def test_tickets_are_told_apart_by_identity() -> None:
    first, second = asked(0).ticket, asked(0).ticket
    assert len({first, second}) == 2
