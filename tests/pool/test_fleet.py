"""Which worker processes are up."""

from __future__ import annotations

import random

import pytest

from pool.scaling.fleet import (
    EMPTY_S_MAX,
    GATHER_S,
    SILENT_S_MAX,
    Fleet,
    FleetState,
    NodeLimits,
    PlaceView,
    plan,
)

REST_S = 60.0


def place(worker: str, **fields: object) -> PlaceView:
    """Return a place on the node that the first letter names; `up` ones have a process."""
    made: dict[str, object] = {"worker": worker, "node": worker[0], "device": "cpu", **fields}
    return PlaceView(**made)  # type: ignore[arg-type]


def serves(worker: str, **fields: object) -> PlaceView:
    return place(worker, **{"is_up": True, "engines": 1, **fields})


class World:
    """Places, and what the policy said of them so far."""

    def __init__(self, *places: PlaceView, **limits: NodeLimits) -> None:
        self.places = list(places)
        self.limits = {p.node: limits.get(p.node, NodeLimits()) for p in places if p.node}
        self.state = FleetState()

    def at(self, now_s: float, shared: int = 0, **needed: int) -> Fleet:
        found, self.state = plan(
            self.places, {"": shared, **needed}, self.limits, self.state, now_s
        )
        return found

    def put(self, *places: PlaceView) -> None:
        """Replace places by what they are now."""
        new = {p.worker: p for p in places}
        self.places = [new.get(p.worker, p) for p in self.places]


def names(fleet: Fleet) -> str:
    return " ".join(sorted(fleet.up))


def test_nothing_is_up_where_nothing_is_needed() -> None:
    assert World(place("a0"), place("a1")).at(0.0).up == {}


def test_as_many_are_started_as_one_version_wants_replicas_at_once() -> None:
    assert World(place("a0"), place("a1"), place("a2")).at(0.0, 2).up == {
        "a0": "demand", "a1": "demand",
    }  # fmt: skip


def test_no_more_are_up_than_there_are_places() -> None:
    assert names(World(place("a0"), place("a1")).at(0.0, 7)) == "a0 a1"


def test_who_serves_is_taken_before_who_is_up_and_that_before_anything_is_started() -> None:
    world = World(place("a0"), place("a1", is_up=True), serves("a2"))
    assert world.at(0.0, 1).up["a2"] == "demand"
    assert world.at(0.0, 2).up == {"a2": "demand", "a1": "demand"}
    assert world.at(0.0, 3).up["a0"] == "demand"


def test_who_is_awaited_is_up_and_is_the_first_that_is_taken() -> None:
    world = World(place("a0"), place("a1", is_up=True, is_starting=True, is_awaited=True))
    assert world.at(0.0).up == {"a1": "awaited"}
    assert world.at(1.0, 1).up == {"a1": "demand"}


def test_what_is_started_goes_where_the_fewest_are_up() -> None:
    world = World(serves("a0"), place("a1"), place("b0"), place("b1"), place("c0"))
    assert names(world.at(0.0, 3)) == "a0 b0 c0"


def test_worker_that_nobody_can_start_counts_and_is_named_to_no_node() -> None:
    world = World(place("a0"), place("free", node="", is_up=True))
    assert world.at(0.0, 1).up == {}
    assert names(world.at(0.0, 2)) == "a0"


def test_minimum_of_a_node_is_up_whatever_the_demand() -> None:
    world = World(*map(place, ("a0", "a1", "b0", "b1")), a=NodeLimits(up_min=2))
    assert world.at(0.0).up == {"a0": "minimum", "a1": "minimum"}


def test_minimum_counts_who_serves() -> None:
    world = World(place("a0"), serves("a1"), a=NodeLimits(up_min=1))
    assert names(world.at(0.0, 1)) == "a1"


def test_parked_ones_are_up_on_each_device_beyond_those_that_serve() -> None:
    world = World(
        *(place(f"a{n}", device=f"cuda:{n // 3}") for n in range(6)), a=NodeLimits(parked=1)
    )
    assert world.at(0.0).up == {"a0": "parked", "a3": "parked"}
    world.put(serves("a0", device="cuda:0"))
    assert world.at(1.0, 1).up == {"a0": "demand", "a1": "parked", "a3": "parked"}


