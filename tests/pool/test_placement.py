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
    demands,
    plan,
    replicas_wanted,
    route,
    wake_order,
)
from pool.wire.control import EngineState
from registry_sync.documents import EndpointSpec, Scale, Variant

M1: Ref = ("m", "1")
M2: Ref = ("m", "2")
AWAKE = Demand(0, 4, None)


def spec(
    name: str = "e",
    *variants: tuple[str, str, float],
    replicas_min: int = 0,
    replicas_max: int = 4,
    idle_s: float | None = None,
) -> EndpointSpec:
    """An endpoint of (variant, version, weight) over the model `m`."""
    return EndpointSpec(
        name,
        tuple(Variant(v, "m", version, w) for v, version, w in variants or (("a", "1", 100.0),)),
        scale=Scale(replicas_min, replicas_max, "auto" if idle_s is None else idle_s),
    )


def engine(ref: Ref = M1, state: str = "warm", calls: int = 0, idle_s: float = 0.0) -> EngineState:
    return EngineState(*ref, "test", state, calls=calls, idle_s=idle_s, detail=f"{state}!")


def worker(name: str, *engines: EngineState, draining: bool = False) -> WorkerView:
    return WorkerView(name, draining, {(one.model, one.version): one for one in engines})


def first_of(ref: Ref, *workers: str) -> str:
    return wake_order(ref, workers)[0]


# demands


def test_endpoint_that_never_sleeps_wants_its_versions_awake() -> None:
    assert demands([spec()], {}) == {M1: Demand(0, 4, None)}


def test_endpoint_with_a_time_lets_its_versions_sleep_after_it() -> None:
    assert demands([spec(idle_s=30.0, replicas_min=1)], {}) == {M1: Demand(1, 4, 30.0)}


def test_arm_without_weight_wants_nothing_and_may_go() -> None:
    wanted = demands([spec("e", ("a", "1", 100.0), ("b", "2", 0.0), replicas_min=2)], {})
    assert wanted[M2] == Demand(0, 0, UNWANTED_IDLE_S)


def test_effective_weight_decides_and_not_the_one_of_the_spec() -> None:
    two = spec("e", ("a", "1", 100.0), ("b", "2", 0.0))
    wanted = demands([two], {"e": {"a": 0.0, "b": 100.0}})
    assert (wanted[M1].idle_s, wanted[M2].idle_s) == (UNWANTED_IDLE_S, None)


def test_two_endpoints_on_one_version_keep_it_awake_if_one_does() -> None:
    assert demands([spec("e", idle_s=9.0), spec("f")], {})[M1].idle_s is None


def test_two_endpoints_on_one_version_let_it_sleep_after_the_longer_time() -> None:
    assert demands([spec("e", idle_s=9.0), spec("f", idle_s=60.0)], {})[M1].idle_s == 60.0


def test_two_endpoints_on_one_version_need_the_larger_minimum() -> None:
    both = [spec("e", idle_s=9.0, replicas_min=1), spec("f", idle_s=9.0, replicas_min=3)]
    assert demands(both, {})[M1].replicas_min == 3


def test_bound_of_an_endpoint_that_sleeps_keeps_no_replica_awake() -> None:
    both = [spec("e", replicas_max=1), spec("f", idle_s=60.0, replicas_max=8)]
    assert replicas_wanted(demands(both, {})[M1], workers=8) == 1
    assert demands(both, {}) == demands(both[::-1], {})


def test_arm_without_weight_takes_no_replica_from_another_endpoint() -> None:
    both = [spec("e", ("a", "2", 100.0), ("b", "1", 0.0)), spec("f", replicas_max=3)]
    assert demands(both, {})[M1] == demands(both[::-1], {})[M1] == Demand(0, 3, None)


# how many


def test_awake_version_has_a_replica_on_each_worker_up_to_its_bound() -> None:
    assert [replicas_wanted(Demand(0, 2, None), n) for n in (0, 1, 2, 3)] == [0, 1, 2, 2]


def test_sleeping_version_has_its_minimum() -> None:
    assert [replicas_wanted(Demand(2, 4, 60.0), n) for n in (1, 2, 3)] == [1, 2, 2]


# plans


def test_missing_replicas_are_loaded_in_wake_order() -> None:
    order = wake_order(M1, ["a", "b", "c"])
    steps = plan({M1: Demand(0, 2, None)}, [worker("a"), worker("b"), worker("c")])
    assert steps == [Load(order[0], M1), Load(order[1], M1)]


