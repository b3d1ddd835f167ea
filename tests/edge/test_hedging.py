"""Which calls go to a second replica, and that nobody sees two of them; in virtual time."""

from __future__ import annotations

import asyncio
import random
import signal
from typing import Any

import pytest

from edge.dispatching.calls import Answer, Call
from edge.dispatching.hedging import TIMES_MAX, TIMES_MIN, Hedges, Usual
from edge.errors import ClientGone, DeadlineExceeded, WorkerLost
from pool.wire import data
from pool.wire.peer import Peer
from tests.simulation.world import until
from tests.support.edge_fleet import outcome
from tests.support.edge_scene import Scene, ends, play

SHARE = 0.05


def test_p95_is_said_after_a_hundred_times_and_is_at_most_a_tenth_above() -> None:
    dice = random.Random(1)
    usual = Usual()
    for count in range(1, 10_000):
        usual.add(dice.expovariate(10.0))
        assert (usual.p95_s is None) == (count < TIMES_MIN)
    assert usual.p95_s is not None
    assert 0.2996 * 0.93 <= usual.p95_s <= 0.2996 * 1.17


def test_p95_follows_what_changes() -> None:
    usual = Usual()
    for seconds in (*[0.01] * 10 * TIMES_MAX, *[1.0] * TIMES_MAX):
        usual.add(seconds)
    assert usual.p95_s is not None
    assert 1.0 <= usual.p95_s <= 1.1


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 1e-4, 3600.0, 1e9])
def test_any_time_is_taken(seconds: float) -> None:
    usual = Usual()
    for _ in range(TIMES_MIN):
        usual.add(seconds)
    assert usual.p95_s is not None


def test_share_is_the_endpoints_and_holds_whatever_p95_is() -> None:
    hedges = Hedges()
    sent = 0
    for _ in range(1000):
        hedges.began(0.02)
        sent += hedges.budget.take()
    assert sent == 20


async def warmed(scene: Scene, share: float = SHARE) -> None:
    """Let the edge learn that a call takes 10 ms."""
    for name in "abc":
        scene.answer_after(name, 0.01)
    for _ in range(2 * TIMES_MIN):
        await outcome(hedged(scene, share))
    assert scene.pool.twins.sent == 0


def hedged(scene: Scene, share: float = SHARE, **how: Any) -> Call:
    return scene.fleet.call(hedge_share=share, **how)


def test_call_that_takes_long_is_answered_by_a_second_replica_and_the_first_is_cancelled() -> None:
    async def main(scene: Scene) -> None:
        await warmed(scene)
        for name in "abc":
            scene[name].on_call = scene[name].keep
        call = hedged(scene)
        await until(lambda: call.conn is not None)
        assert call.conn is not None
        first = call.conn.id
        for name in "abc":
            if name != first:
                scene.answer_after(name, 0.01)
        began_s = scene.world.now_s
        assert isinstance(await outcome(call), Answer)
        assert 0.02 <= scene.world.now_s - began_s < 0.03
        assert (call.conn.id != first, call.sent) == (True, 1)
        await until(lambda: scene[first].cancels)
        assert (scene.pool.twins.sent, scene.pool.twins.won, scene.pool.retries) == (1, 1, 0)
        assert not scene.pool.calls()

    play(main)


def test_first_answer_counts_and_the_twin_is_cancelled() -> None:
    async def main(scene: Scene) -> None:
        await warmed(scene)
        for name in "abc":
            scene.answer_after(name, 0.015)  # later than usual, and sooner than the twin
        call = hedged(scene)
        assert isinstance(await outcome(call), Answer)
        await until(lambda: sum(len(scene[name].cancels) for name in "abc"))
        assert (scene.pool.twins.sent, scene.pool.twins.won) == (1, 0)
        await asyncio.sleep(0.1)
        assert not scene.pool.calls()

    play(main)


def test_no_more_than_a_twentieth_is_hedged() -> None:
    async def main(scene: Scene) -> None:
        await warmed(scene)
        calls, sent = 0, scene.pool.twins.sent
        before = scene.pool.twins._hedges["m", "1"].budget.saved
        for name in "abc":
            scene.answer_after(name, 0.1)
        for _ in range(100):
            await ends([hedged(scene) for _ in range(4)])
            calls += 4
        assert 0 < scene.pool.twins.sent - sent <= SHARE * calls + before

    play(main)


def test_endpoint_that_does_not_wish_it_has_no_call_hedged() -> None:
    async def main(scene: Scene) -> None:
        await warmed(scene)
        for name in "abc":
            scene.answer_after(name, 0.1)
        await ends([scene.fleet.call() for _ in range(20)])
        assert scene.pool.twins.sent == 0

    play(main)


def test_stream_is_not_hedged() -> None:
    async def main(scene: Scene) -> None:
        await warmed(scene)
        for name in "abc":
            scene.answer_after(name, 0.1)
        await outcome(hedged(scene, on_chunk=lambda part: None))
        assert scene.pool.twins.sent == 0

    play(main)


def test_only_replica_is_not_asked_twice() -> None:
    async def main(scene: Scene) -> None:
        await warmed(scene)
        scene.answer_after("b", 0.1)
        await outcome(hedged(scene))
        assert scene.pool.twins.sent == 0

    play(main, warm="b")


