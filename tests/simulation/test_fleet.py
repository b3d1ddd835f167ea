"""Whole fleets in virtual time: what calls see while processes stop, die, or cannot be reached."""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import signal
import subprocess
import sys

import pytest

from pool import controller as controller_module
from registry_sync.leader import TAKEOVER_S
from tests.simulation.engine import Costs, ledger
from tests.simulation.fleet import Edge, Fleet, fleet_of
from tests.simulation.world import World, simulate, until
from tests.support.stack import REPOSITORY


async def started(fleet: Fleet, *, workers: int = 2, edges: int = 2) -> list[Edge]:
    """Start one node with everything, and wait until it serves."""
    fleet.controller()
    fleet.sync("n1")
    for number in range(1, workers + 1):
        fleet.worker(f"w{number}")
    made = [fleet.edge(f"e{number}") for number in range(1, edges + 1)]
    await fleet.ready(*made, workers=workers)
    return made


async def warm(fleet: Fleet, edge: Edge, endpoint: str) -> None:
    """Have an endpoint loaded by a first call."""
    asked = await edge.ask(endpoint, deadline_s=60.0)
    assert asked.status == 200, asked.detail
    ref = edge.world.snapshot.endpoints[endpoint].arms[0].version.ref
    await until(lambda: (route := edge.pool.route(ref)) is not None and route.warm)


# asleep and awake


def test_cold_endpoint_is_woken_once_by_all_its_calls() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("m", Costs(load_s=2.0), idle_s=5)
            edges = await started(fleet)
            tasks = [edge.ask("m") for edge in edges for _ in range(50)]
            done = await asyncio.gather(*tasks)
            assert {one.status for one in done} == {200}
            assert len(ledger.loads) == 1
            assert [n for n in fleet.store.asked if "blobs" in n and "read" in n]
            assert (
                max(fleet.store.asked[name] for name in fleet.store.asked if "read " in name) == 1
            )
            assert max(one.wait_s for one in done) < 3.0
            fleet.check()

    simulate(main)


def test_endpoint_sleeps_after_its_idle_time_and_is_woken_by_the_next_call() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("m", idle_s=5)
            [edge] = await started(fleet, edges=1)
            await warm(fleet, edge, "m")
            ended_s = world.now_s
            await until(lambda: edge.pool.route(("m", "1")).state == "asleep")
            assert 4.0 < world.now_s - ended_s < 7.0
            await warm(fleet, edge, "m")
            assert len(ledger.loads) == 2
            fleet.check()

    simulate(main)


def test_calls_that_waited_for_a_worker_are_sent_in_the_order_in_which_they_came() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("m")
            [edge] = await started(fleet, workers=1, edges=1)
            await warm(fleet, edge, "m")
            fleet.named("w1").kill()
            await until(lambda: not edge.pool.workers_up)
            tasks = [edge.ask("m") for _ in range(40)]
            await asyncio.sleep(0.5)
            fleet.worker("w1")
            done = await asyncio.gather(*tasks)
            assert {one.status for one in done} == {200}
            ran = [value for run in ledger.runs[1:] for value in run.values]
            assert ran == [one.value for one in done]
            fleet.check()

    simulate(main)


# the controller


@pytest.mark.parametrize("is_killed", [False, True])
def test_controller_that_stands_still_or_dies_costs_nobody_a_call(is_killed: bool) -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("warm", replicas_min=1)
            fleet.put("cold", Costs(load_s=1.0), idle_s=2)
            edges = await started(fleet)
            await warm(fleet, edges[0], "warm")
            controller = fleet.named("c1")
            traffic = world.go(fleet.traffic(edges, "warm", per_s=20, for_s=75, deadline_s=2.0))
            await asyncio.sleep(5)
            controller.kill(signal.SIGKILL if is_killed else signal.SIGSTOP)
            await asyncio.sleep(30)
            woken = await edges[1].ask("cold")
            assert woken.status == 200
            await asyncio.sleep(30)
            if is_killed:
                fleet.controller()
            else:
                controller.kill(signal.SIGCONT)
            await traffic
            assert fleet.statuses() == {200: len(fleet.asked)}
            fleet.check()
            # And then it acts again: what is idle sleeps.
            await until(lambda: edges[0].pool.route(("cold", "1")).state == "asleep")

    simulate(main)


