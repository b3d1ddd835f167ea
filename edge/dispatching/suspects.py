"""Calls that may have killed their worker: sent again alone, held until it is known, or refused.

Carries out what `quarantine` says.  A request that is suspected runs in one place at a time: its
copies wait for what becomes of the first.  What ends in quarantine here is told to the fleet.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import structlog

from edge.dispatching.calls import Answer, Call, Ref
from edge.dispatching.quarantine import CROWD, Fingerprint, Loss, Quarantine, Row, fingerprint_of
from edge.errors import DeadlineExceeded, Refusal, Unprocessable, WorkerLost

# So long it is waited for a process that speaks in the name of a worker that was lost: for a start
# of it on a busy machine.
JUDGED_S_MAX: Final = 8.0

_log = structlog.get_logger()


class Sender(Protocol):
    """Who sends the calls."""

    def calls(self) -> Iterable[Call]:
        """Return all calls that are under way or wait for a worker."""

    def cancel(self, call: Call, error: Refusal | None = None) -> None:
        """End a call, all the way down."""

    def send(self, call: Call) -> None:
        """Send a call, or let it wait for a worker."""


class Worker(Protocol):
    """The connection to a worker that was lost."""

    @property
    def id(self) -> str: ...
    @property
    def incarnation(self) -> str:
        """Of the process that spoke on it."""


def quarantined(left_s: float) -> Unprocessable:
    """Refuse a request that is in quarantine for so much longer."""
    return Unprocessable(
        "two workers died while they ran this very request, so it is not run again for "
        f"{left_s:.0f} s; send other inputs, or publish a version that can bear these",
        code="quarantined",
    )


class Suspects:
    """The suspected calls of one edge process, and the requests that are in quarantine.

    Args:
        sender: sends the calls.
        now: monotonic; the clock of the calls' deadlines.
    """

    def __init__(self, sender: Sender, now: Callable[[], float] = time.monotonic) -> None:
        self._sender = sender
        self._now = now
        # The whole mutable state: what is known of requests, which call of one is being run alone,
        # and which wait, each with the timer that ends that.
        self._known = Quarantine()
        self._trials: dict[Fingerprint, Call] = {}
        self._held: dict[Call, asyncio.TimerHandle] = {}
        self.on_news: Callable[[], object] = lambda: None  # something is in quarantine now
        self.refused = 0  # calls, because they are in quarantine
        self.convicted = 0  # requests that this process has put there
        # Of these models there are suspects; for the others nothing here need be asked.
        self.watched: Counter[Ref] = self._known.watched

    def stops(self, call: Call) -> bool:
        """Refuse a call, or hold it, if it must not be sent now; let a suspect run alone."""
        fingerprint = _fingerprint_of(call)
        now_s = self._now()
        match self._known.verdict(fingerprint, now_s):
            case "guilty":
                self._refuse(call, fingerprint)
                return True
            case "clear":
                call.alone = False
                return False
            case "suspect" if self._trials.setdefault(fingerprint, call) is call:
                if not call.alone:
                    call.alone = True
                    call.future.add_done_callback(functools.partial(self._tried, fingerprint, call))
                return False
        self._hold(call)
        return True

    def lost(self, worker: Worker, calls: Iterable[Call]) -> None:
        """Take note of the calls that were in flight when the connection to a worker was lost."""
        calls = list(calls)
        loss, now_s = Loss(worker.id, worker.incarnation), self._now()
        # One that ran alone had nothing of its model beside it, and if it was the only one nothing
        # at all; else it proves nothing of it.
        is_proof = any(call.is_only for call in calls)
        tried = {call.ref for call in calls if call.has_begun}
        waited = Counter(call.ref for call in calls if call.is_held)
        for call in calls:
            if is_proof and not call.is_only:
                continue
            if not call.has_begun and (
                call.alone or call.ref in tried or (call.is_held and waited[call.ref] > CROWD)
            ):
                continue
            fingerprint = _fingerprint_of(call)
            self._known.blame(fingerprint, call.ref, loss, now_s, was_only=call.is_only)
            if self._known.verdict(fingerprint, now_s) == "open":
                # Also after the call's own end: who sends it next is not to pay for it again.
                loop = asyncio.get_running_loop()
                loop.call_later(JUDGED_S_MAX, self._give_up, fingerprint)

    def holds(self, call: Call) -> bool:
        """Hold a call whose worker was lost, if it is to be found out whether it died of it."""
        if not call.has_begun:
            return False
        now_s = self._now()
        match self._known.verdict(_fingerprint_of(call), now_s):
            case "guilty":
                self._refuse(call, _fingerprint_of(call))
            case "open":
                self._hold(call)
            case _:
                return False
        return True

    def heard(self, worker: str, incarnation: str) -> None:
        """Take note of a process that speaks in a worker's name."""
        if not self.watched:
            return
        guilty = self._known.heard(worker, incarnation, self._now())
        for fingerprint in guilty:
            self.convicted += 1
            model, version = self._known.refs()[fingerprint]
            _log.warning(
                "request_quarantined",
                fingerprint=fingerprint.hex(),
                model=model,
                version=version,
                why="two workers died while they ran it",
            )
        self._condemn(guilty)
        if guilty:
            self.on_news()
        self._settle_held()

    def ran(self, call: Call) -> None:
        """Take note that a call's run came to its end."""
        self._known.ran(_fingerprint_of(call))

    def forget(self, call: Call) -> None:
        """Hold a call no longer, because nobody waits for it."""
        timer = self._held.pop(call, None)
        if timer is not None:
            timer.cancel()

    def learn(self, rows: Iterable[Row]) -> None:
        """Go by what others have put into quarantine."""
        self._condemn(self._known.learn(rows, self._now()))

    def rows(self) -> list[Row]:
        """Return what is in quarantine."""
        return self._known.rows(self._now())

    def tidy(self) -> None:
        """Forget what is over."""
        self._known.tidy(self._now())

    def _condemn(self, guilty: Iterable[Fingerprint]) -> None:
        """End every call that is one of these requests, wherever it is."""
        fingerprints = set(guilty)
        if not fingerprints:
            return
        refs = {self._known.refs()[one] for one in fingerprints}
        for call in [*self._sender.calls(), *self._held]:
            if call.ref not in refs or call.future.done():
                continue
            if _fingerprint_of(call) in fingerprints:
                self._refuse(call, _fingerprint_of(call))

    def _refuse(self, call: Call, fingerprint: Fingerprint) -> None:
        self.refused += 1
        self.forget(call)
        judge = call.judge
        if judge is not None and call.has_begun and not call.future.done():
            # Whatever its caller is told: of the version that was tried, it is an error.
            call.tell(judge, WorkerLost.status)
            call.watch = None
        self._sender.cancel(call, quarantined(self._known.left_s(fingerprint, self._now())))

    def _hold(self, call: Call) -> None:
        left_s = max(0.0, call.deadline_s - self._now())
        self._held[call] = asyncio.get_running_loop().call_later(left_s, self._expire, call)

    def _expire(self, call: Call) -> None:
        self.forget(call)
        if call.has_begun:
            self._lose(call)
        else:
            text = "the deadline passed while a like request was tried"
            self._sender.cancel(call, DeadlineExceeded(text))

    def _give_up(self, fingerprint: Fingerprint) -> None:
        """Wait no longer for word of a worker that was lost."""
        if self._known.verdict(fingerprint, self._now()) == "open":
            self._known.give_up(fingerprint)
            self._settle_held()

    def _tried(self, fingerprint: Fingerprint, call: Call, _: asyncio.Future[Answer]) -> None:
        """Let the copies of a call go on that was run alone and has ended."""
        if self._trials.get(fingerprint) is call:
            del self._trials[fingerprint]
        self._settle_held()

    def _settle_held(self) -> None:
        """Let go of every held call that need not be held."""
        now_s = self._now()
        for call in list(self._held):
            fingerprint = _fingerprint_of(call)
            if call not in self._held or self._known.verdict(fingerprint, now_s) == "open":
                continue
            if call.has_begun:
                self.forget(call)
                self._lose(call)
            elif fingerprint not in self._trials:
                self.forget(call)
                self._sender.send(call)

    def _lose(self, call: Call) -> None:
        self._sender.cancel(call, WorkerLost("the worker that had this call broke"))


def _fingerprint_of(call: Call) -> Fingerprint:
    if not call.fingerprint:
        call.fingerprint = fingerprint_of(call.digest, call.inputs, call.outputs)
    return call.fingerprint
