"""Two zeros in virtual time: engines that sleep, and machines that are not there."""

from __future__ import annotations

import asyncio
import signal

import pytest

from edge.errors import RETRY_AFTER_S_MAX
from edge.readiness import state_of
from registry_sync import endpoints, rollout_orders
from tests.simulation.documents import put_model
from tests.simulation.engine import Costs, ledger
from tests.simulation.far import FarLauncher, far_node
from tests.simulation.fleet import Edge, Fleet, fleet_of
from tests.simulation.world import World, simulate, until

START_S = 60.0


def state(edge: Edge, model: str = "m") -> str:
    return state_of(edge.pool.route_in_reach((model, "1")))


def served_by() -> list[str]:
    """Return which workers have run something, in the order of the runs."""
    return [run.worker for run in ledger.runs]


async def at_rest(
    fleet: Fleet, *, start_s: float, rest_s: float = 60.0, guess_s: float = 0.0
) -> tuple[Edge, FarLauncher]:
    """Start a controller, places that have no machine and an edge, with an endpoint that sleeps."""
    fleet.put("m", idle_s=5)
    fleet.controller()
    far = far_node(fleet, start_s=start_s, rest_s=rest_s, guess_s=guess_s)
    edge = fleet.edge()
    await until(lambda: edge.knows("m") and state(edge) == "no_instance")
    return edge, far


async def helped(fleet: Fleet, **scale: object) -> Edge:
    """Start a controller, a fallback worker and an edge, with an endpoint that says so."""
    fleet.put("m", fallback="cpu", **scale)
    fleet.controller()
    fleet.sync("near")
    fleet.worker("near-0", "near", is_fallback=True)
    edge = fleet.edge()
    await fleet.ready(edge, workers=1)
    return edge


def test_calls_that_no_instance_could_answer_in_time_are_refused_and_still_start_one() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            edge, far = await at_rest(fleet, start_s=START_S)
            assert not far.starts
            refused = await edge.ask("m")
            assert (refused.status, refused.wait_s < 0.1) == (503, True)
            assert "no instance" in refused.detail
            # Nothing more comes for longer than the endpoint is ever idle and awake.
            await until(lambda: state(edge) == "starting")
            await until(lambda: state(edge) == "warm", START_S + 30.0)
            assert (len(far.starts), far.called_off) == (1, 0)
            await asyncio.sleep(RETRY_AFTER_S_MAX * 0.9)
            assert (await edge.ask("m")).status == 200  # who came back when it was told to
            await until(lambda: state(edge) == "no_instance", 300.0)
            fleet.check()

    simulate(main)


def test_call_whose_deadline_is_long_enough_waits_for_the_instance() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            edge, _ = await at_rest(fleet, start_s=START_S)
            waiting = [edge.ask("m", deadline_s=600.0) for _ in range(5)]
            await asyncio.sleep(60.0)
            # It is learned how long a start takes only from the first one; by then it is there.
            late = edge.ask("m", deadline_s=400.0)
            assert {(await one).status for one in (*waiting, late)} == {200}
            fleet.check()

    simulate(main)


def test_start_that_was_seen_once_is_what_the_next_refusal_goes_by() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            edge, _ = await at_rest(fleet, start_s=30.0, rest_s=5.0, guess_s=500.0)
            assert (await edge.ask("m", deadline_s=120.0)).status == 503
            await until(lambda: state(edge) == "warm", 100.0)
            await until(lambda: state(edge) == "no_instance", 600.0)
            assert (await edge.ask("m", deadline_s=120.0)).status == 200
            await until(lambda: state(edge) == "no_instance", 600.0)
            refused = edge.ask("m", deadline_s=15.0)
            assert (await refused).status == 503
            await until(lambda: state(edge) == "starting")
            await asyncio.sleep(20.0)
            assert (await edge.ask("m", deadline_s=20.0)).status == 200  # what is left is shorter
            fleet.check()

    simulate(main)


def test_fallback_answers_at_once_while_the_instance_starts_and_goes_when_it_is_there() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            edge = await helped(fleet, idle_s=5)
            far = far_node(fleet, start_s=60.0, rest_s=5.0)
            await until(lambda: state(edge) == "no_instance")
            for _ in range(2):  # from no instance up and back, twice
                before, runs = len(far.starts), len(ledger.runs)
                traffic = world.go(fleet.traffic([edge], "m", per_s=1, for_s=80.0))
                await until(lambda: state(edge) == "fallback")
                await until(lambda: state(edge) == "warm", 90.0)
                done = await traffic
                assert {one.status for one in done} == {200}, [o for o in done if o.status != 200]
                assert max(one.wait_s for one in done) < 2.0
                assert len(far.starts) == before + 1
                by = served_by()[runs:]
                assert by == sorted(by, reverse=True), "answers went back and forth"
                assert set(by) == {"near-0", "far-0"}
                near = fleet.named("near-0")
                assert near.state != "dead"
                await until(lambda: not far.up(), 400.0)
                assert state(edge) == "no_instance"
            assert far.called_off == 0
            fleet.check()

    simulate(main)


