"""Instances by demand, in virtual time: the launcher's own process before a modelled AWS."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from unittest import mock

import pytest

from infra import aws_agent, local, stack
from pool.aws import client
from pool.aws.config import AwsAgentConfig, PoolConfig, PoolsConfig
from tests.simulation.aws import Region, Weather
from tests.simulation.engine import Costs
from tests.simulation.fleet import ENGINE, REGISTRY, Edge, Fleet, fleet_of
from tests.simulation.processes import Process
from tests.simulation.world import World, simulate, until

SLOW = Costs(run_s=0.2, row_s=0.05)  # four a second, so that a crowd needs several workers


def pools(*, most: int = 3, per: int = 1, least: int = 0, rest_s: float = 20.0) -> PoolsConfig:
    pool = PoolConfig(
        name="gpu",
        group="prod-gpu",
        task_definition="prod-gpu:1",
        instances_min=least,
        instances_max=most,
        workers_per_instance=per,
        device="cpu",
        subnets=("subnet-0a",),
        security_groups=("sg-0a",),
        rest_s=rest_s,
        start_s=150.0,
    )
    return PoolsConfig(fleet="prod", cluster="prod", pools=(pool,))


def task(fleet: Fleet, node: str) -> Process:
    """Start what a task runs: `tidepool pool --workers 1` with its id from outside."""
    place = stack.Node(fleet.folder / node)
    place.prepare()
    (place.data / "node-id").write_text(node)

    async def main() -> None:
        processes = (
            stack.sync_process(place, REGISTRY, "info"),
            *stack.worker_processes(
                place, 1, "info", controller=fleet.control(), engines=(ENGINE,), on="cpu"
            ),
        )
        await local.run_tier(local.TierOptions(place, processes, node))

    return fleet.world.start(node, main)


@contextlib.contextmanager
def region_of(fleet: Fleet, config: PoolsConfig, weather: Weather) -> Iterator[Region]:
    """Make the region that the launcher's calls reach."""
    (pool,) = config.pools
    region = Region(
        fleet.world.loop,
        lambda node: task(fleet, node),
        {pool.group: pool.instances_max},
        per=pool.workers_per_instance,
        weather=weather,
    )
    with mock.patch.object(client, "connect", region.apis):
        yield region


def launcher(fleet: Fleet, config: PoolsConfig) -> Process:
    settings = AwsAgentConfig(
        data=str(fleet.folder / "c1"), controller=fleet.control(), pools=config
    )
    return fleet.world.start("launcher", lambda: aws_agent.run(settings))


async def ready(edge: Edge, *names: str) -> None:
    await until(lambda: all(edge.knows(name) for name in names))


BAD = Weather(throttled=0.15, failing=0.15, dead_on_arrival=0.1, failing_tasks=0.1)
IDLE_CALLS_PER_H = 30  # with nothing up: two every five minutes, and a few to spare
BURST = 20


async def cycle(world: World, fleet: Fleet, region: Region, edge: Edge) -> None:
    """Let there be demand for one worker, then for three, then for none."""
    traffic = world.go(fleet.traffic([edge], "m", per_s=2, for_s=150, deadline_s=2000.0))
    await until(lambda: edge.pool.workers_up == 1, 1500.0)
    fleet.change("m", idle_s=10, replicas_min=3)
    await until(lambda: edge.pool.workers_up == 3, 1500.0)
    fleet.change("m", idle_s=10, replicas_max=3)
    await traffic
    await until(region.is_empty, 2500.0, 1.0)


def check(fleet: Fleet, region: Region) -> None:
    """Check that no call was lost, and that no more than one call a second was made over time."""
    assert fleet.statuses() == {200: len(fleet.asked)}
    fleet.check(may_repeat=True)
    times_s = [at_s for at_s, _ in region.calls]
    for at in range(0, len(times_s) - BURST - 60):
        assert times_s[at + BURST + 60] - times_s[at] >= 60.0, "too many calls"


def cycles(seed: int, count: int, *, per: int = 1, idle_h: float = 1.0) -> None:
    async def main(world: World) -> None:
        config = pools(per=per, most=3)
        with fleet_of(world) as fleet, region_of(fleet, config, BAD) as region:
            fleet.put("m", SLOW, idle_s=10, replicas_max=3)
            fleet.controller()
            launcher(fleet, config)
            edge = fleet.edge()
            await ready(edge, "m")
            for _ in range(count):
                await cycle(world, fleet, region, edge)
            check(fleet, region)
            region.weather, begin_s = Weather(), world.now_s
            await asyncio.sleep(3600 * idle_h)
            assert region.count(begin_s).total() <= IDLE_CALLS_PER_H * idle_h
            assert region.is_empty()

    simulate(main, seed=seed)


def test_workers_come_with_demand_and_go_with_it_though_calls_fail() -> None:
    cycles(0, 1, idle_h=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 7))
def test_many_cycles_lose_nothing_and_leave_nothing(seed: int) -> None:
    cycles(seed, 3, per=1 + seed % 2)
