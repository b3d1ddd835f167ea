"""Quotas over a fleet: what an edge process goes by, and what all of them together let through."""

from __future__ import annotations

from typing import Any

import pytest

from edge.errors import QuotaExceeded
from edge.leases import Leases
from pool.wire import control
from pool.wire.control import QuotaAck, QuotaDemand, QuotaParts, QuotaShares
from registry_sync.documents import KeyRecord, Quota
from registry_sync.keys import make_key
from tests.support.quota_fleet import QuotaFleet

KEY, RECORD = make_key("t", ["infer:*"], Quota(requests_per_s=40))


class Told:
    """Leases whose controller is this test."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.sent: list[control.Message] = []
        self.refusals: list[str] = []
        self.leases = Leases(self.send, self.refusals.append, lambda: self.now_s)

    def send(self, message: control.Message) -> bool:
        self.sent.append(message)
        return True

    def follow(self, *parts: tuple[str, float], seq: int = 1) -> None:
        told = tuple(QuotaParts(key, part, part, part) for key, part in parts)
        self.leases.follow(QuotaShares(3, seq, told))

    def admitted(self, record: KeyRecord = RECORD, tries: int = 200) -> int:
        count = 0
        for _ in range(tries):
            try:
                self.leases.take(record, self.now_s).release()
                count += 1
            except QuotaExceeded:
                pass
        return count


@pytest.fixture
def told() -> Told:
    return Told()


def test_a_lone_process_that_knows_of_no_other_has_the_whole_limit(told: Told) -> None:
    assert told.admitted() == 40


def test_without_any_lease_each_known_process_has_an_equal_part(told: Told) -> None:
    told.leases.expect(4)
    assert told.admitted() == 10
    told.leases.expect(2)
    told.now_s += 1
    assert told.admitted() == 20


def test_a_lease_holds_until_the_next_whatever_becomes_of_the_controller(told: Told) -> None:
    told.follow(("", 0.25), (RECORD.id, 0.5))
    told.leases.expect(8)
    told.leases.connect()
    told.now_s += 1000
    assert told.admitted() == 20


def test_a_lease_is_confirmed_and_kept_to_at_once(told: Told) -> None:
    assert told.admitted() == 40
    told.follow(("", 0.1), seq=7)
    assert told.sent[0] == QuotaAck(3, 7)
    told.now_s += 1
    assert told.admitted() == 4


def test_a_new_connection_begins_with_what_is_in_use(told: Told) -> None:
    told.leases.expect(4)
    assert told.leases.connect() == (QuotaParts("", 0.25, 0.25, 0.25),)
    told.follow((RECORD.id, 0.7), ("", 0.1))
    assert told.leases.connect() == (
        QuotaParts("", 0.1, 0.1, 0.1),
        QuotaParts(RECORD.id, 0.7, 0.7, 0.7),
    )


def test_who_never_offered_a_lease_is_told_of_no_demand(told: Told) -> None:
    told.leases.expect(4)
    told.admitted()
    told.leases.report(told.now_s + 1)
    assert told.sent == []


def test_demand_is_told_and_its_end_once(told: Told) -> None:
    told.follow(("", 1.0))
    told.admitted(tries=20)
    for second in range(1, 20):
        told.leases.report(told.now_s + second)
    demands = [message for message in told.sent if isinstance(message, QuotaDemand)]
    assert demands[0] == QuotaDemand((QuotaParts(RECORD.id, 0.5, 0.0, 0.0),))
    assert demands[-1] == QuotaDemand(())
    assert len(demands) < 19


def test_a_demand_that_jumps_is_told_at_once_and_not_again(told: Told) -> None:
    told.follow(("", 0.25))
    told.now_s += 0.06
    told.admitted(tries=10)
    assert len(told.sent) == 1
    told.admitted(tries=100)
    assert [type(message) for message in told.sent] == [QuotaAck, QuotaDemand]
    told.now_s += 0.06
    told.admitted(tries=100)
    assert len(told.sent) == 2


def test_who_dials_says_at_once_what_it_is_asked_for(told: Told) -> None:
    told.follow(("", 0.5))
    told.admitted()
    told.leases.connect()
    del told.sent[:]
    told.follow(("", 0.5))
    assert [type(message) for message in told.sent] == [QuotaAck, QuotaDemand]


def test_a_refusal_names_the_limit_and_when_to_come_back(told: Told) -> None:
    told.admitted()
    waits_s = set()
    for _ in range(50):
        with pytest.raises(QuotaExceeded) as caught:
            told.leases.take(RECORD, told.now_s)
        assert "40 requests a second (requests_per_s)" in caught.value.text
        headers = dict(caught.value.headers)
        assert headers["retry-after"] == "1"
        waits_s.add(caught.value.retry_after_s)
        assert 0.025 <= caught.value.retry_after_s <= 0.05
    assert len(waits_s) > 25  # not all come back at once
    assert set(told.refusals) == {"requests_per_s"}


def test_nobody_is_told_to_wait_for_longer_than_two_minutes(told: Told) -> None:
    record = make_key("t", ["infer:*"], Quota(rows_per_s=1))[1]
    meter = told.leases.take(record, told.now_s)
    meter.take_rows(4096, told.now_s)
    with pytest.raises(QuotaExceeded, match=r"1 rows a second \(rows_per_s\)") as caught:
        told.leases.take(record, told.now_s)
    assert caught.value.retry_after_s == 120


def test_another_quota_holds_from_the_next_request_on(told: Told) -> None:
    from_record = RECORD
    assert told.admitted(from_record) == 40
    wider = KeyRecord(**{**_fields(RECORD), "quota": Quota(requests_per_s=80)})
    told.now_s += 1
    assert told.admitted(wider) == 40  # what was there
    told.now_s += 1
    assert told.admitted(wider) == 80
    same = KeyRecord(**{**_fields(RECORD), "quota": Quota(requests_per_s=80)})
    assert told.admitted(same) == 0


def test_keys_that_are_gone_are_forgotten_but_not_their_calls(told: Told) -> None:
    meter = told.leases.take(RECORD, told.now_s)
    told.leases.tidy({}, told.now_s)
    meter.release()
    assert told.admitted() == 39
    told.leases.tidy({}, told.now_s)
    assert told.admitted() == 40


def _fields(record: KeyRecord) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__struct_fields__}


# the fleet

RATE = 100.0
QUOTA = Quota(requests_per_s=RATE, burst_s=0.5)


@pytest.mark.parametrize(
    "loads", [[250] * 4, [970, 10, 10, 10], [1000, 0, 0, 0], [600, 300, 90, 10]], ids=str
)
def test_ten_times_the_limit_is_held_to_it(loads: list[float]) -> None:
    fleet = QuotaFleet(4, QUOTA, seed=1)
    fleet.run(6.0)
    for edge, load in zip(fleet.edges, loads, strict=True):
        edge.rate_per_s = load
    fleet.run(1.0)
    since_s = fleet.now_s
    fleet.run(10.0)
    assert 0.9 * RATE * 10 <= fleet.admitted(since_s) <= 1.1 * RATE * 10


def test_killed_controllers_change_nothing() -> None:
    fleet = QuotaFleet(4, QUOTA, seed=2)
    fleet.run(6.0)
    for edge, load in zip(fleet.edges, [700, 200, 90, 10], strict=True):
        edge.rate_per_s = load
    fleet.run(3.0)
    for _ in range(3):
        since_s = fleet.now_s
        fleet.stop()
        fleet.run(5.0)
        fleet.lead()
        fleet.run(10.0)
        assert 0.9 * RATE * 15 <= fleet.admitted(since_s) <= 1.1 * RATE * 15


def test_an_edge_that_was_idle_soon_has_what_it_needs() -> None:
    fleet = QuotaFleet(4, QUOTA, seed=3)
    fleet.run(6.0)
    fleet.edges[0].rate_per_s = 90
    fleet.run(10.0)
    fleet.edges[0].rate_per_s, fleet.edges[3].rate_per_s = 0, 90
    since_s = fleet.now_s
    fleet.run(1.0)
    assert fleet.admitted(since_s) >= 0.2 * 90
    fleet.run(1.0)
    since_s = fleet.now_s
    fleet.run(3.0)
    assert fleet.admitted(since_s) >= 0.9 * 90 * 3


def slow_seeds(first: int, end: int) -> list[Any]:
    return [pytest.param(seed, marks=pytest.mark.slow) for seed in range(first, end)]


@pytest.mark.parametrize("seed", [*range(3), *slow_seeds(3, 40)])
def test_whatever_happens_no_more_than_a_tenth_is_let_through_beyond_the_limit(seed: int) -> None:
    """Demand moves, connections break for less than they are held for, controllers restart."""
    fleet = QuotaFleet(4, QUOTA, seed)
    rng = fleet.rng
    fleet.run(6.0)
    since_s, broken = fleet.now_s, []
    for edge in fleet.edges:
        edge.rate_per_s = 300
    for _ in range(20):
        for edge in rng.sample(fleet.edges, 2):
            edge.rate_per_s = rng.choice((0, 30, 300, 1000))
        fleet.edges[rng.randrange(4)].rate_per_s = 1000
        chance = rng.random()
        if chance < 0.15:
            fleet.stop()
            fleet.run(rng.uniform(0.5, 4.0))
            fleet.lead()
        elif chance < 0.5:
            edge = rng.choice(fleet.edges)
            fleet.cut(edge)
            fleet.dial(edge, rng.uniform(0.1, 4.0))
            broken.append(edge)
        fleet.run(rng.uniform(0.3, 3.0))
    took_s = fleet.now_s - since_s
    assert fleet.admitted(since_s) <= 1.1 * RATE * took_s
    assert fleet.admitted(since_s) >= 0.6 * RATE * took_s  # which may wait, and comes back
    print(f"{fleet.admitted(since_s) / (RATE * took_s):.3f} of the limit, {len(broken)} cuts")