def test_one_call_at_a_fallback_worker_is_demand_enough_for_an_instance() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            edge = await helped(fleet, idle_s=5)
            far = far_node(fleet, start_s=START_S)
            await until(lambda: state(edge) == "no_instance")
            assert (await edge.ask("m")).status == 200
            await until(lambda: state(edge) == "warm", START_S + 30.0)
            assert (len(far.starts), far.called_off) == (1, 0)
            fleet.check()

    simulate(main)


def test_fallback_takes_no_part_in_what_does_not_say_so() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            edge = await helped(fleet, idle_s=5)
            fleet.put("other", idle_s=5)
            far_node(fleet, start_s=START_S)
            await until(lambda: edge.knows("other"))
            await until(lambda: state(edge) == "no_instance")
            assert (await edge.ask("other")).status == 503
            assert (await edge.ask("m")).status == 200
            fleet.change("m", idle_s=5)
            await until(lambda: edge.pool.route(("m", "1")).wake_at == ())
            assert (await edge.ask("m")).status == 503

    simulate(main)


def test_killed_instance_is_stood_in_for_until_another_one_is_there() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            edge = await helped(fleet, replicas_min=1)
            far = far_node(fleet, start_s=40.0)
            await until(lambda: state(edge) == "warm", 60.0)
            traffic = world.go(fleet.traffic([edge], "m", per_s=10, for_s=60.0))
            await asyncio.sleep(10.0)
            far.workers["far-0"].kill()
            far.hold_up(["far-0"])  # whoever starts machines notices that
            done = await traffic
            assert {one.status for one in done} == {200}, [o for o in done if o.status != 200]
            assert state(edge) == "warm"
            assert served_by()[-1] == "far-0"
            fleet.check(may_repeat=True)

    simulate(main)


def test_instance_that_is_told_to_go_hands_over_to_the_fallback_without_a_slow_call() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            edge = await helped(fleet, replicas_min=1)
            far = far_node(fleet, start_s=40.0)
            await until(lambda: state(edge) == "warm", 60.0)
            traffic = world.go(fleet.traffic([edge], "m", per_s=10, for_s=20.0))
            await asyncio.sleep(5.0)
            far.hold_up([])  # as a notice of two minutes has it
            done = await traffic
            assert {one.status for one in done} == {200}, [o for o in done if o.status != 200]
            assert state(edge) == "fallback"
            fleet.check()

    simulate(main)


def test_dedicated_endpoint_is_helped_too_and_gets_an_instance_of_its_own() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            edge = await helped(fleet, dedicated=True, idle_s=5)
            far = far_node(fleet, places=2, start_s=30.0, rest_s=5.0)
            await until(lambda: state(edge) == "no_instance")
            assert (await edge.ask("m")).status == 200
            await until(lambda: state(edge) == "warm", 60.0)
            assert len(far.starts) == 1
            fleet.check()

    simulate(main)


def test_rollout_waits_for_an_instance_and_moves_no_call_to_a_fallback_copy_before() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            edge = await helped(fleet, idle_s=5)
            far = far_node(fleet, start_s=60.0, rest_s=5.0)
            await until(lambda: state(edge) == "no_instance")
            put_model(fleet.store.behind, "m", version="2")
            rollout_orders.start(fleet.store.behind, "m", "2", steps=(50.0,), hold_s=3.0)
            traffic = world.go(fleet.traffic([edge], "m", per_s=5, for_s=80.0))
            await asyncio.sleep(50.0)  # both arms are wanted warm, and there is nothing yet
            assert far.starts == ["far-0"]
            assert weights(fleet) == (100.0, 0.0)
            assert state(edge) == "fallback"
            await until(lambda: weights(fleet) == (50.0, 50.0), 30.0)
            assert {model for _, worker, model in ledger.loads if worker == "far-0"} == {"m"}
            done = await traffic
            assert {one.status for one in done} == {200}, [o for o in done if o.status != 200]
            fleet.check()

    simulate(main)


def weights(fleet: Fleet) -> tuple[float, float]:
    """Return by which weights the arms of the rollout go."""
    found = endpoints.read_state(fleet.store.behind, "m")
    arms = {"stable": 100.0, "canary": 0.0} if found is None else found[0].weights
    return arms["stable"], arms["canary"]


