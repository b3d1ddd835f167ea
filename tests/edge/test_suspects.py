"""Calls that may have killed their worker, sent over real sockets to workers of these tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from edge.dispatching import suspects
from edge.dispatching.calls import Answer, Call
from edge.dispatching.quarantine import Row, fingerprint_of
from edge.errors import DeadlineExceeded, Refusal, Unprocessable, WorkerLost
from pool.wire import data
from pool.wire.data import Tensor
from pool.wire.peer import Peer
from tests.support.edge_fleet import REF, FakeWorker, Fleet, X, outcome

pytestmark = [pytest.mark.rule("F20"), pytest.mark.usefixtures("redial_s")]

BAD = Tensor("x", "FP32", (1,), b"\0\0\x80\x7f")


class Life:
    """Workers that die of `BAD`: they close, and greet as another process afterwards.

    Like real ones they keep what they have until they run it: all at once, or one that is to run
    alone after its word.
    """

    def __init__(self, fleet: Fleet, *, dies: bool = True) -> None:
        self.fleet = fleet
        self.dies = dies
        self.deaths: list[str] = []
        self.kept: dict[str, list[tuple[Peer, data.Call]]] = {}
        for name, worker in fleet.workers.items():
            worker.load_ms = 60_000
            worker.on_call = self.taker(name, worker)

    def taker(self, name: str, worker: FakeWorker) -> Callable[[Peer, data.Call], None]:
        def take(peer: Peer, call: data.Call) -> None:
            kept = self.kept.setdefault(name, [])
            kept.append((peer, call))
            if len(kept) == 1:
                asyncio.get_running_loop().call_later(0.02, self.run, name, worker)

        return take

    def run(self, name: str, worker: FakeWorker) -> None:
        """Run what has come: first all that may share a run, then each that is alone."""
        kept = self.kept.pop(name, [])
        together = [one for one in kept if not one[1].alone]
        for batch in [together, *([one] for one in kept if one[1].alone)]:
            for peer, call in batch:
                if call.alone:
                    peer.send(data.encode(data.Began(call.call_id, is_only=True)))
            if any(self.is_bad(call) for _, call in batch):
                self.deaths.append(name)
                worker.incarnation += "i" * self.dies
                for peer in worker.peers:
                    peer.close()
                worker.peers.clear()
                return
            for peer, call in batch:
                worker.answer(peer, call)

    @staticmethod
    def is_bad(call: data.Call) -> bool:
        return call.request_id == "bad"


def bad_call(fleet: Fleet, **how: Any) -> Call:
    """A call that kills its worker: it is known by its id, as nobody looks into tensors here."""
    return named(fleet, "bad", BAD, **how)


def named(fleet: Fleet, request_id: str, tensor: Tensor = X, **how: Any) -> Call:
    start, fleet.pool.start = fleet.pool.start, lambda call: None  # type: ignore[method-assign]
    try:
        call = fleet.call(inputs=(tensor,), **how)
    finally:
        fleet.pool.start = start  # type: ignore[method-assign]
    call.request_id = request_id
    start(call)
    return call


async def up(fleet: Fleet, warm: str = "abc") -> None:
    await fleet.up(warm)
    fleet.route(warm=warm, workers=warm)
    await fleet.connected(len(warm))
    fleet.pool.budget.saved = 100.0


def status(found: Answer | Refusal) -> int | str:
    return 200 if isinstance(found, Answer) else found.code


async def outcomes(*calls: Call) -> list[int | str]:
    return [status(await outcome(call)) for call in calls]


async def test_a_request_that_kills_two_workers_is_quarantined(fleet: Fleet) -> None:
    life = Life(fleet)
    await up(fleet)
    found = await outcome(bad_call(fleet))
    assert isinstance(found, Unprocessable)
    assert found.code == "quarantined"
    assert "not run again for 600 s" in found.text
    assert len(life.deaths) == 2
    sent = [call for worker in fleet.workers.values() for call in worker.calls]
    assert [call.alone for call in sent if call.request_id == "bad"].count(True) == 1
    # From now on it reaches nobody, and others do as before.
    assert await outcomes(bad_call(fleet), bad_call(fleet)) == ["quarantined"] * 2
    assert len(life.deaths) == 2
    assert await outcomes(*(named(fleet, str(n)) for n in range(5))) == [200] * 5
    assert (fleet.pool.suspects.convicted, fleet.pool.suspects.refused) == (1, 3)


async def test_batch_mates_are_run_again_alone_and_succeed(fleet: Fleet) -> None:
    life = Life(fleet)
    await up(fleet)
    calls = [
        named(fleet, "bad" if n == 7 else str(n), Tensor("x", "FP32", (1,), bytes([n] * 4)))
        for n in range(20)
    ]
    found = await outcomes(*calls)
    assert found == [200] * 7 + ["quarantined"] + [200] * 12
    assert len(life.deaths) == 2
    # All of them ran to an end: nobody is suspected any more but the one in quarantine.
    assert dict(fleet.pool.suspects.watched) == {REF: 1}
    later = named(fleet, "8", Tensor("x", "FP32", (1,), bytes([8] * 4)))
    assert not later.alone
    await outcome(later)


async def test_copies_under_way_kill_nobody_else(fleet: Fleet) -> None:
    """Many clients send the same: while one copy is tried the others wait, and then they end."""
    life = Life(fleet)
    await up(fleet)
    first = bad_call(fleet)
    await fleet.until(lambda: len(life.deaths) == 1)
    await fleet.until(lambda: fleet.pool.suspects.watched[REF] == 1)
    copies = [bad_call(fleet) for _ in range(20)]
    assert await outcomes(first, *copies) == ["quarantined"] * 21
    assert len(life.deaths) == 2


async def test_a_lost_connection_is_no_death(fleet: Fleet) -> None:
    life = Life(fleet, dies=False)
    await up(fleet)
    assert isinstance(await outcome(bad_call(fleet)), WorkerLost)
    assert len(life.deaths) == 2
    # They spoke again as the same processes: nothing is held against the request.
    await fleet.until(lambda: not fleet.pool.suspects.watched)
    assert isinstance(await outcome(bad_call(fleet)), WorkerLost)
    assert len(life.deaths) == 4


async def test_nobody_waits_for_ever_to_be_judged(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suspects, "JUDGED_S_MAX", 0.2)
    life = Life(fleet)
    await up(fleet)
    for worker in fleet.workers.values():
        worker.on_call = lambda peer, call, take=worker.on_call, worker=worker: (  # type: ignore[misc]
            setattr(worker, "greets", False),
            take(peer, call),
        )
    assert isinstance(await outcome(bad_call(fleet)), WorkerLost)
    assert len(life.deaths) == 2
    assert not fleet.pool.suspects.watched


async def test_a_copy_that_waits_ends_at_its_deadline(fleet: Fleet) -> None:
    Life(fleet)
    await up(fleet)
    fleet.pool.suspects._known.blame(
        _fingerprint(), REF, suspects.Loss("x", "1"), fleet.pool.suspects._now(), was_only=False
    )
    for worker in fleet.workers.values():
        worker.on_call = worker.keep
    trial = named(fleet, "trial", BAD)
    copy = named(fleet, "copy", BAD, left_s=0.1)
    assert isinstance(await outcome(copy), DeadlineExceeded)
    assert not trial.future.done()
    gone = named(fleet, "gone", BAD)
    gone.cancel()
    assert not fleet.pool.suspects._held
    third = named(fleet, "third", BAD)
    trial.cancel()
    await fleet.until(lambda: len(fleet.served()) == 2)
    assert third.alone


async def test_what_others_learned_holds_at_once(fleet: Fleet) -> None:
    Life(fleet)
    await up(fleet)
    for worker in fleet.workers.values():
        worker.on_call = worker.keep
    under_way, other = bad_call(fleet), named(fleet, "other")
    fleet.pool.suspects.learn([Row(_fingerprint(), REF, 60.0)])
    found = await outcome(under_way)
    assert isinstance(found, Unprocessable)
    assert "for 60 s" in found.text
    await fleet.until(lambda: sum(len(w.cancels) for w in fleet.workers.values()) == 1)
    assert not other.future.done()
    assert [status(await outcome(bad_call(fleet)))] == ["quarantined"]
    assert fleet.pool.suspects.rows()[0].fingerprint == _fingerprint()


async def test_a_lost_device_is_as_bad_as_a_death(fleet: Fleet) -> None:
    def lose(peer: Peer, call: data.Call) -> None:
        worker = next(w for w in fleet.workers.values() if peer in w.peers)
        if call.alone:
            peer.send(data.encode(data.Began(call.call_id, is_only=True)))
        if call.request_id != "bad":
            worker.answer(peer, call)
            return
        peer.send(data.encode(data.Reply(call.call_id, 502, "it lost its device")))
        worker.incarnation += "i"
        asyncio.get_running_loop().call_later(0.05, peer.close)

    await up(fleet)
    for worker in fleet.workers.values():
        worker.load_ms = 60_000
        worker.on_call = lose
    assert await outcomes(bad_call(fleet), named(fleet, "good")) == ["quarantined", 200]


@pytest.mark.parametrize(("is_fallback", "statuses"), [(False, [502]), (True, [])])
async def test_guards_hear_of_an_error(
    fleet: Fleet, statuses: list[int], *, is_fallback: bool
) -> None:
    """Whatever the caller is told: the version died of its request, twice.

    That small fallback workers died of it says nothing of the version.
    """

    class Told:
        def __init__(self) -> None:
            self.statuses: list[int] = []

        def observe(self, unit: Any, status: int, *_: Any) -> None:
            self.statuses.append(status)

    Life(fleet)
    await up(fleet)
    for conn in fleet.pool._conns.values():
        conn.is_fallback = is_fallback
    call = bad_call(fleet)
    told = Told()
    call.watch = told  # type: ignore[assignment]
    assert await outcomes(call) == ["quarantined"]
    assert told.statuses == statuses


def _fingerprint() -> bytes:
    return fingerprint_of("d", [BAD], ("y",))


async def test_a_request_is_found_out_after_its_own_deadline_too(fleet: Fleet) -> None:
    """Or whoever sends it again kills two more."""
    life = Life(fleet)
    await up(fleet)
    for worker in fleet.workers.values():
        worker.greets = False
    call = bad_call(fleet, left_s=0.3)
    assert isinstance(await outcome(call), WorkerLost)
    assert len(life.deaths) == 2
    for worker in fleet.workers.values():
        worker.greets = True  # and who waits for a greeting has it now
        worker.tell(data.Hello(data.WIRE, "worker", worker.name, worker.incarnation))
    await fleet.until(lambda: fleet.pool.suspects.convicted == 1)
    assert await outcomes(bad_call(fleet)) == ["quarantined"]
    assert len(life.deaths) == 2


async def test_one_whose_client_leaves_at_once_is_found_out_too(fleet: Fleet) -> None:
    """Or it would cost a worker each time."""
    Life(fleet)
    await up(fleet)
    for worker in fleet.workers.values():
        worker.on_call = worker.keep
    for count in (1, 2):
        call = bad_call(fleet)
        await fleet.until(lambda count=count: len(fleet.served()) == count)  # type: ignore[misc]
        assert call.conn is not None
        worker = fleet[call.conn.id]
        call.cancel()
        await fleet.until(lambda worker=worker: bool(worker.cancels))  # type: ignore[misc]
        if call.alone:  # its word was on the way already
            worker.tell(data.Began(call.id, is_only=True))
        worker.incarnation += "i"
        for peer in worker.peers:
            peer.close()
        worker.peers.clear()
        await fleet.until(lambda: bool(fleet.pool.suspects.watched))
        await fleet.connected(3)
    await fleet.until(lambda: fleet.pool.suspects.convicted == 1)
    assert await outcomes(bad_call(fleet)) == ["quarantined"]
    assert len(fleet.served()) == 2


async def test_who_left_and_ran_to_the_end_is_not_blamed_twice(fleet: Fleet) -> None:
    """Only the last run that began alone can have been under way."""
    life = Life(fleet)
    await up(fleet, "a")
    known = fleet.pool.suspects._known
    other = Tensor("x", "FP32", (1,), b"else")
    for tensor in (X, other):
        found = fingerprint_of("d", [tensor], ("y",))
        known.blame(found, REF, suspects.Loss("z", "1"), time.monotonic(), was_only=False)
    known.heard("z", "2", time.monotonic())
    fleet["a"].on_call = fleet["a"].keep
    first = named(fleet, "first")
    await fleet.until(lambda: len(fleet["a"].calls) == 1)
    fleet["a"].tell(data.Began(first.id, is_only=True))
    await fleet.until(lambda: first.has_begun)
    first.cancel()
    second = named(fleet, "second", other)
    await fleet.until(lambda: len(fleet["a"].calls) == 2)
    fleet["a"].tell(data.Began(second.id, is_only=True))
    await fleet.until(lambda: second.has_begun)
    fleet["a"].incarnation = "j"
    await fleet["a"].down()
    await fleet["a"].up()
    assert await outcomes(second) == ["quarantined"]
    assert known.verdict(fingerprint_of("d", [X], ("y",)), time.monotonic()) == "suspect"
    assert not life.deaths


async def under_suspicion(fleet: Fleet, request_id: str, tensor: Tensor, **how: Any) -> Call:
    """Send a request that was in flight at a death before; its only worker keeps it."""
    known = fleet.pool.suspects._known
    found = fingerprint_of("d", [tensor], ("y",))
    known.blame(found, REF, suspects.Loss("z", "1"), time.monotonic(), was_only=False)
    known.heard("z", "2", time.monotonic())
    worker = fleet["a"]
    worker.on_call = worker.keep
    count = len(worker.calls)
    call = named(fleet, request_id, tensor, **how)
    await fleet.until(lambda: len(worker.calls) > count)
    return call


async def dies(fleet: Fleet) -> None:
    fleet["a"].incarnation += "i"
    await fleet["a"].down()
    await fleet.until(lambda: fleet.pool.workers_up == 0)
    await fleet["a"].up()
    await fleet.until(lambda: fleet.pool.workers_up == 1)


@pytest.mark.parametrize("is_only", [True, False])
async def test_only_who_had_the_worker_to_itself_is_guilty(fleet: Fleet, is_only: bool) -> None:
    await up(fleet, "a")
    call = await under_suspicion(fleet, "suspect", BAD)
    other = named(fleet, "other")
    other.ref = ("another model", "1")
    fleet["a"].tell(data.Began(call.id, is_only=True))
    fleet["a"].tell(data.Began(call.id, is_only=is_only))  # others are about to begin
    await fleet.until(lambda: call.has_begun and call.is_only == is_only)
    await dies(fleet)
    known, now_s = fleet.pool.suspects._known, time.monotonic()
    assert known.verdict(_fingerprint(), now_s) == ("guilty" if is_only else "suspect")
    # Of whom it is known that they did not run nobody thinks worse than before.
    beside = known.verdict(fingerprint_of("d", [X], ("y",)), now_s)
    assert beside == ("clear" if is_only else "suspect")


async def test_who_left_is_not_blamed_once_its_run_is_over(fleet: Fleet) -> None:
    """Its worker says so, as no reply does."""
    await up(fleet, "a")
    call = await under_suspicion(fleet, "suspect", BAD)
    fleet["a"].tell(data.Began(call.id, is_only=True))
    await fleet.until(lambda: call.is_only)
    call.cancel()
    await fleet.until(lambda: bool(fleet["a"].cancels))
    fleet["a"].tell(data.Began(call.id, is_only=False))
    await fleet.until(lambda: not call.is_only)
    await dies(fleet)
    assert not fleet.pool.suspects.convicted


async def test_a_worker_that_does_not_say_that_it_did_nothing_else_convicts_nobody(
    fleet: Fleet,
) -> None:
    """As older ones do not."""
    await up(fleet, "a")
    call = await under_suspicion(fleet, "suspect", BAD)
    fleet["a"].tell(data.Began(call.id))
    await fleet.until(lambda: call.has_begun)
    await dies(fleet)
    assert not fleet.pool.suspects.convicted
