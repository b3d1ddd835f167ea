"""What the policies are shown of the workers' reports, when they are asked, and what is kept."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from pool import scale_desk
from pool.placement import Demand, Ref, WorkerView
from pool.scale_desk import ScaleDesk
from pool.scaling import kept
from pool.scaling.policy import ScalingPolicy
from pool.scaling.signals import Decision, Limits, Signals
from pool.wire.control import EngineState
from tests.support.learned import kept_of

REF: Ref = ("m", "1")
NUMBER = Limits(idle_s=60.0)


class Told(ScalingPolicy):
    """A policy that says what it is told to, and remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Signals] = []
        self.asked: list[Signals] = []
        self.answer = Decision(replicas=1, reason="told", until_s=math.inf)
        self.restored: tuple[bytes, float] | None = None

    def observe(self, signals: Signals) -> None:
        self.seen.append(signals)

    def decide(self, limits: Limits, signals: Signals) -> Decision:
        self.asked.append(signals)
        return self.answer

    def save(self) -> bytes:
        return b"learned"

    def restore(self, data: bytes, now_s: float) -> None:
        self.restored = (data, now_s)


class Desk:
    """A desk with policies that are told what to say, and workers that report."""

    def __init__(self, time_scale: float = 1.0, data: bytes | None = None) -> None:
        self.policies: list[Told] = []
        self.desk = ScaleDesk(time_scale=time_scale, make=self._make)
        self.desk.restore(data, 0.0, 1000.0)
        self.limits: dict[Ref, Limits] = {REF: NUMBER}

    def _make(self) -> ScalingPolicy:
        self.policies.append(Told())
        return self.policies[-1]

    def round(self, now_s: float, *engines: EngineState, waiting: int = 0, **kwargs: Any) -> Demand:
        self.desk.count("w", "i", engines)
        views = [WorkerView("w", False, {(e.model, e.version): e for e in engines})]
        found = self.desk.round(
            self.limits, views, now_s=now_s, unix_s=1000.0 + now_s, waiting={REF: waiting}, **kwargs
        )
        return found[REF]

    @property
    def policy(self) -> Told:
        (policy,) = self.policies
        return policy


def engine(state: str = "warm", calls: int = 0, **more: Any) -> EngineState:
    return EngineState("m", "1", "test", state, calls=calls, **more)


# what is seen


def arrivals(*reports: tuple[str, Iterable[EngineState]]) -> int:
    """Return how many calls have arrived by what one worker's incarnations report."""
    made = Desk()
    for incarnation, engines in reports:
        made.desk.count("w", incarnation, engines)
    made.round(1.0)
    return made.policy.asked[-1].arrived


def test_calls_are_counted_by_the_growth_of_their_totals() -> None:
    first = ("i", [engine(arrived=5, idle_s=9.0)])
    assert arrivals(first) == 0
    assert arrivals(first, ("i", [engine(arrived=8)])) == 3
    assert arrivals(first, ("i", [engine(arrived=8)]), ("i", [engine(arrived=8)])) == 3


def test_a_version_that_slept_goes_on_counting() -> None:
    reports = [[engine(arrived=5, idle_s=9.0)], [], [engine(arrived=6)]]
    assert arrivals(*(("i", report) for report in reports)) == 1


def test_process_that_is_new_counts_for_what_is_recent() -> None:
    """It may have been started by a call, or have served for days."""
    assert arrivals(("i", [engine(arrived=1, idle_s=0.3)])) == 1
    assert arrivals(("i", [engine(arrived=10**6, idle_s=0.3)])) == 1
    assert arrivals(("i", [engine("loading", calls=40, arrived=40)])) == 40
    assert arrivals(("i", [engine(arrived=9, idle_s=9.0)]), ("j", [engine(arrived=1)])) == 1


