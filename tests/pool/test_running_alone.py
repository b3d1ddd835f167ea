"""A call that is to run alone: nobody shares its run, and its word goes before it."""

from __future__ import annotations

import asyncio

import pytest

from pool.queueing.alone import Gate
from pool.queueing.engine_queue import EngineQueue
from pool.queueing.ticket import Answer, Begin, Cancelled
from tests.support import virtual_time
from tests.support.counting_engine import TestSession
from tests.support.tickets import VirtualRunner, X, Y, asked

pytestmark = pytest.mark.rule("F20")

RUN_S = 0.010


class Bench:
    """A queue in virtual time over an engine with two lanes, and what ran when."""

    def __init__(self, lanes: int = 2) -> None:
        self.loop = asyncio.get_running_loop()
        self.session = TestSession(X, Y, lanes=lanes)
        self.runner = VirtualRunner(self.session, lambda rows: RUN_S)
        self.queue = EngineQueue(
            self.session, name="bench", rows_max=8, clock=self.loop.time, runner=self.runner
        )
        self.begins: list[Begin] = []
        self.ends = asyncio.Event()

    @property
    def starts(self) -> list[tuple[float, int]]:
        """When runs started, and with how many rows."""
        return [(round(start_s, 6), rows) for start_s, rows, _ in self.runner.runs]


@pytest.mark.parametrize("lanes", [1, 2])
def test_nobody_shares_its_run_and_nothing_runs_beside_it(lanes: int) -> None:
    async def main() -> None:
        bench = Bench(lanes)
        for alone in (False, False, True, True, False, False):
            one = asked(
                arrived_s=bench.loop.time(),
                shape_key=object() if alone else "x",
                on_alone=(lambda begin: begin(bench.ends.set)) if alone else None,
            )
            bench.queue.submit(one.ticket)
        await asyncio.sleep(1)
        # Of one shape are those at both ends: they share the first run.
        assert bench.starts == [(0.0, 4), (RUN_S, 1), (2 * RUN_S, 1)]

    virtual_time.run(main())


def test_one_that_is_behind_lets_it_end_first() -> None:
    async def main() -> None:
        bench = Bench()
        bench.queue.submit(
            asked(shape_key=object(), on_alone=lambda begin: begin(bench.ends.set)).ticket
        )
        await asyncio.sleep(RUN_S / 2)
        bench.queue.submit(asked([1] * 8, arrived_s=bench.loop.time()).ticket)
        await asyncio.sleep(1)
        assert bench.starts == [(0.0, 1), (RUN_S, 8)]

    virtual_time.run(main())


def test_the_run_begins_only_when_it_is_let() -> None:
    async def main() -> None:
        bench = Bench()
        one = asked(5, shape_key=object(), on_alone=bench.begins.append)
        bench.queue.submit(one.ticket)
        other = asked(6)
        bench.queue.submit(other.ticket)
        await asyncio.sleep(0.5)
        assert bench.starts == []
        assert not bench.queue.is_idle
        bench.begins.pop()(bench.ends.set)
        assert not bench.ends.is_set()
        await one.settled.wait()
        assert bench.ends.is_set()
        assert isinstance(one.outcome, Answer)
        await other.settled.wait()
        assert bench.starts == [(0.5, 1), (0.5 + RUN_S, 1)]

    virtual_time.run(main())


def test_short_runs_that_are_alone_are_not_done_on_the_loop() -> None:
    async def main() -> None:
        bench = Bench()
        bench.queue._inline._fast_runs = 1000
        bench.queue._inline._rows_fast = 8
        one = asked(shape_key=object(), on_alone=bench.begins.append)
        bench.queue.submit(one.ticket)
        await asyncio.sleep(0.1)
        assert bench.queue.counters.runs_inline == 0
        bench.begins.pop()(bench.ends.set)
        await one.settled.wait()

    virtual_time.run(main())


def test_one_that_leaves_before_it_begins_does_not_keep_the_queue() -> None:
    async def main() -> None:
        bench = Bench()
        one = asked(shape_key=object(), on_alone=bench.begins.append)
        bench.queue.submit(one.ticket)
        await asyncio.sleep(0.1)
        bench.queue.cancel(one.ticket)
        assert one.outcome == Cancelled()
        bench.begins.pop()(bench.ends.set)
        await asyncio.sleep(0.1)
        assert bench.ends.is_set()
        assert bench.queue.is_idle
        await bench.queue.close()

    virtual_time.run(main())


def test_of_two_engines_the_runs_that_are_alone_come_one_after_the_other() -> None:
    async def main() -> None:
        gate = Gate()
        one, two = Bench(), Bench()
        for bench in (one, two, one):
            bench.queue.submit(
                asked(
                    arrived_s=bench.loop.time(),
                    shape_key=object(),
                    on_alone=lambda begin: gate.enter(lambda: begin(gate.leave)),
                ).ticket
            )
        two.queue.submit(asked(arrived_s=two.loop.time()).ticket)
        await asyncio.sleep(1)
        assert one.starts == [(0.0, 1), (2 * RUN_S, 1)]
        assert two.starts == [(RUN_S, 1), (2 * RUN_S, 1)]
        assert not gate._is_taken

    virtual_time.run(main())
