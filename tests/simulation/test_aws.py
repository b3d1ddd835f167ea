"""Instances by demand, in virtual time: the launcher's own process before a modelled AWS."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import msgspec
import pytest

from infra import aws_agent, local, stack
from infra.client import ask
from pool.aws import client
from pool.aws.client import LOOKS_MAX, Cloud
from pool.aws.config import AwsAgentConfig, PoolConfig, PoolsConfig
from pool.aws.launcher import STEPS_MAX, AwsLauncher
from tests.simulation.aws import GIVE_UP_S, Region, Weather
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
            *stack.worker_processes(place, 1, "info", controller="", engines=(ENGINE,), on="cpu"),
        )
        await local.run_tier(local.TierOptions(place, processes, node))

    return fleet.world.start(node, main)


@contextlib.contextmanager
def region_of(fleet: Fleet, config: PoolsConfig, weather: Weather) -> Iterator[Region]:
    """Make the region that the launcher's calls reach."""
    region = Region(
        fleet.world.loop,
        lambda node: task(fleet, node),
        {pool.group: pool.instances_max for pool in config.pools},
        per=config.pools[0].workers_per_instance,
        weather=weather,
    )
    with mock.patch.object(client, "connect", region.apis):
        yield region
    assert not region.faults


def launcher(fleet: Fleet, config: PoolsConfig) -> Process:
    settings = AwsAgentConfig(
        data=str(fleet.folder / "c1"), controller=fleet.control(), pools=config
    )
    return fleet.world.start("launcher", lambda: aws_agent.run(settings))


async def nodes(fleet: Fleet) -> list[dict[str, Any]]:
    answer = await ask(fleet.control(), fleet.folder / "c1", "status")
    found: list[dict[str, Any]] = msgspec.json.decode(answer.data)["nodes"]
    return found


async def ready(edge: Edge, *names: str) -> None:
    await until(lambda: all(edge.knows(name) for name in names))


BAD = Weather(throttled=0.15, failing=0.15, dead_on_arrival=0.1, failing_tasks=0.1)
IDLE_CALLS_PER_H = 30  # with nothing up: two every five minutes, and a few to spare
LAST_CALLS = 10  # until it is seen that all has gone
BURST = 20


async def disturb(world: World, fleet: Fleet, region: Region, config: PoolsConfig) -> None:
    """Let the launcher die and start anew again and again, and somebody else turn the group's knob.

    A launcher that starts anew may make a burst of calls again.
    """
    (group,) = region.groups.values()
    running = launcher(fleet, config)
    while True:
        await asyncio.sleep(world.loop.dice.uniform(60.0, 900.0))
        if world.loop.dice.random() < 0.5:
            region.set_desired(group, world.loop.dice.randrange(group.most + 1))
        running.kill()
        running = launcher(fleet, config)


async def cycle(world: World, fleet: Fleet, region: Region, edge: Edge) -> None:
    """Let there be demand for one worker, then for three, then for none."""
    traffic = world.go(fleet.traffic([edge], "m", per_s=0.4, for_s=150, deadline_s=2000.0))
    await until(lambda: edge.pool.workers_up == 1, 3000.0, 0.5)
    fleet.change("m", idle_s=10, replicas_min=3)
    await until(lambda: edge.pool.workers_up == 3, 3000.0, 0.5)
    fleet.change("m", idle_s=10, replicas_max=3)
    await traffic
    await until(region.is_empty, 2500.0, 1.0)


def check(fleet: Fleet, region: Region, *, is_disturbed: bool) -> None:
    """Check that no call was lost, and that no more than one call a second was made over time."""
    # While no launcher is there, what has no instance is refused at once.
    allowed = {200, 503} if is_disturbed else {200}
    assert fleet.statuses().keys() <= allowed
    fleet.check(may_repeat=True)
    times_s = [at_s for at_s, _ in region.calls]
    bursts = BURST * (2 if is_disturbed else 1)
    for at in range(0, len(times_s) - bursts - 60):
        assert times_s[at + bursts + 60] - times_s[at] >= 60.0, "too many calls"


