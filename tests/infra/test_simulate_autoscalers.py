"""The other autoscalers do what their documentation says."""

from __future__ import annotations

from typing import Any

import numpy as np

from infra.simulate.autoscalers import Kpa, Ray
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
            running=int(calls_per_s > 0),
            warm=seen.get("warm", 1),
            calls_per_s=20.0,
        )
        policy.observe(signals)
        wanted = policy.decide(LIMITS, signals).replicas
    return wanted


def outcome(policy: Simulated, arrivals_s: list[float], end_s: float) -> Outcome:
    load = Load("m", np.array(arrivals_s), np.full(len(arrivals_s), 0.05))
    return run(load, policy, World(end_s=end_s, limits=LIMITS))


def test_kpa_wants_what_is_busy_for_seven_tenths_of_its_time() -> None:
    assert drive(Kpa(), 56.0, 0.0, 120.0, warm=4) == 4


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
