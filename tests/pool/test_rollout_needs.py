"""What rollouts keep warm, and when a candidate counts as warm enough, or as broken."""

from __future__ import annotations

import functools
from typing import Any

import msgspec
import pytest

from pool.placement import Demand, Load, Ref, WorkerView, plan, wake_order
from pool.rollouts.needs import LEAVE_S, SETTLE_S, TRIES, Needs
from pool.wire.control import EngineState
from registry_sync.documents import EndpointSpec, EndpointState, Scale, Variant
from registry_sync.rollout_terms import Phase, Rollout, RolloutState, Shadow, Step

OLD: Ref = ("m", "1")
NEW: Ref = ("m", "2")
HOLD_S = 90.0
STEPS = (Step(10), Step(50), Step(100, HOLD_S))


def spec(scale: Scale | None = None, **rollout: Any) -> EndpointSpec:
    return EndpointSpec(
        "e",
        (Variant("stable", *OLD, 100.0), Variant("canary", *NEW, 0.0)),
        scale=scale or Scale(),
        rollout=Rollout("r", steps=STEPS, **rollout),
    )


SPEC = spec()


@functools.cache  # documents that have not changed are the same objects
def state(step: int, phase: Phase = "running", weight: float | None = None) -> EndpointState:
    if weight is None:
        weight = STEPS[step - 1].weight if step else 0.0
    weights = {"stable": 100 - weight, "canary": weight}
    return EndpointState("e", 1, weights, rollout=RolloutState("r", phase, step))


def engine(ref: Ref, state: str = "warm", size: int = 0, *, passes: bool = False) -> EngineState:
    return EngineState(*ref, "test", state, bytes=size, detail=f"{state}!", passes=passes)


def worker(name: str, *engines: EngineState, room: int = 0, cold: bool = False) -> WorkerView:
    found = {(one.model, one.version): one for one in engines}
    return WorkerView(name, False, found, is_cold=cold, memory_bytes_max=room)


def pool(old: int, new: int, of: int = 8) -> list[WorkerView]:
    """Workers of which so many have the baseline, and so many the candidate."""
    return [
        worker(f"w{n}", *[engine(OLD)] * (n < old), *[engine(NEW)] * (n >= of - new))
        for n in range(of)
    ]


def look(
    needs: Needs,
    views: list[WorkerView],
    at: EndpointState | None = None,
    now_s: float = 0.0,
    wish: EndpointSpec | None = None,
    wanted: dict[Ref, Demand] | None = None,
) -> dict[Ref, int]:
    states = {} if at is None else {"e": at}
    needs.look({"e": wish or SPEC}, states, views, wanted or {}, now_s)
    return dict(needs.kept)


# enough for the next step


@pytest.mark.parametrize(
    ("at", "wanted"),
    [(None, 1), (state(0), 1), (state(1), 2), (state(2), 4), (state(3), 4)],
)
def test_candidate_is_to_have_its_share_of_the_baseline_for_the_next_step(
    at: EndpointState | None, wanted: int
) -> None:
    needs = Needs()
    assert look(needs, pool(4, 0), at) == {OLD: 4, NEW: wanted}
    assert (needs.warmth("e").warm, needs.warmth("e").wanted) == (0, wanted)
    assert f"0 of {wanted} replicas of m version 2 are warm" in needs.warmth("e").waits_for
    look(needs, pool(4, wanted), at)
    assert (needs.warmth("e").warm, needs.warmth("e").waits_for) == (wanted, "")


def test_promotion_needs_as_many_as_the_baseline_has() -> None:
    needs = Needs()
    look(needs, pool(3, 1), state(1), wish=spec(wish="promote"))
    assert needs.warmth("e").wanted == 3


def test_baseline_counts_with_the_most_that_it_had_or_was_wanted() -> None:
    needs = Needs()
    assert look(needs, pool(4, 0), state(1))[OLD] == 4
    assert look(needs, pool(1, 0), state(2)) == {OLD: 4, NEW: 4}
    assert look(needs, pool(1, 0), state(2), wanted={OLD: Demand(6)})[OLD] == 6


