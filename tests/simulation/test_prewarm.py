"""What is about to be used is warm before it is called, on machines that take long to start."""

from __future__ import annotations

import asyncio
import math
import time

import pytest

from tests.simulation.documents import put_endpoint, put_model
from tests.simulation.engine import Costs
from tests.simulation.far import FarLauncher, far_node
from tests.simulation.fleet import Edge, Fleet, fleet_of
from tests.simulation.test_far_places import state
from tests.simulation.world import World, simulate, until


async def asleep(fleet: Fleet, **far: float) -> tuple[Edge, FarLauncher]:
    """Start a controller and an edge; no machine of the one place is up, and "m" needs one."""
    fleet.controller()
    launcher = far_node(fleet, **far)
    edge = fleet.edge()
    await until(lambda: edge.knows("m") and state(edge) == "no_instance")
    return edge, launcher


@pytest.mark.parametrize("calls", [3, pytest.param(9, marks=pytest.mark.slow)])
def test_machine_is_there_for_every_call_by_a_clock_though_it_was_gone_between(calls: int) -> None:
    every_s, start_s = 400.0, 60.0

    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("m", idle_s="auto", cold_start_cost_s=100.0)
            fleet.controller()
            far = far_node(fleet, start_s=start_s, rest_s=10.0, guess_s=start_s)
            edge = fleet.edge()
            await until(lambda: edge.knows("m") and state(edge) == "warm", 2 * start_s)
            begin_s = world.now_s
            for count in range(calls):
                await asyncio.sleep(begin_s + count * every_s - world.now_s - 2 * start_s)
                assert not far.up() or count < 2  # it stays until one gap is known
                await asyncio.sleep(begin_s + count * every_s - world.now_s)
                assert (await edge.ask("m")).status == 200
                assert len(far.starts) == max(1, count)
            assert far.called_off == 0

    simulate(main)


def test_machine_that_a_schedule_has_started_serves_when_its_hours_begin() -> None:
    """It is up long before them: how long a start takes was guessed."""

    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            begin_unix_s = math.ceil((time.time() + 120.0) / 60.0) * 60.0
            hours_s = world.now_s + begin_unix_s - time.time()
            begin = time.gmtime(begin_unix_s)
            fleet.put("m", idle_s=5, warm=f"Mon-Sun {begin.tm_hour:02}:{begin.tm_min:02}-24:00 UTC")
            edge, far = await asleep(fleet, start_s=20.0, rest_s=5.0, guess_s=60.0)
            await until(lambda: state(edge) == "warm", hours_s - world.now_s)
            up_s = world.now_s
            assert 50.0 < hours_s - up_s < 80.0
            while world.now_s < hours_s + 10.0:
                assert state(edge) == "warm", f"{hours_s - world.now_s:.0f} s before its hours"
                await asyncio.sleep(1.0)
            assert (len(far.starts), far.called_off) == (1, 0)

    simulate(main)


@pytest.mark.slow
def test_second_machine_is_up_before_bursts_that_one_is_too_small_for() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            put_model(fleet.store.behind, "m", Costs(run_s=0.5, row_s=0.0), rows_max=1)
            put_endpoint(fleet.store.behind, "m", replicas_min=1, replicas_max=2)
            fleet.controller()
            far = far_node(fleet, places=2, start_s=60.0, rest_s=30.0, guess_s=60.0)
            edge = fleet.edge()
            await until(lambda: edge.knows("m") and state(edge) == "warm", 90.0)
            late, starts = [], []
            for _ in range(5):
                done = await fleet.traffic([edge], "m", per_s=3.5, for_s=60.0, deadline_s=5.0)
                late.append(sum(one.status != 200 for one in done))
                await asyncio.sleep(240.0)
                starts.append(len(far.starts))
            assert min(late[:2]) > 50, "one machine would do"
            assert max(late[2:]) <= 2, late
            assert starts[-1] - starts[1] == 3  # one for each burst
            fleet.check()

    simulate(main)