def test_minimum_that_serves_nothing_is_stock() -> None:
    world = World(*map(place, ("a0", "a1", "a2")), a=NodeLimits(up_min=1, parked=1))
    assert world.at(0.0).up == {"a0": "minimum"}


def test_who_serves_stays_even_if_nobody_needs_it() -> None:
    world = World(serves("a0"), place("a1", is_up=True, calls=1))
    assert world.at(1e6).up == {"a0": "in use", "a1": "in use"}


def test_who_is_of_no_use_rests_after_a_while_and_not_sooner() -> None:
    world = World(serves("a0"))
    world.at(100.0, 1)
    world.put(place("a0", is_up=True))
    assert world.at(100.0 + REST_S - 0.1).up == {"a0": "just used"}
    assert world.at(100.0 + REST_S).up == {}


def test_who_was_called_while_nobody_decided_is_given_the_same_while() -> None:
    world = World(place("a0", is_up=True))
    assert world.at(5e5).up == {"a0": "just used"}
    assert world.at(5e5 + REST_S).up == {}


def test_who_starts_is_not_told_to_rest_before_it_is_there() -> None:
    world = World(place("a0", is_up=True, is_starting=True))
    assert world.at(0.0).up == {"a0": "just used"}
    assert world.at(10 * REST_S).up == {"a0": "just used"}
    world.put(place("a0", is_up=True))
    assert world.at(11 * REST_S - 0.1).up == {"a0": "just used"}
    assert world.at(11 * REST_S).up == {}


