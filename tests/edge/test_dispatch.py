"""Calls to workers over real sockets; the workers here only speak the wire."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from edge.dispatching import dispatch, worker_conn
from edge.dispatching.calls import Answer, refusal_of
from edge.errors import (
    ClientGone,
    DeadlineExceeded,
    ModelFailed,
    TooLarge,
    Unavailable,
    WorkerLost,
)
from pool.wire import data
from pool.wire.data import Tensor
from pool.wire.peer import Address, Peer
from tests.support.edge_fleet import Fleet, X, outcome


async def test_call_goes_out_and_its_answer_comes_back(fleet: Fleet) -> None:
    await fleet.up("a")
    fleet.route("a")
    await fleet.connected(1)
    answer = await outcome(fleet.call())
    assert isinstance(answer, Answer)
    assert (answer.outputs, answer.queue_us, answer.infer_us) == ([X], 5, 6)
    (sent,) = fleet["a"].calls
    assert (sent.model, sent.version, sent.digest, sent.outputs) == ("m", "1", "d", ("y",))
    assert 9e6 < sent.time_left_us <= 10e6


async def test_pool_says_who_it_is_first(fleet: Fleet) -> None:
    await fleet.up("a")
    fleet.route("a")
    await fleet.until(lambda: bool(fleet["a"].heard))
    hello = fleet["a"].heard[0]
    assert isinstance(hello, data.Hello)
    assert (hello.wire, hello.role, hello.id) == (data.WIRE, "edge", "e1")


async def test_worker_gets_no_call_before_it_has_spoken(fleet: Fleet) -> None:
    fleet["a"].greets = False
    await fleet.up("ab")
    fleet.route(wake_at="ab")
    await fleet.until(lambda: bool(fleet["a"].heard))
    await fleet.connected(1)
    await outcome(fleet.call())
    assert fleet.served() == "b"


async def test_worker_under_the_address_of_another_gets_no_call(fleet: Fleet) -> None:
    fleet["a"].name = "z"
    await fleet.up("ab")
    fleet.route(wake_at="ab")
    await fleet.until(lambda: bool(fleet["a"].heard))
    await fleet.connected(1)
    await outcome(fleet.call())
    assert fleet.served() == "b"


async def test_lighter_of_two_replicas_is_picked_by_their_own_reports(fleet: Fleet) -> None:
    await fleet.up("ab")
    fleet.route("ab", workers="ab")
    await fleet.connected(2)
    fleet["a"].peers[0].send(data.encode(data.Load(50_000, 9)))
    await fleet.until(lambda: fleet.pool._conns["a"].wait_us == 50_000)
    for _ in range(5):
        await outcome(fleet.call())
    assert fleet.served() == "bbbbb"


async def test_calls_under_way_weigh_too(fleet: Fleet) -> None:
    await fleet.up("ab")
    fleet.route("ab", workers="ab")
    await fleet.connected(2)
    for name in "ab":
        fleet[name].on_call = fleet[name].keep
    for _ in range(6):
        fleet.call()
    await fleet.until(lambda: len(fleet.served()) == 6)
    assert fleet.served() == "aaabbb"


async def test_reply_carries_the_load(fleet: Fleet) -> None:
    await fleet.up("ab")
    fleet["a"].on_call = lambda peer, call: fleet["a"].answer(peer, call, wait_us=90_000)
    fleet.route("ab", workers="ab")
    await fleet.connected(2)
    await outcome(fleet.call())
    for _ in range(3):
        await outcome(fleet.call())
    assert fleet.served().count("a") <= 1


async def test_of_many_replicas_all_get_their_share(fleet: Fleet) -> None:
    await fleet.up()
    fleet.route("abcd")
    await fleet.connected(4)
    for _ in range(80):
        await outcome(fleet.call())
    assert set(fleet.served()) >= set("abc")


async def test_sleeping_engine_is_woken_at_the_first_that_can_be_reached(fleet: Fleet) -> None:
    await fleet.up("abd")
    fleet.route(wake_at="cdb")
    await fleet.connected(3)
    await asyncio.gather(*(outcome(fleet.call()) for _ in range(4)))
    assert fleet.served() == "dddd"


async def test_warm_replica_that_cannot_be_reached_is_passed_over(fleet: Fleet) -> None:
    await fleet.up("b")
    fleet.route(warm="a", wake_at="ab")
    await fleet.connected(1)
    await outcome(fleet.call())
    assert fleet.served() == "b"


async def test_call_is_sent_once_more_when_its_worker_breaks(fleet: Fleet) -> None:
    await fleet.up("ab")
    fleet["a"].on_call = fleet["a"].break_
    fleet.route(wake_at="ab")
    await fleet.connected(2)
    assert isinstance(await outcome(fleet.call()), Answer)
    assert fleet.served() == "ab"
    assert fleet.pool.retries == 1


async def test_mark_for_a_shadow_goes_with_a_call_but_not_on_from_a_worker_that_broke(
    fleet: Fleet,
) -> None:
    def give_back(peer: Peer, call: data.Call) -> None:
        peer.send(data.encode(data.Reply(call.call_id, 503, "gone", not_run=True)))

    await fleet.up("abc")
    fleet["a"].on_call, fleet["b"].on_call = give_back, fleet["b"].break_
    fleet.route("a", "abc", workers="abc")
    await fleet.connected(3)
    mark = data.ShadowOf("e/r", "m", "2", 5.0)
    assert isinstance(await outcome(fleet.call(shadow=(mark,))), Answer)
    sent = {name: [call.shadow for call in fleet[name].calls] for name in "abc"}
    assert sent == {"a": [(mark,)], "b": [(mark,)], "c": [()]}


async def test_call_that_broke_two_workers_is_not_sent_to_a_third(fleet: Fleet) -> None:
    await fleet.up("abc")
    for name in "abc":
        fleet[name].on_call = fleet[name].break_
    fleet.route(warm="abc")
    await fleet.connected(3)
    assert isinstance(await outcome(fleet.call()), WorkerLost)
    assert len(fleet.served()) == 2


async def test_call_whose_worker_breaks_while_it_loads_is_tried_wherever_it_may_wake(
    fleet: Fleet,
) -> None:
    await fleet.up("abc")
    for name in "ab":
        fleet[name].on_call = fleet[name].break_
    fleet.route(wake_at="abc")
    await fleet.connected(3)
    assert isinstance(await outcome(fleet.call()), Answer)
    assert fleet.served() == "abc"


async def test_load_that_breaks_three_workers_breaks_no_fourth(fleet: Fleet) -> None:
    await fleet.up()
    for name in "abcd":
        fleet[name].on_call = fleet[name].break_
    fleet.route(wake_at="abcd")
    await fleet.connected(4)
    assert isinstance(await outcome(fleet.call()), WorkerLost)
    assert fleet.served() == "abc"


async def test_stream_that_has_begun_is_never_sent_again(fleet: Fleet) -> None:
    def begin(peer: Peer, call: data.Call) -> None:
        peer.send(data.encode(data.Chunk(call.call_id, 0, data.heads([X])), [X]))
        peer.flush()
        fleet["a"].break_(peer, call)

    await fleet.up("ab")
    fleet["a"].on_call = begin
    fleet.route(wake_at="ab")
    await fleet.connected(2)
    assert isinstance(await outcome(fleet.call(on_chunk=lambda part: None)), WorkerLost)
    assert fleet.served() == "a"


async def test_stream_that_has_not_begun_is_sent_again(fleet: Fleet) -> None:
    await fleet.up("ab")
    fleet["a"].on_call = fleet["a"].break_
    fleet.route(wake_at="ab")
    await fleet.connected(2)
    assert isinstance(await outcome(fleet.call(on_chunk=lambda part: None)), Answer)
    assert fleet.served() == "ab"


async def test_call_that_wants_to_hear_of_the_load_says_so_and_hears(fleet: Fleet) -> None:
    def tell(peer: Peer, call: data.Call) -> None:
        assert call.progress
        peer.send(data.encode(data.Progress(call.call_id, "deserialise", 1_500_000)))
        fleet["a"].answer(peer, call)

    await fleet.up("a")
    fleet["a"].on_call = tell
    fleet.route(wake_at="a")
    await fleet.connected(1)
    heard: list[tuple[str, float]] = []
    call = fleet.call(on_held=lambda *said: heard.append(said))
    assert isinstance(await outcome(call), Answer)
    assert heard == [("deserialise", 1.5)]
    fleet["a"].on_call = fleet["a"].answer
    await outcome(fleet.call())
    assert not fleet["a"].calls[-1].progress


async def test_call_that_nobody_could_wake_in_time_is_refused_at_once(fleet: Fleet) -> None:
    fleet.route(wake_at="a", wake_ms=5000)
    refusal = await outcome(fleet.call(left_s=4.0))
    assert isinstance(refusal, Unavailable)
    assert "takes about 5 s" in refusal.text
    assert 5.0 <= float(dict(refusal.headers)["retry-after-ms"]) / 1000 <= 120.0
    call = fleet.call(left_s=60.0)
    await asyncio.sleep(0.01)
    assert not call.future.done()
    call.cancel()


async def test_call_that_was_cancelled_is_not_sent_again(fleet: Fleet) -> None:
    await fleet.up("ab")
    fleet["a"].on_call = fleet["a"].keep
    fleet.route(wake_at="ab")
    await fleet.connected(2)
    call = fleet.call()
    await fleet.until(lambda: fleet.served() == "a")
    call.cancel()
    await fleet["a"].down()
    await fleet.connected(1)
    assert isinstance(await outcome(call), ClientGone)
    assert fleet.served() == "a"


async def test_stream_comes_in_pieces_and_ends_with_its_reply(fleet: Fleet) -> None:
    def stream(peer: Peer, call: data.Call) -> None:
        for seq in range(3):
            chunk = data.Chunk(call.call_id, seq, data.heads([X]))
            peer.send(data.encode(chunk, [X]))
        peer.send(data.encode(data.Reply(call.call_id, 200)))

    await fleet.up("a")
    fleet["a"].on_call = stream
    fleet.route("a")
    await fleet.connected(1)
    pieces: list[Any] = []
    call = fleet.call(on_chunk=pieces.append)
    assert isinstance(await outcome(call), Answer)
    assert pieces == [[X]] * 3
    assert fleet["a"].calls[0].stream


async def test_call_waits_for_a_worker_and_goes_when_one_comes(fleet: Fleet) -> None:
    fleet.route("a")
    call = fleet.call()
    await asyncio.sleep(0.05)
    assert not call.future.done()
    await fleet.up("a")
    assert isinstance(await outcome(call), Answer)


async def test_call_waits_for_a_route(fleet: Fleet) -> None:
    await fleet.up("a")
    call = fleet.call()
    await asyncio.sleep(0.03)
    fleet.route("a")
    assert isinstance(await outcome(call), Answer)


async def test_call_that_waits_in_vain_is_503_at_its_deadline(fleet: Fleet) -> None:
    fleet.route("a")
    began_s = time.monotonic()
    refusal = await outcome(fleet.call(left_s=0.1))
    assert isinstance(refusal, Unavailable)
    assert "can be reached" in refusal.text
    assert time.monotonic() - began_s >= 0.1


async def test_model_that_nobody_knows_is_503_that_says_so(fleet: Fleet) -> None:
    refusal = await outcome(fleet.call(left_s=0.05))
    assert isinstance(refusal, Unavailable)
    assert "knows this model" in refusal.text


async def test_cancel_goes_down_to_the_worker(fleet: Fleet) -> None:
    await fleet.up("a")
    fleet["a"].on_call = fleet["a"].keep
    fleet.route("a")
    await fleet.connected(1)
    call = fleet.call()
    await fleet.until(lambda: bool(fleet["a"].calls))
    call.cancel()
    assert isinstance(await outcome(call), ClientGone)
    await fleet.until(lambda: bool(fleet["a"].cancels))
    assert fleet["a"].cancels == [data.Cancel(fleet["a"].calls[0].call_id)]


async def test_cancel_after_the_answer_says_nothing(fleet: Fleet) -> None:
    await fleet.up("a")
    fleet.route("a")
    await fleet.connected(1)
    call = fleet.call()
    await outcome(call)
    call.cancel()
    await outcome(fleet.call())
    assert not fleet["a"].cancels


async def test_cancelled_call_that_waits_is_never_sent(fleet: Fleet) -> None:
    fleet.route("a")
    call = fleet.call()
    call.cancel()
    assert isinstance(await outcome(call), ClientGone)
    await fleet.up("a")
    await fleet.connected(1)
    assert not fleet["a"].calls


async def test_worker_that_is_late_is_504_and_cancelled(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "LATE_S", 0.05)
    await fleet.up("a")
    fleet["a"].on_call = fleet["a"].keep
    fleet.route("a")
    await fleet.connected(1)
    for left_s in (0.001, 0.1):
        began_s = time.monotonic()
        assert isinstance(await outcome(fleet.call(left_s=left_s)), DeadlineExceeded)
        assert time.monotonic() - began_s >= left_s + 0.05
    await fleet.until(lambda: len(fleet["a"].cancels) == 2)


async def test_late_worker_that_left_the_routes_is_504_too(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "LATE_S", 0.05)
    await fleet.up("a")
    fleet["a"].on_call = fleet["a"].keep
    fleet.route("a")
    await fleet.connected(1)
    call = fleet.call(left_s=0.2)
    await fleet.until(lambda: bool(fleet["a"].calls))
    fleet.route("", workers="")
    assert isinstance(await outcome(call), DeadlineExceeded)
    await fleet.until(lambda: not fleet.pool._leaving)


async def test_call_ends_well_on_a_worker_that_leaves_the_routes(fleet: Fleet) -> None:
    await fleet.up("ab")
    fleet["a"].on_call = fleet["a"].keep
    fleet.route("a")
    await fleet.connected(2)
    call = fleet.call()
    await fleet.until(lambda: bool(fleet["a"].calls))
    fleet.route("b", workers="b")
    fleet["a"].answer(fleet["a"].peers[0], fleet["a"].calls[0])
    assert isinstance(await outcome(call), Answer)
    await outcome(fleet.call())
    assert fleet.served() == "ab"


def drains(peer: Peer) -> None:
    peer.send(data.encode(data.Load(0, 0, draining=True)))


async def test_worker_that_drains_gets_nothing_new_and_its_calls_end_well(fleet: Fleet) -> None:
    await fleet.up("ab")
    fleet["a"].on_call = fleet["a"].keep
    fleet.route("a", "b")
    await fleet.connected(2)
    call = fleet.call()
    await fleet.until(lambda: bool(fleet["a"].calls))
    (old,) = fleet["a"].peers
    assert fleet["a"].server is not None
    await fleet["a"].server.close()
    drains(old)
    await fleet.connected(1)
    assert isinstance(await outcome(fleet.call()), Answer)
    assert fleet.served() == "ab"
    assert old.is_open  # for as long as it owes an answer
    fleet["a"].answer(old, fleet["a"].calls[0])
    assert isinstance(await outcome(call), Answer)
    await fleet.until(lambda: not old.is_open)
    # Its successor at the same address is dialled without any new routes, by the next call.
    fleet["a"].on_call = fleet["a"].answer
    await fleet["a"].up()
    assert isinstance(await outcome(fleet.call()), Answer)
    await fleet.connected(2)
    assert isinstance(await outcome(fleet.call()), Answer)
    assert len(fleet["a"].calls) == 2
    assert (fleet.pool.retries, fleet.pool.returns) == (0, 0)


async def test_call_that_a_draining_worker_gives_back_goes_to_another(fleet: Fleet) -> None:
    def give_back(peer: Peer, call: data.Call) -> None:
        drains(peer)
        reply = data.Reply(call.call_id, 503, "the worker is draining", not_run=True)
        peer.send(data.encode(reply))

    await fleet.up("ab")
    fleet["a"].on_call = give_back
    fleet.route("a", "b")
    await fleet.connected(2)
    fleet["b"].on_call = lambda peer, call: fleet["b"].answer(peer, call)
    assert isinstance(await outcome(fleet.call(on_chunk=lambda _: None)), Answer)
    assert (fleet.pool.retries, fleet.pool.returns) == (0, 1)


async def test_call_that_everybody_gives_back_is_503_in_the_end(fleet: Fleet) -> None:
    def give_back(peer: Peer, call: data.Call) -> None:
        peer.send(data.encode(data.Reply(call.call_id, 503, "no", not_run=True)))

    await fleet.up("a")
    fleet["a"].on_call = give_back
    fleet.route("a")
    await fleet.connected(1)
    assert isinstance(await outcome(fleet.call()), Unavailable)
    assert len(fleet["a"].calls) == worker_conn.RETURNS_MAX + 1


async def test_call_that_was_given_back_goes_to_another_and_insists_only_when_there_is_none(
    fleet: Fleet,
) -> None:
    def unless_it_insists(name: str) -> Callable[[Peer, data.Call], None]:
        def on_call(peer: Peer, call: data.Call) -> None:
            if call.insists:
                fleet[name].answer(peer, call)
            else:
                peer.send(data.encode(data.Reply(call.call_id, 503, "gone", not_run=True)))

        return on_call

    await fleet.up("abc")
    for name in "ab":
        fleet[name].on_call = unless_it_insists(name)
    fleet.route("a", "abc", workers="abc")
    await fleet.connected(3)
    assert isinstance(await outcome(fleet.call()), Answer)
    assert fleet.served() == "abc"  # the two that do not want it, and then who does
    await fleet["c"].down()
    await fleet.connected(2)
    assert isinstance(await outcome(fleet.call()), Answer)
    assert fleet.served() == "aaabbc"  # each once, and then the first must
    assert [call.insists for call in fleet["a"].calls] == [False, False, True]


async def test_worker_that_comes_back_is_dialled_again(fleet: Fleet) -> None:
    await fleet.up("a")
    fleet.route("a")
    await fleet.connected(1)
    await fleet["a"].down()
    await fleet.connected(0)
    await fleet.up("a")
    await fleet.connected(1)
    assert isinstance(await outcome(fleet.call()), Answer)


async def test_worker_that_moved_is_dialled_at_its_new_address(fleet: Fleet) -> None:
    await fleet.up("ab")
    fleet.route("a", workers="a")
    await fleet.connected(1)
    fleet["b"].name = "a"
    fleet["a"].address, fleet["b"].address = fleet["b"].address, fleet["a"].address
    fleet.route("a", workers="a")
    assert isinstance(await outcome(fleet.call()), Answer)
    assert fleet.served() == "b"


async def test_worker_that_has_not_greeted_is_sent_no_call(fleet: Fleet) -> None:
    # The kernel accepts connections for a process that hangs, or is about to die.
    fleet["a"].greets = False
    await fleet.up("ab")
    fleet.route("ab")
    await fleet.connected(1)
    for _ in range(5):
        assert isinstance(await outcome(fleet.call()), Answer)
    assert fleet.served() == "bbbbb"


async def test_other_worker_at_the_address_is_sent_no_call(fleet: Fleet) -> None:
    fleet["a"].name = "c"
    await fleet.up("ab")
    fleet.route("ab")
    await fleet.connected(1)
    for _ in range(5):
        assert isinstance(await outcome(fleet.call()), Answer)
    assert fleet.served() == "bbbbb"


async def test_worker_that_says_what_it_must_not_is_hung_up_on(fleet: Fleet) -> None:
    await fleet.up("ab")
    fleet["a"].on_call = lambda peer, call: peer.send(data.encode(data.Cancel(1)))
    fleet.route(wake_at="ab")
    await fleet.connected(2)
    assert isinstance(await outcome(fleet.call()), Answer)
    assert fleet.served() == "ab"


async def test_answer_that_cannot_be_read_is_502(fleet: Fleet) -> None:
    bad = data.TensorHead("y", "FP99", (1,), 4)
    await fleet.up("a")
    fleet["a"].on_call = lambda peer, call: peer.send(
        data.encode(data.Reply(call.call_id, 200, "", (bad,)), [X])
    )
    fleet.route("a")
    await fleet.connected(1)
    assert isinstance(await outcome(fleet.call()), WorkerLost)


async def test_reply_to_nobody_is_passed_over(fleet: Fleet) -> None:
    await fleet.up("a")
    fleet.route("a")
    await fleet.connected(1)
    await fleet.until(lambda: bool(fleet["a"].peers))
    fleet["a"].peers[0].send(data.encode(data.Reply(99, 200)))
    assert isinstance(await outcome(fleet.call()), Answer)


async def test_inputs_that_fit_no_frame_are_413_and_harm_nobody(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pool.wire.frames.BODY_BYTES_MAX", 1000)
    await fleet.up("a")
    fleet.route("a")
    await fleet.connected(1)
    large = Tensor("x", "UINT8", (2000,), bytes(2000))
    assert isinstance(await outcome(fleet.call(inputs=[large])), TooLarge)
    assert isinstance(await outcome(fleet.call()), Answer)
    assert len(fleet["a"].calls) == 1


@pytest.mark.parametrize(
    ("status", "means"), [(400, 400), (404, 404), (422, 422), (500, 500), (503, 503), (504, 504)]
)
def test_refusal_of_a_worker_keeps_its_status_and_words(status: int, means: int) -> None:
    refusal = refusal_of(data.Reply(1, status, "why"))
    assert (refusal.status, refusal.text) == (means, "why")


def test_status_that_no_worker_has_is_502() -> None:
    assert isinstance(refusal_of(data.Reply(1, 302)), WorkerLost)
    assert isinstance(refusal_of(data.Reply(1, 500)), ModelFailed)


def test_time_to_come_back_is_spread_and_bounded() -> None:
    def after_s(retry_after_ms: int) -> float:
        refusal = refusal_of(data.Reply(1, 503, retry_after_ms=retry_after_ms))
        assert isinstance(refusal, Unavailable)
        return refusal.retry_after_s

    found = {after_s(1000) for _ in range(20)}
    assert len(found) > 10
    assert all(1.0 <= one <= 1.5 for one in found)
    assert all(80.0 <= after_s(10**9) <= 120.0 for _ in range(20))  # and spread there too


async def test_cold_worker_is_dialled_for_a_call_and_never_without_one(fleet: Fleet) -> None:
    await fleet.up("ab")
    fleet.route(wake_at="ab", cold="ab")
    await asyncio.sleep(0.05)
    fleet.route(wake_at="ab", cold="ab")  # again, as the controller does
    assert not fleet["a"].peers
    assert isinstance(await outcome(fleet.call()), Answer)
    assert (fleet.served(), len(fleet["b"].peers)) == ("a", 0)


async def test_cold_worker_is_not_dialled_while_another_has_a_process(fleet: Fleet) -> None:
    await fleet.up("ab")
    fleet.route(wake_at="ba", cold="a")
    await fleet.connected(1)
    await outcome(fleet.call())
    assert (fleet.served(), fleet["a"].peers) == ("b", [])


async def test_many_calls_start_one_cold_worker(fleet: Fleet) -> None:
    await fleet.up("abc")
    fleet.route(wake_at="abc", cold="abc")
    calls = [fleet.call() for _ in range(100)]
    assert all([isinstance(await outcome(call), Answer) for call in calls])
    assert fleet.served() == "a" * 100


async def test_next_cold_worker_is_started_when_the_first_cannot_be_reached(fleet: Fleet) -> None:
    await fleet.up("b")
    fleet.route(wake_at="ab", cold="ab")
    assert isinstance(await outcome(fleet.call()), Answer)
    assert fleet.served() == "b"


async def test_cold_worker_that_dies_while_it_starts_is_left_for_the_next(fleet: Fleet) -> None:
    fleet["a"].greets = False
    await fleet.up("ab")
    fleet.route(wake_at="ab", cold="ab")
    call = fleet.call()
    await fleet.until(lambda: bool(fleet["a"].heard))
    await fleet["a"].down()
    assert isinstance(await outcome(call), Answer)
    assert fleet.served() == "b"


async def test_nothing_is_started_while_a_worker_whose_connection_broke_comes_back(
    fleet: Fleet,
) -> None:
    await fleet.up("ab")
    fleet.route(warm="b", wake_at="ba", cold="a")
    await fleet.connected(1)
    for peer in fleet["b"].peers:
        peer.close()
    await fleet.connected(0)
    await outcome(fleet.call())
    assert (fleet.served(), fleet["a"].peers) == ("b", [])


async def test_cold_worker_is_started_when_nobody_comes_back(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.dispatching.starting.EXPECTED_S", 0.05)
    await fleet.up("ab")
    fleet.route(warm="b", wake_at="ba", cold="a")
    await fleet.connected(1)
    await fleet["b"].down()
    assert isinstance(await outcome(fleet.call()), Answer)
    assert fleet.served() == "a"


async def test_worker_that_rests_is_not_dialled_again(fleet: Fleet) -> None:
    await fleet.up("a")
    fleet.route(wake_at="a")
    await fleet.connected(1)
    fleet.route(wake_at="a", cold="a")
    fleet["a"].peers[0].send(data.encode(data.Load(0, 0, draining=True)))
    await fleet.connected(0)
    await asyncio.sleep(2 * worker_conn.REDIAL_S_MAX)
    assert len(fleet["a"].peers) == 1
    assert isinstance(await outcome(fleet.call()), Answer)


async def test_worker_that_left_is_dialled_for_a_call_or_by_newer_routes_alone(
    fleet: Fleet, redial_s: float
) -> None:
    async def left(dials: int) -> None:
        drains(fleet["a"].peers[-1])
        await fleet.connected(0)
        await asyncio.sleep(redial_s)
        assert len(fleet["a"].peers) == dials

    await fleet.up("a")
    fleet.route("a", "a", workers="a")
    await fleet.connected(1)
    fleet.route("a", "a", workers="a")  # again, as the controller does
    await left(1)  # routes are old, and say that it is up
    assert isinstance(await outcome(fleet.call()), Answer)
    fleet["a"].incarnation = "j"
    await left(2)
    fleet.route("a", "a", workers="a", incarnation="j")
    await fleet.connected(1)
    await left(3)
    assert (fleet.pool.retries, fleet.pool.returns) == (0, 0)


async def test_successor_that_the_routes_know_already_is_dialled_at_once(
    fleet: Fleet, redial_s: float
) -> None:
    await fleet.up("a")
    fleet.route("a", workers="a")
    await fleet.connected(1)
    fleet["a"].incarnation = "j"
    fleet.route("a", workers="a", incarnation="j")
    drains(fleet["a"].peers[0])
    await fleet.until(lambda: len(fleet["a"].peers) == 2)
    await fleet.connected(1)
    # The next one that leaves is the one that the routes name.
    drains(fleet["a"].peers[1])
    await fleet.connected(0)
    await asyncio.sleep(redial_s)
    assert len(fleet["a"].peers) == 2


async def test_replica_that_left_is_dialled_again_by_a_call_that_another_takes(
    fleet: Fleet,
) -> None:
    await fleet.up("ab")
    fleet.route("ab", "ab", workers="ab")
    await fleet.connected(2)
    drains(fleet["a"].peers[0])
    await fleet.connected(1)
    assert isinstance(await outcome(fleet.call()), Answer)
    assert fleet.served() == "b"
    await fleet.connected(2)


@pytest.mark.parametrize("said_by", ["itself", "routes"])
async def test_worker_that_leaves_and_breaks_is_not_dialled_for_the_calls_it_had(
    fleet: Fleet, redial_s: float, monkeypatch: pytest.MonkeyPatch, said_by: str
) -> None:
    swept_s = 2 * dispatch.SWEEP_S
    monkeypatch.setattr(dispatch, "SWEEP_S", 10.0)
    await asyncio.sleep(swept_s)  # so that nobody sees it off meanwhile
    await fleet.up("ab")
    fleet["a"].on_call = fleet["a"].keep
    fleet.route("a", "b", workers="ab")
    await fleet.connected(2)
    call = fleet.call()
    await fleet.until(lambda: bool(fleet["a"].calls))
    if said_by == "itself":
        drains(fleet["a"].peers[0])
        await fleet.connected(1)
    fleet.route("b", "b", workers="b")
    fleet["a"].peers[0].close()
    assert isinstance(await outcome(call), Answer)
    await asyncio.sleep(redial_s)
    assert len(fleet["a"].peers) == 1


async def test_worker_that_was_lost_for_long_is_dialled_for_a_call_or_by_newer_routes_alone(
    fleet: Fleet, redial_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.dispatching.starting.EXPECTED_S", 0.05)
    dialled: list[str] = []

    async def dial(address: Address, *others: Any, **options: Any) -> Peer:
        dialled.append(str(address))
        return await real_dial(address, *others, **options)

    real_dial = worker_conn.dial
    monkeypatch.setattr(worker_conn, "dial", dial)

    async def lost() -> None:
        await fleet["a"].down()
        await fleet.connected(0)
        await asyncio.sleep(0.05 + redial_s)
        before = len(dialled)
        await asyncio.sleep(redial_s)
        assert len(dialled) == before
        await fleet["a"].up()

    await fleet.up("a")
    fleet.route(wake_at="a", workers="a")
    await fleet.connected(1)
    await lost()
    assert isinstance(await outcome(fleet.call()), Answer)
    await lost()
    fleet.route(wake_at="a", workers="a")
    await fleet.connected(1)


async def test_worker_that_was_lost_for_long_is_dialled_for_as_long_as_a_call_waits(
    fleet: Fleet, redial_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.dispatching.starting.EXPECTED_S", 0.02)
    fleet.route(wake_at="a", workers="a")
    call = fleet.call()
    await asyncio.sleep(0.02 + redial_s)
    await fleet.up("a")
    assert isinstance(await outcome(call), Answer)


async def test_worker_that_is_cold_no_more_is_dialled_without_a_call(fleet: Fleet) -> None:
    await fleet.up("a")
    fleet.route(wake_at="a", cold="a")
    await asyncio.sleep(0.02)
    fleet.route(wake_at="a")
    await fleet.connected(1)


async def test_calls_that_nobody_can_be_reached_for_are_counted(fleet: Fleet) -> None:
    fleet.route(wake_at="a")
    calls = [fleet.call() for _ in range(3)]
    assert fleet.pool.waiting() == {"m/1": 3}
    for call in calls:
        call.cancel()
        assert isinstance(await outcome(call), ClientGone)
    assert fleet.pool.waiting() == {}


async def test_call_that_is_refused_because_it_comes_too_late_has_a_worker_started(
    fleet: Fleet,
) -> None:
    await fleet.up("a")
    fleet.route(wake_at="a", cold="a", wake_ms=60_000)
    assert isinstance(await outcome(fleet.call()), Unavailable)
    await fleet.connected(1)
