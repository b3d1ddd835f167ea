"""Workers that hang, break, fail or are slow, under an edge's dispatch; in virtual time."""

from __future__ import annotations

import asyncio
import random
import signal
from typing import Any

import pytest

from edge.dispatching import waiting
from edge.dispatching.calls import Answer
from edge.dispatching.dispatch_metrics import dispatch_totals
from edge.dispatching.outliers import OUT_S
from edge.errors import DeadlineExceeded, ModelFailed, Refusal, Unavailable, WorkerLost
from pool.wire import data
from pool.wire.peer import Peer
from tests.simulation.world import until
from tests.support.edge_fleet import X, outcome
from tests.support.edge_scene import Scene, ends, play


@pytest.mark.rule("F2")
def test_stopped_worker_is_found_within_1500_ms_and_its_calls_go_elsewhere() -> None:
    async def main(scene: Scene) -> None:
        (call,) = await scene.stopped("b", 1)
        began_s = scene.world.now_s
        assert isinstance(await outcome(call), Answer)
        assert scene.world.now_s - began_s <= 1.5
        assert call.conn is not None
        assert call.conn.id in "ac"
        assert (scene.pool.away(), scene.pool.retries) == ({"b": "silent"}, 1)
        served = len(scene["b"].calls)
        assert await ends([scene.fleet.call() for _ in range(20)]) == [Answer] * 20
        assert len(scene["b"].calls) == served
        assert scene.pool.silences == 1
        counters, gauges = dispatch_totals(scene.pool)
        shown = {(one.name, *one.labels): one.value for one in counters + gauges}
        assert shown["tidepool_dispatch_ejections", "silent"] == 1
        assert shown["tidepool_dispatch_workers_away",] == 1
        assert shown["tidepool_dispatch_retries",] == 1
        assert shown["tidepool_dispatch_attempts",] == 1 + shown["tidepool_dispatch_calls",]

    play(main)


@pytest.mark.rule("F2")
def test_worker_that_goes_on_is_taken_again_and_what_it_says_of_moved_calls_is_dropped() -> None:
    async def main(scene: Scene) -> None:
        (call,) = await scene.stopped("b", 1)
        answer = await outcome(call)
        scene["b"].on_call = lambda peer, call: scene["b"].answer(peer, call, wait_us=77)
        scene.go_on("b")
        await until(lambda: scene.pool.workers_up == 3)
        (peer,) = scene["b"].peers
        scene["b"].answer(peer, scene["b"].calls[0], wait_us=5)
        await asyncio.sleep(0.1)
        assert await outcome(call) is answer
        assert not scene.pool.away()
        await ends([scene.fleet.call() for _ in range(20)])
        assert len(scene["b"].calls) > 1
        assert [cancel.call_id for cancel in scene["b"].cancels] == [scene["b"].calls[0].call_id]

    play(main)


def test_calls_of_a_stopped_worker_that_are_beyond_the_budget_stay_and_may_still_be_answered() -> (
    None
):
    async def main(scene: Scene) -> None:
        calls = await scene.stopped("b", 40, left_s=10.0)
        began, budget = len(calls), scene.pool.budget.saved
        await asyncio.sleep(3.0)
        moved = sum(call.future.done() for call in calls)
        assert moved == int(budget + 1e-6) < began
        assert scene.pool.retries == moved
        # More may move as more calls come.
        await ends([scene.fleet.call() for _ in range(20)])
        await asyncio.sleep(0.1)
        assert sum(call.future.done() for call in calls) == moved + 2
        scene.go_on("b")
        for peer in scene["b"].peers:
            for call in scene["b"].calls:
                scene["b"].answer(peer, call)
        assert await ends(calls) == [Answer] * began

    play(main)


def test_only_replica_keeps_its_calls_while_it_is_silent() -> None:
    async def main(scene: Scene) -> None:
        (call,) = await scene.stopped("b", 1)
        late = scene.fleet.call()
        await asyncio.sleep(4.0)
        assert not call.future.done()
        scene.go_on("b")
        (peer,) = scene["b"].peers
        scene["b"].answer(peer, scene["b"].calls[0])
        assert await ends([call, late]) == [Answer, Answer]
        assert scene.pool.retries == 0

    play(main, warm="b")


