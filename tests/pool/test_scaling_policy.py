"""One version's policy: which term wins, what bounds it, and until when that holds."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest

from pool.scaling.policy import ScalingPolicy
from pool.scaling.signals import Decision, Limits, Signals

HOUR_S = 3600.0
LIMITS = Limits(replicas_max=64)


class Player:
    """A policy and the world that it sees: replicas are warm as soon as they are wanted."""

    def __init__(self, limits: Limits = LIMITS, **signals: Any) -> None:
        self.policy = ScalingPolicy()
        self.limits = limits
        self.signals = Signals(
            **{"now_s": 0.0, "unix_s": 0.0, "arrived": 0, "calls_per_s": 20.0, **signals}
        )

    def see(self, **changes: Any) -> Decision:
        fields = {name: getattr(self.signals, name) for name in Signals.__struct_fields__}
        self.signals = Signals(**{**fields, **changes})
        self.policy.observe(self.signals)
        return self.policy.decide(self.limits, self.signals)

    def calls(self, calls_per_s: float, for_s: float) -> Decision:
        """Let calls come evenly and run for a moment."""
        decision = self.see()
        begin_s, before = self.signals.now_s, self.signals.arrived
        for tick in range(1, int(for_s * 2) + 1):
            decision = self.see(
                now_s=begin_s + tick / 2,
                arrived=before + int(calls_per_s * tick / 2),
                running=min(decision.replicas, math.ceil(calls_per_s / 20)),
                warm=decision.replicas,
            )
        return decision

    def end(self) -> Decision:
        return self.see(running=0, waiting=0)


def test_first_call_wants_one_replica_at_once() -> None:
    player = Player(calls_per_s=0.0)
    decision = player.see(arrived=1, waiting=1)
    assert (decision.replicas, decision.reason) == (1, "demand")


def test_demand_wants_what_its_calls_need() -> None:
    decision = Player().calls(130.0, 60.0)
    assert (decision.replicas, decision.reason) == (7, "demand")


def test_calls_that_take_long_keep_their_replicas_for_the_next_ones() -> None:
    player = Player(calls_per_s=0.1)
    player.see(arrived=3, running=3, warm=3)
    player.see(now_s=10.0, running=1)
    decision = player.see(now_s=150.0)
    assert (decision.replicas, decision.until_s) == (3, pytest.approx(200.0, abs=5.0))


def test_sudden_rise_is_a_panic_and_counts_what_will_have_piled_up() -> None:
    player = Player(wake_s=3.0)
    player.calls(20.0, 60.0)
    decision = player.see(now_s=60.5, arrived=1300, waiting=80, running=2, warm=2)
    assert decision.reason == "panic"
    assert decision.replicas > 200 / 20


def test_rollout_keeps_replicas_that_nobody_calls_within_the_maximum() -> None:
    kept = Player(Limits(replicas_kept=3, idle_s=1.0, replicas_max=4)).see()
    assert (kept.replicas, kept.reason) == (3, "rollout")
    assert Player(Limits(replicas_kept=3, replicas_max=2)).see().replicas == 2


def test_maximum_holds() -> None:
    player = Player(Limits(replicas_max=3))
    decision = player.calls(130.0, 60.0)
    assert (decision.replicas, decision.reason) == (3, "maximum")


def test_minimum_and_schedule_are_floors() -> None:
    assert Player(Limits(replicas_min=2, idle_s=1.0)).see().replicas == 2
    decision = Player(Limits(is_due=True, idle_s=1.0)).see()
    assert (decision.replicas, decision.reason) == (1, "schedule")


def test_numeric_idle_time_is_obeyed_to_the_letter() -> None:
    player = Player(Limits(replicas_max=64, idle_s=20.0))
    player.calls(130.0, 60.0)
    decision = player.end()
    assert decision.replicas == 7
    limits = player.limits
    before = Signals(now_s=79.99, unix_s=0.0, arrived=7800, warm=7, calls_per_s=20.0)
    after = Signals(now_s=80.0, unix_s=0.0, arrived=7800, warm=7, calls_per_s=20.0)
    assert player.policy.decide(limits, before).replicas == 7
    decision = player.policy.decide(limits, after)
    assert (decision.replicas, decision.reason, decision.until_s) == (0, "idle", math.inf)


def test_version_that_nobody_called_sleeps_if_its_idle_time_is_a_number() -> None:
    assert Player(Limits(idle_s=20.0)).see().replicas == 0


def test_warm_replica_found_at_the_start_is_kept_for_its_idle_time() -> None:
    player = Player(Limits(idle_s=20.0), now_s=100.0, arrived=500, warm=1)
    decision = player.see()
    assert (decision.replicas, decision.until_s) == (1, 120.0)


def test_new_version_stays_warm_while_nothing_is_known_of_it() -> None:
    player = Player()
    player.see(arrived=1, running=1, warm=1)
    decision = player.end()
    assert (decision.replicas, decision.reason) == (1, "keep-alive")
    assert decision.until_s > HOUR_S


PEAKS_S = 900.0


def peaks(player: Player, count: int) -> list[Decision]:
    """Play a minute of many calls in every quarter of an hour; see the moment before each."""
    seen = []
    for _ in range(count):
        player.calls(10.0, 420.0)
        seen.append(player.see())
        player.calls(200.0, 60.0)
        player.calls(10.0, PEAKS_S - 480.0)
    return seen


def test_forecast_is_acted_upon_or_only_observed_or_off() -> None:
    found = {}
    for forecast in ("act", "observe", "off"):
        player = Player(Limits(replicas_max=64, forecast=forecast), wake_s=30.0)
        found[forecast] = peaks(player, 4)[-1]
    assert (found["act"].replicas, found["act"].reason) == (10, "forecast")
    assert found["observe"].replicas == found["off"].replicas == 1
    assert found["observe"].terms["forecast_spared_calls"] > 0
    assert "forecast_spared_calls" not in found["off"].terms


def test_numeric_idle_time_is_not_pre_warmed_but_more_replicas_are() -> None:
    player = Player(Limits(replicas_max=64, idle_s=20.0), wake_s=30.0)
    for _ in range(4):
        player.end()
        asleep = player.see(now_s=player.signals.now_s + 420.0, warm=0)
        player.calls(200.0, 60.0)
        player.end()
        player.see(now_s=player.signals.now_s + PEAKS_S - 480.0)
    assert asleep.replicas == 0
    player.see(now_s=player.signals.now_s + 420.0, warm=0)
    decision = player.see(arrived=player.signals.arrived + 1, running=1, warm=1)
    assert (decision.replicas, decision.reason) == (10, "forecast")


def test_clock_stepped_by_an_hour_changes_nothing() -> None:
    steady, stepped = Player(wake_s=30.0), Player(wake_s=30.0)
    peaks(steady, 2)
    peaks(stepped, 2)
    stepped.see(unix_s=3600.0)
    assert peaks(steady, 2)[-1] == peaks(stepped, 2)[-1]


def test_spent_budget_leaves_only_what_calls_need() -> None:
    limits = Limits(replicas_min=1, replica_hours_per_day_max=1.0)
    player = Player(limits)
    player.see(arrived=1, running=1, warm=1)
    decision = player.end()
    assert (decision.replicas, decision.until_s) == (1, HOUR_S)
    decision = player.see(now_s=HOUR_S)
    assert (decision.replicas, decision.reason, decision.until_s) == (0, "budget", 2 * HOUR_S)
    assert player.see(arrived=2, waiting=1, warm=0).replicas == 1
    player.see(waiting=0)
    assert player.see(now_s=25.5 * HOUR_S).replicas == 1


def test_deciding_changes_nothing() -> None:
    player = Player()
    player.calls(130.0, 30.0)
    saved = player.policy.save()
    decisions = [player.policy.decide(player.limits, player.signals) for _ in range(3)]
    assert decisions[0] == decisions[1] == decisions[2]
    assert player.policy.save() == saved


def test_decision_holds_until_it_says() -> None:
    """The same is wanted until `until_s`, and asked then it names a later time."""
    player = Player(Limits(replicas_max=64, idle_s=50.0), wake_s=3.0)
    player.calls(130.0, 60.0)
    decision = player.end()
    fields = {name: getattr(player.signals, name) for name in Signals.__struct_fields__}
    for _ in range(50):
        if math.isinf(decision.until_s):
            break
        assert decision.until_s > fields["now_s"]
        just_before = Signals(**{**fields, "now_s": decision.until_s - 1e-6})
        assert player.policy.decide(player.limits, just_before).replicas == decision.replicas
        fields["now_s"] = decision.until_s
        decision = player.policy.decide(player.limits, Signals(**fields))
    assert (decision.replicas, decision.until_s) == (0, math.inf)


def test_what_was_learned_outlives_a_restart() -> None:
    player = Player(Limits(replicas_max=64), wake_s=30.0)
    peaks(player, 4)
    data = player.policy.save()
    assert len(data) < 8192
    heir = Player(Limits(replicas_max=64), now_s=5 * HOUR_S, wake_s=30.0)
    heir.policy.restore(data, 5 * HOUR_S)
    heir.calls(10.0, 420.0)
    assert heir.see().replicas >= 9


@pytest.mark.parametrize("data", [b"", b"\x93\xc0\xc0\xc0", b"\x93\xc4\x01a\xc4\x01b\xc4\x01c"])
def test_unreadable_state_is_ignored(data: bytes) -> None:
    player = Player()
    player.policy.restore(data, 0.0)
    assert player.see(arrived=1, waiting=1).replicas == 1


def test_decision_is_cheap() -> None:
    player = Player()
    player.calls(130.0, 300.0)
    signals, limits, policy = player.signals, player.limits, player.policy
    took_s = []
    for _ in range(300):
        begin_s = time.thread_time()
        policy.decide(limits, signals)
        took_s.append(time.thread_time() - begin_s)
    assert sorted(took_s)[len(took_s) // 4] < 50e-6