def cycles(
    seed: int, count: int, *, per: int = 1, idle_h: float = 1.0, is_disturbed: bool = True
) -> None:
    async def main(world: World) -> None:
        config = pools(per=per, most=3)
        with fleet_of(world) as fleet, region_of(fleet, config, BAD) as region:
            fleet.put("m", SLOW, idle_s=10, replicas_max=3)
            fleet.controller()
            if is_disturbed:
                trouble = world.go(disturb(world, fleet, region, config))
            else:
                launcher(fleet, config)
            edge = fleet.edge()
            await ready(edge, "m")
            for _ in range(count):
                await cycle(world, fleet, region, edge)
            check(fleet, region, is_disturbed=is_disturbed)
            if is_disturbed:
                trouble.cancel()
            region.weather, begin_s = Weather(), world.now_s
            await asyncio.sleep(3600 * idle_h)
            assert region.count(begin_s).total() <= IDLE_CALLS_PER_H * idle_h + LAST_CALLS
            assert region.is_empty()

    simulate(main, seed=seed)


def test_workers_come_with_demand_and_go_with_it_though_calls_fail() -> None:
    cycles(0, 1, idle_h=0.1, is_disturbed=False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 3))
def test_launchers_that_die_and_somebody_at_the_console_leave_nothing(seed: int) -> None:
    cycles(seed, 1, per=1 + seed % 2, idle_h=0.3)


GOOD = Weather()


def test_launcher_that_is_killed_and_starts_anew_takes_over_what_runs() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet, region_of(fleet, pools(), GOOD) as region:
            fleet.put("m", SLOW, idle_s=10, replicas_min=2)
            fleet.controller()
            first = launcher(fleet, pools())
            edge = fleet.edge()
            await ready(edge, "m")
            await until(lambda: len(region.machines) == 2, 300.0, 0.1)
            first.kill()  # in the middle of a start, and again when all is up
            second = launcher(fleet, pools())
            await until(lambda: edge.pool.workers_up == 2, 900.0, 0.5)
            second.kill()
            await asyncio.sleep(30)
            assert edge.pool.workers_up == 2, "they serve on without any launcher"
            launcher(fleet, pools())
            await asyncio.sleep(100)
            assert edge.pool.workers_up == 2
            assert (len(region.jobs), region.launched) == (2, 2), "something was started twice"

    simulate(main)


def test_launcher_that_is_refused_from_its_start_is_seen_and_harms_nothing() -> None:
    async def main(world: World) -> None:
        weather = Weather()
        with fleet_of(world) as fleet, region_of(fleet, pools(), weather) as region:
            fleet.put("m", SLOW, idle_s=10, replicas_min=1)
            fleet.controller()
            first = launcher(fleet, pools())
            edge = fleet.edge()
            await ready(edge, "m")
            await until(lambda: edge.pool.workers_up == 1, 900.0, 0.5)
            first.kill()
            weather.is_denied = True
            await asyncio.sleep(20)
            launcher(fleet, pools())
            await asyncio.sleep(60)
            (node,) = await nodes(fleet)
            assert "DescribeAutoScalingGroups: AccessDenied" in node["trouble"]
            assert node["counts"]["look_age_ms"] > 30_000
            assert node["counts"]["calls/DescribeAutoScalingGroups/failed"] >= 2, "it gave up"
            assert "instances" not in node["counts"], "nobody knows how many there are"
            fleet.change("m", idle_s=10, replicas_min=2)
            await asyncio.sleep(60)
            (node,) = await nodes(fleet)
            assert {place["state"] for place in node["places"]} == {"cold"}, "nothing can start"
            weather.is_denied = False
            await until(lambda: edge.pool.workers_up == 2, 900.0, 0.5)
            (node,) = await nodes(fleet)
            assert (node["trouble"], node["counts"]["instances"]) == ("", 2)
            assert node["counts"]["look_age_ms"] < 30_000
            assert (len(region.jobs), region.launched) == (2, 2), "what ran was ended"
            fleet.change("m", idle_s=10)
            await until(region.is_empty, 900.0, 0.5)

    simulate(main)