def test_calls_of_all_replicas_are_added_up_and_draining_ones_are_no_replicas() -> None:
    made = Desk()
    views = [
        WorkerView("a", False, {REF: engine(calls=3, waiting=1)}),
        WorkerView("b", False, {REF: engine("loading", calls=2, waiting=2)}),
        WorkerView("c", True, {REF: engine(calls=4, waiting=0)}),
    ]
    made.desk.round(made.limits, views, now_s=1.0, unix_s=1.0)
    (signals,) = made.policy.asked
    assert (signals.waiting, signals.running) == (1 + 2, 2 + 4)
    assert (signals.warm, signals.loading) == (1, 1)


def test_since_when_it_idles_is_known_while_it_sleeps_and_loading_is_no_use() -> None:
    made = Desk()
    made.round(1.0, engine(calls=1, arrived=1))
    made.round(2.0, engine(arrived=1, idle_s=0.75))
    made.round(9.0)
    made.limits[REF] = Limits(idle_s=61.0)
    made.round(10.0)
    assert made.policy.asked[-1].idle_s == 9.0
    made.round(20.0, engine(arrived=1, idle_s=0.5))  # loaded ahead of the next call
    assert made.policy.asked[-1].idle_s == 19.0
    made.round(30.0, engine(arrived=2, idle_s=0.25))
    assert made.policy.asked[-1].idle_s == 0.25


def test_call_that_waits_at_an_edge_is_a_wake_first_and_only_then_demand() -> None:
    made = Desk()
    for now_s in (1.0, 2.9, 3.0):
        made.round(now_s, waiting=5)
    made.round(4.0)
    made.round(5.0, waiting=5)
    assert [signals.waiting for signals in made.policy.asked] == [0, 5, 0]


def test_what_was_learned_is_known_while_it_sleeps() -> None:
    made = Desk()
    made.round(1.0, engine(arrived=1, arrived_rows=4, idle_s=9.0))
    busy = engine(
        calls=1, arrived=9, arrived_rows=36, rows_per_s=200.0, wake_us=70_000, bytes=1 << 20
    )
    made.round(2.0, busy)
    assert made.round(3.0) == Demand(1, size_bytes=1 << 20)
    signals = made.policy.asked[-1]
    assert (signals.calls_per_s, signals.wake_s) == (50.0, 0.07)
    assert made.desk.wake_s(REF) == 0.07
    assert made.desk.wake_s(("m", "2")) == 0.0


def test_wake_takes_longer_where_a_process_has_to_start() -> None:
    made = Desk()
    made.desk.started({"spawn": 300_000, "import": 200_000})
    made.round(1.0, engine(wake_us=100_000))
    cold = [WorkerView("w", False, {}, is_cold=True)]
    made.desk.round(made.limits, cold, now_s=2.0, unix_s=2.0, reach={REF: "cold"})
    assert made.policy.asked[-1].wake_s == pytest.approx(0.6)
    assert made.desk.wake_s(REF, "cold") == pytest.approx(0.6)


def test_one_start_that_took_long_refuses_nobody_later() -> None:
    made = Desk()
    made.round(1.0, engine(wake_us=100_000))
    for took_s in (0.5, 33, 0.6):
        made.desk.started({"spawn": round(took_s * 1e6)})
        assert made.desk.wake_s(REF, "cold") <= 0.7
    for _ in range(3):  # what takes long again and again is believed
        made.desk.started({"spawn": 4_000_000})
    assert made.desk.wake_s(REF, "cold") == pytest.approx(4.1)
    heir = ScaleDesk()
    heir.restore(kept_of(made.desk, 2.0, 2.0), 3.0, 3.0)
    heir.started({"spawn": 33_000_000})
    assert heir.wake_s(REF, "cold") == pytest.approx(4.1)


# when a policy is asked


