"""What an edge does while no machine of the pool is up, and with fallback workers."""

from __future__ import annotations

import asyncio
import math

import pytest

from edge.dispatching.calls import Answer
from edge.dispatching.dispatch_metrics import dispatch_totals
from edge.dispatching.reach import OUT_OF_REACH_S
from edge.dispatching.waiting import IN_VAIN_S_MAX
from edge.errors import RETRY_AFTER_S_MAX, ClientGone, Unavailable
from edge.readiness import is_ready, state_of
from edge.watch import RolloutWatch
from pool.wire.control import EngineRoute, Routes, WorkerRoute
from pool.wire.data import ShadowOf
from tests.support.edge_fleet import REF, Fleet, outcome

ASLEEP = EngineRoute(*REF, (), (), "no_instance", wake_ms=240_000)


def tell(fleet: Fleet, engine: EngineRoute, workers: str = "", *, far: int = 1) -> None:
    """Give the edge routes; all of `workers` are fallback ones."""
    named = tuple(WorkerRoute(n, "i", str(fleet[n].address), is_fallback=True) for n in workers)
    fleet.pool.update(Routes(1, 1, named, (engine,), far=far))


def counted(fleet: Fleet, name: str) -> dict[tuple[str, ...], float]:
    return {c.labels: c.value for c in dispatch_totals(fleet.pool)[0] if c.name == name}


async def test_call_is_refused_at_once_and_told_when_to_come_back(fleet: Fleet) -> None:
    tell(fleet, ASLEEP)
    found = await outcome(fleet.call())
    assert isinstance(found, Unavailable)
    assert found.code == "no_instance"
    assert "no instance of the pool is up: one takes about 240 s" in found.text
    assert RETRY_AFTER_S_MAX / 1.5 <= found.retry_after_s <= RETRY_AFTER_S_MAX
    assert counted(fleet, "tidepool_no_instance_refusals") == {REF: 1}


async def test_call_that_waited_for_an_instance_in_vain_is_told_how_long_it_still_takes(
    fleet: Fleet,
) -> None:
    tell(fleet, EngineRoute(*REF, (), (), "starting", wake_ms=60))
    waits = fleet.call(left_s=0.2)
    tell(fleet, EngineRoute(*REF, (), (), "starting", wake_ms=30_000))
    found = await outcome(waits)
    assert isinstance(found, Unavailable)
    assert (found.code, found.retry_after_s > 15.0) == ("no_instance", True)
    assert "about 30 s" in found.text
    assert counted(fleet, "tidepool_no_instance_refusals") == {REF: 1}


async def test_calls_that_nobody_was_given_are_counted_however_they_ended(fleet: Fleet) -> None:
    tell(fleet, ASLEEP)
    await outcome(fleet.call())  # refused
    waits = fleet.call(left_s=600.0)
    assert fleet.pool.waiting() == {"m/1": 1}
    assert fleet.pool.unserved() == {"m/1": 1}
    waits.cancel()  # its caller has left
    assert isinstance(await outcome(waits), ClientGone)
    assert fleet.pool.unserved() == {"m/1": 2}
    await fleet.up("a")
    fleet.route("a")
    await fleet.connected(1)
    assert isinstance(await outcome(fleet.call()), Answer)
    fleet["a"].on_call = fleet["a"].break_
    broken = fleet.call()  # a worker had it
    await fleet.until(lambda: fleet.pool.waiting() == {"m/1": 1})
    broken.cancel()
    assert isinstance(await outcome(broken), ClientGone)
    assert fleet.pool.unserved() == {"m/1": 2}