def test_pools_are_told_of_after_one_look_in_vain_while_no_call_is_answered() -> None:
    async def main(world: World) -> None:
        (pool,) = pools().pools
        names = ("gpu", "large", "small")
        many = msgspec.structs.replace(
            pools(),
            pools=tuple(msgspec.structs.replace(pool, name=n, group=f"prod-{n}") for n in names),
        )
        weather = Weather(is_hanging=True)
        with fleet_of(world) as fleet, region_of(fleet, many, weather) as region:
            fleet.put("m", SLOW, idle_s=10, replicas_min=1)
            fleet.controller()
            launcher(fleet, many)
            edge = fleet.edge()
            await ready(edge, "m")
            await until(lambda: edge.pool.reach.far == 9, LOOKS_MAX * GIVE_UP_S + 15.0, 0.5)
            assert not region.launched
            weather.is_hanging = False
            await until(lambda: edge.pool.workers_up == 1, 900.0, 0.5)

    simulate(main)


def test_launcher_whose_controller_does_not_lead_makes_no_calls_and_then_takes_over() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet, region_of(fleet, pools(), GOOD) as region:
            fleet.put("m", SLOW, idle_s=10, replicas_min=1)
            leader = fleet.controller("c1")
            here = launcher(fleet, pools())
            edge = fleet.edge(controller=None)
            await until(lambda: len(region.live) == 1 and region.live[0].process, 600.0, 0.5)
            fleet.controller("c2")
            settings = AwsAgentConfig(
                data=str(fleet.folder / "c2"), controller=fleet.control("c2"), pools=pools()
            )
            world.start("launcher2", lambda: aws_agent.run(settings))
            here.kill()
            begin_s = world.now_s
            await asyncio.sleep(60)
            assert not region.count(begin_s)
            leader.kill()
            await until(lambda: region.count(begin_s), 60.0, 0.5)
            await asyncio.sleep(100)
            assert len(region.jobs) == 1, "what runs was started again, or ended"
            assert region.machines[0].tags["tidepool:epoch"] == "2"
            del edge

    simulate(main)


def test_spot_instance_that_is_taken_back_is_emptied_and_replaced_before_it_goes() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet, region_of(fleet, pools(), GOOD) as region:
            fleet.put("m", Costs(run_s=0.02), idle_s=10, replicas_min=2, replicas_max=2)
            fleet.controller()
            launcher(fleet, pools())
            edge = fleet.edge()
            await ready(edge, "m")
            await until(lambda: edge.pool.workers_up == 2, 900.0, 0.5)
            traffic = world.go(fleet.traffic([edge], "m", per_s=5, for_s=240))
            spot = region.machines[0]
            region.notice(spot)
            await until(lambda: all(job.machine != spot.id for job in region.live), 60.0, 0.5)
            await until(lambda: edge.pool.workers_up == 2, 300.0, 0.5)
            await traffic
            assert fleet.statuses() == {200: len(fleet.asked)}
            await until(lambda: len(region.machines) == 2, 120.0, 0.5)
            assert region.groups["prod-gpu"].desired == 2

    simulate(main)


