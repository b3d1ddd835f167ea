"""Run several calls as one: join their inputs, run, split the outputs.

Owns the promise that a call gets what it would have got alone, or fails alone.  Blocking and
without state; `pool.queueing.engine_queue` decides where it runs.

A device that is lost answers nobody in this process any more, so then the process is asked to end:
it drains, and its successor gets the device anew.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from pool.engines.base import DeviceLost, Session, Tensors, reason_of
from pool.queueing.sharing import parts_of
from pool.queueing.ticket import Failed, Ticket


class Ran(msgspec.Struct, frozen=True):
    """The outcome of `run_tickets`, one result for each ticket, in order."""

    results: list[Tensors | Failed]
    was_one_run: bool  # False: its duration says nothing about runs of that size
    unsplit: str = ""  # why the model cannot be batched; empty if it can
    # Of several runs, how long each ticket had the device, shared by rows; empty: of one run.
    spent_ns: tuple[int, ...] = ()


class _Unsplit(Exception):
    """The outputs of a joint run do not belong to its calls row by row."""


def run_tickets(session: Session, tickets: Sequence[Ticket], inputs: Sequence[Tensors]) -> Ran:
    """Run the tickets together; what fails is run in halves, so that only the bad one fails.

    Halves find one bad ticket of n in 2·log₂ n runs, and are what a batch needs that was too large
    for the memory that was left.  A model whose outputs do not have a row for each row of its
    inputs cannot be split: its tickets are run one by one, and `unsplit` says why.  Never raises.

    Args:
        session: what runs them; nobody else calls it meanwhile.
        tickets: of one shape.  One that is settled meanwhile disturbs nobody.
        inputs: those of each ticket, which lets go of them when it is settled.
    """
    if len(tickets) == 1:
        return Ran([_run_one(session, inputs[0], tickets[0].outputs)], was_one_run=True)
    unsplit = ""
    began_ns = time.monotonic_ns()
    try:
        return Ran(list(_run_joint(session, tickets, inputs)), was_one_run=True)
    except _Unsplit as error:
        unsplit = str(error)
    except DeviceLost as error:
        # Nobody can tell who has caused it: to try them elsewhere would cost the next device.
        lost = _lost(error)
        return Ran([lost] * len(tickets), was_one_run=False)
    except (Exception, SystemExit):
        # Whatever it was, the ticket that has caused it will raise it again.
        pass
    spent_ns = dict.fromkeys(tickets, 0)
    _spend(spent_ns, tickets, began_ns)
    each = 1 if unsplit else len(tickets) // 2
    results = _run_parts(session, tickets, inputs, each, spent_ns)
    return Ran(results, False, unsplit, tuple(spent_ns[ticket] for ticket in tickets))


def _spend(spent_ns: dict[Ticket, int], tickets: Sequence[Ticket], began_ns: int) -> None:
    """Add a run that has just ended to what each of its tickets has had of the device."""
    parts = parts_of(time.monotonic_ns() - began_ns, [ticket.rows for ticket in tickets])
    for ticket, part in zip(tickets, parts, strict=True):
        spent_ns[ticket] += part


_GONE = Failed(499, "the caller went away")


def _run_parts(
    session: Session,
    tickets: Sequence[Ticket],
    inputs: Sequence[Tensors],
    each: int,
    spent_ns: dict[Ticket, int],
) -> list[Tensors | Failed]:
    """Run `each` tickets at a time, and half as many where that fails.

    A ticket that was cancelled meanwhile is not worth a run.
    """
    results: dict[int, Tensors | Failed] = {}
    live = [index for index, ticket in enumerate(tickets) if not ticket.settled]
    for start in range(0, len(live), each):
        part = live[start : start + each]
        some = [tickets[index] for index in part]
        theirs = [inputs[index] for index in part]
        found: list[Tensors | Failed] = []
        began_ns = time.monotonic_ns()
        if len(part) == 1:
            found = [_run_one(session, theirs[0], some[0].outputs)]
        else:
            try:
                found = list(_run_joint(session, some, theirs))
            except DeviceLost as error:
                found = [_lost(error)] * len(part)
            except (Exception, SystemExit):
                pass
        _spend(spent_ns, some, began_ns)
        if not found:
            found = _run_parts(session, some, theirs, len(part) // 2, spent_ns)
        results.update(zip(part, found, strict=True))
    return [results.get(index, _GONE) for index in range(len(tickets))]


def _run_one(session: Session, inputs: Tensors, wanted: tuple[str, ...]) -> Tensors | Failed:
    try:
        outputs = session.infer(inputs, wanted)
        return {name: outputs[name] for name in wanted} if wanted else outputs
    except DeviceLost as error:
        return _lost(error)
    except (Exception, SystemExit) as error:
        # Also an engine that wants to end the process: it is not its process.
        return Failed(500, f"the model failed: {reason_of(error)}")


def _lost(error: DeviceLost) -> Failed:
    os.kill(os.getpid(), signal.SIGTERM)
    return Failed(502, f"the worker lost its device: {reason_of(error)}")


def _run_joint(
    session: Session, tickets: Sequence[Ticket], inputs: Sequence[Tensors]
) -> Iterator[Tensors]:
    rows = sum(ticket.rows for ticket in tickets)
    for name in inputs[0]:
        found = sum(len(tensors[name]) for tensors in inputs)
        if found != rows:
            raise _Unsplit(f'input "{name}" has {found} rows, the calls have {rows}')
    wanted: tuple[str, ...] = ()
    if all(ticket.outputs for ticket in tickets):
        wanted = tuple(dict.fromkeys(name for ticket in tickets for name in ticket.outputs))

    outputs = _infer_joint(session, inputs, wanted)
    for name, output in outputs.items():
        if output.shape[:1] != (rows,):
            raise _Unsplit(f'output "{name}" has the shape {list(output.shape)} for {rows} rows')
    start = 0
    for ticket in tickets:
        end = start + ticket.rows
        yield {name: outputs[name][start:end] for name in ticket.outputs or outputs}
        start = end


def _infer_joint(session: Session, inputs: Sequence[Tensors], wanted: tuple[str, ...]) -> Tensors:
    # Who copies rows anyway, to where a device reads them, need not have them joined before.
    infer_joint = getattr(session, "infer_joint", None)
    if infer_joint is not None:
        outputs: Tensors = infer_joint(inputs, wanted)
        return outputs
    joint = {name: np.concatenate([tensors[name] for tensors in inputs]) for name in inputs[0]}
    return session.infer(joint, wanted)
