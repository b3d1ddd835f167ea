"""A call that is to run alone: nobody shares its run, and its word goes before it."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pool.load_guard import LoadGuard
from pool.queueing.alone import CLEAR_S_MAX, LOOK_S, Gate, Visitor
from pool.queueing.engine_queue import EngineQueue
from pool.queueing.ticket import Answer, Begin, Cancelled
from tests.support import virtual_time
from tests.support.counting_engine import TestSession
from tests.support.tickets import Asked, VirtualRunner, X, Y, asked

pytestmark = pytest.mark.rule("F20")

RUN_S = 0.010


class Bench:
    """A queue in virtual time over an engine with two lanes, and what ran when."""

    def __init__(self, lanes: int = 2, gate: Gate | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        self.session = TestSession(X, Y, lanes=lanes)
        self.runner = VirtualRunner(self.session, lambda rows: RUN_S)
        self.queue = EngineQueue(
            self.session,
            name="bench",
            rows_max=8,
            clock=self.loop.time,
            runner=self.runner,
            gate=gate,
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


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20.0):
        while not is_so():  # noqa: ASYNC110 - it is a thread's doing
            await asyncio.sleep(0.001)


class Two:
    """The queues of two models in one process, and loads in it if it has any."""

    def __init__(self, loads: LoadGuard | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        self.gate = Gate(loads)
        self.one, self.two = (Bench(gate=self.gate) for _ in range(2))
        self.said: list[bool] = []  # whether the run is the only one

    def ask(self, bench: Bench, rows: int = 1) -> Asked:
        made = asked([1] * rows, arrived_s=self.loop.time())
        bench.queue.submit(made.ticket)
        return made

    def ask_alone(self, bench: Bench, patience_s: float = 9.0, written_s: float = 0.0) -> Asked:
        """Ask for a run that is alone, whose word takes so long to be written."""

        def crowd(then: Callable[[], None]) -> None:
            self.said.append(False)
            self.loop.call_later(written_s, then)

        def on_alone(begin: Begin) -> None:
            def say(is_only: bool) -> None:
                self.said.append(is_only)
                begin(self.gate.leave)

            self.gate.enter(Visitor(say, crowd, patience_s))

        made = asked(arrived_s=self.loop.time(), shape_key=object(), on_alone=on_alone)
        bench.queue.submit(made.ticket)
        return made


def test_of_two_engines_the_runs_that_are_alone_come_one_after_the_other() -> None:
    async def main() -> None:
        both = Two()
        for bench in (both.one, both.two, both.one):
            both.ask_alone(bench)
        await asyncio.sleep(1)
        assert both.one.starts == [(0.0, 1), (2 * RUN_S, 1)]
        assert both.two.starts == [(RUN_S, 1)]
        assert both.said == [True] * 3
        assert both.gate.is_open

    virtual_time.run(main())


def test_nothing_of_another_engine_runs_beside_it() -> None:
    async def main() -> None:
        both = Two()
        both.ask(both.two)
        await asyncio.sleep(RUN_S / 2)
        both.ask_alone(both.one)
        await asyncio.sleep(0)
        both.ask(both.two, rows=8)
        await asyncio.sleep(1)
        assert both.two.starts == [(0.0, 1), (2 * RUN_S, 8)]
        assert both.one.starts == [(RUN_S, 1)]
        assert both.said == [True]

    virtual_time.run(main())


def test_one_that_runs_inline_is_held_too() -> None:
    async def main() -> None:
        both = Two()
        both.two.queue._inline._fast_runs = 1000
        both.two.queue._inline._rows_fast = 8
        both.ask_alone(both.one)
        await asyncio.sleep(RUN_S / 2)
        held = both.ask(both.two)
        await asyncio.sleep(0)
        assert not held.outcomes
        await asyncio.sleep(RUN_S)
        assert held.outcomes

    virtual_time.run(main())


def test_who_does_not_end_is_waited_for_only_so_long() -> None:
    async def main() -> None:
        both = Two()
        both.two.runner.duration_s = lambda rows: 10.0
        both.ask(both.two)
        await asyncio.sleep(0.1)
        both.ask_alone(both.one)
        both.ask_alone(both.one, patience_s=0.5)
        await asyncio.sleep(9.0)
        # Beside another run they prove nothing, and say so.
        assert both.said == [False, False]
        first_s = 0.1 + CLEAR_S_MAX
        assert both.one.starts == [(first_s, 1), (first_s + RUN_S + 0.5, 1)]
        assert both.gate.is_open

    virtual_time.run(main())


def test_others_are_held_only_so_long_and_it_is_said_before_they_begin() -> None:
    async def main() -> None:
        both = Two()
        both.one.runner.duration_s = lambda rows: 3.0
        both.ask_alone(both.one, written_s=0.2)
        await asyncio.sleep(2.0)
        assert both.said == [True]  # for as long as nobody waits
        both.ask(both.two)
        await asyncio.sleep(LOOK_S * 1.5)
        assert both.said == [True, False]
        assert both.two.starts == []
        await asyncio.sleep(2.0)
        assert len(both.two.starts) == 1
        assert 2.2 <= both.two.starts[0][0] <= 2.2 + 2 * LOOK_S
        assert both.gate.is_open

    virtual_time.run(main())


def test_many_in_a_row_leave_others_half_of_the_time() -> None:
    async def main() -> None:
        both = Two()
        both.two.runner.duration_s = lambda rows: RUN_S / 10
        for _ in range(50):
            both.ask_alone(both.one)
        while both.loop.time() < 0.9:
            both.ask(both.two)
            await asyncio.sleep(RUN_S / 10)
        assert len(both.said) == len([said for said in both.said if said]) >= 30
        starts_s = [start_s for start_s, *_ in both.two.runner.runs]
        assert len(starts_s) > 0.3 * 0.9 / (RUN_S / 10)
        assert max(b - a for a, b in itertools.pairwise([0.0, *starts_s])) < 2 * RUN_S

    virtual_time.run(main())


def test_it_waits_for_a_load_and_loads_wait_for_it(tmp_path: Path) -> None:
    async def main() -> None:
        guard = LoadGuard(tmp_path, "a")
        gate = Gate(guard)
        loop = asyncio.get_running_loop()
        said: asyncio.Queue[bool] = asyncio.Queue()
        visitor = Visitor(said.put_nowait, lambda then: None, 60.0)
        ends, loaded = threading.Event(), threading.Event()

        def load(until: threading.Event) -> None:
            with guard.loading("m", "1", "e"):
                until.wait(60.0)

        first = loop.run_in_executor(None, load, ends)
        await until(lambda: bool(guard._loading))
        gate.enter(visitor)
        await asyncio.sleep(0.02)
        assert said.empty()
        ends.set()
        assert await said.get() is True
        await first
        loaded.set()
        second = loop.run_in_executor(None, load, loaded)
        await until(lambda: guard.waits)
        await asyncio.sleep(0.02)
        assert not second.done()
        gate.leave()
        await second

    asyncio.run(main())


def test_a_load_that_goes_on_keeps_it_only_so_long(tmp_path: Path) -> None:
    async def main() -> None:
        guard = LoadGuard(tmp_path, "a")
        both = Two(guard)
        with guard.loading("m", "1", "e"):
            both.ask_alone(both.one)
            await asyncio.sleep(CLEAR_S_MAX + 0.5)
            assert both.said == [False]
            with guard.loading("n", "1", "e"):
                pass
        both.ask_alone(both.one)
        await asyncio.sleep(0.5)
        assert both.said == [False, True]

    virtual_time.run(main())
