"""The autoscaler's figures: calls on time and GPU-hours, beside Knative's and Ray's.

`gpu_hours` is over replicas that are there by the second and wake in no time, which is stricter
than over a clairvoyant who pays for wakes as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from infra.simulate import loads
from infra.simulate.engine import Load, World, run
from infra.simulate.ideal import ideal_s
from infra.simulate.policies import FAMILIES


@dataclass(frozen=True)
class Row:
    on_time: float
    gpu_hours: float

    def is_behind(self, other: Row) -> bool:
        return other.on_time >= self.on_time and other.gpu_hours <= self.gpu_hours


def row(policy: str, load: Load, wake_s: float) -> Row:
    day_s = float(loads.DAY_S)
    end_s = -(-float(load.arrivals_s[-1]) // day_s) * day_s
    return row_until(end_s, policy, load, wake_s)


def row_until(end_s: float, policy: str, load: Load, wake_s: float) -> Row:
    world = World(end_s=end_s, wake_s=wake_s)
    outcome = run(load, FAMILIES[policy]()(load, world), world)
    return Row(outcome.on_time / outcome.calls, outcome.gpu_s / ideal_s(load))


def check(load: Load, wake_s: float, on_time: float, gpu_hours: float) -> None:
    tidepool = row("tidepool", load, wake_s)
    assert tidepool.on_time >= on_time
    assert tidepool.gpu_hours <= gpu_hours
    for other in ("kpa", "ray"):
        assert not tidepool.is_behind(row(other, load, wake_s)), other


def test_sessions_far_apart_with_a_short_wake() -> None:
    check(loads.sparse(), 3.0, 0.995, 1.5)


@pytest.mark.parametrize("cv", [3.0, 5.0])
def test_first_hour_of_clumps_with_a_short_wake(cv: float) -> None:
    load, hour_s = loads.gamma(cv), float(loads.HOUR_S)
    calls = int(np.searchsorted(load.arrivals_s, hour_s))
    hour = Load(load.model, load.arrivals_s[:calls], load.exec_s[:calls])
    tidepool = row_until(hour_s, "tidepool", hour, 3.0)
    assert tidepool.on_time >= 0.995
    assert tidepool.gpu_hours <= 1.5
    for other in ("kpa", "ray"):
        assert not tidepool.is_behind(row_until(hour_s, other, hour, 3.0)), other


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("cv", [3.0, 5.0])
def test_clumps_with_a_short_wake(cv: float) -> None:
    check(loads.gamma(cv), 3.0, 0.995, 1.5)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("make", [loads.diurnal, loads.bursty, loads.hourly])
def test_days_with_a_short_wake(make: Callable[[], Load]) -> None:
    check(make(), 3.0, 0.995, 1.35)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("make", [loads.hourly, loads.repeating])
def test_what_repeats_with_a_long_wake(make: Callable[[], Load]) -> None:
    check(make(), 30.0, 0.97, 1.5)