async def both_kept(scene: Scene) -> tuple[Call, str, str]:
    """Return a call that two replicas have, and which."""
    await warmed(scene)
    for name in "abc":
        scene[name].on_call = scene[name].keep
    call = hedged(scene, left_s=2.0)
    await until(lambda: call.twin is not None and call.twin.conn is not None)
    assert call.conn is not None
    assert call.twin is not None
    assert call.twin.conn is not None
    await asyncio.sleep(0.01)
    return call, call.conn.id, call.twin.conn.id


def test_twin_takes_over_when_the_first_worker_dies_and_no_third_is_asked() -> None:
    async def main(scene: Scene) -> None:
        call, first, second = await both_kept(scene)
        scene.processes[first].kill(signal.SIGKILL)
        await asyncio.sleep(0.05)
        assert not call.future.done()
        (peer,) = scene[second].peers
        scene[second].answer(peer, scene[second].calls[-1])
        assert isinstance(await outcome(call), Answer)
        assert scene.pool.retries == 0

    play(main)


def test_call_whose_two_workers_die_is_502() -> None:
    async def main(scene: Scene) -> None:
        call, first, second = await both_kept(scene)
        scene.processes[first].kill(signal.SIGKILL)
        await asyncio.sleep(0.05)
        scene.processes[second].kill(signal.SIGKILL)
        assert isinstance(await outcome(call), WorkerLost)
        assert scene.pool.retries == 0

    play(main)


def test_death_of_the_twins_worker_is_nobodys_concern() -> None:
    async def main(scene: Scene) -> None:
        call, first, second = await both_kept(scene)
        scene.processes[second].kill(signal.SIGKILL)
        await asyncio.sleep(0.05)
        (peer,) = scene[first].peers
        scene[first].answer(peer, scene[first].calls[-1])
        assert isinstance(await outcome(call), Answer)
        assert (scene.pool.retries, scene.pool.retries_refused) == (0, 0)

    play(main)


def test_twin_that_is_given_back_goes_to_nobody_else() -> None:
    async def main(scene: Scene) -> None:
        await warmed(scene)

        def give_back(peer: Peer, call: data.Call) -> None:
            peer.send(data.encode(data.Reply(call.call_id, 503, "no", not_run=True)))

        sent = sum(len(scene[name].calls) for name in "abc")
        for name in "abc":
            scene[name].on_call = scene[name].keep
        call = hedged(scene)
        await asyncio.sleep(0.005)
        assert call.conn is not None
        for name in "abc":
            if name != call.conn.id:
                scene[name].on_call = give_back
        await asyncio.sleep(0.1)
        assert sum(len(scene[name].calls) for name in "abc") == sent + 2
        (peer,) = scene[call.conn.id].peers
        scene[call.conn.id].answer(peer, scene[call.conn.id].calls[-1])
        assert isinstance(await outcome(call), Answer)

    play(main)


def test_client_that_leaves_cancels_both() -> None:
    async def main(scene: Scene) -> None:
        call, first, second = await both_kept(scene)
        call.cancel()
        assert isinstance(await outcome(call), ClientGone)
        await until(lambda: scene[first].cancels and scene[second].cancels)
        assert not scene.pool.calls()

    play(main)


def test_call_that_nobody_answers_ends_once_at_its_deadline() -> None:
    async def main(scene: Scene) -> None:
        call, _, _ = await both_kept(scene)
        assert isinstance(await outcome(call), DeadlineExceeded)
        await asyncio.sleep(0.1)
        assert not scene.pool.calls()

    play(main)


@pytest.mark.parametrize(
    ("helpers", "counted"),
    [("", True), ("first", False), ("second", False), ("second fails", True)],
)
def test_guards_see_one_call_that_took_as_long_as_its_client_waited(
    helpers: str, *, counted: bool
) -> None:
    """And none that a fallback worker answered, or another one after it had had it for a while."""

    async def main(scene: Scene) -> None:
        await warmed(scene)
        seen: list[tuple[int, float]] = []

        class Watch:
            def observe(self, unit: bytes, status: int, took_s: float, *_: object) -> None:
                seen.append((status, took_s))

        def fail(peer: Peer, call: data.Call) -> None:
            peer.send(data.encode(data.Reply(call.call_id, 500, "no")))

        for name in "abc":
            scene[name].on_call = scene[name].keep
            scene.pool._conns[name].is_fallback = helpers == "first"
        call = hedged(scene)
        watch: Any = Watch()
        call.watch = watch
        await asyncio.sleep(0.005)
        assert call.conn is not None
        first = call.conn.id
        for name in "abc":
            scene.pool._conns[name].is_fallback = helpers.startswith(
                "first" if name == first else "second"
            )
            if name != first:
                scene.answer_after(name, 0.01)
                if helpers == "second fails":
                    scene[name].on_call = fail
        if helpers == "second fails":
            await until(lambda: call.twin is not None and call.twin.future.done())
            await asyncio.sleep(0.01)
            scene[first].answer(scene[first].peers[-1], scene[first].calls[-1])
        assert isinstance(await outcome(call), Answer)
        await asyncio.sleep(0.1)
        assert len(seen) == counted
        for status, took_s in seen:
            assert status == 200
            assert 0.02 <= took_s < 0.03

    play(main)