def test_stream_that_has_begun_stays_with_a_silent_worker() -> None:
    async def main(scene: Scene) -> None:
        def begin(peer: Peer, call: data.Call) -> None:
            peer.send(data.encode(data.Chunk(call.call_id, 0, data.heads([X])), [X]))

        for name in "abc":
            scene[name].on_call = begin
        parts: list[Any] = []
        call = scene.fleet.call(left_s=4.0, on_chunk=parts.append)
        await until(lambda: parts)
        assert call.conn is not None
        scene.stop(call.conn.id)
        assert isinstance(await outcome(call), DeadlineExceeded)
        assert (len(parts), scene.pool.retries) == (1, 0)

    play(main)


def test_worker_that_does_not_say_how_often_it_speaks_is_never_silent() -> None:
    async def main(scene: Scene) -> None:
        scene["b"].load_ms = 0
        for peer in scene["b"].peers:
            peer.close()
        await until(lambda: scene.pool.workers_up == 3)
        scene["b"].peers[-1].send(data.encode(data.Hello(data.WIRE, "worker", "b", "i")))
        await asyncio.sleep(0.1)
        scene.stop("b")
        await asyncio.sleep(5.0)
        assert scene.pool.workers_up == 3

    play(main)


def test_busy_worker_that_speaks_keeps_its_calls() -> None:
    async def main(scene: Scene) -> None:
        for name in "abc":
            scene[name].on_call = scene[name].keep
        calls = [scene.fleet.call(left_s=8.0) for _ in range(6)]
        await asyncio.sleep(7.0)
        assert scene.pool.workers_up == 3
        assert scene.pool.retries == 0
        assert await ends(calls) == [DeadlineExceeded] * 6

    play(main)


def test_edge_that_hung_itself_takes_nobody_for_silent() -> None:
    async def main(scene: Scene) -> None:
        scene.stop("e")
        await asyncio.sleep(10.0)
        scene.go_on("e")
        await asyncio.sleep(5.0)
        assert scene.pool.silences == 0

    play(main)


def test_time_in_which_the_edge_heard_nobody_is_nobodys_silence() -> None:
    async def main(scene: Scene) -> None:
        conn, now_s = scene.pool._conns["b"], scene.world.now_s
        conn.listen(now_s, 0.0)
        conn.listen(now_s + 60.0, 60.0)
        assert not conn.is_silent
        conn.listen(now_s + 60.0 + 1.5, 0.1)
        assert not conn.is_silent
        conn.listen(now_s + 60.0 + 1.6, 0.0)
        assert conn.is_silent

    play(main)


@pytest.mark.rule("F3")
def test_worker_that_stays_silent_is_hung_up_on_and_dialled_until_it_greets() -> None:
    async def main(scene: Scene) -> None:
        calls = await scene.stopped("b", 2, left_s=60.0)
        assert await ends(calls) == [Answer] * len(calls)
        await asyncio.sleep(12.0)
        assert scene.pool.away() == {}
        assert scene.pool.workers_up == 2
        scene.go_on("b")
        await until(lambda: scene.pool.workers_up == 3)
        assert sum(peer.is_open for peer in scene["b"].peers) == 1

    play(main)


def test_calls_of_a_broken_worker_are_sent_again_within_the_budget_alone() -> None:
    async def main(scene: Scene) -> None:
        calls = await scene.stopped("b", 40)
        budget = int(scene.pool.budget.saved + 1e-6)
        scene.processes["b"].kill(signal.SIGKILL)
        found = await ends(calls)
        assert found.count(Answer) == budget
        assert found.count(WorkerLost) == len(calls) - budget == scene.pool.retries_refused

    play(main)