def test_baseline_is_to_have_what_the_candidate_needs_for_the_calls_of_both() -> None:
    assert look(Needs(), pool(1, 1), state(3), wanted={NEW: Demand(3)})[OLD] == 3


def test_paused_rollout_keeps_what_it_has() -> None:
    needs = Needs()
    assert look(needs, pool(4, 2), state(2, "paused")) == {OLD: 4, NEW: 4}


def test_sleeping_endpoint_has_one_of_each_while_it_rolls_out() -> None:
    assert look(Needs(), pool(0, 0), None) == {OLD: 1, NEW: 1}


def test_more_than_the_endpoint_may_have_is_not_waited_for() -> None:
    needs = Needs()
    look(needs, pool(4, 2), state(3), wish=spec(Scale(replicas_max=2)))
    assert needs.warmth("e").wanted == 2


def test_more_than_there_are_workers_with_room_is_not_waited_for() -> None:
    sized = {NEW: Demand(1, size_bytes=60)}
    full = [worker(f"w{n}", engine(OLD, size=60), room=100) for n in range(3)]
    needs = Needs()
    look(needs, [*full, worker("x", room=100)], state(3), wanted=sized)
    assert needs.warmth("e").wanted == 1
    look(needs, full, state(3), wanted=sized)
    assert needs.warmth("e").waits_for.endswith("; no worker has room for it")
    # One that already has it, and a place where a process can be started, count.
    look(needs, [*full, worker("x", engine(NEW, size=60), room=60)], state(3), wanted=sized)
    assert needs.warmth("e").wanted == 1
    look(needs, [*full, worker("x", cold=True), worker("y", cold=True)], state(3), wanted=sized)
    assert needs.warmth("e").wanted == 2


def test_dedicated_endpoint_counts_its_own_workers_and_those_it_may_get() -> None:
    wanted = {OLD: Demand(2, owner="e"), NEW: Demand(1, owner="e"), ("x", "1"): Demand(1)}
    needs = Needs()
    look(needs, pool(2, 0, of=6), state(3), wanted={**wanted, OLD: Demand(6, owner="e")})
    assert needs.warmth("e").wanted == 4  # of the endpoint, by default
    look(needs, pool(2, 0, of=3), state(3), wanted=wanted)
    assert needs.warmth("e").wanted == 2  # one is left to those that share
    look(needs, pool(3, 0, of=4), state(3), wanted={OLD: Demand(1, "e"), NEW: Demand(1, "e")})
    assert needs.warmth("e").wanted == 3


# what stays warm afterwards


def test_baseline_stays_until_the_hold_after_all_weight_has_passed() -> None:
    needs = Needs()
    look(needs, pool(4, 0), state(1))
    assert look(needs, pool(4, 4), state(3), 100.0)[OLD] == 4
    # It is promoted at once, by request, or in its time.
    promoted = state(3, "promoted")
    assert look(needs, pool(4, 4), promoted, 101.0) == {OLD: 4, NEW: 4}
    assert look(needs, pool(4, 4), promoted, 100.9 + SETTLE_S) == {OLD: 4, NEW: 4}
    assert look(needs, pool(4, 4), promoted, 99.9 + HOLD_S) == {OLD: 4}
    assert look(needs, pool(4, 4), promoted, 100.0 + HOLD_S) == {}


def test_baseline_keeps_its_replicas_after_a_rollback_until_its_demand_is_known() -> None:
    needs = Needs()
    look(needs, pool(4, 2), state(2))
    back = state(0, "rolled_back")
    assert look(needs, pool(4, 2), back, 5.0) == {OLD: 4, NEW: 2}  # edges hear of it last
    assert look(needs, pool(4, 2), back, 5.0 + LEAVE_S) == {OLD: 4}
    assert look(needs, pool(4, 2), back, 4.9 + SETTLE_S) == {OLD: 4}
    assert look(needs, pool(4, 2), back, 5.0 + SETTLE_S) == {}


