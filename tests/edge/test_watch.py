"""What is counted of a rollout's arms, and what is not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edge import watch as watch_module
from edge.arm_metrics import ROWS_MAX
from edge.watch import LOOK_S, ArmWatch, Firsts, RolloutWatch, SegmentWatch, UnitHash
from pool.wire import control
from pool.wire.data import Tensor
from pool.wire.histogram import quantile_s

ARMS = ("stable", "canary")


def segment(slow_s: float = math.inf) -> SegmentWatch:
    return RolloutWatch("e", "r", "salt").segment(3, ARMS, slow_s)


def canary(slow_s: float = math.inf) -> ArmWatch:
    return segment(slow_s).arms["canary"]


def unit(number: int) -> bytes:
    return b"%d" % number


@pytest.mark.parametrize(("status", "errors"), [(200, 0), (500, 1), (502, 1), (504, 1)])
def test_answers_failures_and_late_calls_are_outcomes(status: int, errors: int) -> None:
    arm = canary()
    arm.observe(None, status, 0.01, 1.0)
    assert (arm.calls, arm.units, arm.errors) == (1, 1, errors)


@pytest.mark.parametrize("status", [400, 404, 422, 429, 499, 503])
def test_other_ends_are_none(status: int) -> None:
    arm = canary()
    arm.observe(b"u", status, 0.01, 1.0)
    assert arm.evidence() == control.ArmEvidence("e", "r", 3, "canary", seconds=(0,) * 22)


def test_unit_is_part_of_the_traffic_once_in_a_look_window() -> None:
    arm = canary()
    for now_s in (1.0, 2.0, LOOK_S - 0.001, LOOK_S, LOOK_S + 1):
        arm.observe(b"u", 200, 0.01, now_s)
    assert (arm.calls, arm.units, arm.evidence().log_calls) == (5, 2, 2)


def test_call_without_a_unit_is_its_own() -> None:
    arm = canary()
    for _ in range(3):
        arm.observe(None, 500, 0.01, 1.0)
    assert (arm.units, arm.lone_calls, arm.errors, arm.lone_errors, arm.told) == (3, 3, 3, 3, {})


def test_unit_is_told_of_from_its_first_event_in_a_segment_on() -> None:
    rollout = RolloutWatch("e", "r", "salt")
    first, second = (rollout.segment(number, ARMS).arms["canary"] for number in (1, 2))
    for status in (200, 200, 500, 200, 504, 404, 200):
        first.observe(b"u", status, 0.01, 1.0)
        first.observe(b"v", 200, 0.01, 1.0)
    second.observe(b"u", 200, 0.01, 3.0)
    second.observe(b"v", 500, 0.01, 3.0)
    hashed = UnitHash("salt").number_of
    assert first.evidence().told == (control.UnitSeen(hashed(b"u"), 4, 2, 0),)
    assert second.evidence().told == (control.UnitSeen(hashed(b"v"), 1, 1, 0),)
    assert (first.errors, first.lone_errors, first.lone_calls) == (2, 0, 0)


def test_answer_that_turns_out_to_be_none_is_an_error_of_a_call_that_is_counted() -> None:
    arm = canary()
    for _ in range(2):
        arm.observe(b"u", 200, 0.01, 1.0)
        arm.fail(b"u")
    arm.observe(None, 200, 0.01, 1.0)
    arm.fail(None)
    assert (arm.calls, arm.errors, arm.lone_errors) == (3, 3, 1)
    assert [(u.calls, u.errors) for u in arm.evidence().told] == [(2, 2)]


def test_unit_has_no_more_errors_than_calls_though_both_answers_come_before_both_failures() -> None:
    arm = canary()
    for _ in range(2):
        arm.observe(b"u", 200, 0.01, 1.0)
    for _ in range(2):
        arm.fail(b"u")
    assert [(u.calls, u.errors) for u in arm.evidence().told] == [(2, 2)]


def test_every_process_names_a_unit_alike_and_each_endpoint_otherwise() -> None:
    assert UnitHash("magika").hex_of(b"ada").startswith("e131559b119be")
    assert UnitHash("magika").number_of(b"ada") == 0xE131559B119BE
    assert UnitHash("other").number_of(b"ada") != UnitHash("magika").number_of(b"ada")


def test_window_that_is_full_ends_for_both_arms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "WINDOW_UNITS_MAX", 4)
    arms = segment().arms
    for number in range(4):
        arms["stable"].observe(unit(number), 200, 0.01, 1.0)
    arms["canary"].observe(b"c", 200, 0.01, 1.0)
    arms["stable"].observe(unit(0), 200, 0.01, 1.0)  # forgotten
    assert (arms["stable"].units, arms["canary"].units) == (5, 1)


def test_of_too_many_units_those_are_told_of_that_every_edge_picks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch_module, "TOLD_UNITS_MAX", 64)
    edges = [segment().arms for _ in range(2)]
    for number in range(1000):
        arm = ARMS[number % 2]
        edges[0][arm].observe(unit(number), 500, 0.01, 1.0)
        edges[1][arm].observe(unit(999 - number), 500, 0.01, 1.0)  # in another order
    found = [[edge[arm].evidence() for arm in ARMS] for edge in edges]
    below = {row.units_below for rows in found for row in rows}
    assert below == {control.UNIT_HASHES >> 4}
    told = [{seen.hash for row in rows for seen in row.told} for rows in found]
    hashed = UnitHash("salt").number_of
    assert told[0] == told[1] == {h for n in range(1000) if (h := hashed(unit(n))) < min(below)}
    assert 32 <= len(told[0]) <= 64


def test_what_takes_longer_than_the_limit_is_slow() -> None:
    arm = canary(slow_s=0.5)
    for seconds in (0.4, 0.5, 0.6, 0.4, 0.7):
        arm.observe(b"u", 200, seconds, 1.0)
    arm.observe(None, 200, 0.9, 1.0)
    assert (arm.slow, arm.lone_slow) == (3, 1)
    assert [(u.calls, u.errors, u.slow) for u in arm.evidence().told] == [(3, 0, 2)]


def test_unit_that_is_slow_and_fails_is_both() -> None:
    arm = canary(slow_s=0.5)
    arm.observe(b"u", 500, 0.6, 1.0)
    assert [(u.calls, u.errors, u.slow) for u in arm.evidence().told] == [(1, 1, 1)]


def test_answers_are_looked_into_at_first_and_then_now_and_again() -> None:
    arm = canary()
    answer = [Tensor("y", "FP32", (1, 2), bytes(8))]
    for _ in range(watch_module.LOOKS_FREE + 2 * watch_module.LOOK_EACH):
        arm.observe(None, 200, 0.01, 1.0, answer)
    assert arm.evidence().scores == watch_module.LOOKS_FREE + 2


@pytest.mark.parametrize(("slow_s", "slow"), [(math.inf, 0), (5.0, 2)])
def test_call_that_ran_out_of_time_is_slow_where_there_is_a_limit(slow_s: float, slow: int) -> None:
    arm = canary(slow_s)
    for whose in (b"u", None):
        arm.observe(whose, 504, 1.0, 1.0)
    assert (arm.calls, arm.units, arm.errors, arm.slow) == (2, 2, 2, slow)
    assert sum(arm.evidence().seconds) == arm.evidence().log_calls == 2


def test_limit_of_a_segment_under_way_may_change() -> None:
    rollout = RolloutWatch("e", "r", "salt")
    arm = rollout.segment(1, ARMS, 1.0).arms["canary"]
    assert rollout.segment(1, ARMS, 0.1).arms["canary"] is arm
    arm.observe(None, 200, 0.5, 1.0)
    assert arm.slow == 1


def test_latencies_are_counted_by_the_buckets_of_every_process() -> None:
    arm = canary()
    for seconds in (0.003, 0.003, 0.3):
        arm.observe(None, 200, seconds, 1.0)
    found = arm.evidence()
    assert 0.002 < (quantile_s(found.seconds, 0.5) or 0) < 0.005
    logs = np.log1p(np.array([3000.0, 3000.0, 300_000.0]))
    assert found.log_sum == pytest.approx(logs.sum())
    assert found.log_squares == pytest.approx((logs**2).sum())


def test_durations_of_many_calls_are_not_kept() -> None:
    arm = canary()
    for number in range(3 * ROWS_MAX + 1):
        arm.observe(None, 200, number * 1e-4, 1.0)
        assert len(arm._unsorted) < ROWS_MAX
    found = arm.evidence()
    assert sum(found.seconds) == found.log_calls == 3 * ROWS_MAX + 1
    assert found.log_sum == pytest.approx(np.log1p(np.arange(3 * ROWS_MAX + 1) * 100.0).sum())


def test_late_answers_of_an_ended_segment_stay_there() -> None:
    rollout = RolloutWatch("e", "r", "salt")
    old = rollout.segment(1, ARMS)
    new = rollout.segment(2, ARMS)
    new.arms["canary"].observe(b"u", 200, 0.1, 1.0)
    old.arms["canary"].observe(b"u", 500, 0.1, 2.0)
    found = {(row.segment, row.variant): row.calls for row in rollout.evidence()}
    assert found == {(1, "stable"): 0, (1, "canary"): 1, (2, "stable"): 0, (2, "canary"): 1}


def test_window_of_an_ended_segment_holds_nobody() -> None:
    rollout = RolloutWatch("e", "r", "salt")
    old = rollout.segment(1, ARMS)
    old.arms["canary"].observe(b"u", 200, 0.1, 1.0)
    assert old.seen
    rollout.segment(2, ARMS)
    assert not old.seen


def test_only_the_last_segments_are_told() -> None:
    rollout = RolloutWatch("e", "r", "salt")
    for number in range(40):
        rollout.segment(number, ARMS)
    assert {row.segment for row in rollout.evidence()} == {38, 39}


def test_what_is_told_of_a_rollout_fits_one_message() -> None:
    rollout = RolloutWatch("e" * 64, "r" * 64, "salt")
    for number in range(16):
        for arm in rollout.segment(number, ("a" * 64, "b" * 64), 0.0).arms.values():
            for i in range(1100):
                arm.observe(unit(i + number * 1000), 500, 0.01, 1.0)
    packed = control.pack(control.Evidence("i", rollout.evidence()))
    assert 10_000 < len(packed) < 50_000
    assert isinstance(control.decode(packed), control.Evidence)


def test_unit_is_new_once_until_too_many_have_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "FIRST_UNITS_MAX", 2)
    firsts = Firsts()
    assert [firsts.take(u) for u in (b"a", b"b", b"a")] == [True, True, False]
    assert firsts.is_whole
    assert [firsts.take(u) for u in (b"c", b"a")] == [True, True]
    assert not firsts.is_whole
