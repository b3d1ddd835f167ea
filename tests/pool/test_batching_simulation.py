"""The queue over long, random, reproducible lives.

A failing case prints its seed; the same seed gives the same life.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

import pytest

from pool.queueing.engine_queue import EngineQueue
from pool.queueing.ticket import Answer, Cancelled, Failed, Overdue, Returned
from tests.support import virtual_time
from tests.support.counting_engine import MAGIC_VALUE, FailingSession
from tests.support.tickets import Asked, VirtualRunner, X, Y, asked

# One life of a queue: random shapes, sizes, deadlines, cancels, failures.


@dataclass
class Life:
    """What one seed does to a queue."""

    seed: int
    rows_max: int
    tickets: int = 400
    lanes: int = 1
    slos_s: tuple[float, ...] = (0.02, 0.1, 10.0)  # 20 ms are tight for most of these runs

    async def live(self) -> tuple[list[Asked], EngineQueue, VirtualRunner]:
        dice = random.Random(self.seed)
        loop = asyncio.get_running_loop()
        session = FailingSession(X, Y, lanes=self.lanes)
        runner = VirtualRunner(
            session, lambda rows: (0.004 + 0.001 * rows) * dice.uniform(0.8, 1.5)
        )
        queue = EngineQueue(
            session, name="sim", rows_max=self.rows_max, clock=loop.time, runner=runner
        )
        everybody: list[Asked] = []
        rate = dice.choice([50, 300, 3000])
        for i in range(self.tickets):
            value = MAGIC_VALUE if dice.random() < 0.02 else i + 1000
            one = asked(
                [value] * dice.choice([1, 1, 1, 2, 3]),
                arrived_s=loop.time(),
                slo_s=dice.choice(self.slos_s),
                shape_key=dice.choice(["a", "a", "a", "b", "c"]),
                outputs=dice.choice([(), ("y",)]),
            )
            everybody.append(one)
            queue.submit(one.ticket)
            if dice.random() < 0.05:
                loop.call_later(dice.uniform(0, 0.05), queue.cancel, one.ticket)
            if dice.random() < 0.7:
                await asyncio.sleep(dice.expovariate(rate))
        if dice.random() < 0.5:
            await asyncio.sleep(30)
        await queue.close()
        return everybody, queue, runner


@pytest.mark.parametrize("rows_max", [1, 8])
@pytest.mark.parametrize("seed", range(15))
def test_every_ticket_is_settled_once_and_right(seed: int, rows_max: int) -> None:
    everybody, queue, runner = virtual_time.run(Life(seed, rows_max).live())

    for i, one in enumerate(everybody):
        assert len(one.outcomes) == 1, f"seed {seed}: ticket {i}: {one.outcomes}"
        match one.outcome:
            case Answer(outputs):
                assert outputs["y"].tolist() == [i + 1000] * one.ticket.rows
            case Failed(500, _):
                assert "more than this model can bear" in one.outcome.detail
            case Failed(status, _):
                assert status == 503
            case Overdue(waited_s, was_shed):
                slo_s = one.ticket.deadline_s - one.ticket.arrived_s
                assert waited_s < slo_s if was_shed else waited_s <= slo_s + 0.002
            case Cancelled() | Returned():
                pass
    counters = queue.counters
    settled = (
        counters.answered
        + counters.failed
        + counters.overdue
        + counters.shed
        + counters.returned
        + counters.cancelled
    )
    assert settled == counters.submitted == len(everybody)
    assert queue.is_idle
    assert queue.bytes_waiting == 0
    for at_s, rows, _ in runner.runs:
        assert rows <= max(rows_max, 3), f"seed {seed}: {rows} rows at {at_s}"


@pytest.mark.parametrize("seed", range(5))
def test_the_engine_never_rests_while_a_ticket_waits(seed: int) -> None:
    everybody, _, runner = virtual_time.run(Life(seed, 8, slos_s=(0.1, 10.0)).live())
    arrivals_s = {one.ticket.arrived_s for one in everybody}
    end_s = -1.0
    for start_s, _, run_s in runner.runs:
        assert start_s >= end_s - 1e-9
        assert start_s in arrivals_s or start_s == pytest.approx(end_s)
        end_s = start_s + run_s


@pytest.mark.parametrize("seed", range(5))
def test_the_same_seed_gives_the_same_life(seed: int) -> None:
    lives = []
    for _ in range(2):
        everybody, _, runner = virtual_time.run(Life(seed, 8).live())
        lives.append((runner.runs, [str(one.outcome) for one in everybody]))
    assert lives[0] == lives[1]
