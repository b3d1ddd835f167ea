"""Who leads: the decisions on a virtual clock, then the shell on a real store."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from registry_sync.directory import DirectoryStore
from registry_sync.leader import (
    ACT_S,
    LEADER_KEY,
    RENEW_S,
    RETRY_S,
    TAKEOVER_S,
    Claim,
    LeaderRecord,
    Leadership,
    Renew,
    Seen,
    StandDown,
    Wait,
    look,
    resign,
    step,
)
from registry_sync.open import open_store
from registry_sync.stores import Conflict, Object, OutcomeUnknown, StoreUnavailable

OTHER = LeaderRecord(epoch=7, url="http://b", holder="node-b", nonce="1")
NOBODY = Seen(None, None)


def leadership(node: str = "node-a", *, predecessor_is_dead: bool = False) -> Leadership:
    return Leadership(node, f"http://{node}", predecessor_is_dead=predecessor_is_dead)


def leading(at_s: float = 0.0) -> Leadership:
    """A leadership that holds epoch 1 since `at_s`, under the etag "mine"."""
    leader = leadership()
    claim = leader.observe(NOBODY, at_s)
    assert isinstance(claim, Claim)
    leader.landed(claim, "mine", at_s)
    return leader


# --- becoming the leader ---


def test_where_nobody_ever_led_the_first_claims_at_once() -> None:
    claim = leadership().observe(NOBODY, 100.0)
    assert isinstance(claim, Claim)
    assert (claim.etag, claim.record.epoch) == (None, 1)
    assert (claim.record.holder, claim.record.url) == ("node-a", "http://node-a")


def test_a_leader_is_left_alone_until_its_record_has_stood_still() -> None:
    observer = leadership()
    assert observer.observe(Seen("e", OTHER), 100.0) == Wait(105.0)
    assert observer.observe(Seen("e", OTHER), 119.0) == Wait(120.0)
    claim = observer.observe(Seen("e", OTHER), 120.0)
    assert isinstance(claim, Claim)
    assert (claim.etag, claim.record.epoch) == ("e", 8)


def test_a_renewal_starts_the_wait_anew() -> None:
    observer = leadership()
    observer.observe(Seen("e", OTHER), 100.0)
    observer.observe(Seen("f", OTHER), 119.0)
    assert isinstance(observer.observe(Seen("f", OTHER), 138.0), Wait)
    assert isinstance(observer.observe(Seen("f", OTHER), 139.0), Claim)


def test_a_record_that_vanished_is_waited_out_too() -> None:
    observer = leadership()
    observer.observe(Seen("e", OTHER), 100.0)
    assert isinstance(observer.observe(NOBODY, 101.0), Wait)
    claim = observer.observe(NOBODY, 121.0)
    assert isinstance(claim, Claim)
    assert (claim.etag, claim.record.epoch) == (None, 8)


def test_an_unreadable_record_is_waited_out_and_replaced() -> None:
    observer = leadership()
    assert isinstance(observer.observe(Seen("e", None), 100.0), Wait)
    claim = observer.observe(Seen("e", None), 120.0)
    assert isinstance(claim, Claim)
    assert claim.etag == "e"


def test_a_dead_predecessors_record_is_taken_over_at_once() -> None:
    own = LeaderRecord(7, "http://old", "node-a", "old-1")
    claim = leadership(predecessor_is_dead=True).observe(Seen("e", own), 100.0)
    assert isinstance(claim, Claim)
    assert (claim.etag, claim.record.epoch) == ("e", 8)


def test_without_that_knowledge_the_own_nodes_record_is_waited_out() -> None:
    own = LeaderRecord(7, "http://old", "node-a", "old-1")
    assert isinstance(leadership().observe(Seen("e", own), 100.0), Wait)


def test_the_knowledge_does_not_hold_for_another_node() -> None:
    observer = leadership(predecessor_is_dead=True)
    assert isinstance(observer.observe(Seen("e", OTHER), 100.0), Wait)


def test_a_predecessor_whose_record_changes_is_not_dead() -> None:
    own = LeaderRecord(7, "http://old", "node-a", "old-1")
    observer = leadership(predecessor_is_dead=True)
    observer.observe(Seen("e", OTHER), 100.0)
    assert isinstance(observer.observe(Seen("f", own), 101.0), Wait)


def test_a_claim_whose_answer_was_lost_is_made_again_with_a_higher_epoch() -> None:
    observer = leadership()
    first = observer.observe(NOBODY, 100.0)
    assert isinstance(first, Claim)
    observer.unreachable(101.0)
    second = observer.observe(Seen("landed", first.record), 102.0)
    assert isinstance(second, Claim)
    assert (second.etag, second.record.epoch) == ("landed", 2)
    assert not observer.may_act(102.0)


def test_a_refused_claim_is_no_reign() -> None:
    observer = leadership()
    observer.observe(NOBODY, 100.0)
    observer.failed()
    assert not observer.may_act(100.0)
    assert isinstance(observer.observe(Seen("e", OTHER), 100.0), Wait)


# --- staying the leader ---


def test_a_leader_renews_in_time_with_another_nonce() -> None:
    leader = leading()
    assert leader.decide(1.0) == Wait(RENEW_S)
    first, second = leader.decide(RENEW_S), leader.decide(RENEW_S)
    assert isinstance(first, Renew)
    assert isinstance(second, Renew)
    assert (first.etag, first.record.epoch) == ("mine", 1)
    assert first.record.nonce != second.record.nonce


def test_a_leader_does_not_look_before_it_renews() -> None:
    leader = leading()
    assert not leader.must_look
    leader.failed()
    assert leader.must_look


def test_a_leader_acts_for_a_time_counted_from_before_its_write() -> None:
    leader = leading(at_s=100.0)
    assert leader.may_act(100.0 + ACT_S - 0.001)
    assert not leader.may_act(100.0 + ACT_S)
    renewal = leader.decide(105.0)
    assert isinstance(renewal, Renew)
    leader.landed(renewal, "next", 105.0)
    assert leader.may_act(105.0 + ACT_S - 0.001)
    assert not leader.may_act(105.0 + ACT_S)


def test_acting_ends_well_before_anybody_may_take_over() -> None:
    assert TAKEOVER_S == 20.0
    assert RENEW_S == 5.0
    assert 2 * RENEW_S < ACT_S <= 0.75 * TAKEOVER_S


def test_a_leader_that_could_not_renew_stands_down_and_comes_back_higher() -> None:
    leader = leading()
    assert leader.unreachable(ACT_S - 1.0) == Wait(ACT_S - 1.0 + RETRY_S)
    assert isinstance(leader.unreachable(ACT_S), StandDown)
    assert leader.reign is None
    claim = leader.observe(Seen("mine", LeaderRecord(1, "u", "node-a", own_nonce(leader))), 16.0)
    assert isinstance(claim, Claim)
    assert claim.record.epoch == 2


def test_a_leader_frozen_past_its_time_does_not_renew() -> None:
    assert isinstance(leading().decide(ACT_S), StandDown)


def test_a_replaced_leader_stands_down_and_then_waits() -> None:
    leader = leading()
    leader.failed()
    down = leader.observe(Seen("theirs", OTHER), 6.0)
    assert isinstance(down, StandDown)
    assert "epoch 7 of node-b" in down.reason
    assert not leader.may_act(6.0)
    assert leader.must_look
    assert isinstance(leader.observe(Seen("theirs", OTHER), 6.0), Wait)
    assert leader.epoch_max == 7


def test_a_leader_whose_record_vanished_stands_down_and_then_waits() -> None:
    leader = leading()
    leader.failed()
    assert isinstance(leader.observe(NOBODY, 6.0), StandDown)
    assert isinstance(leader.observe(NOBODY, 6.0), Wait)


def test_a_renewal_whose_answer_was_lost_is_recognised_but_not_counted() -> None:
    leader = leading()
    renewal = leader.decide(6.0)
    assert isinstance(renewal, Renew)
    leader.unreachable(8.0)
    again = leader.observe(Seen("landed", renewal.record), 9.0)
    assert isinstance(again, Renew)
    assert again.etag == "landed"
    assert not leader.may_act(ACT_S)


def own_nonce(leader: Leadership) -> str:
    probe = leader._record(1)
    return probe.nonce


# --- two or three of them, over slow and failing stores, with clocks that run apart ---


@pytest.mark.parametrize("seed", range(60))
def test_never_do_two_act_and_epochs_only_rise(seed: int) -> None:
    simulation = Simulation(seed)
    simulation.run(until_s=1200.0)
    assert len(simulation.reigns) > 3


def test_the_simulation_notices_leaders_who_act_for_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("registry_sync.leader.ACT_S", 1.5 * TAKEOVER_S)

    def run_all() -> None:
        for seed in range(60):
            Simulation(seed).run(until_s=1200.0)

    with pytest.raises(AssertionError):
        run_all()


def test_a_leaderless_fleet_has_a_leader_again_soon() -> None:
    simulation = Simulation(1, faults=False)
    simulation.run(until_s=300.0)
    assert simulation.led_s > 250.0


class Memory:
    """One object with compare-and-swap, as a store has it."""

    def __init__(self) -> None:
        self.seen = NOBODY
        self._etags = map(str, itertools.count())

    def write(self, write: Claim | Renew) -> str | None:
        if self.seen.etag != write.etag:
            return None
        self.seen = Seen(next(self._etags), write.record)
        assert self.seen.etag is not None
        return self.seen.etag


class Simulation:
    """Competitors whose reads and writes take time, get lost, and whose processes freeze.

    Events are (true time, order, action); every competitor has a clock of its own.
    """

    def __init__(self, seed: int, *, faults: bool = True) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        self.memory = Memory()
        self.now_s = 0.0
        self.order = itertools.count()
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.reigns: list[tuple[int, Competitor]] = []
        self.led_s = 0.0
        self.competitors = [Competitor(self, f"node-{index}") for index in range(3)]

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now_s + delay_s, next(self.order), action))

    def delay_s(self) -> float:
        if not self.faults:
            return 0.01
        return self.random.choice([0.001, 0.001, 0.01, 0.05, 0.5, 3.0, 40.0 * self.random.random()])

    def run(self, until_s: float) -> None:
        while self.now_s < until_s:
            at_s, _, action = heapq.heappop(self.events)
            # Acting can only end by itself between two events, so both ends are looked at.
            self.check(self.now_s)
            self.led_s += (at_s - self.now_s) * (len(self.acting(at_s - 1e-6)) == 1)
            self.now_s = at_s
            action()
            self.check(self.now_s)

    def acting(self, at_s: float) -> list[Competitor]:
        return [one for one in self.competitors if one.leadership.may_act(one.clock_s(at_s))]

    def check(self, at_s: float) -> None:
        acting = self.acting(at_s)
        assert len(acting) <= 1, [one.leadership.reign for one in acting]
        for one in acting:
            assert one.leadership.reign is not None
            reign = (one.leadership.reign.epoch, one)
            if not self.reigns or self.reigns[-1] != reign:
                assert all(reign[0] > epoch for epoch, _ in self.reigns)
                self.reigns.append(reign)


class Competitor:
    """The shell `step`, cut at the points where time passes."""

    def __init__(self, simulation: Simulation, node: str) -> None:
        self.simulation = simulation
        # Far worse than any crystal; TAKEOVER_S / ACT_S allows a third between two of them.
        self.rate = simulation.random.uniform(0.9, 1.1)
        self.cut_off_until_s = 0.0
        self.offset_s = simulation.random.uniform(0.0, 1e6)
        self.leadership = Leadership(node, "http://x")
        simulation.later(simulation.random.uniform(0.0, 5.0), self.step)

    def clock_s(self, at_s: float) -> float:
        return self.offset_s + self.rate * at_s

    def now_s(self) -> float:
        return self.clock_s(self.simulation.now_s)

    def is_lost(self) -> bool:
        """Say whether a message is lost: now and then one, now and then all for a while."""
        if not self.simulation.faults:
            return False
        if self.simulation.random.random() < 0.05:
            outage_s = 60.0 * self.simulation.random.random()
            self.cut_off_until_s = self.simulation.now_s + outage_s
        return self.simulation.now_s < self.cut_off_until_s or self.simulation.random.random() < 0.1

    def step(self) -> None:
        if self.leadership.must_look:
            self.simulation.later(self.simulation.delay_s(), self.read)
        else:
            self.carry_out(self.leadership.decide(self.now_s()))

    def read(self) -> None:
        seen, lost = self.simulation.memory.seen, self.is_lost()
        self.simulation.later(
            self.simulation.delay_s(), lambda: self.fail() if lost else self.was_read(seen)
        )

    def was_read(self, seen: Seen) -> None:
        self.carry_out(self.leadership.observe(seen, self.now_s()))

    def carry_out(self, decision: Claim | Renew | Wait | StandDown) -> None:
        match decision:
            case Wait(until_s):
                left_s = max(0.01, (until_s - self.now_s()) / self.rate)
                self.simulation.later(left_s, self.step)
            case StandDown():
                self.simulation.later(0.01, self.step)
            case Claim() | Renew():
                started_s = self.now_s()
                self.simulation.later(
                    self.simulation.delay_s(), lambda: self.write(decision, started_s)
                )

    def write(self, write: Claim | Renew, started_s: float) -> None:
        if self.is_lost():
            # Unknown to the caller from now on; it may never arrive, or land much later.
            if self.simulation.random.random() < 0.5:
                self.simulation.later(
                    self.simulation.delay_s(), lambda: void(self.simulation.memory.write(write))
                )
            self.simulation.later(self.simulation.delay_s(), self.fail)
            return
        etag = self.simulation.memory.write(write)
        lost = self.is_lost()

        def answered() -> None:
            if lost:
                self.fail()
                return
            if etag is None:
                self.leadership.failed()
            else:
                self.leadership.landed(write, etag, started_s)
            self.step()

        self.simulation.later(self.simulation.delay_s(), answered)

    def fail(self) -> None:
        self.carry_out(self.leadership.unreachable(self.now_s()))


def void(_value: object) -> None:
    """A value that nobody hears of."""


# --- the shell on a store ---


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_two_over_a_directory_take_turns_and_never_both_act(tmp_path: Path) -> None:
    store, clock = DirectoryStore(tmp_path), Clock()
    one, two = leadership("node-a"), leadership("node-b")
    epochs = []
    for second in range(120):
        clock.now_s = 1000.0 + second
        # The first is frozen from 40 on, and again awake at 80.
        for who in (one, two):
            if who is two or not 40 <= second < 80:
                step(store, who, clock)
        acting = [who for who in (one, two) if who.may_act(clock.now_s)]
        assert len(acting) <= 1
        epochs += [who.reign.epoch for who in acting if who.reign is not None]
    assert epochs == sorted(epochs)
    assert set(epochs) == {1, 2}
    assert two.may_act(clock.now_s)
    record = look(store).record
    assert record is not None
    assert (record.epoch, record.holder) == (2, "node-b")


def test_a_leader_that_resigns_is_followed_at_once(tmp_path: Path) -> None:
    store, clock = DirectoryStore(tmp_path), Clock()
    one, two, old = leadership("node-a"), leadership("node-b"), leadership("node-c")
    step(store, one, clock)
    assert isinstance(step(store, two, clock), Wait)
    resign(store, one)
    assert not one.may_act(clock.now_s)
    step(store, two, clock)
    assert two.may_act(clock.now_s)
    record = look(store).record
    assert record is not None
    assert (record.epoch, record.holder, record.resigned) == (2, "node-b", False)
    resign(store, one)  # what it no longer has it cannot give up
    assert isinstance(step(store, old, clock), Wait)
    assert look(store).record == record


def test_a_resignation_that_comes_too_late_disturbs_nobody(tmp_path: Path) -> None:
    store, clock = DirectoryStore(tmp_path), Clock()
    one, two = leadership("node-a"), leadership("node-b")
    step(store, one, clock)
    step(store, two, clock)
    clock.now_s += TAKEOVER_S
    step(store, two, clock)
    resign(store, one)
    record = look(store).record
    assert record is not None
    assert (record.holder, record.resigned) == ("node-b", False)


def test_the_same_holds_over_s3(s3_url: str) -> None:
    store, clock = open_store(s3_url), Clock()
    one, two = leadership("node-a"), leadership("node-b")
    assert step(store, one, clock) == Wait(clock.now_s + RENEW_S)
    assert isinstance(step(store, two, clock), Wait)
    clock.now_s += RENEW_S
    step(store, one, clock)
    step(store, two, clock)
    clock.now_s += TAKEOVER_S
    step(store, two, clock)
    assert two.may_act(clock.now_s)
    assert not one.may_act(clock.now_s)
    assert isinstance(step(store, one, clock), StandDown)
    store.close()


def test_a_step_renews_what_it_holds(tmp_path: Path) -> None:
    store, clock, one = DirectoryStore(tmp_path), Clock(), leadership()
    assert step(store, one, clock) == Wait(1005.0)
    first = store.get(LEADER_KEY).etag
    clock.now_s = 1004.9
    assert step(store, one, clock) == Wait(1005.0)
    assert store.get(LEADER_KEY).etag == first
    clock.now_s = 1005.0
    assert step(store, one, clock) == Wait(1010.0)
    assert store.get(LEADER_KEY).etag != first


def test_the_time_a_write_takes_is_time_off_the_reign(tmp_path: Path) -> None:
    clock, one = Clock(), leadership()

    class Slow(DirectoryStore):
        def put_new(self, key: str, data: bytes) -> str:
            clock.now_s += 6.0
            return super().put_new(key, data)

    assert step(Slow(tmp_path), one, clock) == Wait(1000.0 + RENEW_S)
    assert one.may_act(1000.0 + ACT_S - 0.001)
    assert not one.may_act(1000.0 + ACT_S)


def test_the_wait_for_a_takeover_begins_after_the_read(tmp_path: Path) -> None:
    clock, one = Clock(), leadership()

    class Slow(DirectoryStore):
        def get(self, key: str) -> Object:
            clock.now_s += 6.0
            return super().get(key)

    store = Slow(tmp_path)
    store.put_new(LEADER_KEY, msgspec.json.encode(OTHER))
    assert step(store, one, clock) == Wait(1006.0 + RENEW_S)
    clock.now_s = 1006.0 + TAKEOVER_S - 6.1
    assert step(store, one, clock) == Wait(1006.0 + TAKEOVER_S)


def test_a_lost_race_is_looked_at_again_at_once(tmp_path: Path) -> None:
    class Raced(DirectoryStore):
        def put_new(self, key: str, data: bytes) -> str:
            raise Conflict(key, "already there")

    clock, one = Clock(), leadership()
    assert step(Raced(tmp_path), one, clock) == Wait(clock.now_s)
    assert one.reign is None
    assert one.must_look


@pytest.mark.parametrize("error", [StoreUnavailable("x"), OutcomeUnknown(LEADER_KEY)])
def test_a_store_that_fails_ends_the_reign_in_time(tmp_path: Path, error: StoreUnavailable) -> None:
    class Failing(DirectoryStore):
        def get(self, key: str) -> Object:
            raise error

        def put_if(self, key: str, data: bytes, etag: str) -> str:
            raise error

    clock, one = Clock(), leadership()
    step(DirectoryStore(tmp_path), one, clock)
    failing = Failing(tmp_path)
    while clock.now_s < 1000.0 + ACT_S:
        assert one.may_act(clock.now_s)
        outcome = step(failing, one, clock)
        assert isinstance(outcome, Wait)
        clock.now_s = outcome.until_s
    assert not one.may_act(clock.now_s)
    assert isinstance(step(failing, one, clock), StandDown)
    assert isinstance(step(failing, one, clock), Wait)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"epoch": "1"}', b"\xff"])
def test_a_record_that_cannot_be_read_is_seen_as_such(tmp_path: Path, text: bytes) -> None:
    store = DirectoryStore(tmp_path)
    etag = store.put_new(LEADER_KEY, text)
    assert look(store) == Seen(etag, None)


def test_a_record_with_later_fields_is_read(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.put_new(LEADER_KEY, msgspec.json.encode({**msgspec.to_builtins(OTHER), "later": 1}))
    assert look(store).record == OTHER