def test_demand_that_comes_and_goes_starts_nothing_anew() -> None:
    world = World(place("a0", is_up=True), place("a1"))
    for now_s in range(0, 600, 10):
        assert names(world.at(float(now_s), now_s // 10 % 2)) == "a0"


def test_dedicated_endpoint_is_given_its_own_workers_and_nobody_elses() -> None:
    world = World(place("a0"), place("a1", owner="e"), place("a2", owner="e"), place("a3"))
    assert names(world.at(0.0, e=1)) == "a1"
    assert names(world.at(0.0, 1, e=5)) == "a0 a1 a2"


def test_worker_is_emptied_once_more_serve_than_are_needed_for_long() -> None:
    world = World(serves("a0", is_sole=True), serves("a1", is_sole=True))
    assert world.at(0.0, 1).leaving == frozenset()
    assert world.at(GATHER_S - 1, 1).leaving == frozenset()
    found = world.at(GATHER_S, 1)
    assert (found.up, found.leaving) == ({"a0": "demand", "a1": "leaving"}, frozenset({"a1"}))
    world.put(serves("a0", engines=2, is_sole=True), serves("a1"))  # the other has loaded it too
    assert world.at(GATHER_S + 1, 1).up == {"a0": "demand"}
    world.put(place("a1"))
    assert world.at(GATHER_S + 2, 1).leaving == frozenset()


def test_worker_whose_engines_fit_nowhere_else_stays() -> None:
    world = World(serves("a0", is_sole=True), serves("a1", is_sole=True))
    world.at(0.0, 1)
    world.at(GATHER_S, 1)
    found = world.at(GATHER_S + EMPTY_S_MAX + 1, 1)
    assert (found.up["a1"], found.leaving) == ("in use", frozenset())
    assert world.at(2 * GATHER_S, 1).leaving == frozenset()
    assert world.at(2 * GATHER_S + EMPTY_S_MAX + 1, 1).leaving == frozenset({"a1"})


def test_worker_that_is_needed_after_all_is_emptied_no_more() -> None:
    world = World(serves("a0", is_sole=True), serves("a1", is_sole=True))
    world.at(0.0, 1)
    world.at(GATHER_S, 1)
    found = world.at(GATHER_S + 1, 2)
    assert (found.up, found.leaving) == ({"a0": "demand", "a1": "demand"}, frozenset())


def test_worker_that_its_node_keeps_up_anyway_is_not_emptied() -> None:
    world = World(serves("a0"), serves("a1"), a=NodeLimits(up_min=2))
    world.at(0.0, 1)
    assert world.at(10 * GATHER_S, 1).leaving == frozenset()


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_the_promises_hold(seed: int) -> None:
    chance = random.Random(seed)
    limits = {
        node: NodeLimits(chance.randrange(3), chance.randrange(3), chance.choice((0.0, 5.0, 60.0)))
        for node in "abc"
    }
    owners = ("", "", "e")
    places = [
        place(f"{node}{n}", device=f"cuda:{n % 2}", owner=chance.choice(owners))
        for node in "abc"
        for n in range(4)
    ]
    state, now_s = FleetState(), 0.0
    for _ in range(300):
        now_s += chance.choice((0.1, 1.0, 30.0))
        needed = {"": chance.randrange(6), "e": chance.randrange(3)}
        found, state = plan(places, needed, limits, state, now_s)
        again, _ = plan(places, needed, limits, state, now_s)
        assert again == found  # the same once more moves nothing
        up = {p.worker for p in places if p.worker in found.up}
        for node, limit in limits.items():
            own = [p for p in places if p.node == node]
            gone = {p.worker for p in own if p.worker in state.leaving_s}
            assert len(up & {p.worker for p in own}) >= min(limit.up_min, len(own) - len(gone))
        for owner, count in needed.items():
            own = [p for p in places if p.owner == owner]
            assert sum(p.worker in up for p in own) >= min(count, len(own))
        assert all(p.worker in up for p in places if p.is_in_use and not state.leaving_s)
        # What is up starts; what is not ends; some of what is up gets work or loses it.
        places = [
            place(
                p.worker,
                device=p.device,
                owner=p.owner,
                is_up=p.worker in up,
                engines=chance.randrange(3) if p.worker in up else 0,
                is_sole=chance.random() < 0.3,
            )
            for p in places
        ]


def test_one_that_is_silent_has_another_in_its_stead_and_may_speak_again() -> None:
    world = World(serves("a0"), place("a1"), place("a2"), a=NodeLimits(parked=1))
    assert world.at(0.0, 1).up == {"a0": "demand", "a1": "parked"}
    world.put(place("a0", is_silent=True), place("a1", is_up=True))
    assert world.at(1.0, 1).up == {"a0": "silent", "a1": "demand", "a2": "parked"}
    world.put(serves("a0"))
    assert world.at(SILENT_S_MAX, 1).up["a0"] == "demand"


def test_one_that_is_silent_for_long_is_ended_and_its_place_used_again() -> None:
    world = World(place("a0", is_silent=True), place("a1", is_up=True), a=NodeLimits(up_min=2))
    assert world.at(0.0).up == {"a0": "silent", "a1": "minimum"}
    assert world.at(0.9 * SILENT_S_MAX).silent == frozenset()
    found = world.at(SILENT_S_MAX)
    assert (found.up, found.silent) == ({"a1": "minimum"}, {"a0"})
    assert world.at(2 * SILENT_S_MAX).silent == {"a0"}
    world.put(place("a0"))
    found = world.at(3 * SILENT_S_MAX)
    assert (names(found), found.silent) == ("a0 a1", frozenset())


def test_one_that_is_silent_again_has_its_time_again() -> None:
    world = World(place("a0", is_silent=True))
    world.at(0.0)
    world.put(serves("a0"))
    world.at(SILENT_S_MAX)
    world.put(place("a0", is_silent=True))
    assert world.at(SILENT_S_MAX + 1.0).up == {"a0": "silent"}


def test_place_that_starts_where_nobody_can_dial_it_is_not_of_use_by_that_alone() -> None:
    """Its launcher starts it by our word: were it kept for starting, neither would ever give in."""
    near, far = (place("a0", is_up=True, is_starting=True, is_far=is_far) for is_far in (0, 1))
    assert World(near).at(0.0).up == {"a0": "just used"}
    assert World(far).at(0.0).up == {}


def test_place_that_starts_elsewhere_is_kept_for_a_while_after_it_was_needed() -> None:
    world = World(place("a0", is_far=True), a=NodeLimits(rest_s=REST_S))
    assert world.at(0.0, 1).up == {"a0": "demand"}
    world.put(place("a0", is_far=True, is_up=True, is_starting=True))
    assert world.at(1.0, 1).up == {"a0": "demand"}
    assert world.at(REST_S, 0).up == {"a0": "just used"}
    assert world.at(REST_S + 1.0, 0).up == {}
    world.put(place("a0", is_far=True, is_up=True))  # its worker has come after all
    assert world.at(REST_S + 2.0, 0).up == {}