def test_candidate_that_cannot_be_loaded_is_not_tried_any_more_once_it_is_rolled_back() -> None:
    needs = Needs()
    broken = [worker(name, engine(OLD), engine(NEW, "failed")) for name in "ab"]
    look(needs, broken)
    assert look(needs, broken, state(0, "rolled_back")) == {OLD: 2}


def test_promotion_that_is_aborted_finds_the_baseline_as_it_was() -> None:
    needs = Needs()
    look(needs, pool(4, 4), state(3))
    look(needs, pool(4, 4), state(3, "promoted"), 1.0)
    back = state(0, "rolled_back")
    assert look(needs, pool(4, 4), back, 2.0) == {OLD: 4, NEW: 4}
    assert look(needs, pool(4, 4), back, 2.0 + LEAVE_S) == {OLD: 4}
    assert look(needs, pool(4, 4), back, 1.9 + SETTLE_S) == {OLD: 4}
    assert look(needs, pool(4, 4), back, 2.0 + SETTLE_S) == {}


def test_promotion_that_is_aborted_long_after_its_hold_has_its_baseline_back_first() -> None:
    needs = Needs()
    look(needs, pool(4, 4), state(3))
    for now_s in (1.0, 1000.0, 1001.0):
        look(needs, pool(4, 4), state(3, "promoted"), now_s)
    assert needs.kept == {}
    aborting = spec(wish="abort")  # and until that is written down
    for now_s in (1002.0, 1003.0, 1004.0):
        assert look(needs, pool(1, 4), state(3, "promoted"), now_s, aborting) == {OLD: 4, NEW: 4}
    for now_s in (1005.0, 1005.9):
        back = state(0, "rolled_back")
        assert look(needs, pool(4, 4), back, now_s, aborting) == {OLD: 4, NEW: 4}
    assert look(needs, pool(4, 4), back, 1004.9 + SETTLE_S, aborting) == {OLD: 4}


def test_rollout_whose_state_is_lost_begins_anew() -> None:
    needs = Needs()
    look(needs, pool(4, 0), state(0, "rolled_back"))
    assert needs.kept == {}
    assert look(needs, pool(4, 0), None, 1.0) == {OLD: 4, NEW: 1}


def test_new_controller_wakes_nothing_for_a_rollout_that_has_ended() -> None:
    assert look(Needs(), pool(0, 0), state(3, "promoted")) == {}
    assert look(Needs(), pool(0, 0), state(0, "rolled_back")) == {}
    # What is still warm may still be wanted back.
    assert look(Needs(), pool(2, 2), state(3, "promoted")) == {OLD: 2, NEW: 2}


def test_another_rollout_begins_anew() -> None:
    needs = Needs()
    look(needs, pool(4, 0), state(1))
    other = EndpointSpec("e", spec().variants, rollout=Rollout("s", steps=STEPS))
    assert look(needs, pool(2, 0), state(1), wish=other) == {OLD: 4, NEW: 1}
    assert look(needs, pool(2, 0), state(1), SETTLE_S, wish=other) == {OLD: 2, NEW: 1}
    needs.look({}, {}, [], {}, SETTLE_S)
    assert needs.warmth("e").wanted == 1


def test_rollout_that_is_taken_out_of_the_spec_leaves_its_replicas_for_a_while() -> None:
    needs = Needs()
    look(needs, pool(4, 2), state(3))
    needs.look({}, {}, pool(4, 2), {}, 10.0)
    assert needs.kept == {OLD: 4, NEW: 2}
    needs.look({}, {}, pool(4, 2), {}, 10.0 + SETTLE_S)
    assert needs.kept == {}


# failures


