"""Several runs of one session at once: when they overlap, and what is predicted of them."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import pytest

from pool.engines.base import Tensors
from pool.queueing.engine_queue import EngineQueue
from pool.queueing.lanes import Lanes, UnderWay
from pool.queueing.ticket import Answer, Failed, Overdue, Returned
from tests.pool.test_batching_simulation import Life
from tests.support import virtual_time
from tests.support.counting_engine import TestSession
from tests.support.tickets import Asked, X, Y, asked

T = TypeVar("T")


def run_of(rows: int, *, started_s: float = 0.0, expected_s: float = 1.0) -> UnderWay:
    return UnderWay([], rows=rows, started_s=started_s, expected_s=expected_s)


# What is decided.


@pytest.mark.parametrize(
    ("under_way", "rows", "takes"),
    [
        ([], 1, True),
        ([1], 1, True),
        ([4], 3, False),
        ([4], 4, True),
        ([4], 9, True),
        ([20], 8, True),  # it is full; the other one has a single call of 20 rows
        ([20], 7, False),
        ([4, 2], 3, False),
    ],
)
def test_a_batch_joins_others_when_it_is_as_large_or_full(
    under_way: list[int], rows: int, takes: bool
) -> None:
    lanes = Lanes(3)
    for one in under_way:
        lanes.begin(run_of(one))
    assert lanes.takes(rows, rows_max=8) is takes


def test_what_runs_beside_others_says_nothing_about_runs_alone() -> None:
    lanes = Lanes(2)
    for _ in range(10):
        lanes.learn(run_of(1), 0.010, now_s=0.0)
    for _ in range(10):
        one, other = run_of(1), run_of(1)
        lanes.begin(one)
        lanes.begin(other)
        for run in (one, other):
            lanes.end(run)
            lanes.learn(run, 0.020, now_s=0.0)
    assert lanes.profile.run_s(1) == pytest.approx(0.010, rel=0.3)
    lanes.begin(run_of(1))
    assert lanes.profile.run_s(1) == pytest.approx(0.020, rel=0.3)


def test_before_runs_have_overlapped_they_are_expected_to_take_as_long_as_alone() -> None:
    lanes = Lanes(2)
    for _ in range(10):
        lanes.learn(run_of(1), 0.010, now_s=0.0)
    lanes.begin(run_of(1))
    assert lanes.profile.run_s(1) == pytest.approx(0.010, rel=0.3)
    assert lanes.work_s(8, rows_max=8) == lanes.profile.run_s(8)


def test_two_lanes_do_the_work_of_two_at_once() -> None:
    lanes = Lanes(2)
    for _ in range(10):
        one, other = run_of(8), run_of(8)
        lanes.begin(one)
        lanes.begin(other)
        for run in (one, other):
            lanes.end(run)
            lanes.learn(run, 0.020, now_s=0.0)
    run_s = 0.020 * 1.03  # what is left of the first deviation
    assert lanes.work_s(32, rows_max=8) == pytest.approx(4 * run_s / 2, rel=0.2)
    assert lanes.work_s(36, rows_max=8) == pytest.approx(5 * run_s / 2, rel=0.2)


def test_a_run_that_gets_company_is_expected_to_take_longer() -> None:
    lanes = Lanes(2)
    for _ in range(10):
        one, other = run_of(1), run_of(1)
        lanes.begin(one)
        lanes.begin(other)
        for run in (one, other):
            lanes.end(run)
            lanes.learn(run, 0.020, now_s=0.0)
    lanes.begin(run_of(1, started_s=5.0, expected_s=0.010))
    assert lanes.begins_in_s(5.002, is_first=False) == pytest.approx(0.008)
    lanes.begin(run_of(1, started_s=5.005, expected_s=0.030))
    assert lanes.begins_in_s(5.005, is_first=False) == pytest.approx(0.015, rel=0.2)


# What is carried out.


@dataclass
class Double(TestSession):
    """Two runs may overlap."""

    lanes: int = 2


@dataclass
class Device:
    """In virtual time: copies and computations exclude their like, and overlap one another."""

    session: TestSession
    copy_s: float  # of one row
    compute_s: float
    at_once_max: int = 0
    runs: list[tuple[float, float]] = field(default_factory=list)  # start and end
    _copied_s: float = 0.0
    _computed_s: float = 0.0

    def start(self, work: Callable[[], T], done: Callable[[T, float], None]) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        before = len(self.session.batch_rows)
        result = work()
        rows = sum(self.session.batch_rows[before:])
        self._copied_s = max(now_s, self._copied_s) + self.copy_s * rows
        self._computed_s = max(self._copied_s, self._computed_s) + self.compute_s * rows
        end_s = self._computed_s if rows else now_s
        self.runs.append((now_s, end_s))
        self.at_once_max = max(self.at_once_max, sum(end > now_s for _, end in self.runs))
        loop.call_later(end_s - now_s, done, result, end_s - now_s)

    def close(self) -> None:
        pass


def bench(session: TestSession, copy_s: float = 0.003, compute_s: float = 0.007) -> EngineQueue:
    loop = asyncio.get_running_loop()
    device = Device(session, copy_s, compute_s)
    return EngineQueue(session, name="t", rows_max=8, clock=loop.time, runner=device)


def ask(queue: EngineQueue, value: int | list[int], slo_s: float = 10.0) -> Asked:
    one = asked(value, arrived_s=asyncio.get_running_loop().time(), slo_s=slo_s)
    queue.submit(one.ticket)
    return one


def test_the_second_call_does_not_wait_for_the_first_and_the_third_does() -> None:
    async def main() -> list[float]:
        queue = bench(Double(X, Y))
        calls = []
        for value in range(3):
            calls.append(ask(queue, value))
            await asyncio.sleep(0.001)
        await asyncio.sleep(1)
        assert queue.is_idle
        return [one.outcome.queue_s for one in calls if isinstance(one.outcome, Answer)]

    first_s, second_s, third_s = virtual_time.run(main())
    assert first_s == second_s == 0.0
    assert third_s == pytest.approx(0.008)


def test_a_small_batch_waits_for_the_end_of_a_large_run() -> None:
    async def main() -> tuple[int, float]:
        queue = bench(Double(X, Y))
        ask(queue, [1] * 8)
        await asyncio.sleep(0.001)
        one = ask(queue, 1)
        await asyncio.sleep(0.001)
        waiting = queue.tickets_waiting
        await asyncio.sleep(1)
        assert isinstance(one.outcome, Answer)
        return waiting, one.outcome.queue_s

    waiting, queue_s = virtual_time.run(main())
    assert waiting == 1
    assert queue_s == pytest.approx(0.079)


def test_a_deadline_passes_also_for_who_waits_beside_a_free_lane() -> None:
    async def main() -> Asked:
        queue = bench(Double(X, Y))
        ask(queue, [1] * 8)
        await asyncio.sleep(0.001)
        one = ask(queue, 1, slo_s=0.02)
        await asyncio.sleep(1)
        return one

    outcome = virtual_time.run(main()).outcome
    assert isinstance(outcome, Overdue)
    assert outcome.waited_s == pytest.approx(0.02, abs=0.002)


def served_per_s(session: TestSession, clients: int) -> float:
    """Let `clients` ask again soon after they are answered, for ten seconds."""
    dice = random.Random(clients)

    async def main() -> float:
        queue = bench(session)

        async def client() -> None:
            while True:
                await ask(queue, 1).settled.wait()
                await asyncio.sleep(dice.uniform(0, 0.0005))

        tasks = [asyncio.ensure_future(client()) for _ in range(clients)]
        await asyncio.sleep(1)
        before = queue.counters.answered
        await asyncio.sleep(10)
        for task in tasks:
            task.cancel()
        return (queue.counters.answered - before) / 10

    return virtual_time.run(main())


@pytest.mark.parametrize("clients", [4, 8, 16, 64])
def test_copies_overlap_with_computations(clients: int) -> None:
    assert served_per_s(Double(X, Y), clients) >= 0.95 / 0.007
    assert served_per_s(TestSession(X, Y), clients) == pytest.approx(1 / 0.010, rel=0.05)


def test_two_callers_are_not_worse_off_than_with_one_lane() -> None:
    assert served_per_s(Double(X, Y), 2) >= served_per_s(TestSession(X, Y), 2)


def test_a_lone_call_is_not_given_up_for_being_slow_in_a_crowd() -> None:
    async def main() -> Asked:
        queue = bench(Double(X, Y))
        for _ in range(20):
            ask(queue, 1)
            await asyncio.sleep(1)
        for _ in range(200):
            ask(queue, 1)
            ask(queue, 1)
            await asyncio.sleep(0.001)
        while not queue.is_idle:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        one = ask(queue, 1, slo_s=0.013)
        await asyncio.sleep(1)
        return one

    assert isinstance(virtual_time.run(main()).outcome, Answer)


def test_the_load_report_divides_what_waits_among_the_lanes() -> None:
    async def main() -> tuple[float, float]:
        queue = bench(Double(X, Y), copy_s=0.0)
        for _ in range(60):
            ask(queue, [1] * 8)
        while not queue.is_idle:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        calls = [ask(queue, [1] * 8) for _ in range(8)]
        await asyncio.sleep(0.001)
        predicted_s = queue.wait_s()
        last = ask(queue, [1] * 8)
        await asyncio.sleep(5)
        assert all(isinstance(one.outcome, Answer) for one in calls)
        assert isinstance(last.outcome, Answer)
        return predicted_s, last.outcome.queue_s

    predicted_s, waited_s = virtual_time.run(main())
    assert predicted_s == pytest.approx(waited_s, rel=0.35)


@pytest.mark.parametrize("seed", range(10))
def test_every_ticket_is_settled_once_whatever_overlaps(seed: int) -> None:
    everybody, queue, runner = virtual_time.run(Life(seed, 8, lanes=2).live())
    for i, one in enumerate(everybody):
        assert len(one.outcomes) == 1, f"seed {seed}: ticket {i}: {one.outcomes}"
        if isinstance(one.outcome, Answer):
            assert one.outcome.outputs["y"].tolist() == [i + 1000] * one.ticket.rows
    assert queue.is_idle
    assert queue.bytes_waiting == 0
    edges = sorted([(at_s + run_s - 1e-9, -1) for at_s, _, run_s in runner.runs])
    edges = sorted(edges + [(at_s, 1) for at_s, _, _ in runner.runs])
    at_once = np.cumsum([step for _, step in edges])
    assert at_once.max() <= 2, f"seed {seed}"
    assert at_once.max() == 2 or len(runner.runs) < 20


# Threads.


class Meeting(Double):
    """A run ends only once another one is under way; notes how many there are at once."""

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=20)
        self.lock = threading.Lock()
        self.now = self.most = 0
        self.threads: set[int] = set()

    def infer(self, tensors: Tensors, outputs: Sequence[str] = ()) -> Tensors:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.threads.add(threading.get_ident())
        self.barrier.wait()
        with self.lock:
            self.now -= 1
        return {"y": tensors["x"]}


def now(value: int, stream: bool = False) -> Asked:
    return asked(
        value, arrived_s=time.monotonic(), on_chunk=(lambda _piece: None) if stream else None
    )


def test_runs_overlap_in_threads_of_their_own_and_no_more_than_there_are_lanes() -> None:
    async def main() -> None:
        session = Meeting(X, Y)
        queue = EngineQueue(session, name="t", rows_max=1)
        calls = [now(value) for value in range(8)]
        for one in calls:
            queue.submit(one.ticket)
        for one in calls:
            await asyncio.wait_for(one.settled.wait(), 20)
        assert [one.outcome.outputs["y"][0] for one in calls] == list(range(8))  # type: ignore[union-attr]
        assert session.most == 2
        assert len(session.threads) == 2
        assert threading.get_ident() not in session.threads
        await queue.close()
        assert session.is_closed

    asyncio.run(main())


class Open(Double):
    """Two streams at once; both end when they are let, or stopped."""

    def __post_init__(self) -> None:
        self.streams = True
        self.room = threading.Semaphore(0)

    def stream(self, tensors: Tensors) -> Iterator[Tensors]:
        while True:
            yield {"y": tensors["x"]}
            assert self.room.acquire(timeout=20)


def test_closing_cuts_every_stream_short_and_then_closes_the_session() -> None:
    async def main() -> None:
        session = Open(X, Y)
        queue = EngineQueue(session, name="t", rows_max=1)
        calls = [now(value, stream=True) for value in range(3)]
        for one in calls:
            queue.submit(one.ticket)
        await asyncio.sleep(0.01)
        assert queue.tickets_waiting == 1
        closing = asyncio.ensure_future(queue.close())
        await asyncio.sleep(0)
        assert [type(one.outcome) for one in calls] == [Failed, Failed, Returned]
        for left in (1, 0):
            assert not session.is_closed
            session.room.release()
            async with asyncio.timeout(20):
                while len(queue._lanes.under_way) > left:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            await asyncio.sleep(0.01)
        await asyncio.wait_for(closing, 20)
        assert session.is_closed

    asyncio.run(main())


def test_no_run_is_done_on_the_loop_beside_another() -> None:
    class Quick(Double):
        """Short, but for the value that waits."""

        def __post_init__(self) -> None:
            self.gate = threading.Event()
            self.on_loop: list[int] = []
            self.loop_thread = threading.get_ident()

        def infer(self, tensors: Tensors, outputs: Sequence[str] = ()) -> Tensors:
            value = int(tensors["x"][0])
            if threading.get_ident() == self.loop_thread:
                self.on_loop.append(value)
            if value == 1:
                assert self.gate.wait(20)
            return {"y": tensors["x"]}

    async def main() -> None:
        session = Quick(X, Y)
        queue = EngineQueue(session, name="t", rows_max=1)

        async def answered(value: int) -> None:
            one = now(value)
            queue.submit(one.ticket)
            await asyncio.wait_for(one.settled.wait(), 20)

        while not session.on_loop:
            await answered(0)
        queue._inline.record(1, 1.0, was_inline=True)  # a surprise: back into the threads
        slow = now(1)
        queue.submit(slow.ticket)
        await asyncio.sleep(0.01)
        for _ in range(16):
            queue._inline.record(1, 1e-6, was_inline=False)
        session.on_loop.clear()
        await answered(2)
        assert not session.on_loop
        session.gate.set()
        await slow.settled.wait()
        await answered(3)
        assert session.on_loop == [3]
        await queue.close()

    asyncio.run(main())
