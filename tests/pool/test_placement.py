"""Where engines are to run, rule by rule, and that carrying a plan out ends."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pool.placement import (
    UNWANTED_IDLE_S,
    WAKE_AT_MAX,
    Demand,
    Load,
    Ref,
    Unload,
    WorkerView,
    owners,
    plan,
    reach_more,
    route,
    wake_order,
)
from pool.wire.control import EngineState

M1: Ref = ("m", "1")
M2: Ref = ("m", "2")
ONE, TWO, NONE = Demand(1), Demand(2), Demand(0)


def engine(ref: Ref = M1, state: str = "warm", calls: int = 0, idle_s: float = 0.0) -> EngineState:
    return EngineState(*ref, "test", state, calls=calls, idle_s=idle_s, detail=f"{state}!")


def worker(
    name: str, *engines: EngineState, draining: bool = False, is_cold: bool = False, room: int = 0
) -> WorkerView:
    found = {(one.model, one.version): one for one in engines}
    return WorkerView(name, draining, found, is_cold=is_cold, memory_bytes_max=room)


def first_of(ref: Ref, *workers: str) -> str:
    return wake_order(ref, workers)[0]


# what has to start


@pytest.mark.parametrize(
    ("views", "reach"),
    [
        ((worker("a"), worker("b")), "up"),
        ((worker("a", engine()), worker("b")), "up"),
        ((worker("a", engine()), worker("b", engine(M2))), "up"),
        ((worker("a", engine()), worker("b", is_cold=True)), "cold"),
        ((worker("a", engine(state="loading")), worker("b", is_cold=True)), "cold"),
        ((worker("a", engine()), worker("b", room=9), worker("c", is_cold=True)), "cold"),
        ((worker("a", room=9), worker("c", is_cold=True)), "up"),  # the first makes room for itself
        ((worker("a", is_cold=True),), "cold"),
        ((worker("a", engine()), worker("b", engine())), "up"),
    ],
)
def test_one_more_replica_needs_whoever_does_not_have_it(
    views: tuple[WorkerView, ...], reach: str
) -> None:
    assert reach_more(M1, views, 10, is_far_fleet=False) == reach
    far = tuple(msgspec.structs.replace(view, is_far=view.is_cold) for view in views)
    has_all = all(M1 in view.engines for view in views)
    expected = "far" if has_all or reach == "cold" else reach
    assert reach_more(M1, far, 10, is_far_fleet=True) == expected


# plans


def test_missing_replicas_are_loaded_in_wake_order() -> None:
    order = wake_order(M1, ["a", "b", "c"])
    steps = plan({M1: TWO}, [worker("a"), worker("b"), worker("c")])
    assert steps == [Load(order[0], M1), Load(order[1], M1)]


@pytest.mark.parametrize("state", ["loading", "warm"])
def test_worker_that_has_the_engine_keeps_it(state: str) -> None:
    last = wake_order(M1, ["a", "b"])[1]
    views = [worker(name, *([engine(state=state)] if name == last else [])) for name in "ab"]
    assert plan({M1: ONE}, views) == []


def test_engine_that_failed_keeps_its_place_and_is_tried_again() -> None:
    last = wake_order(M1, ["a", "b"])[1]
    views = [worker(n, *([engine(state="failed")] if n == last else [])) for n in "ab"]
    assert plan({M1: ONE}, views) == [Load(last, M1)]


def test_others_are_tried_before_one_that_failed_is_asked_again() -> None:
    order = wake_order(M1, ["a", "b", "c"])

    def failed(count: int) -> list[WorkerView]:
        broken = [engine(state="failed")]
        return [worker(name, *broken * (name in order[:count])) for name in "abc"]

    for count in (0, 1):
        assert plan({M1: Demand(1, tries=2)}, failed(count)) == [Load(order[count], M1)]
    assert plan({M1: Demand(1, tries=2)}, failed(2)) == [Load(order[0], M1)]
    assert plan({M1: Demand(1, tries=9)}, failed(3)) == [Load(order[0], M1)]


def test_failed_tries_are_remembered_until_as_many_are_warm_as_are_wanted() -> None:
    warm, failed, last = [worker("a", engine()), worker("b", engine(state="failed")), worker("c")]
    wanted = {M1: Demand(2, tries=3)}
    assert plan(wanted, [warm, failed, last]) == [Load("c", M1)]
    last = worker("c", engine(state="failed"))  # or both would be new to it again and again
    assert plan(wanted, [warm, failed, last]) == [Load(wake_order(M1, "bc")[0], M1)]
    assert plan(wanted, [warm, failed, worker("c", engine())]) == [Unload("b", M1)]


def test_version_goes_first_to_where_its_companion_is_warm() -> None:
    for name in "abcd":
        views = [worker(one, *[engine(M2)] * (one == name)) for one in "abcd"]
        wanted = {M1: Demand(2, beside=M2), M2: ONE}
        first, second = plan(wanted, views)
        assert first == Load(name, M1)
        assert second.worker == wake_order(M1, {*"abcd"} - {name})[0]
        # Of two that are warm the one beside it stays.
        views = [worker(one, engine(M1), *[engine(M2)] * (one == name)) for one in "abcd"]
        kept = {M1: Demand(1, beside=M2), M2: ONE}
        assert {step.worker for step in plan(kept, views)} == {*"abcd"} - {name}


def test_version_goes_to_where_its_companion_is_about_to_be() -> None:
    wanted = {M1: Demand(1, beside=M2), M2: ONE}
    for name in "abcd":
        views = [worker(one, *[engine(M2, "loading")] * (one == name)) for one in "abcd"]
        assert plan(wanted, views) == [Load(name, M1)]
    nothing = [worker(name) for name in "abcd"]
    first = first_of(M2, *"abcd")
    assert plan(wanted, nothing) == [Load(first, M2), Load(first, M1)]


def test_engine_that_failed_and_nobody_wants_shows_it_for_a_while() -> None:
    def failed(idle_s: float) -> list[WorkerView]:
        return [worker("a", engine(state="failed", idle_s=idle_s))]

    assert plan({M1: NONE}, failed(59.9)) == []
    assert plan({M1: NONE}, failed(60.0)) == [Unload("a", M1)]
    assert plan({M1: Demand(0, failed_idle_s=0.0)}, failed(0.0)) == [Unload("a", M1)]


def test_worker_that_drains_gets_nothing_and_counts_for_nothing() -> None:
    views = [worker("a", engine(), draining=True), worker("b")]
    assert plan({M1: ONE}, views) == [Load("b", M1)]


def test_engine_that_drains_is_no_replica() -> None:
    assert plan({M1: ONE}, [worker("a", engine(state="draining"))]) == [Load("a", M1)]


def test_engine_that_is_not_wanted_any_more_is_unloaded() -> None:
    assert plan({M1: NONE}, [worker("a", engine())]) == [Unload("a", M1)]


def test_last_replica_is_not_unloaded_under_a_call() -> None:
    assert plan({M1: NONE}, [worker("a", engine(calls=1))]) == []


def test_one_of_several_is_unloaded_under_calls_and_drains() -> None:
    kept, extra = wake_order(M1, ["a", "b"])
    views = [worker(name, engine(calls=3)) for name in "ab"]
    assert plan({M1: ONE}, views) == [Unload(extra, M1, is_elsewhere=True)]
    assert route(M1, views, ONE).warm == (kept,)


def test_replica_stays_until_the_one_that_is_to_replace_it_is_warm() -> None:
    wanted = {M1: Demand(1, owner="e"), M2: NONE}
    whose = owners(wanted, [worker("a"), worker("b")])
    own = next(name for name, owner in whose.items() if owner)
    other = next(name for name, owner in whose.items() if not owner)
    # It runs where it may not, and loads where it is to be.
    views = [worker(other, engine(M1)), worker(own, engine(M1, "loading"))]
    assert plan(wanted, views) == []
    assert route(M1, views, wanted[M1], whose).warm == (other,)
    views = [worker(other, engine(M1)), worker(own, engine(M1))]
    assert plan(wanted, views) == [Unload(other, M1, is_elsewhere=True)]
    assert route(M1, views, wanted[M1], whose).warm == (own,)


def test_cold_place_is_sent_no_command() -> None:
    assert plan({M1: TWO}, [worker("a"), worker("b", is_cold=True)]) == [Load("a", M1)]


def test_version_is_loaded_only_where_it_is_known_to_fit() -> None:
    first, last = wake_order(M1, ["a", "b"])
    full = worker(first, EngineState(*M2, "test", "warm", bytes=60), room=100)
    wanted = {M1: Demand(1, size_bytes=50), M2: ONE}
    assert plan(wanted, [full, worker(last, room=100)]) == [Load(last, M1)]
    assert plan(wanted, [full, worker(last, room=40)]) == []
    assert plan(wanted, [full, worker(last)]) == [Load(last, M1)]
    # A call may wake it all the same; it does not say that it is about to load.
    asleep = route(M1, [full, worker(last, room=40)], wanted[M1])
    assert (asleep.state, len(asleep.wake_at)) == ("asleep", 2)


@pytest.mark.parametrize("state", ["warm", "failed"])
def test_engine_that_nobody_names_goes_after_a_while(state: str) -> None:
    views = [worker("a", engine(state=state, idle_s=UNWANTED_IDLE_S))]
    assert plan({}, views) == [Unload("a", M1)]


@pytest.mark.parametrize("state", ["loading", "draining"])
def test_engine_that_is_about_to_change_is_not_unloaded(state: str) -> None:
    assert plan({}, [worker("a", engine(state=state, idle_s=1e9))]) == []


def test_engine_with_calls_is_never_unloaded() -> None:
    assert plan({}, [worker("a", engine(calls=1, idle_s=1e9))]) == []


def test_engine_that_is_wanted_is_never_unloaded() -> None:
    views = [worker(name, engine(idle_s=1e9)) for name in "abc"]
    assert plan({M1: Demand(3)}, views) == []


def test_minimum_stays_when_the_others_sleep() -> None:
    views = [worker(name, engine(idle_s=1e9)) for name in "abc"]
    kept = first_of(M1, "a", "b", "c")
    steps = plan({M1: ONE}, views)
    assert {step.worker for step in steps} == {"a", "b", "c"} - {kept}


def test_of_two_replicas_the_one_that_works_stays() -> None:
    first, last = wake_order(M1, ["a", "b"])
    views = [worker(first, engine(state="failed")), worker(last, engine())]
    assert plan({M1: ONE}, views) == [Unload(first, M1)]


def test_loads_of_one_plan_fit_together() -> None:
    wanted = {("m", str(n)): Demand(1, size_bytes=40) for n in range(1, 6)}
    assert len(plan(wanted, [worker("a", room=100)])) == 2
    assert len(plan(wanted, [worker("a", room=100), worker("b", room=100)])) == 4


# dedicated workers

OWN = Demand(1, owner="e")


def test_dedicated_endpoint_has_a_worker_of_its_own_and_the_rest_share() -> None:
    views = [worker(name) for name in "abc"]
    wanted = {M1: OWN, M2: Demand(3)}
    whose = owners(wanted, views)
    (own,) = [name for name, owner in whose.items() if owner == "e"]
    steps = plan(wanted, views)
    assert [step for step in steps if step.ref == M1] == [Load(own, M1)]
    assert {step.worker for step in steps if step.ref == M2} == {"a", "b", "c"} - {own}
    assert route(M1, views, OWN, whose).wake_at == (own,)
    assert own not in route(M2, views, wanted[M2], whose).wake_at


def test_dedicated_endpoint_keeps_its_worker_while_it_sleeps() -> None:
    views = [worker(name) for name in "ab"]
    awake, asleep = owners({M1: OWN}, views), owners({M1: Demand(0, owner="e")}, views)
    assert awake == asleep
    assert sorted(awake.values()) == ["", "e"]


def test_dedicated_endpoint_that_sleeps_leaves_the_machine_that_is_up_to_those_that_share() -> None:
    far = [WorkerView(name, False, {}, is_cold=True, is_far=True) for name in "bc"]
    for owner in "efghijkl":  # whatever the order that names make
        whose = owners({M1: Demand(0, owner=owner), M2: Demand(0)}, [worker("a"), *far])
        assert whose["a"] == ""
        # The one that starts is somebody's who calls.
        starting = [msgspec.structs.replace(far[0], is_starting=True), far[1]]
        whose = owners({M1: Demand(0, owner=owner), M2: ONE}, [worker("a"), *starting])
        assert (whose["a"], whose["b"], whose["c"]) == ("", "", owner)


def test_dedicated_endpoint_that_is_called_keeps_the_machine_that_starts_for_it() -> None:
    far = [WorkerView(name, False, {}, is_cold=True, is_far=True) for name in "bc"]
    for owner in "efghijkl":
        demand = Demand(1, owner=owner)
        before = owners({M1: demand}, [worker("a"), *far])
        (own,) = [name for name, one in before.items() if one == owner]
        up = [worker(one.id) if one.id == own else one for one in far]
        assert owners({M1: demand}, [worker("a"), *up])[own] == owner


def test_worker_that_runs_a_dedicated_endpoint_already_becomes_its_own() -> None:
    for name in "abc":
        views = [worker(one, *([engine()] if one == name else [])) for one in "abc"]
        assert owners({M1: OWN}, views)[name] == "e"


def test_one_worker_is_left_to_those_that_share() -> None:
    wanted = {("m", str(n)): Demand(2, owner=f"e{n}") for n in range(4)}
    for count in range(7):
        views = [worker(f"w{n}") for n in range(count)]
        found = list(owners(wanted, views).values())
        assert found.count("") == (1 if count else 0)
        assert (
            sorted({owner for owner in found if owner}) == [f"e{n}" for n in range(count - 1)][:4]
        )


def test_dedicated_endpoint_without_a_worker_of_its_own_shares() -> None:
    views = [worker("a")]
    assert plan({M1: OWN, M2: ONE}, views) == [Load("a", M1), Load("a", M2)]
    assert route(M1, views, OWN, owners({M1: OWN}, views)).wake_at == ("a",)


def test_dedicated_endpoint_gets_as_many_workers_as_it_wants_replicas() -> None:
    views = [worker(f"w{n}") for n in range(4)]
    wanted = {M1: Demand(2, owner="e"), M2: ONE}
    assert list(owners(wanted, views).values()).count("e") == 2
    assert len([step for step in plan(wanted, views) if step.ref == M1]) == 2


# routes


def test_route_names_every_warm_worker_but_none_that_drains() -> None:
    views = [worker("b", engine()), worker("a", engine()), worker("c", engine(), draining=True)]
    assert route(M1, views).warm == ("a", "b")
    assert "c" not in route(M1, views).wake_at


def test_route_names_a_worker_that_drains_while_nobody_else_could_answer() -> None:
    drains = worker("a", engine(), draining=True)
    assert route(M1, [drains]).warm == route(M1, [drains]).wake_at == ("a",)
    found = route(M1, [drains, worker("b")])
    assert (found.warm, found.wake_at) == (("a",), ("b",))
    assert route(M1, [drains, worker("b", engine())]).warm == ("b",)


def test_route_to_a_sleeping_engine_is_the_wake_order() -> None:
    names = [f"w{n}" for n in range(6)]
    found = route(M1, [worker(name) for name in names])
    assert (found.state, found.wake_at) == ("asleep", tuple(wake_order(M1, names)[:WAKE_AT_MAX]))


def test_worker_that_is_loading_is_asked_first() -> None:
    last = wake_order(M1, ["a", "b", "c", "d"])[-1]
    views = [worker(n, *([engine(state="loading")] if n == last else [])) for n in "abcd"]
    assert (route(M1, views).state, route(M1, views).wake_at[0]) == ("loading", last)


def test_worker_that_failed_to_load_is_asked_last() -> None:
    first = first_of(M1, "a", "b", "c")
    views = [worker(n, *([engine(state="failed")] if n == first else [])) for n in "abc"]
    found = route(M1, views)
    assert (found.state, found.detail, found.wake_at[-1]) == ("failed", "failed!", first)


def test_engine_that_works_somewhere_hides_that_it_failed_elsewhere() -> None:
    views = [worker("a", engine(state="failed")), worker("b", engine())]
    assert (route(M1, views).state, route(M1, views).detail) == ("warm", "")


def test_worker_that_is_up_is_asked_before_one_that_has_to_start() -> None:
    first, last = wake_order(M1, ["a", "b"])
    views = [worker(first, is_cold=True), worker(last)]
    assert route(M1, views).wake_at == (last, first)


def test_version_that_is_about_to_be_loaded_says_so() -> None:
    assert route(M1, [worker("a")], ONE).state == "loading"
    assert route(M1, [worker("a", is_cold=True)], ONE).state == "asleep"
    assert route(M1, [], ONE).state == "asleep"


def test_route_says_how_long_a_wake_takes_unless_it_is_warm() -> None:
    assert route(M1, [worker("a")], wake_ms=70).wake_ms == 70
    assert route(M1, [worker("a", engine())], ONE, wake_ms=70).wake_ms == 0


def test_route_without_workers_wakes_nobody() -> None:
    assert route(M1, []).wake_at == ()


# wake order

names = st.sets(st.text("abcdefgh0123456789-", min_size=1, max_size=12), min_size=1, max_size=12)


@given(names, st.integers(0, 99))
def test_wake_order_does_not_depend_on_the_order_of_the_workers(found: set[str], n: int) -> None:
    ref = ("m", str(n))
    assert wake_order(ref, sorted(found)) == wake_order(ref, sorted(found, reverse=True))


@given(names, st.text("xyz", min_size=13, max_size=13))
def test_new_worker_moves_only_what_it_wins(found: set[str], new: str) -> None:
    for n in range(20):
        ref = ("m", str(n))
        order = wake_order(ref, {*found, new})
        assert [one for one in order if one != new] == wake_order(ref, found)


def test_wake_order_spreads_the_engines() -> None:
    firsts = [first_of(("m", str(n)), "a", "b", "c", "d") for n in range(400)]
    assert all(60 < firsts.count(name) < 140 for name in "abcd")


def test_engines_of_like_name_are_told_apart() -> None:
    orders = {tuple(wake_order((m, v), map(str, range(9)))) for m, v in (("m1", "1"), ("m", "11"))}
    assert len(orders) == 2


# carrying plans out

STATES = ("loading", "warm", "draining", "failed")
states = st.builds(
    EngineState,
    st.just("m"),
    st.sampled_from("1234"),
    st.just("test"),
    st.sampled_from(STATES),
    calls=st.sampled_from([0, 0, 0, 2]),
    idle_s=st.sampled_from([0.0, 59.0, 60.0, 400.0]),
)
fleets = st.lists(
    st.builds(
        lambda draining, engines: (draining, {(e.model, e.version): e for e in engines}),
        st.sampled_from([False, False, False, True]),
        st.lists(states, max_size=4),
    ),
    max_size=6,
)
refs = st.sampled_from([("m", n) for n in "1234"])
how = {"beside": st.sampled_from([None, M1]), "tries": st.sampled_from([1, 3])}
shared = st.dictionaries(refs, st.builds(Demand, st.integers(0, 4), **how))
wishes = st.dictionaries(
    refs, st.builds(Demand, st.integers(0, 4), st.sampled_from(["", "", "e", "f"]), **how)
)


def carried_out(views: list[WorkerView], steps: list[Load | Unload]) -> list[WorkerView]:
    """What the heartbeats say once every load has gone well and every unload is done."""
    fresh = []
    for view in views:
        engines = {
            ref: msgspec.structs.replace(one, state="warm") if one.state == "loading" else one
            for ref, one in view.engines.items()
            if one.state != "draining"
        }
        for step in steps:
            if step.worker == view.id and isinstance(step, Load):
                engines[step.ref] = engine(step.ref)
            elif step.worker == view.id:
                del engines[step.ref]
        fresh.append(WorkerView(view.id, view.draining, engines))
    return fresh


def check(wanted: Mapping[Ref, Demand], views: list[WorkerView]) -> None:
    live = [view for view in views if not view.draining]
    whose = owners(wanted, views)
    for ref, demand in wanted.items():
        own = [view for view in live if whose[view.id] == demand.owner]
        own = own or [view for view in live if not whose[view.id]]
        warm = sum(1 for view in own if ref in view.engines and view.engines[ref].state == "warm")
        assert warm >= min(demand.replicas, len(own))
        assert len(route(ref, views, demand, whose).warm) >= min(demand.replicas, len(own))


@settings(max_examples=300, deadline=None)
@given(fleets, shared)
def test_plan_carried_out_ends_and_does_not_flap(
    fleet: list[tuple[bool, dict[Ref, EngineState]]], wanted: dict[Ref, Demand]
) -> None:
    views = [WorkerView(f"w{n}", *parts) for n, parts in enumerate(fleet)]
    loaded: set[tuple[str, Ref]] = set()
    for _ in range(4):
        steps = plan(wanted, views)
        assert len(set(steps)) == len(steps)
        for step in steps:
            here = (step.worker, step.ref)
            assert not (isinstance(step, Unload) and here in loaded), "loaded to be unloaded"
            if isinstance(step, Load):
                loaded.add(here)
        views = carried_out(views, steps)
    assert plan(wanted, views) == []
    check(wanted, views)


@settings(max_examples=300, deadline=None)
@given(fleets, wishes)
def test_plan_with_workers_of_their_own_ends_as_well(
    fleet: list[tuple[bool, dict[Ref, EngineState]]], wanted: dict[Ref, Demand]
) -> None:
    views = [WorkerView(f"w{n}", *parts) for n, parts in enumerate(fleet)]
    for _ in range(8):
        views = carried_out(views, plan(wanted, views))
    assert plan(wanted, views) == []
    check(wanted, views)


@settings(max_examples=100, deadline=None)
@given(fleets, wishes)
def test_plan_depends_on_the_views_alone(
    fleet: list[tuple[bool, dict[Ref, EngineState]]], wanted: dict[Ref, Demand]
) -> None:
    views = [WorkerView(f"w{n}", *parts) for n, parts in enumerate(fleet)]
    assert plan(wanted, views) == plan(wanted, views)
    assert set(plan(wanted, views)) == set(plan(wanted, views[::-1]))


def test_what_nobody_has_decided_on_is_about_to_be_loaded() -> None:
    """It is not ready before it is warm: its first load may take longer than any deadline."""
    workers = [worker("a")]
    assert route(M1, workers, is_undecided=True).state == "loading"
    assert route(M1, workers).state == "asleep"
    assert route(M1, workers, is_undecided=True, is_let_go=True).state == "asleep"