@pytest.mark.parametrize("state", ["loading", "warm"])
def test_worker_that_has_the_engine_keeps_it(state: str) -> None:
    last = wake_order(M1, ["a", "b"])[1]
    views = [worker(name, *([engine(state=state)] if name == last else [])) for name in "ab"]
    assert plan({M1: Demand(0, 1, None)}, views) == []


def test_engine_that_failed_keeps_its_place_and_is_tried_again() -> None:
    last = wake_order(M1, ["a", "b"])[1]
    views = [worker(n, *([engine(state="failed")] if n == last else [])) for n in "ab"]
    assert plan({M1: Demand(0, 1, None)}, views) == [Load(last, M1)]


def test_engine_that_failed_is_left_alone_where_nobody_wants_it() -> None:
    assert plan({M1: Demand(0, 4, 60.0)}, [worker("a", engine(state="failed"))]) == []


def test_worker_that_drains_gets_nothing_and_counts_for_nothing() -> None:
    views = [worker("a", engine(), draining=True), worker("b")]
    assert plan({M1: Demand(0, 1, None)}, views) == [Load("b", M1)]


def test_engine_that_drains_is_no_replica() -> None:
    assert plan({M1: AWAKE}, [worker("a", engine(state="draining"))]) == [Load("a", M1)]


def test_idle_engine_is_unloaded_once_its_time_is_over() -> None:
    wanted = {M1: Demand(0, 4, 60.0)}
    assert plan(wanted, [worker("a", engine(idle_s=59.9))]) == []
    assert plan(wanted, [worker("a", engine(idle_s=60.0))]) == [Unload("a", M1)]


@pytest.mark.parametrize("state", ["warm", "failed"])
def test_engine_that_nobody_names_goes_after_a_while(state: str) -> None:
    views = [worker("a", engine(state=state, idle_s=UNWANTED_IDLE_S))]
    assert plan({}, views) == [Unload("a", M1)]


@pytest.mark.parametrize("state", ["loading", "draining"])
def test_engine_that_is_about_to_change_is_not_unloaded(state: str) -> None:
    assert plan({}, [worker("a", engine(state=state, idle_s=1e9))]) == []


def test_engine_with_calls_is_never_unloaded() -> None:
    assert plan({}, [worker("a", engine(calls=1, idle_s=1e9))]) == []


def test_engine_that_never_sleeps_is_never_unloaded() -> None:
    views = [worker(name, engine(idle_s=1e9)) for name in "abc"]
    assert plan({M1: Demand(0, 1, None)}, views) == []


def test_minimum_stays_when_the_others_sleep() -> None:
    views = [worker(name, engine(idle_s=1e9)) for name in "abc"]
    kept = first_of(M1, "a", "b", "c")
    steps = plan({M1: Demand(1, 4, 60.0)}, views)
    assert {step.worker for step in steps} == {"a", "b", "c"} - {kept}


def test_of_two_replicas_the_one_that_works_stays() -> None:
    first, last = wake_order(M1, ["a", "b"])
    views = [
        worker(first, engine(state="failed", idle_s=1e9)),
        worker(last, engine(idle_s=1e9)),
    ]
    assert plan({M1: Demand(1, 4, 60.0)}, views) == [Unload(first, M1)]


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
wishes = st.dictionaries(
    st.sampled_from([("m", n) for n in "1234"]),
    st.builds(
        Demand, st.integers(0, 3), st.integers(1, 6), st.sampled_from([None, None, 60.0, 300.0])
    ),
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
    for ref, demand in wanted.items():
        warm = sum(1 for view in live if ref in view.engines and view.engines[ref].state == "warm")
        assert warm >= replicas_wanted(demand, len(live))


@settings(max_examples=300, deadline=None)
@given(fleets, wishes)
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


@settings(max_examples=100, deadline=None)
@given(fleets, wishes)
def test_plan_depends_on_the_views_alone(
    fleet: list[tuple[bool, dict[Ref, EngineState]]], wanted: dict[Ref, Demand]
) -> None:
    views = [WorkerView(f"w{n}", *parts) for n, parts in enumerate(fleet)]
    assert plan(wanted, views) == plan(wanted, views)
    assert set(plan(wanted, views)) == set(plan(wanted, views[::-1]))
