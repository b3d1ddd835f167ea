"""What fallback workers are told, and what edges are told of them, rule by rule."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from pool import fallback, placement
from pool.fallback import IDLE_S, QUICK_MS
from pool.far_starts import GUESS_S, FarStarts
from pool.letting_go import demands
from pool.placement import Demand, Load, Ref, Unload, WorkerView, own, reach
from pool.scaling.awaited import COME_BACK_S, FAR_STARTS, Awaited
from pool.scaling.limits import helped_of
from pool.scaling.seen import Sightings
from pool.scaling.signals import Signals
from pool.wire.control import UNLOADED, EngineRoute, EngineState
from registry_sync.documents import EndpointSpec, Scale, Variant

M: Ref = ("m", "1")
HELPED = Demand(1, fallback_idle_s=IDLE_S)
IDLE = Demand(0, fallback_idle_s=IDLE_S)
SLOW_MS = QUICK_MS + 1


def engine(state: str = "warm", calls: int = 0, idle_s: float = 0.0) -> EngineState:
    return EngineState(*M, "test", state, calls=calls, idle_s=idle_s, detail=f"{state}!")


def view(name: str, *engines: EngineState, **more: bool) -> WorkerView:
    """Return a worker; those whose names begin with f are fallback ones."""
    found = {(one.model, one.version): one for one in engines}
    is_draining = more.pop("draining", False)
    return WorkerView(name, is_draining, found, is_fallback=name.startswith("f"), **more)


def far(name: str, *, is_starting: bool = False) -> WorkerView:
    return view(name, is_cold=True, is_far=True, is_starting=is_starting)


def route(*workers: WorkerView, demand: Demand = HELPED, wake_ms: int = 0) -> EngineRoute:
    found = placement.route(M, workers, demand, wake_ms=wake_ms)
    return fallback.route(found, workers, demand, wake_ms=7)


# plans


def test_fallback_worker_is_never_told_to_load_what_the_demand_asks_for() -> None:
    workers = [view("f"), far("w", is_starting=True)]
    assert placement.plan({M: Demand(4, fallback_idle_s=IDLE_S)}, workers) == []
    assert fallback.plan({M: HELPED}, workers) == []
    assert placement.plan({M: HELPED}, [view("f", engine()), view("w")]) == [Load("w", M)]


def test_copy_drains_once_another_worker_has_the_version_warm() -> None:
    copy = view("f", engine(calls=3))
    assert fallback.plan({M: HELPED}, [copy, view("w", engine("loading"))]) == []
    assert fallback.plan({M: HELPED}, [copy, view("w", engine())]) == [Unload("f", M, True)]
    assert placement.plan({M: HELPED}, [copy, view("w", engine())]) == []
    drains = view("w", engine(), draining=True)
    assert fallback.plan({M: HELPED}, [copy, drains]) == []


@pytest.mark.parametrize(
    ("demand", "calls", "idle_s", "goes"),
    [
        (HELPED, 0, 9e9, False),  # a replica is wanted: the copy stands in for it
        (IDLE, 0, IDLE_S - 1, False),
        (IDLE, 0, IDLE_S, True),
        (IDLE, 1, IDLE_S, False),
        (Demand(1), 0, 0.0, True),  # the endpoint does not say so any more
        (Demand(1), 1, 0.0, False),
        (None, 0, IDLE_S, True),  # nobody names it
    ],
)
def test_copy_that_nobody_replaces_is_kept_for_a_while(
    demand: Demand | None, calls: int, idle_s: float, goes: bool
) -> None:
    wanted = {} if demand is None else {M: demand}
    steps = fallback.plan(wanted, [view("f", engine(calls=calls, idle_s=idle_s)), far("w")])
    assert steps == ([Unload("f", M)] if goes else [])


def test_last_warm_worker_that_drains_has_its_versions_loaded_on_a_fallback_worker() -> None:
    drains = view("w", engine(), draining=True)
    assert fallback.plan({M: HELPED}, [drains, view("f")]) == [Load("f", M)]
    assert fallback.plan({M: HELPED}, [drains, view("f", engine("loading")), view("f2")]) == []
    assert fallback.plan({M: HELPED}, [drains, view("f"), view("v")]) == []  # another is up
    assert fallback.plan({M: IDLE}, [drains, view("f")]) == []
    assert fallback.plan({M: Demand(1)}, [drains, view("f")]) == []


def test_calls_that_queue_at_one_fallback_worker_have_the_version_loaded_on_the_next_one() -> None:
    busy = replace(engine(calls=3), waiting=2)
    first, second = placement.wake_order(M, ["f2", "f3"])
    workers = [view("f", busy), view("f2"), view("f3"), far("w")]
    assert fallback.plan({M: HELPED}, workers) == [Load(first, M)]
    workers[1 + (first == "f3")] = view(first, engine("loading"))
    assert fallback.plan({M: HELPED}, workers) == []  # one after the other
    workers[1 + (first == "f3")] = view(first, engine("failed"))
    assert fallback.plan({M: HELPED}, workers) == [Load(second, M)]
    calm = [view("f", engine(calls=1)), view("f2"), far("w")]
    assert fallback.plan({M: HELPED}, calm) == []
    assert fallback.plan({M: HELPED}, [view("f", busy), far("w")]) == []
    assert Load(first, M) not in fallback.plan({M: HELPED}, [*workers, view("v", engine())])


def test_what_was_let_go_leaves_a_fallback_worker_too_and_may_wake_there() -> None:
    wanted = demands([M], {M: HELPED})
    assert fallback.plan(wanted, [view("f", engine())]) == [Unload("f", M)]
    assert route(view("f"), far("w"), demand=wanted[M]).wake_at == ("f",)
    assert demands([M], {M: Demand(1)})[M].fallback_idle_s is None


def test_dedicated_endpoint_has_no_fallback_worker_for_its_own_and_is_helped_by_it() -> None:
    demand = Demand(1, owner="e", fallback_idle_s=IDLE_S)
    workers = [view("f"), view("v"), far("w")]
    assert placement.owners({M: demand}, workers).keys() == {"v", "w"}
    assert route(*workers, demand=demand).wake_at[0] == "f"


# routes


def test_without_an_instance_the_fallback_is_called_and_the_zero_is_told() -> None:
    found = route(view("f"), far("w"), wake_ms=240_000)
    assert (found.state, found.warm, found.wake_at, found.wake_ms) == ("no_instance", (), ("f",), 7)
    found = route(view("f", engine()), far("w", is_starting=True), wake_ms=240_000)
    assert (found.state, found.warm, found.wake_ms) == ("fallback", ("f",), 0)
    found = route(view("f", engine("loading")), far("w"))
    assert (found.state, found.wake_at) == ("loading", ("f",))


def test_who_does_not_say_so_is_not_helped() -> None:
    found = route(view("f", engine()), far("w", is_starting=True), demand=Demand(1), wake_ms=99)
    assert (found.state, found.warm, found.wake_at, found.wake_ms) == ("starting", (), (), 99)
    assert route(view("f", engine()), far("w"), demand=Demand(1)).state == "no_instance"


@pytest.mark.parametrize("state", ["loading", "failed", ""])
def test_fallback_comes_first_where_the_others_are_slow_to_wake(state: str) -> None:
    worker = view("w", *[engine(state)] * bool(state))
    for wake_ms in (0, SLOW_MS):
        assert route(worker, view("f"), wake_ms=wake_ms).wake_at == ("f", "w")
        assert route(worker, view("f", engine()), wake_ms=wake_ms).warm == ("f",)


def test_worker_that_wakes_it_in_no_time_comes_before_one_that_would_have_to_load_it_too() -> None:
    found = route(view("w"), view("f"), wake_ms=QUICK_MS)
    assert (found.wake_at, found.wake_ms) == (("w", "f"), QUICK_MS)
    # Who has it warm answers sooner still.
    assert route(view("w"), view("f", engine()), wake_ms=QUICK_MS).warm == ("f",)


def test_warm_worker_is_called_and_the_fallback_named_last() -> None:
    many = [view(name, engine()) for name in ("a", "b", "c", "d")]
    found = route(*many, view("f", engine()), demand=Demand(4, fallback_idle_s=IDLE_S))
    assert (found.state, found.warm) == ("warm", ("a", "b", "c", "d"))
    assert (len(found.wake_at), found.wake_at[-1]) == (3, "f")


def test_worker_that_drains_is_called_until_the_fallback_is_warm() -> None:
    drains = view("w", engine(), draining=True)
    found = route(drains, view("f", engine("loading")))
    assert (found.warm, found.wake_at[0], found.state) == (("w",), "f", "warm")
    assert route(drains, view("f", engine())).warm == ("f",)
    assert route(drains, view("f", draining=True)).warm == ("w",)


def test_fallback_that_failed_is_asked_last_and_says_why_if_it_is_alone() -> None:
    broken = view("f", engine("failed"))
    assert route(broken, view("w")).wake_at == ("w", "f")
    found = route(broken, far("w"))
    assert (found.state, found.detail, found.wake_at) == ("failed", "failed!", ("f",))
    assert route(broken, view("f2"), far("w")).wake_at == ("f2", "f")


def test_version_that_failed_elsewhere_is_asleep_where_a_fallback_worker_can_wake_it() -> None:
    broken = view("w", engine("failed"))
    assert placement.route(M, [broken], HELPED).state == "failed"
    found = route(broken, view("f"))
    assert (found.state, found.wake_at[0]) == ("asleep", "f")
    assert route(broken, view("f", engine("loading"))).state == "loading"


def test_route_without_an_instance_says_that_it_was_unloaded() -> None:
    found = placement.route(M, [far("w")], Demand(0), is_let_go=True)
    assert (found.state, found.detail) == ("no_instance", UNLOADED)


def test_place_that_can_be_dialled_is_no_machine_that_is_missing() -> None:
    found = placement.route(M, [far("w"), view("c", is_cold=True)], Demand(0))
    assert (found.state, found.wake_at) == ("asleep", ("c",))


# demand


def test_calls_at_a_fallback_worker_are_arrivals_and_say_nothing_of_replicas() -> None:
    def beat(arrived: int) -> EngineState:
        slow = replace(engine(), rows_per_s=3.0, wake_us=9_000_000, bytes=5)
        return replace(slow, arrived=arrived, arrived_rows=arrived, calls=40, waiting=39)

    seen = Sightings()
    for arrived in (10, 25):
        seen.count("f", "i", [beat(arrived)], is_fallback=True)
    seen.look([({M: beat(25)}, False, True)], 1.0)
    found = seen.versions[M]
    assert found.arrived >= 15
    assert (found.waiting, found.running, found.warm, found.loading) == (1, 0, 0, 0)
    assert (found.rows_per_s, found.calls_per_s, found.wake_s, found.size_bytes) == (0, 0, 0, 0)
    assert found.fallback_wake_s == 9.0


def test_nobody_is_up_where_only_fallback_workers_and_far_places_are() -> None:
    assert reach(own("", [view("f"), far("w", is_starting=True)], {})) == "far"
    assert reach(own("", [view("f"), view("w")], {})) == "up"


def signals(arrived: int, *, waiting: int = 0, warm: int = 0) -> Signals:
    return Signals(now_s=0.0, unix_s=0.0, arrived=arrived, waiting=waiting, warm=warm)


def test_version_is_awaited_until_a_machine_had_the_time_to_start_and_its_callers_to_return() -> (
    None
):
    awaited = Awaited()
    assert not awaited.look(M, signals(5), 100.0, 0.0)  # came before anybody looked
    assert awaited.look(M, signals(6), 100.0, 1.0)
    until_s = 1.0 + FAR_STARTS * 100.0 + COME_BACK_S
    assert awaited.look(M, signals(6), 100.0, until_s - 0.1)
    assert not awaited.look(M, signals(6), 100.0, until_s)
    assert awaited.look(M, signals(6, waiting=1), 100.0, 500.0)
    assert awaited.look(M, signals(6, warm=1), 0.0, 510.0)
    assert awaited.look(M, signals(9, warm=1), 0.0, 510.0 + COME_BACK_S - 0.1)
    assert not awaited.look(M, signals(9, warm=1), 0.0, 510.0 + COME_BACK_S)


def test_nobody_is_awaited_while_a_machine_is_up() -> None:
    awaited = Awaited()
    assert not any(awaited.look(M, signals(n, waiting=n), 0.0, float(n)) for n in range(5))


def test_start_of_a_machine_is_guessed_then_learned_and_what_is_left_of_it_told() -> None:
    starts = FarStarts()
    assert (starts.start_s(0.0), starts.start_s(60.0)) == (GUESS_S, 60.0)
    starts.look({"a": True, "b": True}, (), 0.0)
    left_s = [starts.left_s(60.0, now_s, ["a", "b"]) for now_s in (0.0, 20.0, 55.0, 500.0)]
    assert left_s == [60, 40, 15, 15]
    assert starts.left_s(60.0, 20.0, ["c"]) == 60  # whose machine nobody has asked for
    starts.look({"b": True}, ("a",), 100.0)
    assert starts.start_s(60.0) == 100.0
    starts.look({}, (), 101.0)  # called off: nothing is learned of it
    assert (starts.start_s(60.0), starts.left_s(60.0, 200.0, ["a", "b"])) == (100.0, 100.0)


def test_worker_that_was_lost_for_a_moment_is_no_start_that_took_so_long() -> None:
    starts = FarStarts()
    starts.look({"a": False}, (), 0.0)
    starts.look({}, ("a",), 2.0)
    assert starts.start_s(0.0) == GUESS_S


def test_one_endpoint_that_says_so_is_enough_for_a_version() -> None:
    arm = (Variant("stable", "m", "1", 100.0),)
    other = (Variant("stable", "m", "1", 0.0), Variant("canary", "m", "2", 100.0))
    specs = [EndpointSpec("a", arm), EndpointSpec("b", other, scale=Scale(fallback="cpu"))]
    assert helped_of(specs) == {("m", "1"), ("m", "2")}
    assert helped_of(specs[:1]) == set()
