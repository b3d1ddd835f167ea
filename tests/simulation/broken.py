"""Code that is broken on purpose, for tests of what finds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple
from unittest import mock

from edge import infer
from edge.dispatching import quarantine
from edge.dispatching.calls import Call
from edge.dispatching.dispatch import Pool
from edge.dispatching.quarantine import Quarantine
from edge.dispatching.retry_budget import Budget
from edge.dispatching.worker_conn import WorkerConn
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


def hung_unnoticed() -> AbstractContextManager[Any]:
    """A worker that stands still is not noticed."""
    return mock.patch.object(WorkerConn, "listen", return_value=None)


def cancel_unsent() -> AbstractContextManager[Any]:
    """Workers are not told of calls that nobody waits for."""

    def forget(self: WorkerConn, call: Call) -> None:
        self.calls.pop(call.id, None)

    return mock.patch.object(WorkerConn, "forget", forget)


def moved_and_kept() -> AbstractContextManager[Any]:
    """A call that moves from a silent worker is still held to be there as well."""
    move = Pool._move_from

    def moves(self: Pool, conn: WorkerConn) -> None:
        with mock.patch.object(WorkerConn, "forget"):
            move(self, conn)

    return mock.patch.object(Pool, "_move_from", moves)


def shared_answers() -> AbstractContextManager[Any]:
    """Answers are kept for all tenants alike."""
    key = infer.cache_key
    return mock.patch.object(infer, "cache_key", lambda tenant, *rest: key("", *rest))


def suspected_for_ever() -> AbstractContextManager[Any]:
    """A run that ends well clears nobody."""
    return mock.patch.object(Quarantine, "ran", return_value=None)


class Broken(NamedTuple):
    """Code that is broken, and how the invariant speaks that is to find it."""

    broken: Break
    said: str  # a regular expression, somewhere in it


BROKEN: Final[Mapping[str, Broken]] = {
    broken.__name__: Broken(broken, said)
    for broken, said in (
        (double_settle, "is settled twice"),
        (wrong_input, "a wrong answer"),
        (retry_over_budget, r"\d+ (retries of|hedges at)"),
        (two_leaders, "several lead"),
        (lost_call, "lost, or not ended"),
        (late_end, "late by|lost, or not ended"),
        (leaked_bytes, "bytes of calls that have ended"),
        (rows_over_bound, "too many rows"),
        (hasty_verdict, "in quarantine after one death"),
        (hung_unnoticed, "sends at .* to .*, hung at"),
        (cancel_unsent, "though its caller had left"),
        (moved_and_kept, "goes to .*, and is at"),
        (shared_answers, "another tenant's answer"),
        (suspected_for_ever, "has run, and is suspected"),
    )
}
