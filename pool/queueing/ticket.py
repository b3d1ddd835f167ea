"""One call that waits in an engine's queue, and what can become of it.

Owns the promise that a call is answered exactly once.  Knows neither the wire nor engines.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec

from pool.engines.base import Tensors
from registry_sync.documents import PRIORITY_DEFAULT
from registry_sync.tracing import Span, Tracing

ROWS_UNBOUNDED = 1 << 30


class Answer(msgspec.Struct, frozen=True):
    """The model answered; of a stream, it ended well."""

    outputs: Tensors  # what the ticket asked for, in its order; empty for a stream
    queue_s: float  # from arrival to the start of the run
    infer_s: float  # of the whole run, which several tickets may have shared
    batch_rows: int  # of the whole run


class Failed(msgspec.Struct, frozen=True):
    """The model raised, or the queue would not take the ticket; an HTTP status and a text."""

    status: int
    detail: str
    retry_after_s: float = 1.0  # of a 429 or 503


class Overdue(msgspec.Struct, frozen=True):
    """The deadline passed while the ticket waited, or it could no longer be met."""

    waited_s: float
    was_shed: bool  # True: given up before the deadline, because no run would meet it


class Returned(msgspec.Struct, frozen=True):
    """It never ran, and another worker may have it: this one gives it back."""

    why: str = "the worker is draining"


class Cancelled(msgspec.Struct, frozen=True):
    """The caller went away; nobody waits for an answer."""


class Traced(msgspec.Struct, frozen=True):
    """The span of a call, and where spans of its runs go."""

    tracing: Tracing
    span: Span


# Begins a run; what it gets is called on the loop when the run is over.
Begin: TypeAlias = Callable[[Callable[[], None]], None]
Outcome: TypeAlias = Answer | Failed | Overdue | Returned | Cancelled


@dataclass(slots=True, eq=False)
class Ticket:
    """One call that waits; compared and hashed by identity."""

    rows: int  # >= 1; 1 when the model has no batch axis
    shape_key: Hashable  # names, datatypes and shapes without the first axis
    arrived_s: float  # `time.monotonic()`, as is
    deadline_s: float
    inputs: Tensors
    on_settled: Callable[[Outcome], None]  # called on the loop, exactly once
    outputs: tuple[str, ...] = ()  # empty: all
    priority: int = PRIORITY_DEFAULT  # 1 is the highest
    rows_max: int = ROWS_UNBOUNDED  # of a run that it is part of, besides the engine's own bound
    bytes: int = 0  # of the inputs; for the bound on what may wait
    # For engines that stream: takes each piece on the loop.  What it returns is awaited
    # before much more is taken from the engine, so a slow reader slows the engine down.
    on_chunk: Callable[[Tensors], Awaitable[None] | None] | None = None
    tenant: str = ""  # whose part of the engine's time it takes
    share: float = 1.0  # how large that part is, beside the other tenants'
    # Shares its run with nobody, and the session with no other run, if given; called on the loop
    # in the place of that run, which it begins, exactly once.
    on_alone: Callable[[Begin], None] | None = None
    # Hears, on the loop and as often as it was part of a run, how long that held the device for it:
    # before it is settled, or later if it was settled while the run went on.
    on_device: Callable[[int], None] | None = None  # in µs
    trace: Traced | None = None  # of a call whose trace is sampled
    settled: bool = field(default=False, init=False)

    def settle(self, outcome: Outcome) -> bool:
        """Give the outcome, if none was given before; return whether this one counted.

        Lets go of the inputs, so that what keeps a ticket does not keep its tensors.
        """
        if self.settled:
            return False
        self.settled = True
        self.inputs = {}
        self.on_settled(outcome)
        return True