async def test_calls_that_wait_for_an_instance_are_not_given_up_before_it_is_due(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.dispatching.waiting.IN_VAIN_S_MAX", 0.0)
    assert IN_VAIN_S_MAX > 0
    tell(fleet, EngineRoute(*REF, (), (), "starting", wake_ms=100))
    calls = [fleet.call() for _ in range(3)]
    await asyncio.sleep(0.02)
    calls.append(fleet.call())
    assert fleet.pool.waiting() == {"m/1": 4}
    await fleet.up("a")
    fleet.route("a")
    assert all([isinstance(await outcome(call), Answer) for call in calls])


async def test_calls_wait_while_a_new_leader_may_not_have_heard_of_who_starts_machines(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.dispatching.waiting.IN_VAIN_S_MAX", 0.0)
    tell(fleet, ASLEEP)
    tell(fleet, EngineRoute(*REF, (), (), "asleep"), far=0)
    calls = [fleet.call() for _ in range(2)]
    await asyncio.sleep(0.02)
    assert fleet.pool.waiting() == {"m/1": 2}
    monkeypatch.setattr("edge.dispatching.reach.FAR_GONE_S", 0.0)
    assert isinstance(await outcome(fleet.call()), Unavailable)  # there are none, it seems
    for call in calls:
        call.cancel()


async def test_edge_stays_ready_while_all_machines_rest_or_nobody_has_named_them_for_a_while(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fleet.up("a")
    fleet.route("a", workers="a")
    await fleet.connected(1)
    await fleet["a"].down()
    tell(fleet, ASLEEP)
    fleet.pool.reach._last_s = -OUT_OF_REACH_S  # somebody was there once, long ago
    assert fleet.pool.reach.has_anybody()
    monkeypatch.setattr("edge.dispatching.reach.FAR_GONE_S", 0.0)
    tell(fleet, ASLEEP, far=0)
    assert fleet.pool.reach.has_anybody(), "a new leader has not heard of its launcher, for long"
    await fleet["a"].up()
    fleet.route("a", workers="a")
    await fleet.connected(1)
    await fleet["a"].down()
    fleet.pool.reach._last_s = -OUT_OF_REACH_S
    await fleet.until(lambda: not fleet.pool.reach.has_anybody())


@pytest.mark.parametrize(
    ("route", "state", "ready"),
    [
        (ASLEEP, "no_instance", False),
        (EngineRoute(*REF, (), (), "starting", wake_ms=9_000), "starting", True),
        (EngineRoute(*REF, (), (), "starting", wake_ms=11_000), "starting", False),
        (EngineRoute(*REF, (), ("a",), "no_instance"), "no_instance", True),  # by a fallback worker
        (EngineRoute(*REF, ("a",), ("a",), "fallback"), "fallback", True),
    ],
)
async def test_two_zeros_are_told_apart_and_ready_is_what_would_answer_in_time(
    fleet: Fleet, route: EngineRoute, state: str, ready: bool
) -> None:
    await fleet.up("a")
    tell(fleet, route, "a")
    await fleet.connected(1)
    seen = fleet.pool.route_in_reach(REF)
    assert (state_of(seen), is_ready(seen, 10.0)) == (state, ready)


async def test_fallback_worker_out_of_reach_is_no_worker(fleet: Fleet) -> None:
    for engine in (
        EngineRoute(*REF, ("a",), ("a",), "fallback"),
        EngineRoute(*REF, (), ("a",), "no_instance"),
    ):
        tell(fleet, engine, "a")
        fleet.pool._conns["a"].heard_s = -math.inf
        assert state_of(fleet.pool.route_in_reach(REF)) == "no_worker"


async def test_version_sleeps_where_its_copy_is_out_of_reach_and_another_can_wake_it(
    fleet: Fleet,
) -> None:
    await fleet.up("b")
    tell(fleet, EngineRoute(*REF, ("a",), ("a", "b"), "fallback"), "ab")
    await fleet.connected(1)
    fleet.pool._conns["a"].heard_s = -math.inf
    assert state_of(fleet.pool.route_in_reach(REF)) == "asleep"


async def test_answers_of_fallback_workers_are_counted_and_are_no_evidence(fleet: Fleet) -> None:
    await fleet.up("ab")
    watch = RolloutWatch("e", "id", "salt").segment(1, ("stable", "canary"), 1.0).arms["canary"]
    tell(fleet, EngineRoute(*REF, ("a",), ("a",), "fallback"), "a")
    await fleet.connected(1)

    async def ask() -> int:
        call = fleet.call(shadow=(ShadowOf("e/r", "m", "2"),))
        call.watch = watch
        assert isinstance(await outcome(call), Answer)
        return watch.evidence().calls

    assert await ask() == 0
    assert [call.shadow for call in fleet["a"].calls] == [()]  # nor is a copy of theirs
    assert counted(fleet, "tidepool_fallback_answers") == {REF: 1}
    fleet.route("b", workers="b")
    await fleet.connected(1)
    assert await ask() == 1
    assert [call.shadow for call in fleet["b"].calls] == [(ShadowOf("e/r", "m", "2"),)]
    assert counted(fleet, "tidepool_fallback_answers") == {REF: 1}


async def test_call_that_a_fallback_worker_broke_under_is_no_evidence_either(fleet: Fleet) -> None:
    await fleet.up("a")
    fleet["a"].on_call = fleet["a"].break_
    watch = RolloutWatch("e", "id", "salt").segment(1, ("stable", "canary"), 1.0).arms["canary"]
    tell(fleet, EngineRoute(*REF, ("a",), ("a",), "fallback"), "a")
    await fleet.connected(1)
    call = fleet.call()
    call.watch = watch
    assert not isinstance(await outcome(call), Answer)
    assert watch.evidence().errors == 0