def test_idle_version_is_asked_about_when_something_changes_or_its_time_has_come() -> None:
    made = Desk()
    made.round(1.0, engine(idle_s=1.0))
    made.policy.answer = Decision(replicas=0, reason="told", until_s=50.0)
    for now_s in (2.0, 3.0, 49.0):
        assert made.round(now_s, engine(idle_s=now_s)).replicas == 1
    assert len(made.policy.asked) == 1
    made.limits[REF] = Limits(idle_s=61.0)
    assert made.round(49.1, engine(idle_s=49.0)).replicas == 0
    assert made.desk.next_s() == 50.0
    made.round(50.0, engine(idle_s=50.0))
    assert len(made.policy.asked) == 3
    assert len(made.policy.seen) == 1


def test_idle_version_is_asked_about_again_when_its_wake_takes_longer_or_less_long() -> None:
    made = Desk()
    up, far = {"reach": {REF: "up"}}, {"reach": {REF: "far"}}
    made.round(1.0, far_s=120.0, **up)
    made.policy.answer = Decision(replicas=0, reason="told", until_s=math.inf)
    steps = [
        (2.0, 120.0, up),
        (3.0, 120.0, far),
        (4.0, 120.0, far),
        (5.0, 90.0, far),
        (6.0, 90, up),
    ]
    for now_s, far_s, reach in steps:
        made.round(now_s, far_s=far_s, **reach)
    assert [one.now_s for one in made.policy.asked] == [1.0, 3.0, 5.0, 6.0]
    assert [one.wake_s for one in made.policy.asked] == [1.0, 121.0, 91.0, 1.0]


def test_policy_goes_by_the_wake_of_the_next_replica_and_calls_by_that_of_the_first() -> None:
    made = Desk()
    more = {"reach": {REF: "up"}, "reach_more": {REF: "far"}, "far_s": 60.0}
    made.round(1.0, engine(calls=1, wake_us=250_000), **more)
    assert made.policy.asked[-1].wake_s == 60.25
    assert made.desk.wake_s(REF) == 0.25


def test_replica_whose_machine_has_come_is_as_far_until_it_loads() -> None:
    """Else it would be put off, as it is so near now, until its machine has gone again."""
    made = Desk()
    made.round(1.0, reach={REF: "far"}, far_s=60.0)
    assert made.round(2.0, reach={REF: "far"}, far_s=60.0).replicas == 1
    made.round(61.0, far_s=60.0)
    made.round(62.0, engine("loading"), reach_more={REF: "far"}, far_s=60.0)
    made.round(63.0, engine(calls=1), far_s=60.0)
    assert [signals.wake_s for signals in made.policy.asked] == [61.0, 61.0, 1.0]


def test_version_in_use_is_shown_every_second() -> None:
    made = Desk()
    for tenths in range(30):
        made.round(1.0 + tenths / 10, engine(calls=1))
    assert [round(signals.now_s, 1) for signals in made.policy.seen] == [1.0, 2.0, 3.0]


def test_busy_version_is_not_asked_about_with_every_heartbeat() -> None:
    made = Desk()
    for count in range(100):
        made.round(1.0 + count / 1000, engine(calls=1 + count, arrived=count))
    assert len(made.policy.asked) == 1
    made.round(1.2, engine(calls=7, arrived=101))
    assert made.policy.asked[-1].running == 7


def test_first_call_is_shown_at_once() -> None:
    made = Desk()
    made.round(1.0, engine(idle_s=1.0))
    made.round(1.01, engine(calls=1, arrived=1))
    assert [signals.running for signals in made.policy.asked] == [0, 1]


def test_rehearsal_shows_all_times_as_many_times_faster() -> None:
    made = Desk(time_scale=100.0)
    made.round(1.0, engine(calls=1, wake_us=50_000, rows_per_s=10.0, arrived=0))
    made.round(1.5, engine(arrived=1, arrived_rows=1, rows_per_s=10.0, idle_s=0.2))
    signals = made.policy.asked[-1]
    assert (signals.now_s, signals.unix_s) == (150.0, 1001.0 + 50.0)
    assert (signals.wake_s, signals.calls_per_s) == (5.0, 0.1)
    assert signals.idle_s == pytest.approx(20.0)
    made.policy.answer = Decision(replicas=1, reason="told", until_s=600.0)
    made.round(2.0, engine(calls=1, arrived=2))
    assert made.desk.next_s() == 6.0