def test_second_fallback_worker_takes_its_part_when_one_is_not_enough() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("m", Costs(run_s=0.1, row_s=0.05), fallback="cpu", idle_s=5)
            fleet.controller()
            fleet.sync("near")
            for name in ("near-0", "near-1"):
                fleet.worker(name, "near", is_fallback=True)
            edge = fleet.edge()
            await fleet.ready(edge, workers=2)
            far_node(fleet, start_s=START_S)
            await until(lambda: state(edge) == "no_instance")
            done = await fleet.traffic([edge], "m", per_s=25, for_s=10.0)
            assert {one.status for one in done} == {200}
            assert {*served_by()} == {"near-0", "near-1"}
            fleet.check()

    simulate(main)


def test_connection_to_the_only_warm_worker_may_break_without_a_call_for_a_fallback_worker() -> (
    None
):
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("m", Costs(load_s=5.0), fallback="cpu", replicas_min=1)
            fleet.controller()
            for node, name, is_fallback in (("near", "near-0", True), ("n1", "w1", False)):
                fleet.sync(node)
                worker = fleet.worker(name, node, is_fallback=is_fallback)
            edge = fleet.edge()
            await fleet.ready(edge, workers=2)
            await until(lambda: edge.knows("m") and state(edge) == "warm", 60.0)
            traffic = world.go(fleet.traffic([edge], "m", per_s=50, for_s=12.0, deadline_s=2.0))
            for _ in range(5):
                await asyncio.sleep(2.0)
                world.loop.network.reset(edge.process, worker)
            done = await traffic
            assert {one.status for one in done} == {200}, [o for o in done if o.status != 200]
            assert {*served_by()} == {"w1"}
            assert {worker for _, worker, _ in ledger.loads} == {"w1"}
            worker.kill()  # and this time it is gone
            await until(lambda: state(edge) != "warm")
            assert (await edge.ask("m", deadline_s=20.0)).status == 200
            assert served_by()[-1] == "near-0"
            fleet.check(may_repeat=True)

    simulate(main)


@pytest.mark.parametrize("away_s", [2.0, 20.0])
def test_start_goes_on_under_another_controller_that_does_not_know_for_whom(away_s: float) -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            edge = await helped(fleet, idle_s=5)
            far = far_node(fleet, start_s=START_S, rest_s=5.0)
            await until(lambda: state(edge) == "no_instance")
            assert (await edge.ask("m")).status == 200  # and is gone: nobody waits
            await until(lambda: bool(far.starts))
            await asyncio.sleep(20.0)
            fleet.named("c1").kill()
            await asyncio.sleep(away_s)
            fleet.controller()
            await until(lambda: far.up() == ["far-0"], START_S)
            await asyncio.sleep(RETRY_AFTER_S_MAX * 0.9)
            assert (len(far.starts), far.called_off, far.up()) == (1, 0, ["far-0"])
            await until(lambda: not far.up(), 60.0)  # and not for ever
            fleet.check()

    simulate(main)


def test_call_refused_while_there_is_no_controller_starts_an_instance_under_the_next() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("m", idle_s=5)
            controller = fleet.controller()
            far = far_node(fleet, start_s=START_S)
            edge = fleet.edge()
            await until(lambda: edge.knows("m") and state(edge) == "no_instance")
            await asyncio.sleep(10.0)
            controller.kill()
            await asyncio.sleep(1.0)
            assert (await edge.ask("m")).status == 503
            await asyncio.sleep(20.0)
            assert not far.starts
            fleet.controller()
            await until(lambda: state(edge) == "warm", START_S + 30.0)
            assert (await edge.ask("m")).status == 200
            fleet.check()

    simulate(main)


def test_call_refused_long_ago_starts_nothing_under_the_next_controller() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("m", idle_s=5)
            controller = fleet.controller()
            far = far_node(fleet, start_s=START_S, rest_s=5.0)
            edge = fleet.edge()
            await until(lambda: edge.knows("m") and state(edge) == "no_instance")
            assert (await edge.ask("m")).status == 503
            await until(lambda: bool(far.up()), START_S + 30.0)
            await until(lambda: not far.up(), 300.0)
            controller.kill()
            fleet.controller()
            await asyncio.sleep(60.0)
            assert far.starts == ["far-0"]

    simulate(main)


