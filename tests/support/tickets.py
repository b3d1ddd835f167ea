"""Tickets for tests, and an engine in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from pool.engines.base import Array, Tensors
from pool.queueing.ticket import Begin, Outcome, Ticket
from registry_sync.documents import PRIORITY_DEFAULT, TensorSpec
from tests.support.counting_engine import TestSession

T = TypeVar("T")

X = (TensorSpec("x", "INT64", (-1,)),)
Y = (TensorSpec("y", "INT64", (-1,)),)


@dataclass
class Asked:
    """A ticket with what became of it: every outcome, in order; there must be one."""

    ticket: Ticket
    outcomes: list[Outcome] = field(default_factory=list)
    chunks: list[Tensors] = field(default_factory=list)
    settled: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def outcome(self) -> Outcome:
        """The one outcome."""
        assert len(self.outcomes) == 1, self.outcomes
        return self.outcomes[0]


def asked(
    values: Array | list[int] | int = 0,
    *,
    arrived_s: float = 0.0,
    slo_s: float = 10.0,
    shape_key: Hashable = "x",
    priority: int = PRIORITY_DEFAULT,
    inputs: Tensors | None = None,
    outputs: tuple[str, ...] = (),
    on_chunk: Callable[[Tensors], Awaitable[None] | None] | None = None,
    on_alone: Callable[[Begin], None] | None = None,
    tenant: str = "",
    share: float = 1.0,
) -> Asked:
    """Make a ticket whose input `x` holds `values`, one a row."""
    tensor = np.atleast_1d(np.asarray(values, np.int64))
    result: Asked

    def settle(outcome: Outcome) -> None:
        result.outcomes.append(outcome)
        result.settled.set()

    ticket = Ticket(
        rows=len(tensor),
        shape_key=shape_key,
        priority=priority,
        arrived_s=arrived_s,
        deadline_s=arrived_s + slo_s,
        inputs=inputs if inputs is not None else {"x": tensor},
        outputs=outputs,
        bytes=tensor.nbytes,
        on_settled=settle,
        on_chunk=on_chunk,
        on_alone=on_alone,
        tenant=tenant,
        share=share,
    )
    result = Asked(ticket)
    return result


def echo() -> TestSession:
    """Make a session whose output `y` is its input `x`."""
    return TestSession(X, Y)


@dataclass
class VirtualRunner:
    """Does the work at once and says so after `duration_s(rows)` of the loop's time."""

    session: TestSession
    duration_s: Callable[[int], float]
    is_closed: bool = False
    runs: list[tuple[float, int, float]] = field(default_factory=list)  # start, rows, duration

    def start(self, work: Callable[[], T], done: Callable[[T, float], None]) -> None:
        """Carry out `work` in virtual time."""
        assert not self.is_closed
        loop = asyncio.get_running_loop()
        runs_before = len(self.session.batch_rows)
        result = work()
        rows = self.session.batch_rows[runs_before:]
        run_s = sum(self.duration_s(one) for one in rows)
        self.runs += [(loop.time(), one, run_s) for one in rows[:1]]
        loop.call_later(run_s, done, result, run_s)

    def close(self) -> None:
        """Note it."""
        self.is_closed = True
