"""The order in which tickets are served: by priority, then by arrival."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from pool.batching import Limits, Run, Shed, decide
from pool.line import Line
from pool.ticket import Answer, Overdue, Ticket
from registry_sync.documents import PRIORITY_DEFAULT
from tests.pool.test_engine_queue import Bench
from tests.support import virtual_time
from tests.support.tickets import asked


def ticket(priority: int = PRIORITY_DEFAULT, *, slo_s: float = 10.0) -> Ticket:
    return asked(priority=priority, slo_s=slo_s).ticket


@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from([1, 2, 49, 50, 51, 100]), st.integers(0, 10)),
        max_size=60,
    )
)
def test_whoever_comes_and_goes_the_rest_is_sorted(
    steps: list[tuple[bool, int, int]],
) -> None:
    line, model = Line(), list[Ticket]()
    for comes, priority, index in steps:
        if comes:
            model.append(ticket(priority))
            line.add(model[-1])
        elif model:
            gone = model.pop(index % len(model))
            assert gone in line
            assert line.remove(gone)
            assert not line.remove(gone)
            assert gone not in line
        assert list(line) == sorted(model, key=lambda one: one.priority)  # stable: by arrival
        assert len(line) == len(model)
        assert bool(line) == bool(model)
        assert all(one in line for one in model)


def test_a_batch_is_filled_in_the_order_of_priorities() -> None:
    async def main() -> None:
        bench = Bench(rows_max=2)
        bench.submit(0)
        await asyncio.sleep(0.001)  # the engine is busy: the others wait
        order: list[int] = []
        for value, priority in enumerate([100, 50, 1, 50, 2, 100]):
            one = bench.submit(value, priority=priority)
            one.ticket.on_settled = lambda _, value=value: order.append(value)  # type: ignore[misc]
        await asyncio.sleep(1)
        assert bench.session.batch_rows == [1, 2, 2, 2]
        assert order == [2, 4, 1, 3, 0, 5]

    virtual_time.run(main())


def test_a_low_priority_under_a_flood_is_answered_at_its_deadline_at_the_latest() -> None:
    async def main() -> None:
        bench = Bench(rows_max=1)  # 11 ms a run: the flood below is more than it can do
        low = bench.submit(7, priority=100, slo_s=0.5)
        bench.submit(0)
        floods = []
        for _ in range(200):
            floods.append(bench.submit(1, slo_s=0.2))
            await asyncio.sleep(0.005)
        again = bench.submit(7, priority=100, slo_s=0.5)
        began_s = bench.loop.time()
        await again.settled.wait()
        assert bench.loop.time() <= began_s + 0.502
        await asyncio.sleep(1)
        assert isinstance(low.outcome, Answer | Overdue)
        assert sum(isinstance(one.outcome, Answer) for one in floods) > 70  # not slowed down by it

    virtual_time.run(main())


def test_nobody_is_shed_for_the_sake_of_a_lower_priority() -> None:
    # A run takes 4.5 ms for one, and 9.5 ms for the 11 that keep up with this many arrivals; 7 ms
    # are left.
    limits = Limits(32, lambda rows: 0.004 + 0.0005 * rows)
    urgent, equal = ticket(1, slo_s=0.010), ticket(slo_s=0.010)
    crowd = [ticket(slo_s=10.0) for _ in range(40)]
    assert decide([urgent, *crowd], 0.003, limits, arrival_rows_per_s=50_000) == Run(6)
    assert decide([equal, *crowd], 0.003, limits, arrival_rows_per_s=50_000) == Shed(1)