def test_aws_is_looked_at_again_amid_many_steps() -> None:
    async def main(world: World) -> None:
        config = pools(most=1, per=2 * STEPS_MAX)
        with fleet_of(world) as fleet, region_of(fleet, config, GOOD) as region:
            fleet.put("m", SLOW, idle_s=10, replicas_min=2 * STEPS_MAX, replicas_max=2 * STEPS_MAX)
            fleet.controller()
            launcher(fleet, config)
            await until(lambda: len(region.jobs) == 2 * STEPS_MAX, 300.0, 0.5)
            names = [name for _, name in region.calls]
            at = [i for i, name in enumerate(names) if name == "run_task"]
            assert "describe_auto_scaling_groups" in names[at[0] : at[STEPS_MAX]]

    simulate(main)


def test_pool_without_capacity_waits_for_it_and_then_serves() -> None:
    async def main(world: World) -> None:
        weather = Weather(capacity=0)
        with fleet_of(world) as fleet, region_of(fleet, pools(), weather) as region:
            fleet.put("m", SLOW, idle_s=10)
            fleet.controller()
            launcher(fleet, pools())
            edge = fleet.edge()
            await ready(edge, "m")
            asked = world.go(fleet.traffic([edge], "m", per_s=1, for_s=2, deadline_s=3000.0))
            await asyncio.sleep(150)
            assert region.groups["prod-gpu"].desired == 1
            weather.capacity = 1
            await asked
            assert fleet.statuses() == {200: len(fleet.asked)}
            await until(region.is_empty, 900.0, 0.5)

    simulate(main)


def test_worker_that_drains_keeps_its_instance_though_the_launcher_starts_anew() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet, region_of(fleet, pools(), GOOD) as region:
            fleet.put("m", Costs(run_s=60.0), idle_s=600, replicas_min=1, replicas_max=1)
            fleet.controller()
            first = launcher(fleet, pools())
            edge = fleet.edge()
            await ready(edge, "m")
            await until(lambda: edge.pool.workers_up == 1, 900.0, 0.5)
            asked = edge.ask("m", deadline_s=600.0)
            await asyncio.sleep(5)
            region.notice(region.machines[0])
            # ECS counts and lists it no more from here on.
            await until(lambda: any(job.desired == "STOPPED" for job in region.live), 60.0, 0.5)
            await asyncio.sleep(10)
            first.kill()
            launcher(fleet, pools())
            assert (await asked).status == 200

    simulate(main, seed=3)


def test_instance_that_calls_wait_for_is_kept_when_controller_and_launcher_start_anew() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet, region_of(fleet, pools(), GOOD) as region:
            fleet.put("m", SLOW, idle_s=10, replicas_max=1)
            leader = fleet.controller()
            first = launcher(fleet, pools())
            edge = fleet.edge(controller=None)
            await ready(edge, "m")
            asked = [edge.ask("m", deadline_s=900.0) for _ in range(5)]
            await until(lambda: region.machines, 60.0, 0.5)
            await asyncio.sleep(5)
            leader.kill()
            first.kill()
            await asyncio.sleep(10)
            fleet.controller()
            launcher(fleet, pools())
            assert [(await one).status for one in asked] == [200] * 5
            assert region.launched == 1

    simulate(main, seed=1)


@pytest.mark.parametrize("when_s", [5.0, 30.0])
def test_instance_that_boots_is_not_ended_by_a_new_controller_and_launcher_though_a_fallback_helps(
    when_s: float,
) -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet, region_of(fleet, pools(), GOOD) as region:
            fleet.put("m", SLOW, idle_s=10, replicas_max=1, fallback="cpu")
            fleet.sync("near")
            fleet.worker("near-0", "near", is_fallback=True)
            leader = fleet.controller()
            first = launcher(fleet, pools())
            edge = fleet.edge(controller=None)
            await ready(edge, "m")
            assert (await edge.ask("m")).status == 200
            await until(lambda: region.machines, 60.0, 0.5)
            await asyncio.sleep(when_s)
            leader.kill()  # they are one task of ECS
            first.kill()
            await asyncio.sleep(3)
            fleet.controller()
            launcher(fleet, pools())
            await until(lambda: edge.pool.workers_up == 2, 300.0, 0.5)
            assert region.launched == 1
            await until(region.is_empty, 600.0, 0.5)

    simulate(main, seed=4)