def test_second_controller_takes_over_and_the_first_says_nothing_more() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("m", replicas_min=1)
            fleet.put("other", idle_s=5)
            first = fleet.controller("c1")
            await asyncio.sleep(2)
            fleet.controller("c2")
            fleet.sync("n1")
            fleet.sync("n2")
            fleet.worker("w1", "n1", controller=None)
            fleet.worker("w2", "n2", controller=None)
            edges = [fleet.edge("e1", controller=None), fleet.edge("e2", controller=None)]
            await fleet.ready(*edges, workers=2)
            await warm(fleet, edges[0], "m")
            assert {edge.world.link.epoch for edge in edges} == {1}
            traffic = world.go(fleet.traffic(edges, "m", per_s=10, for_s=90, deadline_s=2.0))
            first.kill(signal.SIGSTOP)
            await until(lambda: {edge.world.link.epoch for edge in edges} == {2}, TAKEOVER_S + 15)
            await asyncio.sleep(10)
            first.kill(signal.SIGCONT)
            await asyncio.sleep(20)
            # The first one has found out: it leads nobody, and nobody listens to it.
            assert [line.process for line in world.log("standing_down")] == ["c1"]
            assert {edge.world.link.epoch for edge in edges} == {2}
            await traffic
            assert fleet.statuses() == {200: len(fleet.asked)}
            fleet.check()
            leading = [(line.process, line.fields["epoch"]) for line in world.log("leading")]
            assert leading == [("c1", 1), ("c2", 2)]

    simulate(main)


# workers


def test_worker_that_dies_while_it_loads_costs_its_callers_only_time() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("m", Costs(load_s=3.0), idle_s=60)
            edges = await started(fleet)
            tasks = [edge.ask("m", deadline_s=20.0) for edge in edges for _ in range(20)]
            await until(lambda: ledger.loads)
            await asyncio.sleep(1)
            fleet.named(ledger.loads[0][1]).kill()
            done = await asyncio.gather(*tasks)
            assert {one.status for one in done} == {200}
            assert len({worker for _, worker, _ in ledger.loads}) == 2
            assert max(one.wait_s for one in done) < 1.0 + 3.0 + 2.0
            fleet.check()

    simulate(main)


def test_worker_that_dies_in_the_middle_of_runs_costs_no_call() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("m", Costs(run_s=0.05), replicas_min=2)
            edges = await started(fleet)
            await warm(fleet, edges[0], "m")
            await until(lambda: len(ledger.loads) == 2)
            traffic = world.go(fleet.traffic(edges, "m", per_s=50, for_s=30))
            for _ in range(3):
                await asyncio.sleep(8)
                worker = fleet.named("w1")
                worker.kill()
                await asyncio.sleep(0.3)
                fleet.worker("w1")
            await traffic
            assert fleet.statuses() == {200: len(fleet.asked)}
            fleet.check(may_repeat=True)

    simulate(main)


