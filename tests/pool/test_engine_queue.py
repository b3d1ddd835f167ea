"""The queue of one engine: who is settled with what, and when."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import pytest
import uvloop

from pool.engines.base import EngineError, Tensors
from pool.queueing.engine_queue import EngineQueue
from pool.queueing.ticket import Answer, Cancelled, Failed, Outcome, Overdue, Returned
from registry_sync.documents import TensorSpec
from tests.support import virtual_time
from tests.support.counting_engine import (
    MAGIC_VALUE,
    CountingSession,
    FailingSession,
    SleepingSession,
    TestSession,
)
from tests.support.tickets import Asked, VirtualRunner, X, Y, asked, echo

T = TypeVar("T")


def real(main: Coroutine[Any, Any, T]) -> T:
    """Run with real threads on the loop that serves."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(asyncio.wait_for(main, 30))


class Bench:
    """A queue in virtual time, over an engine that takes 10 ms + 1 ms a row."""

    def __init__(
        self,
        session: TestSession | None = None,
        *,
        rows_max: int = 8,
        on_idle: Callable[[], None] | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.session = session or echo()
        self.runner = VirtualRunner(self.session, lambda rows: 0.010 + 0.001 * rows)
        self.queue = EngineQueue(
            self.session,
            name="bench",
            rows_max=rows_max,
            on_idle=on_idle,
            clock=self.loop.time,
            runner=self.runner,
        )

    async def learn(self) -> None:
        """Let the queue find out what runs take."""
        for size in (1, 8) * 20:
            for _ in range(size):
                self.submit()
            await asyncio.sleep(0.1)

    def submit(self, values: int | list[int] = 0, **how: Any) -> Asked:
        one = asked(values, arrived_s=self.loop.time(), **how)
        self.queue.submit(one.ticket)
        return one


def values(one: Asked, name: str = "y") -> list[int]:
    outcome = one.outcome
    assert isinstance(outcome, Answer), outcome
    return [int(value) for value in outcome.outputs[name]]


# Batches.


def test_tight_calls_wait_for_one_row_s_time_for_company_and_share_a_run() -> None:
    async def main() -> list[tuple[float, int]]:
        bench = Bench()
        await bench.learn()
        before, began_s = len(bench.runner.runs), bench.loop.time()
        tight = [bench.submit(1, slo_s=0.030)]
        await asyncio.sleep(0.0007)
        tight.append(bench.submit(2, slo_s=0.030))
        await asyncio.sleep(0.1)
        assert [values(one) for one in tight] == [[1], [2]]
        return [(at_s - began_s, rows) for at_s, rows, _ in bench.runner.runs[before:]]

    ((start_s, rows),) = virtual_time.run(main())
    assert rows == 2
    assert start_s == pytest.approx(0.0017, abs=0.0003)


@pytest.mark.parametrize("ends", ["cancel", "close"])
def test_a_pause_ends_with_who_made_it(ends: str) -> None:
    async def main() -> int:
        bench = Bench()
        await bench.learn()
        before = len(bench.runner.runs)
        tight = bench.submit(1, slo_s=0.030)
        await asyncio.sleep(0.0002)
        if ends == "cancel":
            bench.queue.cancel(tight.ticket)
            assert isinstance(tight.outcome, Cancelled)
        else:
            await bench.queue.close()
            assert isinstance(tight.outcome, Returned)
        await asyncio.sleep(0.1)
        assert bench.queue.is_idle
        return len(bench.runner.runs) - before

    assert virtual_time.run(main()) == 0


def test_what_arrives_in_one_turn_of_the_loop_shares_a_run() -> None:
    async def main() -> None:
        bench = Bench()
        all_asked = [bench.submit(i) for i in range(5)]
        await asyncio.sleep(1)
        assert bench.session.batch_rows == [5]
        assert [values(one) for one in all_asked] == [[0], [1], [2], [3], [4]]

    virtual_time.run(main())


def test_what_arrives_during_a_run_shares_the_next() -> None:
    async def main() -> None:
        bench = Bench()
        bench.submit(0)
        await asyncio.sleep(0.001)
        rest = [bench.submit(i) for i in range(4)]
        await asyncio.sleep(1)
        assert bench.session.batch_rows == [1, 4]
        assert [values(one) for one in rest] == [[0], [1], [2], [3]]

    virtual_time.run(main())


def test_a_ticket_of_several_rows_gets_all_of_its_rows_and_no_other() -> None:
    async def main() -> None:
        bench = Bench()
        all_asked = [bench.submit([1, 2, 3]), bench.submit([4]), bench.submit([5, 6])]
        await asyncio.sleep(1)
        assert bench.session.batch_rows == [6]
        assert [values(one) for one in all_asked] == [[1, 2, 3], [4], [5, 6]]

    virtual_time.run(main())


def test_shapes_never_share_a_run_and_keep_their_order() -> None:
    async def main() -> None:
        bench = Bench()
        order: list[str] = []

        def note(shape: str, _: Outcome) -> None:
            order.append(shape)

        for i, shape in enumerate("abacba"):
            one = bench.submit(i, shape_key=shape)
            one.ticket.on_settled = functools.partial(note, shape)
        await asyncio.sleep(1)
        assert bench.session.batch_rows == [3, 2, 1]
        assert order == list("aaabbc")

    virtual_time.run(main())


def test_the_load_report_counts_what_waits_and_what_runs() -> None:
    async def main() -> None:
        bench = Bench()
        for _ in range(3):
            bench.submit(0)
            await asyncio.sleep(1)
        bench.submit(0)
        await asyncio.sleep(0.001)
        for _ in range(9):
            bench.submit(0)
        assert bench.queue.tickets_waiting == 9
        assert bench.queue.tickets_inside == 10
        assert bench.queue.bytes_waiting == 9 * 8
        assert repr(bench.queue) == "<EngineQueue bench: 1 rows running, 9 waiting>"
        # 10 ms of the run are left, then 8 rows in 88 ms (11 ms a row so far), then one.
        assert bench.queue.wait_s() == pytest.approx(0.010 + 0.088 + 0.011, rel=0.4)
        await asyncio.sleep(1)
        assert bench.queue.is_idle
        assert bench.queue.wait_s() == 0.0
        assert bench.queue.bytes_waiting == 0

    virtual_time.run(main())


def test_a_single_ticket_is_run_on_its_own_arrays() -> None:
    async def main() -> None:
        bench = Bench()
        one = bench.submit([1, 2])
        given = one.ticket.inputs["x"]
        await asyncio.sleep(1)
        assert isinstance(one.outcome, Answer)
        assert one.outcome.outputs["y"] is given

    virtual_time.run(main())


def test_an_engine_that_must_not_batch_runs_one_by_one() -> None:
    async def main() -> None:
        bench = Bench(TestSession(X, Y, batches=False))
        for i in range(3):
            bench.submit(i)
        await asyncio.sleep(1)
        assert bench.session.batch_rows == [1, 1, 1]

    virtual_time.run(main())


def test_an_answer_says_how_long_it_waited_and_ran_and_with_how_many_rows() -> None:
    async def main() -> None:
        bench = Bench()
        bench.submit(0)
        await asyncio.sleep(0.001)
        one = bench.submit([1, 2])
        await asyncio.sleep(1)
        assert isinstance(one.outcome, Answer)
        assert one.outcome.queue_s == pytest.approx(0.010)
        assert one.outcome.infer_s == pytest.approx(0.012)
        assert one.outcome.batch_rows == 2

    virtual_time.run(main())


# Outputs.


class TwoOutputs(TestSession):
    """`y` = x and `z` = -x, and a note of what was wanted."""

    def __init__(self) -> None:
        super().__init__(X, (TensorSpec("y", "INT64", (-1,)), TensorSpec("z", "INT64", (-1,))))
        self.wanted: list[tuple[str, ...]] = []

    def infer(self, tensors: Tensors, outputs: Sequence[str] = ()) -> Tensors:
        self.wanted.append(tuple(outputs))
        self.batch_rows.append(len(tensors["x"]))
        answer = {"y": tensors["x"], "z": -tensors["x"]}
        return {name: answer[name] for name in outputs or answer}


@pytest.mark.parametrize(
    ("asked_for", "wanted"),
    [
        ([("y",), ("y",)], ("y",)),
        ([("z",), ("y",)], ("z", "y")),
        ([("z", "y"), ("y",)], ("z", "y")),
        ([("z",), ()], ()),
    ],
)
def test_the_engine_is_asked_for_what_is_wanted_and_each_gets_its_own_in_order(
    asked_for: list[tuple[str, ...]], wanted: tuple[str, ...]
) -> None:
    async def main() -> None:
        session = TwoOutputs()
        bench = Bench(session)
        all_asked = [bench.submit(7 + i, outputs=names) for i, names in enumerate(asked_for)]
        await asyncio.sleep(1)
        assert session.wanted == [wanted]
        for i, (one, names) in enumerate(zip(all_asked, asked_for, strict=True)):
            assert isinstance(one.outcome, Answer)
            assert tuple(one.outcome.outputs) == (names or ("y", "z"))
            if "z" in names:
                assert values(one, "z") == [-7 - i]

    virtual_time.run(main())


def test_an_output_that_does_not_exist_is_refused_with_the_names_of_those_that_do() -> None:
    async def main() -> None:
        one = Bench(TwoOutputs()).submit(0, outputs=("y", "w"))
        assert one.outcome == Failed(422, 'there is no output "w"; the outputs are: y, z')

    virtual_time.run(main())


class SumOnly(TestSession):
    """Gives one number for the whole batch: cannot be split."""

    def infer(self, tensors: Tensors, outputs: Sequence[str] = ()) -> Tensors:
        super().infer(tensors)
        return {"y": np.array([tensors["x"].sum()])}


def test_a_model_whose_outputs_do_not_split_is_run_one_by_one_from_then_on() -> None:
    async def main() -> None:
        bench = Bench(SumOnly(X, Y))
        first = [bench.submit([i, 1]) for i in range(3)]
        await asyncio.sleep(1)
        assert bench.session.batch_rows == [6, 2, 2, 2]
        assert [values(one) for one in first] == [[1], [2], [3]]
        assert bench.queue.rows_max == 1
        second = [bench.submit([i, 1]) for i in range(2)]
        await asyncio.sleep(1)
        assert bench.session.batch_rows == [6, 2, 2, 2, 2, 2]
        assert [values(one) for one in second] == [[1], [2]]

    virtual_time.run(main())


def test_a_scalar_output_does_not_split() -> None:
    class Scalar(TestSession):
        def infer(self, tensors: Tensors, outputs: Sequence[str] = ()) -> Tensors:
            super().infer(tensors)
            return {"y": np.asarray(tensors["x"].sum())}

    async def main() -> None:
        bench = Bench(Scalar(X, Y))
        all_asked = [bench.submit(i) for i in range(2)]
        await asyncio.sleep(1)
        assert [one.outcome.outputs["y"].item() for one in all_asked] == [0, 1]  # type: ignore[union-attr]

    virtual_time.run(main())


# Failures.


def test_one_bad_item_fails_alone() -> None:
    async def main() -> None:
        bench = Bench(FailingSession(X, Y))
        all_asked = [bench.submit(value) for value in (1, MAGIC_VALUE, 3)]
        await asyncio.sleep(1)
        assert values(all_asked[0]) == [1]
        assert all_asked[1].outcome == Failed(
            500, "the model failed: 666 is more than this model can bear"
        )
        assert values(all_asked[2]) == [3]
        assert bench.queue.rows_max == 8

    virtual_time.run(main())


def test_a_ticket_that_was_cancelled_is_not_run_again_when_its_batch_fails() -> None:
    class Waiting(FailingSession):
        def infer(self, tensors: Tensors, outputs: Sequence[str] = ()) -> Tensors:
            before_first = not self.batch_rows
            self.batch_rows.append(len(tensors["x"]))
            if before_first:
                queues[0].cancel(all_asked[0].ticket)
                raise EngineError("no")
            return {"y": tensors["x"]}

    async def main() -> None:
        bench = Bench(Waiting(X, Y))
        queues.append(bench.queue)
        all_asked.extend([bench.submit(1), bench.submit(2)])
        await asyncio.sleep(1)
        assert bench.session.batch_rows == [2, 1]
        assert all_asked[0].outcome == Cancelled()
        assert values(all_asked[1]) == [2]

    queues: list[EngineQueue] = []
    all_asked: list[Asked] = []
    virtual_time.run(main())


@pytest.mark.parametrize("error", [ValueError("/etc/secret/x.bin is bad"), SystemExit(3)])
def test_whatever_an_engine_raises_is_the_models_failure_and_names_no_path(
    error: BaseException,
) -> None:
    class Raising(TestSession):
        def infer(self, tensors: Tensors, outputs: Sequence[str] = ()) -> Tensors:
            super().infer(tensors)
            raise error

    async def main() -> None:
        one = Bench(Raising(X, Y)).submit(0)
        await asyncio.sleep(1)
        assert isinstance(one.outcome, Failed)
        assert one.outcome.status == 500
        assert "/etc" not in one.outcome.detail

    virtual_time.run(main())


def test_an_output_that_the_engine_left_out_is_its_failure() -> None:
    class Empty(TestSession):
        def infer(self, tensors: Tensors, outputs: Sequence[str] = ()) -> Tensors:
            super().infer(tensors)
            return {}

    async def main() -> None:
        one = Bench(Empty(X, Y)).submit(0, outputs=("y",))
        await asyncio.sleep(1)
        assert isinstance(one.outcome, Failed)
        assert one.outcome.status == 500

    virtual_time.run(main())


def test_a_caller_that_fails_to_take_its_answer_does_not_disturb_the_others() -> None:
    async def main() -> None:
        bench = Bench()
        bad, good = bench.submit(1), bench.submit(2)

        def raise_(outcome: object) -> None:
            raise RuntimeError("the connection is gone")

        bad.ticket.on_settled = raise_
        await asyncio.sleep(1)
        assert values(good) == [2]
        assert values(await _asked_later(bench)) == [3]

    async def _asked_later(bench: Bench) -> Asked:
        one = bench.submit(3)
        await asyncio.sleep(1)
        return one

    virtual_time.run(main())


# Deadlines and cancels.


def test_a_ticket_is_overdue_the_moment_its_deadline_passes_not_when_the_run_ends() -> None:
    async def main() -> None:
        bench = Bench()
        bench.runner.duration_s = lambda rows: 60.0
        bench.submit(0, slo_s=100)
        await asyncio.sleep(0.001)
        one = bench.submit(1, slo_s=0.5)
        await asyncio.wait_for(one.settled.wait(), 1)
        assert bench.loop.time() == pytest.approx(0.501, abs=0.002)
        assert isinstance(one.outcome, Overdue)
        assert one.outcome.waited_s == pytest.approx(0.5, abs=0.002)
        assert not one.outcome.was_shed
        assert bench.queue.tickets_waiting == 0
        assert bench.queue.bytes_waiting == 0

    virtual_time.run(main())


def test_a_ticket_that_came_while_the_engine_was_idle_and_did_not_fit_expires_too() -> None:
    async def main() -> None:
        bench = Bench(rows_max=1)
        bench.runner.duration_s = lambda rows: 60.0
        bench.submit(0)
        one = bench.submit(1, slo_s=0.5)
        await asyncio.sleep(1)
        assert isinstance(one.outcome, Overdue)

    virtual_time.run(main())


def test_an_earlier_deadline_that_comes_later_expires_first() -> None:
    async def main() -> None:
        bench = Bench(rows_max=1)
        bench.runner.duration_s = lambda rows: 60.0
        bench.submit(0)
        await asyncio.sleep(0.001)
        late, early = bench.submit(1, slo_s=5), bench.submit(2, slo_s=1)
        await asyncio.sleep(2)
        assert isinstance(early.outcome, Overdue)
        assert not late.outcomes

    virtual_time.run(main())


def test_a_deadline_that_passes_during_the_run_does_not_lose_the_answer() -> None:
    async def main() -> None:
        bench = Bench()
        one = bench.submit(5, slo_s=0.001)
        await asyncio.sleep(1)
        assert values(one) == [5]
        assert bench.queue.counters.late == 1

    virtual_time.run(main())


def test_what_cannot_be_on_time_is_shed_once_the_engine_is_known() -> None:
    async def main() -> None:
        bench = Bench()
        for _ in range(5):
            bench.submit(0)
            await asyncio.sleep(0.1)
        one = bench.submit(0, slo_s=0.005)
        await asyncio.sleep(0.001)
        assert one.outcome == Overdue(0.0, was_shed=True)

    virtual_time.run(main())


@pytest.mark.parametrize("slow_run", [2, 5])
def test_one_slow_run_does_not_make_every_later_call_hopeless(slow_run: int) -> None:
    async def main() -> None:
        bench = Bench()
        bench.runner.duration_s = lambda rows: (
            60.0 if len(bench.runner.runs) + 1 == slow_run else 0.01
        )
        for _ in range(5):
            bench.submit(0, slo_s=1000)
            await asyncio.sleep(70)
        all_asked = []
        for _ in range(60):
            all_asked.append(bench.submit(0, slo_s=1))
            await asyncio.sleep(1)
        answered = [isinstance(one.outcome, Answer) for one in all_asked]
        assert all(answered[0 if slow_run == 5 else 15 :])

    virtual_time.run(main())


def test_an_engine_that_was_slow_from_the_start_and_is_no_longer_is_found_out() -> None:
    async def main() -> None:
        bench = Bench()
        bench.runner.duration_s = lambda rows: 60.0 if bench.loop.time() < 300 else 0.01
        for _ in range(5):
            bench.submit(0, slo_s=1000)
            await asyncio.sleep(61)
        all_asked = []
        for _ in range(60):
            all_asked.append(bench.submit(0, slo_s=1))
            await asyncio.sleep(1)
        answered = [isinstance(one.outcome, Answer) for one in all_asked]
        assert all(answered[30:])

    virtual_time.run(main())


def test_a_cancelled_ticket_leaves_before_launch() -> None:
    async def main() -> None:
        bench = Bench()
        bench.submit(0)
        await asyncio.sleep(0.001)
        gone, stays = bench.submit(1), bench.submit(2)
        assert bench.queue.cancel(gone.ticket)
        assert gone.outcome == Cancelled()
        assert bench.queue.tickets_waiting == 1
        assert bench.queue.bytes_waiting == 8
        await asyncio.sleep(1)
        assert bench.session.batch_rows == [1, 1]
        assert values(stays) == [2]

    virtual_time.run(main())


def test_a_cancel_during_the_run_does_not_disturb_the_batch() -> None:
    async def main() -> None:
        bench = Bench()
        gone, stays = bench.submit(1), bench.submit(2)
        await asyncio.sleep(0.001)
        assert bench.queue.cancel(gone.ticket)
        await asyncio.sleep(1)
        assert gone.outcome == Cancelled()
        assert values(stays) == [2]

    virtual_time.run(main())


def test_cancelling_a_ticket_that_is_settled_does_nothing() -> None:
    async def main() -> None:
        bench = Bench()
        one = bench.submit(1)
        await asyncio.sleep(1)
        assert not bench.queue.cancel(one.ticket)
        assert values(one) == [1]

    virtual_time.run(main())


def test_a_settled_ticket_lets_go_of_its_tensors() -> None:
    async def main() -> None:
        bench = Bench()
        one = bench.submit(1)
        await asyncio.sleep(1)
        assert one.ticket.inputs == {}

    virtual_time.run(main())


def test_many_that_are_answered_leave_no_deadline_behind() -> None:
    async def main() -> None:
        bench = Bench()
        bench.runner.duration_s = lambda rows: 0.0005
        for _ in range(5000):
            bench.submit(0, slo_s=1000)
            await asyncio.sleep(0.0003)
        assert len(bench.queue._waiting._expiries._heap) <= 300

    virtual_time.run(main())


# Idle and closed.


def test_idle_is_told_once_each_time_and_after_the_answers() -> None:
    async def main() -> None:
        told: list[int] = []
        bench = Bench(on_idle=lambda: told.append(bench.queue.counters.answered))
        for _ in range(2):
            bench.submit(0)
            bench.submit(0)
            await asyncio.sleep(1)
        waits = bench.submit(0)
        bench.queue.cancel(waits.ticket)
        await asyncio.sleep(1)
        assert told == [2, 4, 4]

    virtual_time.run(main())


def test_close_returns_who_waits_answers_who_runs_and_closes_the_session() -> None:
    async def main() -> None:
        bench = Bench()
        runs = bench.submit(1)
        await asyncio.sleep(0.001)
        waits = bench.submit(2)
        await bench.queue.close()
        late = bench.submit(3)
        assert values(runs) == [1]
        assert waits.outcome == Returned()
        assert late.outcome == Returned()
        assert bench.session.is_closed
        assert bench.runner.is_closed
        await bench.queue.close()

    virtual_time.run(main())


def test_close_of_an_idle_queue_closes_the_session() -> None:
    async def main() -> None:
        bench = Bench()
        await bench.queue.close()
        assert bench.session.is_closed

    virtual_time.run(main())


def test_a_session_that_fails_to_close_does_not_keep_the_queue_open() -> None:
    class Stubborn(TestSession):
        def close(self) -> None:
            raise RuntimeError("no")

    async def main() -> None:
        await Bench(Stubborn(X, Y)).queue.close()

    virtual_time.run(main())


# Threads, and runs on the loop.


async def answer_of(queue: EngineQueue, one: Asked) -> Asked:
    queue.submit(one.ticket)
    await one.settled.wait()
    return one


def now(values: int | list[int] = 0, **how: Any) -> Asked:
    return asked(values, arrived_s=time.monotonic(), **how)


def test_the_loop_goes_on_while_the_engine_runs() -> None:
    async def main() -> None:
        queue = EngineQueue(SleepingSession(X, Y), name="t", rows_max=8)
        one = now(200)
        queue.submit(one.ticket)
        turns = 0
        while not one.outcomes:
            await asyncio.sleep(0.001)
            turns += 1
        assert turns > 20
        assert values(one) == [200]
        await queue.close()

    real(main())


def test_an_engine_is_only_ever_called_from_its_own_thread_or_the_loop() -> None:
    class Noting(TestSession):
        def infer(self, tensors: Tensors, outputs: Sequence[str] = ()) -> Tensors:
            threads.add(threading.current_thread().name)
            return super().infer(tensors)

    async def main() -> None:
        queue = EngineQueue(Noting(X, Y), name="t", rows_max=8)
        await answer_of(queue, now(0))
        await queue.close()
        assert threads == {"engine t"}

    threads: set[str] = set()
    real(main())


def test_runs_that_are_short_move_to_the_loop_and_back_when_they_are_not() -> None:
    async def main() -> None:
        session = SleepingSession(X, Y)
        queue = EngineQueue(session, name="t", rows_max=8)
        for _ in range(200):
            await answer_of(queue, now(0))
        assert queue.counters.runs_inline > 0
        # The first that sleeps may hold up the loop; those after it must not.
        await answer_of(queue, now(20))
        inline = queue.counters.runs_inline
        await answer_of(queue, now(20))
        assert queue.counters.runs_inline == inline
        await queue.close()

    real(main())


def test_threaded_and_inline_runs_give_the_same_answers() -> None:
    async def main() -> None:
        queue = EngineQueue(echo(), name="t", rows_max=8)
        for i in range(300):
            all_asked = [now([i, i + j]) for j in range(3)]
            await asyncio.gather(*(answer_of(queue, one) for one in all_asked))
            assert [values(one) for one in all_asked] == [[i, i + j] for j in range(3)]
        assert 0 < queue.counters.runs_inline < queue.counters.runs
        assert queue.counters.answered == 900
        await queue.close()

    real(main())


# Streams.


def counter() -> CountingSession:
    inputs = (TensorSpec("n", "INT64", (1,)), TensorSpec("delay_ms", "INT64", (1,)))
    return CountingSession(inputs, (TensorSpec("value", "INT64", (1,)),))


def count_to(
    n: int, *, delay_ms: int = 0, hear: Callable[[int], Awaitable[None] | None], **how: Any
) -> Asked:
    inputs = {"n": np.array([n]), "delay_ms": np.array([delay_ms])}
    return now(0, inputs=inputs, on_chunk=lambda piece: hear(int(piece["value"][0])), **how)


def test_a_stream_gives_every_piece_in_order_and_then_ends() -> None:
    async def main() -> None:
        queue = EngineQueue(counter(), name="t", rows_max=8)
        heard: list[int] = []
        one = await answer_of(queue, count_to(100, hear=heard.append))
        assert heard == list(range(100))
        assert isinstance(one.outcome, Answer)
        assert one.outcome.outputs == {}
        await queue.close()

    real(main())


def test_streams_run_one_after_the_other() -> None:
    async def main() -> None:
        queue = EngineQueue(counter(), name="t", rows_max=8)
        heard: list[int] = []
        both = [count_to(3, delay_ms=1, hear=heard.append) for _ in range(2)]
        await asyncio.gather(*(answer_of(queue, one) for one in both))
        assert heard == [0, 1, 2, 0, 1, 2]
        await queue.close()

    real(main())


def test_a_cancelled_stream_stops_and_frees_the_engine() -> None:
    async def main() -> None:
        session = counter()
        queue = EngineQueue(session, name="t", rows_max=8)
        heard: list[int] = []
        one = count_to(100_000, delay_ms=1, hear=heard.append)
        queue.submit(one.ticket)
        await asyncio.sleep(0.05)
        queue.cancel(one.ticket)
        assert one.outcome == Cancelled()
        count = len(heard)
        assert count
        other = await answer_of(queue, count_to(2, hear=lambda value: None))
        assert isinstance(other.outcome, Answer)
        assert len(heard) == count
        assert session.stopped_at is not None
        assert len(one.outcomes) == 1
        await queue.close()

    real(main())


def test_a_stream_ends_at_its_deadline() -> None:
    async def main() -> None:
        queue = EngineQueue(counter(), name="t", rows_max=8)
        one = await answer_of(
            queue, count_to(100_000, delay_ms=1, hear=lambda value: None, slo_s=0.05)
        )
        assert isinstance(one.outcome, Overdue)
        # Long streams before it do not make the next one hopeless.
        for _ in range(3):
            await answer_of(
                queue, count_to(100_000, delay_ms=1, hear=lambda value: None, slo_s=0.05)
            )
        last = await answer_of(queue, count_to(2, hear=lambda value: None, slo_s=0.05))
        assert isinstance(last.outcome, Answer)
        await queue.close()

    real(main())


def test_a_slow_reader_slows_the_engine_down() -> None:
    async def main() -> None:
        session = counter()
        queue = EngineQueue(session, name="t", rows_max=8)
        gate = asyncio.Event()
        heard: list[int] = []

        async def wait() -> None:
            await gate.wait()

        def hear(value: int) -> Awaitable[None]:
            heard.append(value)
            return wait()

        one = count_to(1000, hear=hear)
        queue.submit(one.ticket)
        await asyncio.sleep(0.1)
        assert 0 < len(heard) < 50
        gate.set()
        await one.settled.wait()
        assert heard == list(range(1000))
        await queue.close()

    real(main())


def test_a_stream_whose_reader_is_stuck_can_be_cancelled() -> None:
    async def main() -> None:
        session = counter()
        queue = EngineQueue(session, name="t", rows_max=8)
        never = asyncio.get_running_loop().create_future()
        one = count_to(1000, hear=lambda value: never)
        queue.submit(one.ticket)
        await asyncio.sleep(0.05)
        queue.cancel(one.ticket)
        await queue.close()
        assert session.stopped_at is not None
        never.cancel()

    real(main())


def test_close_stops_a_stream() -> None:
    async def main() -> None:
        session = counter()
        queue = EngineQueue(session, name="t", rows_max=8)
        one = count_to(100_000, delay_ms=1, hear=lambda value: None)
        queue.submit(one.ticket)
        await asyncio.sleep(0.02)
        await queue.close()
        assert one.outcome == Failed(503, "the engine is being unloaded")
        assert session.is_closed

    real(main())


def test_a_stream_that_fails_in_the_middle_says_so() -> None:
    class Breaking(CountingSession):
        def stream(self, tensors: Tensors) -> Iterator[Tensors]:
            yield {"value": np.array([0])}
            raise EngineError("out of numbers")

    async def main() -> None:
        queue = EngineQueue(Breaking(*counter_specs()), name="t", rows_max=8)
        heard: list[int] = []
        one = await answer_of(queue, count_to(3, hear=heard.append))
        assert heard == [0]
        assert one.outcome == Failed(500, "the model failed: out of numbers")
        await queue.close()

    real(main())


def counter_specs() -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    session = counter()
    return session.inputs, session.outputs


def test_a_call_that_takes_no_stream_is_refused_by_a_model_that_gives_one() -> None:
    async def main() -> None:
        queue = EngineQueue(counter(), name="t", rows_max=8)
        one = await answer_of(queue, now(0))
        assert one.outcome == Failed(422, "this model answers in pieces: ask for a stream")
        await queue.close()

    real(main())
