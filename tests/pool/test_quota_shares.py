"""How limits are shared out: fair parts, and never more than all of them at once."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pool.quota_shares import (
    ANY,
    FLOOR,
    FLOORS,
    HOLD_S,
    IDLE_S,
    SETTLE_S,
    Ledger,
    Parts,
    split,
)

WHOLE: Parts = (1.0, 1.0, 1.0)


def all_of(part: float) -> Parts:
    return (part, part, part)


# split


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=200))
def test_parts_add_up_to_all_and_nobody_has_nothing(demands: list[float]) -> None:
    parts = split(demands)
    assert sum(parts) == pytest.approx(1)
    assert min(parts) >= min(FLOOR, FLOORS / len(demands)) - 1e-12


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=50))
def test_who_wants_more_never_gets_less(demands: list[float]) -> None:
    parts = split(demands)
    order = sorted(range(len(demands)), key=demands.__getitem__)
    assert all(parts[a] <= parts[b] + 1e-9 for a, b in itertools.pairwise(order))


def test_who_wants_little_gets_it_and_the_others_share_alike() -> None:
    assert split([1.0, 1.0, 0.2]) == pytest.approx([0.395, 0.395, 0.21])


def test_all_beyond_the_limit_share_alike() -> None:
    assert split([1.0, 0.6, 0.4, 0.3]) == pytest.approx([0.25] * 4)


def test_what_nobody_wants_is_spread_evenly() -> None:
    assert split([0.4, 0.0]) == pytest.approx([0.705, 0.295])
    assert split([0.0] * 4) == [0.25] * 4


# the ledger


@dataclass
class Edge:
    """An edge process as the ledger sees it."""

    name: str
    parts: dict[str, Parts] = field(default_factory=lambda: {ANY: WHOLE})
    seq: int = 0

    def of(self, key: str) -> float:
        return self.parts.get(key, self.parts[ANY])[0]


class Fleet:
    """A ledger with edge processes that confirm when the test says so."""

    def __init__(self, count: int, settled: bool = True) -> None:
        self.ledger = Ledger()
        self.edges: dict[str, Edge] = {}
        self.now_s = 0.0
        for number in range(count):
            self.join(Edge(f"e{number}"))
        self.settle()
        if settled:
            self.now_s = SETTLE_S
            self.settle()

    def join(self, edge: Edge) -> Edge:
        self.edges[edge.name] = edge
        self.ledger.join(edge.name, edge.name.split("/")[0], edge.parts, self.now_s)
        return edge

    def deliver(self) -> int:
        """Carry what is to be sent; nobody confirms."""
        grants = self.ledger.grants(self.now_s)
        for name, seq, parts in grants:
            self.edges[name].parts, self.edges[name].seq = parts, seq
        return len(grants)

    def confirm(self, *names: str) -> None:
        for name in names or self.edges:
            self.ledger.confirm(name, self.edges[name].seq)

    def settle(self) -> int:
        """Deliver and confirm until nothing is left to be sent; return the rounds."""
        for rounds in range(50):
            if not self.deliver():
                return rounds
            self.confirm()
        raise AssertionError("no end of messages")

    def demand(self, name: str, **wanted: float) -> None:
        demands = {key: all_of(part) for key, part in wanted.items()}
        self.ledger.demand(name, demands, self.now_s)

    def parts(self, key: str) -> list[float]:
        return [round(edge.of(key), 3) for edge in self.edges.values()]


def test_a_key_that_nobody_asks_for_is_shared_evenly() -> None:
    assert Fleet(4).parts("k") == [0.25] * 4


def test_parts_follow_demand_within_three_rounds() -> None:
    fleet = Fleet(4)
    fleet.demand("e1", k=1.0)
    assert fleet.settle() <= 3
    assert fleet.parts("k") == [0.01, 0.97, 0.01, 0.01]
    fleet.demand("e1")
    fleet.demand("e3", k=1.0)
    assert fleet.settle() <= 4
    assert fleet.parts("k") == [0.01, 0.01, 0.01, 0.97]
    assert fleet.parts("other") == [0.25] * 4


def test_a_part_grows_only_once_others_have_confirmed_that_theirs_shrank() -> None:
    fleet = Fleet(2)
    fleet.demand("e0", k=1.0)
    fleet.deliver()
    assert fleet.parts("k") == [0.5, 0.01]
    fleet.deliver()
    assert fleet.parts("k") == [0.5, 0.01]
    fleet.confirm("e1")
    fleet.deliver()
    assert fleet.parts("k") == [0.99, 0.01]


def test_a_confirmation_of_what_was_sent_before_counts_for_nothing() -> None:
    fleet = Fleet(2)
    fleet.demand("e0", k=1.0)
    fleet.deliver()
    fleet.ledger.confirm("e1", fleet.edges["e1"].seq - 1)
    fleet.deliver()
    assert fleet.parts("k")[0] == 0.5


def test_who_is_gone_keeps_its_parts_for_a_while() -> None:
    fleet = Fleet(2)
    fleet.demand("e0", k=1.0)
    fleet.demand("e1", k=1.0)
    fleet.settle()
    fleet.ledger.leave("e1", fleet.now_s)
    del fleet.edges["e1"]
    fleet.now_s += HOLD_S - 0.1
    fleet.settle()
    assert fleet.parts("k") == [0.5]
    fleet.now_s += 0.1
    fleet.settle()
    assert fleet.parts("k") == fleet.parts("other") == [1.0]


def test_who_dials_again_in_time_goes_on_with_its_parts() -> None:
    fleet = Fleet(2)
    fleet.demand("e0", k=1.0)
    fleet.settle()
    fleet.ledger.leave("e0", fleet.now_s)
    fleet.now_s += 1.0
    fleet.join(fleet.edges["e0"])
    fleet.deliver()
    assert fleet.edges["e0"].of("k") <= 0.99
    assert sum(edge.of("k") for edge in fleet.edges.values()) <= 1 + 1e-9


def test_a_successor_takes_its_predecessors_place_at_once() -> None:
    fleet = Fleet(2)
    fleet.ledger.leave("e1", fleet.now_s)
    del fleet.edges["e1"]
    fleet.join(Edge("e1/2", {ANY: all_of(0.0)}))
    fleet.settle()
    assert fleet.parts("k") == [0.5, 0.5]


def test_a_newcomer_gets_its_part_from_the_others() -> None:
    fleet = Fleet(1)
    assert fleet.parts("k") == [1.0]
    fleet.join(Edge("new", {ANY: all_of(0.0)}))
    fleet.deliver()
    assert fleet.parts("k") == [0.5, 0.0]
    fleet.confirm()
    fleet.settle()
    assert fleet.parts("k") == [0.5, 0.5]


def test_a_new_leader_moves_nothing_until_all_have_had_the_time_to_dial() -> None:
    fleet = Fleet(2)
    fleet.demand("e0", k=1.0)
    fleet.settle()
    first, second = fleet.edges.values()
    fleet.ledger, fleet.edges = Ledger(), {}
    fleet.join(first)
    fleet.settle()
    fleet.now_s += SETTLE_S - 0.1
    fleet.join(second)
    fleet.demand("e1", k=1.0)
    fleet.settle()
    assert fleet.parts("k") == [0.99, 0.01]
    assert fleet.parts("other") == [0.5, 0.5]
    fleet.now_s += 0.1
    fleet.settle()
    assert fleet.parts("k") == [0.01, 0.99]


def test_a_new_leader_cuts_at_once_what_is_more_than_all() -> None:
    fleet = Fleet(4, settled=False)
    assert fleet.parts("k") == [0.25] * 4


def test_a_key_that_is_no_longer_asked_for_is_no_longer_named() -> None:
    fleet = Fleet(2)
    fleet.demand("e0", k=1.0)
    fleet.settle()
    fleet.demand("e0")
    fleet.settle()
    assert "k" in fleet.edges["e0"].parts
    fleet.now_s += IDLE_S
    fleet.settle()
    assert set(fleet.edges["e0"].parts) == {ANY}
    assert fleet.parts("k") == [0.5, 0.5]


def test_a_demand_that_hardly_changes_moves_nothing() -> None:
    fleet = Fleet(4)
    fleet.demand("e0", k=0.5)
    fleet.settle()
    fleet.demand("e0", k=0.51)
    assert fleet.deliver() == 0


def test_nobody_and_strangers_are_no_trouble() -> None:
    ledger = Ledger()
    ledger.demand("x", {"k": WHOLE}, 0.0)
    ledger.confirm("x", 1)
    ledger.leave("x", 0.0)
    assert ledger.grants(1.0) == []


@pytest.mark.parametrize("seed", range(20))
def test_parts_in_use_never_add_up_to_more_than_all(seed: int) -> None:
    rng = random.Random(seed)
    fleet = Fleet(rng.randint(2, 6))
    unconfirmed: list[tuple[str, int]] = []
    for _ in range(300):
        fleet.now_s += rng.choice((0.0, 0.05, 1.0))
        name = rng.choice([*fleet.edges])
        match rng.random():
            case chance if chance < 0.5:
                wanted = {key: rng.choice((0.0, 0.1, 1.0)) for key in "kl" if rng.random() < 0.8}
                fleet.demand(name, **{key: part for key, part in wanted.items() if part})
            case chance if chance < 0.8:
                for other, seq in rng.sample(unconfirmed, min(len(unconfirmed), 2)):
                    fleet.ledger.confirm(other, seq)
            case chance if chance < 0.9:
                fleet.ledger.leave(name, fleet.now_s)
                fleet.now_s += rng.uniform(0, HOLD_S - 0.1)
                fleet.deliver()
                fleet.join(fleet.edges[name])  # with all that it was sent
            case _:
                fleet.settle()
        fleet.deliver()
        unconfirmed = [(edge.name, edge.seq) for edge in fleet.edges.values()]
        for key in "klm":
            for kind in range(3):
                in_use = sum(e.parts.get(key, e.parts[ANY])[kind] for e in fleet.edges.values())
                assert in_use <= 1 + 1e-9