def test_places_that_were_wanted_last_are_those_that_start_after_a_lost_connection() -> None:
    async def main(world: World) -> None:
        config = pools()
        with fleet_of(world) as fleet, region_of(fleet, config, GOOD) as region:
            here = AwsLauncher(config, Cloud(client.connect(), config), lambda: 1, lambda: None)
            (pool,) = here.pools
            region.set_desired(region.groups["prod-gpu"], 1)
            await asyncio.sleep(30)

            async def connect() -> list[str]:
                await here.begin("gpu")
                return [place.worker for place in pool.places() if place.state == "starting"]

            assert await connect() == ["gpu-0-0"]
            pool.hold_up(["gpu-2-0"])
            assert await connect() == ["gpu-2-0"]

    simulate(main)


def test_instance_ends_though_somebody_has_set_the_desired_capacity_to_nothing() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet, region_of(fleet, pools(), GOOD) as region:
            fleet.put("m", SLOW, idle_s=10)
            fleet.controller()
            launcher(fleet, pools())
            edge = fleet.edge()
            await ready(edge, "m")
            await fleet.traffic([edge], "m", per_s=1, for_s=5, deadline_s=2000.0)
            region.set_desired(region.groups["prod-gpu"], 0)
            assert len(region.machines) == 1, "it is protected"
            await until(region.is_empty, 900.0, 1.0)
            assert fleet.statuses() == {200: len(fleet.asked)}

    simulate(main)


def test_instance_that_never_joins_is_replaced_where_the_group_may_have_no_fewer_and_no_more() -> (
    None
):
    async def main(world: World) -> None:
        config = pools(most=1, least=1)
        weather = Weather(dead_on_arrival=1.0)
        with fleet_of(world) as fleet, region_of(fleet, config, weather) as region:
            region.groups["prod-gpu"].least = 1
            region.set_desired(region.groups["prod-gpu"], 1)
            fleet.put("m", SLOW, idle_s=10, replicas_min=1, replicas_max=1)
            fleet.controller()
            launcher(fleet, config)
            edge = fleet.edge()
            await ready(edge, "m")
            await until(lambda: region.machines[0].lifecycle == "InService", 100.0, 1.0)
            weather.dead_on_arrival = 0.0
            await until(lambda: edge.pool.workers_up == 1, 900.0, 1.0)

    simulate(main)


def test_launches_that_did_not_come_are_taken_back_when_nobody_needs_them_any_more() -> None:
    async def main(world: World) -> None:
        weather = Weather(capacity=0)
        with fleet_of(world) as fleet, region_of(fleet, pools(), weather) as region:
            fleet.put("m", SLOW, idle_s=10, replicas_min=3)
            fleet.controller()
            launcher(fleet, pools())
            await until(lambda: region.groups["prod-gpu"].desired == 3, 60.0, 1.0)
            fleet.change("m", idle_s=10, replicas_max=3)
            await until(region.is_empty, 300.0, 1.0)
            weather.capacity, begin_s = 100, world.now_s
            await asyncio.sleep(600)
            assert not region.launched
            assert region.count(begin_s).total() <= LAST_CALLS, "it does not rest"

    simulate(main)


def test_call_for_what_was_unloaded_brings_an_instance_again() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet, region_of(fleet, pools(), GOOD) as region:
            fleet.put("m", SLOW, idle_s=600)
            fleet.controller()
            launcher(fleet, pools())
            edge = fleet.edge()
            await ready(edge, "m")
            assert (await edge.ask("m", deadline_s=900.0)).status == 200
            await edge.in_process(edge.world.ask("unload", "m"))
            await until(region.is_empty, 300.0, 0.5)
            assert (await edge.ask("m", deadline_s=900.0)).status == 200

    simulate(main)
