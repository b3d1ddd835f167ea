"""Looks into the shells while they live: who is there, what was sent, what was settled how often.

Nothing is replaced by anything that behaves otherwise; it only keeps count.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from edge.dispatching import suspects
from edge.dispatching.calls import Call
from edge.dispatching.dispatch import Pool
from edge.dispatching.suspects import Suspects
from edge.dispatching.worker_conn import WorkerConn
from pool import controller_main, serving, worker
from pool.controller import Controller
from pool.queueing.ticket import Outcome
from pool.worker import Worker
from tests.simulation.processes import Process, current


@dataclass
class Observed:
    """What was seen so far."""

    workers: dict[Process, Worker] = field(default_factory=dict)
    controllers: dict[Process, Controller] = field(default_factory=dict)
    # By request id.
    sent: Counter[str] = field(default_factory=Counter)  # to a worker
    tries: Counter[str] = field(default_factory=Counter)  # of these, no hedges
    returned: Counter[str] = field(default_factory=Counter)  # by a worker that never ran it
    last: dict[str, tuple[bool, bool]] = field(default_factory=dict)  # whether held, and alone
    # By the edge's process: how many calls it was to send, and how often it sent one once more
    # that may have run.
    calls: Counter[int] = field(default_factory=Counter)
    retried: Counter[int] = field(default_factory=Counter)
    hedged: Counter[int] = field(default_factory=Counter)
    twins: set[Call] = field(default_factory=set)
    # Sent to a worker that stood still: when, by the edge of this name, and since when.
    hung: list[tuple[float, str, str, float]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def living(self, found: dict[Process, Any]) -> list[tuple[Process, Any]]:
        """Return those of `workers` or `controllers` whose process has not ended."""
        return [(process, one) for process, one in found.items() if process.state != "dead"]


@contextlib.contextmanager
def observed() -> Iterator[Observed]:
    """Observe every shell that is started, while inside."""
    seen = Observed()
    with ExitStack() as exits:
        for patch in (*_captures(seen), *_of_edges(seen), *_of_workers(seen)):
            exits.enter_context(patch)
        yield seen


def _captures(seen: Observed) -> Iterator[Any]:
    def captured(module: Any, name: str, found: dict[Process, Any]) -> Any:
        plain = getattr(module, name)

        def make(*args: Any, **options: Any) -> Any:
            process = current()
            assert process is not None
            found[process] = made = plain(*args, **options)
            return made

        return mock.patch.object(module, name, make)

    yield captured(worker, "Worker", seen.workers)
    yield captured(controller_main, "Controller", seen.controllers)


def _of_edges(seen: Observed) -> Iterator[Any]:
    send, start, on_returned = WorkerConn.send, Pool.start, Pool.on_returned
    send_beside, ran = Pool.send_beside, Suspects.ran

    def starts(self: Pool, call: Call) -> None:
        seen.calls[_pid()] += 1
        start(self, call)

    def sends(self: WorkerConn, call: Call, now_s: float) -> None:
        name = call.request_id
        seen.sent[name] += 1
        _look_at_send(seen, self, call, now_s)
        if call in seen.twins:
            seen.hedged[_pid()] += 1
            send(self, call, now_s)
            return
        if seen.tries[name] > seen.returned[name] and _may_have_run(seen.last[name], call):
            seen.retried[_pid()] += 1
        seen.tries[name] += 1
        send(self, call, now_s)
        seen.last[name] = (call.is_held, call.alone)

    def is_returned(self: Pool, call: Call) -> None:
        seen.returned[call.request_id] += call not in seen.twins
        on_returned(self, call)

    def sends_beside(self: Pool, call: Call, twin: Call) -> bool:
        seen.twins.add(twin)
        return send_beside(self, call, twin)

    def has_run(self: Suspects, call: Call) -> None:
        ran(self, call)
        fingerprint = suspects._fingerprint_of(call)
        if self._known.verdict(fingerprint, call.sent_s) in ("suspect", "open"):
            seen.problems.append(f"{call.request_id} has run, and is suspected")

    yield mock.patch.object(Suspects, "ran", has_run)
    yield mock.patch.object(WorkerConn, "send", sends)
    yield mock.patch.object(Pool, "start", starts)
    yield mock.patch.object(Pool, "on_returned", is_returned)
    yield mock.patch.object(Pool, "send_beside", sends_beside)


def _look_at_send(seen: Observed, conn: WorkerConn, call: Call, now_s: float) -> None:
    """Take note of what is sent to who stands still, or is at another worker still."""
    here = current()
    if here is None or not isinstance(conn._owner, Pool):
        return
    for process in here._loop.processes.values():
        if process.name == conn.id and process.state == "stopped":
            seen.hung.append((now_s, here.name, conn.id, process.stopped_s))
    for other in (*conn._owner._conns.values(), *conn._owner._leaving):
        if call in other.calls.values():
            seen.problems.append(f"{call.request_id} goes to {conn.id}, and is at {other.id}")


def _may_have_run(last: tuple[bool, bool], call: Call) -> bool:
    """Tell whether what was sent last may have run; it did not before a load or its `Began`."""
    was_held, was_alone = last
    return not was_held and (call.has_begun or not was_alone)


def _of_workers(seen: Observed) -> Iterator[Any]:
    class Served(serving.Served):
        __slots__ = ("settled",)

        def settle(self, outcome: Outcome | None) -> None:
            if getattr(self, "settled", False):
                seen.problems.append(f"{self.call.request_id} is settled twice: {outcome}")
            self.settled = True
            super().settle(outcome)

    yield mock.patch.object(serving, "Served", Served)


def _pid() -> int:
    process = current()
    return 0 if process is None else process.pid
