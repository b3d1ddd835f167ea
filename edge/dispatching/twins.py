"""Hedges: a call that takes long goes to a second replica as well, and the first answer is its own.

The second one is a call of its own, the twin, with nobody behind it: no counter, no guard and no
log line knows it.  Whichever is answered first ends the other.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Collection
from typing import Protocol

from edge.dispatching.calls import Answer, Call, Ref
from edge.dispatching.hedging import Hedges
from edge.errors import Refusal, Unavailable


class Sender(Protocol):
    """Who sends the calls."""

    def send_beside(self, call: Call, twin: Call) -> bool:
        """Send the twin to another replica than that of `call`; False: there is none."""

    def cancel(self, call: Call, error: Refusal | None = None) -> None:
        """End a call, all the way down."""


class Twins:
    """The hedges of one edge process.

    Args:
        sender: sends the calls.
        watched: models of which some request is suspected: such a request runs in one place.
    """

    def __init__(self, sender: Sender, watched: Collection[Ref]) -> None:
        self._sender = sender
        self._watched = watched
        # The whole mutable state.
        self._hedges: dict[Ref, Hedges] = {}
        self.sent = 0
        self.won = 0  # answered before the first

    def keep(self, refs: Collection[Ref]) -> None:
        """Forget all engines but these."""
        for ref in [ref for ref in self._hedges if ref not in refs]:
            del self._hedges[ref]

    def follow(self, call: Call) -> None:
        """Hedge a call that has just been sent, when its time has come."""
        hedges = self._hedges.get(call.ref)
        if hedges is None:
            hedges = self._hedges[call.ref] = Hedges()
        after_s = hedges.began(call.hedge_share)
        call.future.add_done_callback(functools.partial(_count, hedges, call, time.monotonic()))
        if after_s is not None:
            asyncio.get_running_loop().call_later(after_s, self._hedge, call, hedges)

    def _hedge(self, call: Call, hedges: Hedges) -> None:
        if (
            call.future.done()
            or call.conn is None
            or call.sent > 1  # it has had its second try
            or call.ref in self._watched
            or hedges.budget.saved < 1.0
        ):
            return
        twin = call.make_twin()
        if not self._sender.send_beside(call, twin):
            return
        hedges.budget.take()
        self.sent += 1
        call.twin = twin
        twin.future.add_done_callback(functools.partial(self._twin_ended, call, twin))
        call.future.add_done_callback(lambda _: self._sender.cancel(twin))

    def _twin_ended(self, call: Call, twin: Call, ended: asyncio.Future[Answer]) -> None:
        error = ended.exception()
        if call.future.done():
            return
        if isinstance(error, Unavailable):
            call.twin = None  # it has not run: the call may still have its second try
        if error is None:
            call.is_helped |= twin.is_helped  # its time is that of both
            if call.conn is not None:
                call.conn.forget(call)
            call.conn = twin.conn
            self.won += 1
            call.succeed(ended.result())
        elif call.rests and isinstance(error, Refusal):
            call.is_helped |= twin.is_helped
            call.fail(error)


def _count(hedges: Hedges, call: Call, began_s: float, ended: asyncio.Future[Answer]) -> None:
    if not call.is_held and not ended.cancelled() and ended.exception() is None:
        hedges.usual.add(time.monotonic() - began_s)