@pytest.mark.rule("F30")
def test_replica_that_fails_gets_no_calls_but_some_on_trial() -> None:
    async def main(scene: Scene) -> None:
        def fail(peer: Peer, call: data.Call) -> None:
            peer.send(data.encode(data.Reply(call.call_id, 500, "broken")))

        scene["b"].on_call = fail
        found: list[Answer | Refusal] = []
        began_s = scene.world.now_s
        while scene.world.now_s < began_s + 60:
            found.append(await outcome(scene.fleet.call()))
            await asyncio.sleep(0.05)
        assert sum(isinstance(one, ModelFailed) for one in found) <= 25
        assert scene.pool.away() == {"b": "errors of m/1"}
        scene["b"].on_call = scene["b"].answer
        await asyncio.sleep(60)
        for _ in range(10):
            assert isinstance(await outcome(scene.fleet.call()), Answer)
        assert not scene.pool.away()

    play(main)


@pytest.mark.rule("F30")
def test_replica_that_takes_ten_times_as_long_is_left_alone() -> None:
    async def main(scene: Scene) -> None:
        for name in "abc":
            scene.answer_after(name, 0.3 if name == "c" else 0.03)
        for _ in range(40):
            await ends([scene.fleet.call() for _ in range(4)])
        assert scene.pool.away() == {"c": "slow of m/1"}
        assert len(scene["c"].calls) < 40
        seen = len(scene["c"].calls)
        await asyncio.sleep(OUT_S)
        scene.answer_after("c", 0.03)
        for _ in range(6):
            await ends([scene.fleet.call() for _ in range(4)])
        assert not scene.pool.away()
        assert len(scene["c"].calls) > seen

    play(main)


def test_new_process_of_a_replica_that_was_left_alone_is_taken_at_once() -> None:
    async def main(scene: Scene) -> None:
        scene["b"].on_call = lambda peer, call: peer.send(
            data.encode(data.Reply(call.call_id, 500, "broken"))
        )
        for _ in range(90):
            await outcome(scene.fleet.call())
        assert scene.pool.away()
        scene.fleet.route("abc", workers="abc", incarnation="j")
        assert not scene.pool.away()

    play(main)


@pytest.mark.rule("F3")
def test_clients_that_try_three_times_more_make_no_storm_of_a_worker_that_hears_nothing() -> None:
    async def main(scene: Scene) -> None:
        asked, failed = 0, 0

        async def client(dice: random.Random) -> None:
            nonlocal asked, failed
            while asked < 1000:
                asked += 1
                for _ in range(4):
                    if isinstance(await outcome(scene.fleet.call(left_s=0.3)), Answer):
                        break
                    failed += 1
                await asyncio.sleep(dice.uniform(0.0, 0.05))

        for name in "abc":
            scene.answer_after(name, 0.02)
        clients = [scene.world.go(client(random.Random(n))) for n in range(12)]
        await asyncio.sleep(0.3)
        scene.stop("b")
        await asyncio.gather(*clients)
        assert scene.pool.calls_begun == asked + failed
        assert scene.pool.engines.sent <= 1.1 * asked + 3
        assert 0 < failed <= 0.05 * asked

    play(main)


@pytest.mark.rule("F28")
def test_when_all_workers_are_gone_for_long_one_call_waits_and_the_others_are_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "IN_VAIN_S_MAX", 5.0)

    async def main(scene: Scene) -> None:
        for name in "abc":
            scene.processes[name].kill(signal.SIGKILL)
        await until(lambda: scene.pool.workers_up == 0)
        first = [scene.fleet.call(left_s=5.1) for _ in range(5)]
        found = await ends(first)  # they may come back
        assert found == [Unavailable] * 5
        waits, began_s = scene.fleet.call(left_s=60.0), scene.world.now_s
        for _ in range(20):
            refusal = await outcome(scene.fleet.call(left_s=60.0))
            assert isinstance(refusal, Unavailable)
            assert "retry-after" in dict(refusal.headers)
        assert scene.world.now_s - began_s <= 0.05
        assert scene.pool.waiting() == {"m/1": 1}
        scene.processes["b"] = scene.world.start("b", lambda: scene.live("b"))
        assert isinstance(await outcome(waits), Answer)
        assert await ends([scene.fleet.call() for _ in range(5)]) == [Answer] * 5

    play(main)