def test_candidate_is_broken_once_every_worker_that_tries_has_failed() -> None:
    needs = Needs()
    look(needs, [worker("a", engine(NEW, "failed")), worker("b")], now_s=1.0)
    assert needs.warmth("e").failed == ""  # another one is to try
    assert needs.warmth("e").waits_for.endswith("; a worker could not load it: failed!")
    views = [worker("a", engine(NEW, "failed")), worker("b", engine(NEW, "loading"))]
    look(needs, views, now_s=2.0)
    assert needs.warmth("e").failed == ""  # that one does
    broken = [worker(name, engine(NEW, "failed")) for name in "ab"]
    look(needs, broken, now_s=3.0)
    assert (needs.warmth("e").failed, needs.warmth("e").failed_s) == ("failed!", 0.0)
    # That they try again is no news; that one is warm is.
    look(needs, [worker("a", engine(NEW, "loading")), broken[1]], now_s=10.0)
    assert (needs.warmth("e").failed, needs.warmth("e").failed_s) == ("failed!", 7.0)
    look(needs, [worker("a", engine(NEW)), broken[1]], now_s=11.0)
    assert needs.warmth("e").failed == ""
    look(needs, [worker("a", engine(NEW, "loading")), broken[1]], now_s=12.0)
    assert needs.warmth("e").failed == ""


def test_candidate_is_not_broken_while_the_registry_is_away() -> None:
    needs = Needs()
    away = worker("a", engine(NEW, "failed", passes=True))
    look(needs, [away])
    look(needs, [away], now_s=1000.0)
    assert needs.warmth("e").failed == ""
    assert needs.warmth("e").waits_for.endswith("; a worker could not load it: failed!")
    look(needs, [away, worker("b", engine(NEW, "failed"))], now_s=1001.0)
    assert needs.warmth("e").failed == ""  # the one may still prove the other wrong
    look(needs, [worker("a", engine(NEW, "failed"))], now_s=1002.0)
    assert needs.warmth("e").failed == "failed!"


def test_broken_candidate_is_not_tried_on_every_worker_of_a_fleet() -> None:
    names = [f"w{n}" for n in range(10)]
    order = wake_order(NEW, names)
    needs = Needs()
    for tried in range(TRIES + 1):
        views = [worker(name, *[engine(NEW, "failed")] * (name in order[:tried])) for name in names]
        look(needs, views, now_s=float(tried))
        steps = plan(needs.demands({NEW: Demand(1)}), views)
        assert steps == [Load(order[tried] if tried < TRIES else order[0], NEW)]
        assert bool(needs.warmth("e").failed) == (tried == TRIES)


def test_worker_that_is_gone_has_not_failed() -> None:
    needs = Needs()
    broken = [worker(name, engine(NEW, "failed")) for name in "ab"]
    look(needs, broken, now_s=3.0)
    look(needs, [broken[0], worker("c")], now_s=4.0)
    assert needs.warmth("e").failed == ""
    look(needs, [], now_s=5.0)
    assert (needs.warmth("e").failed, needs.warmth("e").warm) == ("", 0)


def test_shadowed_candidate_is_loaded_beside_its_baseline() -> None:
    views = [worker(f"w{n}", *[engine(OLD)] * (n == 7)) for n in range(8)]
    needs = Needs()
    look(needs, views)
    alone = plan(needs.demands({OLD: Demand(1), NEW: Demand(1)}), views)
    assert alone == [Load(wake_order(NEW, [view.id for view in views])[0], NEW)]
    look(needs, views, wish=spec(shadow=Shadow()))
    beside = plan(needs.demands({OLD: Demand(1), NEW: Demand(1)}), views)
    assert beside == [Load("w7", NEW)]


def test_copy_on_a_fallback_worker_is_neither_a_warm_candidate_nor_a_place_for_one() -> None:
    needs = Needs()
    helper = msgspec.structs.replace(worker("f", engine(OLD), engine(NEW)), is_fallback=True)
    assert look(needs, [helper, worker("w", engine(OLD))], state(0)) == {OLD: 1, NEW: 1}
    warmth = needs.warmth("e")
    assert (warmth.warm, warmth.wanted) == (0, 1)
    assert "0 of 1 replicas of m version 2 are warm" in warmth.waits_for
    # That it cannot be loaded there says nothing of the others.
    helper = msgspec.structs.replace(worker("f", engine(NEW, "failed")), is_fallback=True)
    look(needs, [helper, worker("w", engine(OLD))], state(0), 1.0)
    assert needs.warmth("e").failed == ""
    look(needs, [helper], state(0), 2.0)
    assert "no worker has room for it" in needs.warmth("e").waits_for