def test_bug_of_a_policy_costs_its_version_what_was_learned_and_nobody_else() -> None:
    made = Desk()
    other: Ref = ("n", "1")
    made.limits[other] = NUMBER
    made.round(1.0, engine())
    broken = made.policies[0]

    def fail(limits: Limits, signals: Signals) -> Decision:
        raise ZeroDivisionError

    broken.decide = fail  # type: ignore[method-assign]
    found = made.desk.round(
        {**made.limits, REF: Limits(idle_s=1.0)},
        [WorkerView("w", False, {REF: engine(calls=1)})],
        now_s=2.0,
        unix_s=2.0,
    )
    assert (found[REF].replicas, found[other].replicas) == (1, 1)
    made.round(3.0, engine(calls=1))
    assert len(made.policies) == 3
    assert made.policies[-1].asked


# nothing is decided


def test_nothing_sleeps_or_wakes_before_it_is_known_what_was_learned() -> None:
    desk = ScaleDesk()
    limits = {REF: NUMBER, ("m", "2"): Limits(replicas_min=1), ("m", "3"): Limits(is_due=True)}
    views = [WorkerView("w", False, {REF: engine(idle_s=1e6)})]
    found = desk.round(limits, views, now_s=1.0, unix_s=1.0)
    assert [found["m", n].replicas for n in "123"] == [1, 1, 1]
    desk.restore(None, 1.0, 1.0)
    assert desk.round(limits, views, now_s=1.0, unix_s=1.0)[REF].replicas == 0


def test_nothing_is_decided_while_it_is_held() -> None:
    made = Desk()
    made.round(1.0, engine())
    made.policy.answer = Decision(replicas=0, reason="told", until_s=math.inf)
    made.desk.hold(5.0)
    assert made.round(4.9, engine(arrived=5)).replicas == 1
    assert made.round(5.0, engine(arrived=5)).replicas == 0


# what was learned


def test_what_was_learned_goes_on_after_the_controller() -> None:
    one = Desk()
    one.round(1.0, engine(arrived=1, arrived_rows=4, idle_s=9.0))
    one.round(2.0, engine(calls=1, arrived=2, arrived_rows=8, rows_per_s=8.0, wake_us=1, bytes=7))
    data = kept_of(one.desk, 10.0, 2000.0)
    assert one.policy.seen[-1].now_s == 10.0  # so that its times are relative to now

    other = ScaleDesk(make=lambda: made[-1])
    made = [Told()]
    assert other.restore(data, 500.0, 2030.0)
    other.round({REF: NUMBER}, [], now_s=500.0, unix_s=2030.0)
    assert made[0].restored == (b"learned", 470.0)
    assert made[0].asked[0].calls_per_s == 2.0
    assert other.wake_s(REF) == 1e-6
    assert made[0].asked[0].idle_s == pytest.approx(8.0 + 30.0)  # it goes on while nobody looks


@pytest.mark.parametrize("unix_s", [0.0, -3600.0])
def test_clock_that_went_back_meanwhile_counts_as_no_time(unix_s: float) -> None:
    data = kept_of(Desk().desk, 1.0, 5.0)
    saved = msgspec.msgpack.decode(data)
    saved[2] = {"m/1": [b"x"]}
    desk = ScaleDesk(make=lambda: policy)
    policy = Told()
    assert desk.restore(msgspec.msgpack.encode(saved), 100.0, unix_s)
    desk.round({REF: NUMBER}, [], now_s=100.0, unix_s=unix_s)
    assert policy.restored == (b"x", 100.0)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x90", msgspec.msgpack.encode([1, 2, {"m": 3}])])
