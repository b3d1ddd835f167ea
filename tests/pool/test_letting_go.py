"""What was unloaded by request sleeps until it is woken, and only that."""

from __future__ import annotations

from pool import letting_go, placement
from pool.placement import Load, Unload, WorkerView
from pool.wire.control import UNLOADED, EngineState
from registry_sync.documents import EndpointSpec, Scale, Variant
from registry_sync.rollout_terms import Rollout

REF = ("m", "1")


def view(worker: str, state: str = "", *, calls: int = 0) -> WorkerView:
    engines = {REF: EngineState(*REF, "test", state, calls=calls)} if state else {}
    return WorkerView(worker, False, engines)


def spec(name: str, *versions: str) -> EndpointSpec:
    variants = tuple(Variant(f"v{v}", "m", v, 100 / len(versions)) for v in versions)
    return EndpointSpec(name, variants)


def plan(let_go: dict[placement.Ref, bool], *workers: WorkerView) -> list[Load | Unload]:
    wanted = {REF: placement.Demand(2)}
    return placement.plan({**wanted, **letting_go.demands(let_go, wanted)}, workers)


def test_a_warm_engine_is_unloaded_everywhere() -> None:
    assert plan({REF: False}, view("a", "warm"), view("b", "warm")) == [
        Unload("a", REF),
        Unload("b", REF),
    ]


def test_a_failed_engine_is_let_go_and_not_tried_again() -> None:
    assert plan({REF: False}, view("a", "failed")) == [Unload("a", REF)]


def test_an_engine_with_calls_is_not_unloaded_under_them() -> None:
    assert plan({REF: False}, view("a", "warm", calls=1)) == []


def test_what_was_let_go_is_not_loaded_again() -> None:
    assert plan({REF: True}, view("a"), view("b")) == []
    assert plan({}, view("a"), view("b")) != []


def test_it_is_gone_once_no_worker_has_it() -> None:
    assert letting_go.still({REF: False}, [view("a", "draining"), view("b")]) == {REF: False}
    assert letting_go.still({REF: False}, [view("a"), view("b")]) == {REF: True}
    assert letting_go.still({REF: True}, [view("a"), view("b")]) == {REF: True}


def test_a_call_that_loads_it_wakes_it() -> None:
    for state in ("loading", "warm", "failed"):
        assert letting_go.still({REF: True}, [view("a", state)]) == {}


def test_what_another_endpoint_serves_stays_with_it() -> None:
    specs = {"m": spec("m", "1", "2"), "other": spec("other", "2")}
    assert letting_go.refs_of("m", specs) == [("m", "1")]
    assert letting_go.refs_of("other", specs) == []


def test_the_route_says_why_it_sleeps() -> None:
    assert placement.route(REF, [view("a")], is_let_go=True).detail == UNLOADED
    assert placement.route(REF, [view("a")]).detail == ""
    assert placement.route(REF, [view("a", "warm")], is_let_go=True).detail == ""


def test_what_a_new_document_wants_warm_is_let_go_no_longer() -> None:
    before = {"m": spec("m", "1")}
    same = letting_go.unless_set({REF: True}, before, {"m": spec("m", "1")})
    edited = letting_go.unless_set({REF: True}, before, {"m": spec("m", "1", "2")})
    assert same == edited == {REF: True}
    arms = (Variant("stable", "m", "1", 100.0), Variant("canary", "m", "2", 0.0))
    least = EndpointSpec("m", before["m"].variants, scale=Scale(replicas_min=1))
    for new in (least, EndpointSpec("m", arms, rollout=Rollout("r"))):
        assert letting_go.unless_set({REF: True}, before, {"m": new}) == {}
        assert letting_go.unless_set({REF: True}, {"m": new}, {"m": new}) == {REF: True}
