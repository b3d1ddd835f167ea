"""The other autoscalers do what their documentation says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from infra.simulate.autoscalers import Kpa, Ray, _Demand
from infra.simulate.engine import Load, Outcome, Simulated, World, run
from pool.scaling.signals import Limits, Signals

LIMITS = Limits(replicas_max=64)


def drive(policy: Simulated, calls_per_s: float, begin_s: float, end_s: float, **seen: Any) -> int:
    """Show a policy two seconds of calls at a time, and return what it wants at the end."""
    wanted = 0
    for now_s in np.arange(begin_s, end_s + 1e-9, 2.0):
        arrived = int(calls_per_s * (now_s - begin_s)) + seen.get("before", 0)
        signals = Signals(
            now_s=now_s,
            unix_s=now_s,
            arrived=arrived,
            running=seen.get("running", int(calls_per_s > 0)),
            waiting=seen.get("waiting", 0),
            warm=seen.get("warm", 1),
            calls_per_s=seen.get("speed", 20.0),
        )
        policy.observe(signals)
        wanted = policy.decide(LIMITS, signals).replicas
    return wanted


def outcome(policy: Simulated, arrivals_s: list[float], end_s: float) -> Outcome:
    load = Load("m", np.array(arrivals_s), np.full(len(arrivals_s), 0.05))
    return run(load, policy, World(end_s=end_s, limits=LIMITS))


def test_kpa_wants_what_is_busy_for_seven_tenths_of_its_time() -> None:
    assert drive(Kpa(), 56.0, 0.0, 120.0, warm=4) == 4


@pytest.mark.parametrize("make", [Kpa, Ray])
def test_long_calls_count_while_they_are_inside_and_no_longer(
    make: Callable[[], Simulated],
) -> None:
    """One call of 40 s: its whole length when it comes would be a panic."""
    policy = make()
    assert drive(policy, 0.0, 0.0, 2.0, before=1, running=1, speed=1 / 40) == 1
    assert drive(policy, 0.0, 2.0, 40.0, before=1, running=1, speed=1 / 40) <= 2
    policy = make()
    # Of 20 that came and never end, all count, whether they wait or run, as long as they do.
    drive(policy, 0.0, 0.0, 100.0, before=20, running=2, waiting=18, warm=2, speed=1 / 40)
    seen = {"before": 20, "running": 2, "waiting": 18, "warm": 2, "speed": 1 / 40}
    assert drive(policy, 0.0, 100.0, 102.0, **seen) == 29  # 20 / 0.7


def test_long_calls_that_have_ended_count_for_the_time_that_they_were_inside() -> None:
    demand = _Demand(60.0)
    for now_s, running in ((0.0, 2), (10.0, 1), (20.0, 0), (30.0, 0)):
        demand.observe(Signals(now_s=now_s, unix_s=0.0, arrived=2, running=running))
    assert demand.mean(30.0, 60.0, 0.1) == pytest.approx((2 * 10 + 1 * 10) / 60)
    assert demand.mean(30.0, 15.0, 0.1) == pytest.approx(1 * 5 / 15)
    assert demand.falls_s() == 60.0
    demand.observe(Signals(now_s=75.0, unix_s=0.0, arrived=2))
    assert demand.mean(75.0, 60.0, 0.1) == pytest.approx(1 * 5 / 60)


def test_short_calls_that_wait_count_once() -> None:
    waits = {"running": 2, "waiting": 500, "warm": 2}
    kpa = Kpa()
    drive(kpa, 10.0, 0.0, 120.0, **waits)
    assert drive(kpa, 10.0, 120.0, 180.0, before=1200, **waits) == 1


def test_kpa_panics_when_twice_of_what_is_ready_is_needed() -> None:
    kpa = Kpa()
    drive(kpa, 10.0, 0.0, 120.0)
    assert drive(kpa, 140.0, 120.0, 126.0, before=1200) == 10
    # In a panic it only ever asks for more, until a whole stable window is over.
    assert drive(kpa, 10.0, 126.0, 180.0, before=2040, warm=10) >= 10


def test_kpa_lets_go_of_half_at_most_in_one_tick() -> None:
    kpa = Kpa()
    drive(kpa, 140.0, 0.0, 120.0, warm=10)
    drive(kpa, 0.0, 120.0, 178.0, before=16_800, warm=10)
    assert drive(kpa, 0.0, 178.0, 180.0, before=16_800, warm=10) == 5


def test_kpa_goes_to_zero_a_minute_and_a_half_after_the_last_call() -> None:
    assert outcome(Kpa(), [0.0], 1000.0).waste_s < 92
    assert outcome(Kpa(), [0.0], 1000.0).waste_s > 85


def test_ray_waits_half_a_minute_before_it_asks_for_more() -> None:
    assert drive(Ray(), 56.0, 0.0, 26.0) == 1
    assert drive(Ray(), 56.0, 0.0, 120.0) == 4


def test_ray_waits_ten_minutes_before_it_asks_for_fewer() -> None:
    assert 600 <= outcome(Ray(), [0.0], 3000.0).waste_s < 640


def test_both_wake_for_the_first_call() -> None:
    for policy in (Kpa(), Ray()):
        assert outcome(policy, [10.0], 100.0).wakes == 1
