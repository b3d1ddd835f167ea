"""The queue in front of one engine: takes tickets, settles every one exactly once.

Carries out what `pool.queueing.batching` decides and learns what it needs to know.  Belongs to one
event loop; only the runs themselves happen in a thread.  Knows neither the wire nor how an
engine was loaded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from pool.engines.base import Session
from pool.queueing.admission import Ahead
from pool.queueing.alone import Gate
from pool.queueing.batching import Decision, Limits, Run, Shed, Wait, decide
from pool.queueing.billing import bill
from pool.queueing.closing import close_session
from pool.queueing.counters import QueueCounters
from pool.queueing.expiry import TIMER_ROUNDING_S
from pool.queueing.inline import InlineRule
from pool.queueing.lanes import Lanes, UnderWay
from pool.queueing.lobby import Lobby, misfit
from pool.queueing.runner import Runner, ThreadRunner, run_here
from pool.queueing.running import Ran, run_tickets
from pool.queueing.streaming import Stream
from pool.queueing.ticket import Answer, Cancelled, Failed, Outcome, Overdue, Returned, Ticket
from pool.queueing.traced import trace_run

T = TypeVar("T")

AMPLE_BATCHES = 4  # with no more before it, a ticket that has time enough is not looked at closer
_CUT_SHORT = Failed(503, "the engine is being unloaded")

_log = structlog.get_logger(__name__)


class EngineQueue:
    """The tickets that wait for one session, and the runs it is busy with.

    Every ticket is settled exactly once: with an `Answer`, `Failed`, `Overdue` at the moment
    its deadline passes while it waits, `Returned` when the queue closes, or `Cancelled`.
    A deadline that passes during the run changes nothing: the answer is there, the caller may
    still want it.
    """

    def __init__(
        self,
        session: Session,
        *,
        name: str,
        rows_max: int,
        on_idle: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        runner: Runner | None = None,
        soon: Callable[[Callable[[], None]], object] | None = None,
        gate: Gate | None = None,
    ) -> None:
        """Make the queue of a session that is warm.  Call it on the loop.

        Args:
            session: belongs to the queue from now on; `close` closes it.
            name: of the engine, for logs and the thread.
            rows_max: of one run; 1 for a model that is never batched.
            on_idle: called when nothing waits and nothing runs any more.
            clock: of the tickets' times; the loop's own has a resolution of 1 ms with uvloop.
            runner: where the runs are done; a thread for each of the session's lanes by default.
            soon: lets a step follow all that arrives with a ticket; the loop's next turn by
                default.
            gate: which runs may begin in the process; one of its own by default.
        """
        assert rows_max >= 1
        self.name = name
        self.counters = QueueCounters()
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._soon = soon or self._loop.call_soon
        lanes = getattr(session, "lanes", 1)  # engines from before there were lanes have one
        self._runner = runner or ThreadRunner(f"engine {name}", self._loop, threads=lanes)
        self._clock = clock
        self._gate = gate or Gate()
        self._on_idle = on_idle
        self._output_names = frozenset(spec.name for spec in session.outputs)

        # The whole mutable state, besides the counters.
        # What was learned:
        self._rows_max = rows_max if session.batches and not session.streams else 1
        self._inline = InlineRule()
        # Who waits:
        self._waiting = Lobby(self._expire, clock, self._loop)
        # Who runs and how long that takes, and what happens next:
        self._lanes = Lanes(lanes)
        self._ample_s = 0.0  # enough for that many full batches after the run under way
        self._is_step_due = False
        self._pause: asyncio.TimerHandle | None = None
        self._is_idle_known = True
        self._closed: asyncio.Future[None] | None = None
        self._is_session_closing = False

    # What the load report says.

    @property
    def rows_max(self) -> int:
        """How many rows may share a run; 1 once the model has shown that it cannot."""
        return self._rows_max

    @property
    def tickets_waiting(self) -> int:
        """How many tickets wait."""
        return len(self._waiting.line)

    @property
    def tickets_inside(self) -> int:
        """How many tickets wait or run."""
        return len(self._waiting.line) + sum([len(run.tickets) for run in self._lanes.under_way])

    @property
    def bytes_waiting(self) -> int:
        """How many bytes the inputs of the waiting tickets have."""
        return self._waiting.bytes

    @property
    def rows_per_s_max(self) -> float:
        """How many rows a second it can do, as far as its runs have shown; 0: not known yet."""
        return self._lanes.rows_per_s_max

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._waiting.line.rows and not self._lanes.under_way

    def wait_s(self) -> float:
        """Predict how long a ticket that came now would wait for its run, in seconds."""
        lanes, rows = self._lanes, self._waiting.line.rows
        wait_s = lanes.begins_in_s(self._clock(), is_first=not rows)
        return wait_s + lanes.work_s(rows, self._rows_max) if rows else wait_s

    def __repr__(self) -> str:
        rows = sum([run.rows for run in self._lanes.under_way])
        running = f"{rows} rows running" if rows else "idle"
        return f"<EngineQueue {self.name}: {running}, {len(self._waiting.line)} waiting>"

    # Tickets come and go.

    def submit(self, ticket: Ticket) -> None:
        """Take a ticket.  It may be settled before this returns, if it cannot be taken.

        A ticket with more rows than `rows_max` runs alone: refusing it is up to whoever knows
        the signature.
        """
        self.counters.submitted += 1
        waiting, is_full = self._waiting, self._lanes.is_full
        refusal: Failed | Returned | None = Returned()
        if self._closed is None:
            refusal = misfit(ticket, self._output_names, streams=self._session.streams)
        if refusal is None:
            now_s = self._clock()
            waiting.arrivals.add(ticket.rows, now_s, ticket.deadline_s - ticket.arrived_s)
            waiting.admission.came(ticket.tenant, now_s)
            if is_full or waiting.line.rows:
                refusal = self._too_late(ticket, now_s)
        if refusal is not None:
            self._settle(ticket, refusal)
            return
        waiting.add(ticket, is_next=not is_full)
        self._is_idle_known = False
        if not is_full:
            self._step_soon()

    def _too_late(self, ticket: Ticket, now_s: float) -> Failed | None:
        """Refuse a ticket that would be answered after its deadline, as far as can be told."""
        lanes, waiting = self._lanes, self._waiting
        if self._session.streams:
            return None  # how long others go on says nothing about when it is this one's turn
        rows = waiting.line.rows
        left_s = ticket.deadline_s - now_s
        is_near = rows + ticket.rows <= AMPLE_BATCHES * self._rows_max
        if is_near and left_s >= self._ample_s and not waiting.admission.standing:
            return None  # nearly always
        free_in_s = lanes.begins_in_s(now_s, is_first=not rows)
        mean_s = lanes.profile.mean_s(self._rows_max)
        if self._is_one_by_one:
            high_s = lanes.profile.run_s(1)
            before = waiting.line.work_before(ticket, mean_s, max(0.0, high_s - mean_s))
            ahead = Ahead(free_in_s, before[0], 1, mean_s, before[1], before[2])
            own_s, _, trust = waiting.line.known_s(ticket, now_s)
            limits, per_s = Limits(1, lambda _rows: trust * own_s), 0.0
        else:
            ahead = Ahead(free_in_s, waiting.line.rows_before(ticket), lanes.at_once, mean_s)
            limits, per_s = self._limits(now_s), self._rows_per_s(now_s)
        refused = waiting.refusal(ticket, now_s, ahead, limits, per_s)
        self.counters.refused += refused is not None
        return refused

    def cancel(self, ticket: Ticket) -> bool:
        """Settle a ticket as `Cancelled`, because its caller is gone.

        A ticket that waits is taken out.  A run goes on for the others in it; a stream stops.

        Returns:
            Whether the ticket was still to be settled.
        """
        if ticket.settled:
            return False
        self._waiting.remove(ticket)
        self._stop_stream_of(ticket)
        self._settle(ticket, Cancelled())
        self._report_idle()
        return True

    def return_waiting(self) -> None:
        """Settle who waits as `Returned`."""
        for ticket in self._waiting.everybody():
            self._waiting.remove(ticket)
            self._settle(ticket, Returned())

    def succeed(self, old: EngineQueue) -> None:
        """Take the place of `old`, a queue of the same model: who waits there waits here now.

        Nobody is settled and nothing is counted twice; how many rows may share a run is a fact
        about the model, so what `old` has found out holds on.  `old` is to be closed next.
        """
        self.counters = old.counters
        self._rows_max = min(self._rows_max, old._rows_max)
        self._waiting.succeed(old._waiting)
        self._is_idle_known = False
        self._step_soon()

    def runs(self, ticket: Ticket) -> bool:
        """Say whether `ticket` is part of a run that is under way."""
        return self._lanes.run_of(ticket) is not None

    async def close(self, *, lets_streams_end: bool = False) -> None:
        """Return who waits, let the current run end, close the session.

        Waits for as long as the run takes; a run that hangs is ended by ending the process.  A
        stream is cut short, unless it may go on to its end or its deadline.
        """
        if self._closed is None:
            self._closed = self._loop.create_future()
            self._waiting.close()
            self.return_waiting()
            if not self._lanes.under_way:
                self._close_session()
        for run in self._lanes.under_way:
            if run.stream is not None and not lets_streams_end:
                run.stream.stop()
                self._settle(run.tickets[0], _CUT_SHORT)
        await asyncio.shield(self._closed)

    def _close_session(self) -> None:
        if self._is_session_closing:
            return
        self._is_session_closing = True

        closed = self._closed
        assert closed is not None
        close_session(self._session, self._runner, self.name, lambda: closed.set_result(None))

    # The engine's next step.

    def _step_soon(self) -> None:
        # Not at once: all that has arrived in this turn of the loop can then share a run.
        if not self._is_step_due:
            self._is_step_due = True
            self._soon(self._step)

    def _step(self) -> None:
        self._is_step_due = False
        self._launch_next()
        self._report_idle()

    def _step_in(self, pause_s: float) -> None:
        if self._pause is not None:
            self._pause.cancel()
        # Not less than a timer can tell, or it would come again and again.
        self._pause = self._loop.call_later(max(pause_s, TIMER_ROUNDING_S), self._step_soon)

    def _launch_next(self) -> None:
        lanes, waiting = self._lanes, self._waiting
        line = waiting.line
        was_inline = False
        while line.rows and not lanes.is_full and not was_inline:
            now_s = self._clock()
            line.look(now_s, waiting.admission.standing)
            if self._is_one_by_one:
                decision = self._decide_alone(now_s)
            else:
                decision = decide(line, now_s, self._limits(now_s), self._rows_per_s(now_s))
            match decision:
                case Shed(count):
                    tickets = waiting.first(count)
                    waiting.take(tickets)
                    for ticket in tickets:
                        self._settle(ticket, self._overdue(ticket, now_s))
                case Run(count):
                    tickets = waiting.first(count)
                    rows = sum([ticket.rows for ticket in tickets])
                    if lanes.under_way and not self._begins_beside(tickets[0], rows):
                        break
                    if not self._gate.is_open and tickets[0].on_alone is None:
                        self._gate.wait(self._step_soon)
                        break
                    expected_s = lanes.profile.run_s(rows)
                    waiting.take(tickets, expected_s / rows)
                    if self._is_one_by_one:
                        expected_s = line.known_s(tickets[0], now_s)[0] or expected_s
                    run = UnderWay(tickets, rows, now_s, expected_s)
                    was_inline = self._launch(run)
                case Wait(until_s):
                    self._step_in(until_s - now_s)
                    break
        if was_inline and line.rows:
            self._step_soon()  # first whoever else wants the loop
        waiting.watch_arrived()

    @property
    def _is_one_by_one(self) -> bool:
        """Whether calls run one after the other, so that how long each tenant's take is known."""
        return self._rows_max == 1 and self._lanes.count == 1 and not self._session.streams

    def _decide_alone(self, now_s: float) -> Decision:
        """Decide about the head only: it runs alone, for as long as its tenant's runs take."""
        head = self._waiting.first(1)
        _, high_s, trust = self._waiting.line.known_s(head[0], now_s)
        return decide(head, now_s, Limits(1, lambda _rows: trust * high_s), 0.0)

    def _begins_beside(self, ticket: Ticket, rows: int) -> bool:
        """Tell whether a run that `ticket` is the first of may begin beside those under way."""
        runs_alone = ticket.on_alone or self._lanes.under_way[0].tickets[0].on_alone
        return runs_alone is None and self._lanes.takes(rows, self._rows_max)

    def _limits(self, now_s: float) -> Limits:
        if self._session.streams:
            # A stream that is still going at its deadline is cut short, not late: how long
            # the last ones went on is no reason to refuse the next.
            return Limits(1, lambda _rows: 0.0)
        profile = self._lanes.profile
        trust = profile.trust(now_s)
        if trust == 1.0:
            return Limits(self._rows_max, profile.run_s)
        return Limits(self._rows_max, lambda rows: trust * profile.run_s(rows))

    def _rows_per_s(self, now_s: float) -> float:
        """How many rows arrive for the lane that runs next."""
        lanes = self._lanes
        return self._waiting.arrivals.rows_per_s(now_s) / (lanes.count if lanes.under_way else 1)

    def _launch(self, run: UnderWay) -> bool:
        """Begin a run; tell whether it is done already."""
        lanes, tickets, rows = self._lanes, run.tickets, run.rows
        if self._session.streams:
            self._launch_stream(run, tickets[0])
            return False
        inputs = [ticket.inputs for ticket in tickets]
        if self._inline.allows(rows) and not lanes.under_way and tickets[0].on_alone is None:
            ran, run_s, own_s = run_here(
                lambda: run_tickets(self._session, tickets, inputs), self._clock
            )
            self.counters.runs_inline += 1
            self._inline.record(rows, own_s, was_inline=True)
            self._learn(run, ran, run_s)
            self._answer(run, ran, run_s)
            return True
        lanes.begin(run)
        self._start(
            tickets[0],
            lambda: run_tickets(self._session, tickets, inputs),
            lambda ran, run_s: self._finish(run, ran, run_s),
        )
        return False

    def _start(
        self, ticket: Ticket, work: Callable[[], T], done: Callable[[T, float], None]
    ) -> None:
        """Start a run that `ticket` is the first of; one that is alone once it may."""
        if ticket.on_alone is None:
            self._gate.began()
            self._runner.start(work, done)
            return

        def begin(over: Callable[[], None]) -> None:
            def end(result: T, run_s: float) -> None:
                over()
                done(result, run_s)

            self._runner.start(work, end)

        ticket.on_alone(begin)

    def _finish(self, run: UnderWay, ran: Ran, run_s: float) -> None:
        self._inline.record(run.rows, run_s, was_inline=False)
        self._learn(run, ran, run_s)
        self._lanes.end(run)
        if run.tickets[0].on_alone is None:
            self._gate.ended()
        # Before the answers go out, so that the engine works meanwhile.
        self._launch_next()
        self._answer(run, ran, run_s)
        if self._closed is not None and not self._lanes.under_way:
            self._close_session()
        self._report_idle()

    def _learn(self, run: UnderWay, ran: Ran, run_s: float) -> None:
        self.counters.runs += 1
        self.counters.rows_run += run.rows
        self.counters.run_us += round(run_s * 1e6)
        if ran.was_one_run:
            now_s = self._clock()
            self._lanes.learn(run, run_s, now_s)
            if self._is_one_by_one and self._lanes.profile.runs_known:
                self._waiting.line.learn(run.tickets[0], run_s, now_s)
            self._ample_s = (AMPLE_BATCHES + 1) * self._lanes.profile.run_s(self._rows_max)
        if ran.unsplit:
            self._rows_max = 1
            _log.warning("engine_not_batchable", engine=self.name, reason=ran.unsplit)

    def _answer(self, run: UnderWay, ran: Ran, run_s: float) -> None:
        now_s = self._clock()
        bill(run.tickets, ran.spent_ns, round(run_s * 1e6), self.name)
        trace_run(run.tickets, run.started_s, run_s, run.rows, self.name)
        for ticket, result in zip(run.tickets, ran.results, strict=True):
            if isinstance(result, Failed):
                self._settle(ticket, result)
                continue
            queue_s = run.started_s - ticket.arrived_s
            if self._settle(ticket, Answer(result, queue_s, run_s, run.rows)):
                self.counters.late += now_s > ticket.deadline_s

    # Streams.

    def _launch_stream(self, run: UnderWay, ticket: Ticket) -> None:
        assert ticket.on_chunk is not None
        run.stream = Stream(
            self._session, ticket.inputs, ticket.outputs, ticket.on_chunk, self._loop
        )
        timer = self._loop.call_later(
            max(0.0, ticket.deadline_s - run.started_s), self._expire, ticket
        )

        def done(failed: Failed | None, run_s: float) -> None:
            timer.cancel()
            self._finish(run, Ran([failed or {}], was_one_run=True), run_s)

        self._lanes.begin(run)
        self._start(ticket, run.stream.run, done)

    def _stop_stream_of(self, ticket: Ticket) -> None:
        run = self._lanes.run_of(ticket)
        if run is not None and run.stream is not None:
            run.stream.stop()

    # Bookkeeping.

    def _expire(self, ticket: Ticket) -> None:
        self._waiting.remove(ticket)
        self._stop_stream_of(ticket)
        self._settle(ticket, self._overdue(ticket, self._clock()))
        self._report_idle()

    def _overdue(self, ticket: Ticket, now_s: float) -> Overdue:
        return Overdue(now_s - ticket.arrived_s, was_shed=now_s < ticket.deadline_s)

    def _settle(self, ticket: Ticket, outcome: Outcome) -> bool:
        if ticket.settled:
            return False
        self.counters.count(outcome)
        try:
            ticket.settle(outcome)
        except Exception:
            # A caller's fault must not reach the other tickets of the run.
            _log.exception("ticket_callback_failed", engine=self.name)
        return True

    def _report_idle(self) -> None:
        if self.is_idle and not self._is_idle_known and self._closed is None:
            self._is_idle_known = True
            if self._on_idle is not None:
                self._on_idle()