def test_what_cannot_be_read_is_learned_anew(data: bytes) -> None:
    desk = ScaleDesk()
    assert not desk.restore(data, 1.0, 1.0)
    assert desk.round({REF: Limits()}, [], now_s=1.0, unix_s=1.0)[REF].replicas == 1


def test_every_truncation_of_what_was_learned_is_refused() -> None:
    one = Desk()
    one.round(1.0, engine(calls=1, wake_us=1))
    data = kept_of(one.desk, 1.0, 1.0)
    for length in range(len(data)):
        assert not ScaleDesk().restore(data[:length], 1.0, 1.0)


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "BYTES_MAX", 10_000)
    made = Desk()
    made.limits = {("m", str(n)): NUMBER for n in range(1, 1000)}
    made.desk.round(made.limits, [], now_s=1.0, unix_s=1.0)
    data = kept_of(made.desk, 1.0, 1.0)
    assert 1000 < len(data) <= 10_000


def test_versions_that_nobody_names_are_forgotten_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scale_desk, "FORGOTTEN_MAX", 10)
    made = Desk()
    for number in range(1, 100):
        ref = ("m", str(number))
        made.limits = {ref: NUMBER}
        named = EngineState(*ref, "test", "warm", wake_us=1000 * number)
        views = [WorkerView("w", False, {ref: named})]
        made.desk.count("w", "i", [named])
        made.desk.round(made.limits, views, now_s=float(number), unix_s=1.0)
    known = [n for n in range(1, 100) if made.desk.wake_s(("m", str(n)))]
    assert len(known) <= 25
    assert set(range(90, 100)) <= set(known)
    assert len(msgspec.msgpack.decode(kept_of(made.desk, 100.0, 1.0))[2]) == 11


def test_version_that_comes_back_knows_what_it_had_learned() -> None:
    made = Desk()
    made.round(1.0, engine())
    made.limits = {}
    made.desk.round({}, [], now_s=2.0, unix_s=2.0)
    assert len(msgspec.msgpack.decode(kept_of(made.desk, 3.0, 3.0))[2]) == 1
    made.limits = {REF: NUMBER}
    made.round(9.0)
    assert made.policies[-1].restored == (b"learned", 2.0)


# why


def test_why_tells_demand_decision_and_what_led_to_it() -> None:
    made = Desk()
    assert made.desk.why(REF, 0.0)["reason"] == "nothing is decided yet"
    made.round(1.0, engine(idle_s=1.0, wake_us=40_000))
    made.policy.answer = Decision(
        replicas=3, reason="demand", until_s=40.0, terms={"demand": 2.5, "panic": math.inf}
    )
    made.round(2.0, engine(calls=5, arrived=5, waiting=2))
    why = made.desk.why(REF, 10.0)
    assert (why["wanted"], why["reason"], why["holds_s"]) == (3, "demand", 30.0)
    assert why["terms"] == {"demand": 2.5, "panic": None}
    assert why["demand"] == {
        "arrived": 5, "waiting": 2, "running": 3, "warm": 1, "loading": 0, "seen_s_ago": 8.0
    }  # fmt: skip
    assert why["limits"]["idle_s"] == 60.0
    assert why["learned"]["wake_s"] == 0.04
    first, second = why["log"]
    assert (first["before"], first["replicas"], first["s_ago"]) == (None, 1, 9.0)
    assert (second["before"], second["replicas"], second["reason"]) == (1, 3, "demand")
    msgspec.json.encode(why)


def test_log_of_decisions_is_bounded_and_has_only_changes() -> None:
    made = Desk()
    for count in range(100):
        made.round(float(count), engine(calls=1, arrived=count))
    assert len(made.desk.why(REF, 100.0)["log"]) == 1
    for count in range(100):
        made.policies[0].answer = Decision(replicas=count % 2, reason="told", until_s=math.inf)
        made.round(100.0 + count, engine(calls=1, arrived=100 + count))
    assert len(made.desk.why(REF, 200.0)["log"]) == scale_desk.LOG_MAX
