"""When a fallback worker takes the calls that others have warm; in virtual time."""

from __future__ import annotations

import asyncio
import signal

import pytest

from edge.dispatching.calls import Answer, Call
from edge.dispatching.starting import EXPECTED_S
from pool.wire import data
from pool.wire.control import EngineRoute, Routes, WorkerRoute
from pool.wire.peer import Peer
from tests.simulation.world import until
from tests.support.edge_fleet import REF, outcome
from tests.support.edge_scene import Scene, play

HELPER = "c"


def route(scene: Scene, warm: str, wake_at: str, state: str = "warm", **more: str) -> None:
    workers = tuple(
        WorkerRoute(
            *(name, more.get("incarnation", "i"), str(scene[name].address)),
            state="cold" if name in more.get("cold", "") else "up",
            is_fallback=name == HELPER,
        )
        for name in "abc"
    )
    scene.pool.update(
        Routes(1, 1, workers, (EngineRoute(*REF, tuple(warm), tuple(wake_at), state),))
    )


def hang_up(scene: Scene, names: str) -> None:
    for name in names:
        for peer in scene[name].peers:
            peer.close()
        scene[name].peers.clear()


async def answered_by(scene: Scene, call: Call) -> tuple[str, float]:
    """Return who answered, and how long that took."""
    began_s = scene.world.now_s
    assert isinstance(await outcome(call), Answer)
    assert call.conn is not None
    return call.conn.id, scene.world.now_s - began_s


@pytest.mark.parametrize(
    ("warm", "wake_at", "state"), [("a", "ac", "warm"), ("ab", "abc", "warm"), ("", "ac", "asleep")]
)
def test_workers_whose_connection_is_lost_alone_keep_their_calls(
    warm: str, wake_at: str, state: str
) -> None:
    async def main(scene: Scene) -> None:
        route(scene, warm, wake_at, state)
        for _ in range(3):
            hang_up(scene, "ab")
            await until(lambda: scene.pool.workers_up == 1)
            name, took_s = await answered_by(scene, scene.fleet.call(left_s=2.0))
            assert (name in "ab", took_s < 0.3) == (True, True)
            await until(lambda: scene.pool.workers_up == 3)
        assert not scene[HELPER].calls

    play(main)


def test_call_under_way_when_the_connection_is_lost_goes_back_to_its_worker() -> None:
    async def main(scene: Scene) -> None:
        route(scene, "a", "ac")
        scene["a"].on_call = scene["a"].keep
        call = scene.fleet.call()
        await until(lambda: bool(scene["a"].calls))
        scene["a"].on_call = scene["a"].answer
        hang_up(scene, "a")
        assert (await answered_by(scene, call))[0] == "a"

    play(main)


@pytest.mark.parametrize(("left_s", "waits_s"), [(8.0, EXPECTED_S), (0.6, 0.3)])
def test_worker_that_does_not_come_back_is_helped_out_for_while_there_is_time(
    left_s: float, waits_s: float
) -> None:
    async def main(scene: Scene) -> None:
        route(scene, "a", "ac")
        scene.processes["a"].kill(signal.SIGKILL)
        await until(lambda: scene.pool.workers_up == 2)
        name, took_s = await answered_by(scene, scene.fleet.call(left_s=left_s))
        assert name == HELPER
        assert waits_s - 0.01 <= took_s < waits_s + 0.05
        await asyncio.sleep(EXPECTED_S)
        name, took_s = await answered_by(scene, scene.fleet.call(left_s=left_s))
        assert (name, took_s < 0.01) == (HELPER, True)

    play(main)


def test_worker_that_hangs_is_helped_out_for() -> None:
    async def main(scene: Scene) -> None:
        route(scene, "a", "ac")
        (call,) = await scene.stopped("a", 1, left_s=8.0)
        await until(lambda: scene.pool.workers_up == 2)
        name, took_s = await answered_by(scene, call)
        assert name == HELPER
        assert EXPECTED_S - 0.01 <= took_s < EXPECTED_S + 0.05

    play(main)


@pytest.mark.parametrize(
    ("warm", "wake_at", "cold"),
    [
        ("c", "ca", ""),  # it has the version warm
        ("ac", "ac", ""),
        ("", "ca", ""),  # it is named first
        ("a", "ac", "a"),  # nobody is expected back: there is no process
    ],
)
def test_who_has_the_version_or_is_first_waits_for_nobody(
    warm: str, wake_at: str, cold: str
) -> None:
    async def main(scene: Scene) -> None:
        hang_up(scene, "a")
        route(scene, warm, wake_at, cold=cold)
        await until(lambda: scene.pool.workers_up == 2)
        name, took_s = await answered_by(scene, scene.fleet.call())
        assert (name, took_s < 0.01) == (HELPER, True)

    play(main)


def test_call_that_a_draining_process_gave_back_waits_for_its_heir() -> None:
    async def main(scene: Scene) -> None:
        route(scene, "a", "ac")

        def give_back(peer: Peer, call: data.Call) -> None:
            scene["a"].on_call = scene["a"].answer
            peer.send(data.encode(data.Load(0, 0, draining=True)))
            peer.send(data.encode(data.Reply(call.call_id, 503, "drains", not_run=True)))

        scene["a"].on_call = give_back
        route(scene, "a", "ac", incarnation="i2")
        call = scene.fleet.call()
        assert (await answered_by(scene, call))[0] == "a"
        assert len(call.gave_back) == 1

    play(main)