@pytest.mark.parametrize("how", ["lost", "silent"])
def test_calls_still_wait_for_an_instance_while_whoever_starts_it_is_away(how: str) -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            edge, far = await at_rest(fleet, start_s=START_S, guess_s=START_S)
            waiting = [edge.ask("m", deadline_s=300.0)]
            await until(lambda: state(edge) == "starting")
            far.agent.kill(signal.SIGKILL if how == "lost" else signal.SIGSTOP)
            await asyncio.sleep(20.0)
            assert state(edge) == "starting"
            waiting += [edge.ask("m", deadline_s=300.0) for _ in range(3)]
            await asyncio.sleep(5.0)
            assert not any(one.done() for one in waiting)
            if how == "lost":
                far.run_agent()
            else:
                far.agent.kill(signal.SIGCONT)
            assert {(await one).status for one in waiting} == {200}
            assert (len(far.starts), far.called_off) == (1, 0)
            fleet.check()

    simulate(main)


def test_node_of_far_places_that_stays_away_is_forgotten_after_a_start() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            edge, far = await at_rest(fleet, start_s=START_S, guess_s=START_S)
            far.agent.kill()
            await asyncio.sleep(START_S - 10.0)
            assert state(edge) == "no_instance"
            await until(lambda: state(edge) != "no_instance", 20.0)

    simulate(main)


@pytest.mark.parametrize("awake", ["own", "m"])
def test_whoever_has_a_machine_up_is_none_of_those_that_have_none(awake: str) -> None:
    """One endpoint has workers of its own, the other shares: each starts a machine of its own."""
    asleep = "m" if awake == "own" else "own"

    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            least = {awake: 1, asleep: 0}
            fleet.put("own", dedicated=True, replicas_min=least["own"], idle_s=5)
            fleet.put("m", replicas_min=least["m"], idle_s=5)
            fleet.controller()
            far = far_node(fleet, places=4, start_s=START_S)
            edge = fleet.edge()

            await until(lambda: edge.knows(awake) and state(edge, awake) == "warm", 100.0)
            await until(lambda: state(edge, asleep) == "no_instance")
            assert len(far.starts) == 1
            refused = await edge.ask(asleep, deadline_s=1.5)
            assert (refused.status, refused.wait_s < 0.1) == (503, True)
            assert "no instance" in refused.detail
            await until(lambda: state(edge, asleep) == "warm", START_S + 30.0)
            assert (len(far.starts), far.called_off) == (2, 0)
            await asyncio.sleep(RETRY_AFTER_S_MAX * 0.9)
            assert (await edge.ask(asleep)).status == 200
            fleet.check()

    simulate(main)


def test_fallback_answers_for_who_has_no_machine_while_others_have_one() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("own", dedicated=True, replicas_min=1)
            edge = await helped(fleet, idle_s=5)
            far = far_node(fleet, places=4, start_s=START_S)
            await until(lambda: state(edge, "own") == "warm", 100.0)
            assert state(edge) == "no_instance"
            for _ in range(8):  # seldom enough that the endpoint idles between them
                assert (await edge.ask("m", deadline_s=1.5)).status == 200
                await asyncio.sleep(START_S / 4)
            assert state(edge) == "warm"
            assert (len(far.starts), far.called_off) == (2, 0)
            assert len(set(served_by())) == 2
            fleet.check()

    simulate(main)


@pytest.mark.parametrize("name", ["a", "d", "own"])
def test_endpoint_that_nobody_calls_keeps_no_machine_from_those_that_are_called(name: str) -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put(name, dedicated=True, idle_s=5)
            fleet.put("m", idle_s=5)
            fleet.controller()
            far = far_node(fleet, places=2, start_s=START_S, up_min=1)
            edge = fleet.edge()
            await until(lambda: edge.knows("m") and edge.knows(name))
            await until(lambda: state(edge) == "asleep", START_S + 30.0)
            assert (await edge.ask("m", deadline_s=2.0)).status == 200
            assert len(far.starts) == 1
            fleet.check()

    simulate(main)


@pytest.mark.parametrize("replicas_min", [0, 1])
def test_dedicated_endpoint_in_a_pool_of_one_place_shares_it_and_has_it_started(
    replicas_min: int,
) -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("m", dedicated=True, idle_s=5, replicas_min=replicas_min)
            fleet.controller()
            far = far_node(fleet, start_s=START_S)
            edge = fleet.edge()
            if not replicas_min:
                await until(lambda: edge.knows("m") and state(edge) == "no_instance")
                assert (await edge.ask("m")).status == 503
            await until(lambda: edge.knows("m") and state(edge) == "warm", START_S + 30.0)
            assert (len(far.starts), far.called_off) == (1, 0)
            assert (await edge.ask("m")).status == 200
            fleet.check()

    simulate(main)
