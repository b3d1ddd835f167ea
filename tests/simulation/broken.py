"""Code that is broken on purpose, for tests of what finds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final
from unittest import mock

from edge.dispatching import quarantine
from edge.dispatching.calls import Call
from edge.dispatching.dispatch import Pool
from edge.dispatching.retry_budget import Budget
from pool.engines.base import Tensors
from pool.queueing import engine_queue, running
from pool.queueing.batching import Run
from pool.queueing.engine_queue import EngineQueue
from pool.queueing.ticket import Outcome, Ticket
from pool.serving import EdgePeer, Served
from registry_sync import leader

Break = Callable[[], AbstractContextManager[Any]]


def double_settle() -> AbstractContextManager[Any]:
    """A ticket that has ended ends again, with its run."""

    def settle(self: EngineQueue, ticket: Ticket, outcome: Outcome) -> bool:
        self.counters.count(outcome)
        ticket.settled = False
        ticket.settle(outcome)
        return True

    return mock.patch.object(EngineQueue, "_settle", settle)


def wrong_input() -> AbstractContextManager[Any]:
    """Calls that share a run get one another's rows."""
    joint = running._run_joint

    def swapped(*args: Any) -> Iterator[Tensors]:
        return iter(list(joint(*args))[::-1])

    return mock.patch.object(running, "_run_joint", swapped)


def retry_over_budget() -> AbstractContextManager[Any]:
    """Every call may be sent once more."""
    return mock.patch.object(Budget, "take", return_value=True)


def two_leaders() -> AbstractContextManager[Any]:
    """A leader that could not renew acts on after others may take over."""
    return mock.patch.object(leader, "ACT_S", 3 * leader.TAKEOVER_S)


def lost_call() -> AbstractContextManager[Any]:
    """Of the calls that a worker had when it was lost the last is forgotten."""
    on_lost = Pool.on_lost

    def forgets(self: Pool, conn: Any, calls: Sequence[Call], *rest: Any) -> None:
        on_lost(self, conn, calls[:-1], *rest)

    return mock.patch.object(Pool, "on_lost", forgets)


def late_end() -> AbstractContextManager[Any]:
    """Nobody ends a call whose worker does not."""
    return mock.patch.object(Pool, "_expire_at", return_value=None)


def leaked_bytes() -> AbstractContextManager[Any]:
    """What a cancelled call took of a worker's room is never given back."""
    ended = EdgePeer.ended

    def leaks(self: EdgePeer, served: Served) -> None:
        size_bytes = served.size_bytes if served.ticket is None else 0
        ended(self, served)
        self._inside.bytes += size_bytes * (served.call.priority == 1)

    return mock.patch.object(EdgePeer, "ended", leaks)


def rows_over_bound() -> AbstractContextManager[Any]:
    """A run takes all that waits."""
    return mock.patch.object(engine_queue, "decide", lambda waiting, *_: Run(len(waiting)))


def hasty_verdict() -> AbstractContextManager[Any]:
    """One death is enough for a quarantine."""
    return mock.patch.object(quarantine, "DEATHS_MAX", 1)


BROKEN: Final[Mapping[str, Break]] = {
    one.__name__: one
    for one in (
        double_settle,
        wrong_input,
        retry_over_budget,
        two_leaders,
        lost_call,
        late_end,
        leaked_bytes,
        rows_over_bound,
        hasty_verdict,
    )
}