def test_worker_that_stands_still_leaves_the_routes_and_comes_back() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("m", replicas_min=2)
            edges = await started(fleet)
            await warm(fleet, edges[0], "m")
            await until(lambda: len(ledger.loads) == 2)
            fleet.named("w1").kill(signal.SIGSTOP)
            await until(lambda: edges[0].pool.route(("m", "1")).warm == ("w2",))
            done = await fleet.traffic(edges, "m", per_s=50, for_s=10, deadline_s=2.0)
            assert {one.status for one in done} == {200}
            fleet.named("w1").kill(signal.SIGCONT)
            await until(lambda: edges[0].pool.route(("m", "1")).warm == ("w1", "w2"))
            fleet.check()

    simulate(main)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A controller that repeats itself without a pause."""
    monkeypatch.setattr(controller_module, "COMMAND_AGAIN_S", 0.05)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_replica_that_comes_and_goes_five_times_a_second_costs_no_call(seed: int) -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.store.answer_s = (0.001, 0.002)
            fleet.put("m", Costs(load_s=0.02, run_s=0.01), replicas_min=2)
            edges = await started(fleet)
            await until(lambda: edges[0].pool.route(("m", "1")).warm == ("w1", "w2"))
            traffic = world.go(fleet.traffic(edges, "m", per_s=60, for_s=15, deadline_s=2.0))
            changes = itertools.cycle((1, 2))
            while not traffic.done():
                replicas = next(changes)
                fleet.change("m", replicas_min=replicas, replicas_max=replicas, idle_s=0.05)
                await edges[0].in_process(edges[0].world.ask("poke"))
                await asyncio.sleep(0.05)
            assert len(ledger.loads) > 15, "hardly anything came and went"
            assert fleet.statuses() == {200: len(fleet.asked)}
            fleet.check()

    simulate(main, seed=seed)


@pytest.mark.usefixtures("hasty")
def test_last_replica_that_is_let_go_again_and_again_costs_no_call() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("m", Costs(load_s=0.05, run_s=0.01), idle_s=0.05)
            edges = await started(fleet)
            await warm(fleet, edges[0], "m")
            traffic = world.go(fleet.traffic(edges, "m", per_s=30, for_s=10, deadline_s=5.0))
            while not traffic.done():
                await edges[0].in_process(edges[0].world.ask("unload", "m"))
                await asyncio.sleep(0.2)
            assert len(ledger.loads) > 5, "hardly anything came and went"
            assert fleet.statuses() == {200: len(fleet.asked)}
            fleet.check()

    simulate(main)


# the registry


def test_registry_that_is_away_costs_only_who_needs_it() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("known", idle_s=2)
            fleet.put("new", idle_s=2)
            [edge] = await started(fleet, edges=1)
            await warm(fleet, edge, "known")
            await until(lambda: edge.pool.route(("known", "1")).state == "asleep")
            fleet.store.is_away = True
            known, new = await asyncio.gather(edge.ask("known"), edge.ask("new", deadline_s=30.0))
            assert known.status == 200
            assert (new.status, "does not answer" in new.detail) == (503, True)
            fleet.store.is_away = False
            await asyncio.sleep(15)
            assert (await edge.ask("new", deadline_s=30.0)).status == 200
            fleet.check()

    simulate(main)


# the network


def test_worker_cut_off_from_the_controller_still_serves_who_reaches_it() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("m", replicas_min=1)
            [edge] = await started(fleet, workers=1, edges=1)
            await warm(fleet, edge, "m")
            world.loop.network.cut(fleet.named("c1"), edge.process)
            world.loop.network.cut(fleet.named("c1"), fleet.named("w1"))
            done = await fleet.traffic([edge], "m", per_s=20, for_s=40, deadline_s=2.0)
            assert {one.status for one in done} == {200}
            world.loop.network.heal()
            await until(lambda: edge.world.link.is_up)
            await warm(fleet, edge, "m")
            fleet.check()

    simulate(main)


# the clock, and chance


@functools.cache
def first_life(seed: int) -> list[str]:
    """Return what other lives of this seed are compared with."""
    return life(seed)


def life(seed: int, step_s: float = 0.0) -> list[str]:
    """Return everything that is logged and answered in a minute with faults."""

    async def main(world: World) -> list[str]:
        with fleet_of(world) as fleet:
            fleet.put("m", Costs(run_s=0.02), replicas_min=1)
            fleet.put("lazy", Costs(load_s=0.5), idle_s=3)
            edges = await started(fleet)
            busy = world.go(fleet.traffic(edges, "m", per_s=20, for_s=40))
            seldom = world.go(fleet.traffic(edges, "lazy", per_s=0.2, for_s=40))
            await asyncio.sleep(10)
            world.step_wall_clock(step_s)
            await asyncio.sleep(10)
            fleet.named("w1").kill()
            await asyncio.sleep(1)
            fleet.worker("w1")
            fleet.named("c1").kill(signal.SIGSTOP)
            await asyncio.sleep(10)
            fleet.named("c1").kill(signal.SIGCONT)
            await asyncio.gather(busy, seldom)
            fleet.check(may_repeat=True)
            said = [*map(str, world.lines), *map(str, fleet.asked)]
            return [line.replace(str(fleet.folder), "") for line in said]

    return simulate(main, seed=seed)


def test_the_same_seed_gives_the_same_life() -> None:
    assert life(3) == first_life(3)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_life_to_other_processes() -> None:
    """Also where strings have other hashes, and objects other addresses."""
    code = "from tests.simulation import test_fleet; print(*test_fleet.life(3), sep=chr(10))"
    lives = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            timeout=120,
        ).stdout
        for seed in ("1", "2")
    ]
    assert lives[0] == lives[1]


@pytest.mark.parametrize("hours", [1, -1])
def test_wall_clock_stepped_by_an_hour_changes_nothing_at_all(hours: int) -> None:
    assert life(3, step_s=hours * 3600.0) == first_life(3)


# requests that kill


@pytest.mark.rule("F20")
@pytest.mark.parametrize("run_s", [0.8, 5.0])
def test_nobody_is_blamed_for_what_another_model_does_beside_it(run_s: float) -> None:
    """One that is short has its worker to itself; one that is long has not, and proves nothing."""

    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("good", Costs(run_s=run_s), replicas_min=1)
            names = ["good", "deadly", "worse"]
            for name in names[1:]:
                fleet.put(name, Costs(kills_each=1), replicas_min=1)
            [edge] = await started(fleet, workers=1, edges=1)
            await until(lambda: all((r := edge.pool.route((n, "1"))) and r.warm for n in names))

            async def keep() -> None:
                while True:
                    await asyncio.sleep(0.1)
                    if fleet.named("w1").state == "dead":
                        fleet.worker("w1")

            def runs() -> int:
                return len([run for run in ledger.runs if run.model == "good"])

            keeper = asyncio.ensure_future(keep())
            good = edge.ask("good", deadline_s=30.0)
            await until(lambda: runs() == 1)
            first = edge.ask("deadly", deadline_s=30.0)
            await until(lambda: runs() == 2)  # alone
            second = edge.ask("worse", deadline_s=30.0)
            assert (await good).status == 200
            assert [(await one).status for one in (first, second)] == [422, 422]
            refs = {row.ref for row in edge.pool.suspects.rows()}
            assert refs == {("deadly", "1"), ("worse", "1")}
            assert (await edge.ask("good", deadline_s=30.0)).status == 200
            keeper.cancel()

    simulate(main)
