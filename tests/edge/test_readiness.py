"""When a version counts as ready: what answers now, or wakes inside the deadline."""

from __future__ import annotations

import asyncio

import pytest

from edge.dispatching.dispatch import Pool
from edge.dispatching.reach import OUT_OF_REACH_S
from edge.readiness import is_ready, state_of
from pool.wire.control import UNLOADED, EngineRoute
from tests.simulation.world import until
from tests.support.edge_fleet import REF
from tests.support.edge_scene import Scene, play


def route(state: str, wake_ms: int = 0, detail: str = "", workers: int = 1) -> EngineRoute:
    names = tuple(f"w{n}" for n in range(workers))
    warm = names if state == "warm" else ()
    return EngineRoute("m", "1", warm, names, state, detail, wake_ms)


@pytest.mark.parametrize(
    ("found", "state", "ready"),
    [
        (route("warm"), "warm", True),
        (route("asleep"), "asleep", True),  # how long a wake takes is not known yet
        (route("asleep", wake_ms=1000), "asleep", True),
        (route("asleep", wake_ms=1001), "asleep", False),  # its calls would be refused
        (route("asleep", detail=UNLOADED), "asleep", True),
        (route("asleep", workers=0), "no_worker", False),
        (route("loading"), "loading", False),  # the first time
        (route("loading", wake_ms=800), "loading", True),  # a wake under way
        (route("loading", wake_ms=3000), "loading", False),
        (route("no_instance", wake_ms=800, workers=0), "no_instance", True),
        (route("no_instance", wake_ms=3000, workers=0), "no_instance", False),
        (route("starting", workers=0), "starting", False),  # nobody knows for how long
        (route("failed", wake_ms=10, detail="broken"), "failed", False),
        (None, "unknown", False),
    ],
)
def test_ready_is_what_would_answer_inside_the_deadline(
    found: EngineRoute | None, state: str, ready: bool
) -> None:
    assert (state_of(found), is_ready(found, 1.0)) == (state, ready)


def seen(pool: Pool) -> str:
    return state_of(pool.route_in_reach(REF))


@pytest.mark.rule("SEC-12")
def test_edge_is_not_ready_while_all_workers_hang_and_is_again_once_one_speaks() -> None:
    async def main(scene: Scene) -> None:
        reach, began_s = scene.pool.reach, scene.world.now_s
        scene.fleet.route("abc", workers="abc", state="warm")
        for name in "abc":
            scene.stop(name)
        await asyncio.sleep(1.8)
        assert scene.pool.workers_up == 0
        assert (reach.has_anybody(), seen(scene.pool)) == (True, "warm")  # who stalls may go on
        await until(lambda: not reach.has_anybody())
        assert scene.world.now_s - began_s <= OUT_OF_REACH_S + 0.1
        assert seen(scene.pool) == "no_worker"
        await asyncio.sleep(15.0)  # hung up on and dialled anew: that the kernel answers is nothing
        assert (reach.has_anybody(), seen(scene.pool)) == (False, "no_worker")
        scene.fleet.route("", "", workers="")
        assert not reach.has_anybody()  # as the controller has seen it too
        scene.fleet.route("b", "ac", workers="abc", state="warm")
        await asyncio.sleep(OUT_OF_REACH_S)
        assert not reach.has_anybody()
        scene.go_on("b")
        await until(reach.has_anybody)
        await until(lambda: seen(scene.pool) == "warm")

    play(main)


def test_model_whose_replica_hangs_is_ready_where_another_worker_can_wake_it() -> None:
    async def main(scene: Scene) -> None:
        scene.fleet.route("b", workers="abc", state="warm")
        scene.stop("b")
        await asyncio.sleep(4.0)
        assert scene.pool.reach.has_anybody()
        assert seen(scene.pool) == "no_worker"
        scene.fleet.route("b", "ab", workers="abc", state="warm")
        assert seen(scene.pool) == "asleep"
        scene.fleet.route("bc", "a", workers="abc", state="warm")
        assert seen(scene.pool) == "warm"

    play(main, warm="b")


def test_places_that_a_call_starts_keep_an_edge_ready_and_so_does_no_worker_at_all() -> None:
    async def main(scene: Scene) -> None:
        for name in "abc":
            scene.stop(name)
        await scene["d"].up()
        scene.fleet.route("abc", "d", workers="abcd", cold="d", state="warm")
        await asyncio.sleep(20.0)
        assert scene.pool.workers_up == 0
        for _ in range(2):
            assert (scene.pool.reach.has_anybody(), seen(scene.pool)) == (True, "asleep")
            await asyncio.sleep(1.0)
        assert not scene["d"].peers  # to dial it would have started it
        await scene["d"].down()
        new = Pool("e2", None)
        assert new.reach.has_anybody()
        await new.close()

    play(main)


def test_edge_that_nobody_asked_before_knows_that_its_hung_worker_is_missing() -> None:
    async def main(scene: Scene) -> None:
        scene.fleet.route(workers="b")
        scene.stop("b")
        await asyncio.sleep(5.0)
        scene.fleet.route(workers="")
        assert not scene.pool.reach.has_anybody()

    play(main, warm="b")


def test_edge_that_has_its_own_stall_behind_it_is_ready() -> None:
    async def main(scene: Scene) -> None:
        scene.stop("e")
        await asyncio.sleep(10.0)
        scene.go_on("e")
        for _ in range(200):
            assert scene.pool.reach.has_anybody()
            await asyncio.sleep(0.01)

    play(main)


def test_idle_edge_sees_that_its_worker_is_back_without_a_call_or_routes() -> None:
    async def main(scene: Scene) -> None:
        scene.fleet.route("b", workers="b")
        await scene["b"].down()
        await asyncio.sleep(10.0)
        assert not scene.pool.reach.has_anybody()
        await scene["b"].up()
        await asyncio.sleep(1.0)
        await until(scene.pool.reach.has_anybody)

    play(main, warm="b")
