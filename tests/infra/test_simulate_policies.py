"""The policies that Tidepool is compared with: what is kept, and what one who knows would do."""

from __future__ import annotations

import numpy as np
import pytest

from infra.simulate.engine import Load, World, run
from infra.simulate.fixed import Fixed
from infra.simulate.hybrid import HybridHistogram
from infra.simulate.ideal import ideal_s
from infra.simulate.limit import Limit


def _load(*calls: tuple[float, float]) -> Load:
    """Return calls of (arrival in s, exec in s)."""
    table = np.array(calls, dtype=np.float64).reshape(-1, 2)
    return Load("m", table[:, 0], table[:, 1])


def test_fixed_keeps_a_replica_for_its_time_after_the_end_of_the_last_call() -> None:
    calls = _load((0, 10), (600, 10), (1215, 10))
    found = run(calls, Fixed(600), World(end_s=10_000, wake_s=0))
    assert found.cold == 2  # the second came 590 s after an end, the third 605 s
    assert found.waste_s == pytest.approx(590 + 600 + 600)


def test_fixed_keeps_for_each_its_time() -> None:
    # Two at once, then one at a time: the second replica goes 100 s after both were in use.
    calls = _load((0, 50), (0, 50), (100, 1), (180, 1), (260, 1))
    found = run(calls, Fixed(100), World(end_s=1000, wake_s=0, round_s=0.5))
    assert found.wakes == 2
    assert found.cold == 1
    both_s, one_s = 150, 361 - 150
    assert found.busy_s + found.waste_s == pytest.approx(2 * both_s + one_s, abs=2)


def test_fixed_stays_while_a_call_takes_longer_than_it_keeps() -> None:
    found = run(_load((0, 500), (550, 1)), Fixed(100), World(end_s=1000))
    assert (found.cold, found.wakes) == (1, 1)


def test_fixed_asks_for_what_waits_by_how_long_it_takes() -> None:
    short = _load((0, 0.05), *((10, 0.05) for _ in range(40)))
    found = run(short, Fixed(60), World(end_s=100, wake_s=1))
    assert found.wakes <= 5  # a replica does 20 a second
    long = _load((0, 30), *((60, 30) for _ in range(5)))
    found = run(long, Fixed(60), World(end_s=100, wake_s=1))
    assert found.wakes == 5


def test_limit_is_cold_for_first_arrivals_alone_and_wakes_just_in_time() -> None:
    calls = _load((0, 1), (1000, 1), (2000.5, 1), (5000, 0.2))
    found = run(calls, Limit(calls, World(end_s=6000)), World(end_s=6000, wake_s=3))
    assert (found.cold, found.on_time) == (1, 3)
    assert found.waste_s < 6
    assert found.loading_s == pytest.approx(4 * 3)


def test_limit_has_what_a_burst_needs_before_it_comes() -> None:
    calls = _load((0, 1), *((100 + n / 50, 0.2) for n in range(500)))
    world = World(end_s=200)
    found = run(calls, Limit(calls, world), world)
    assert found.calls - found.on_time == 1
    assert found.gpu_s < 1.5 * ideal_s(calls)


def test_limit_stays_warm_where_a_wake_takes_as_long_as_the_gap() -> None:
    calls = _load(*((4.0 * n, 0.5) for n in range(100)))
    world = World(end_s=400, wake_s=5)
    found = run(calls, Limit(calls, world), world)
    assert (found.wakes, found.cold) == (1, 2)


def test_limit_beats_every_fixed_time_in_both() -> None:
    rng = np.random.default_rng(3)
    calls = Load("m", np.cumsum(rng.exponential(300, 500)), rng.exponential(2, 500))
    world = World(end_s=float(calls.arrivals_s[-1]))
    best = run(calls, Limit(calls, world), world)
    for keep_s in (10, 60, 600, 3600):
        other = run(calls, Fixed(keep_s), world)
        assert best.cold <= other.cold
        assert best.waste_s <= other.waste_s


def test_hybrid_keeps_four_hours_while_it_knows_little() -> None:
    calls = _load((0, 1), (3 * 3600, 1), (7 * 3600 + 60, 1))
    found = run(calls, HybridHistogram(), World(end_s=86_400, wake_s=0))
    assert found.cold == 2
    assert found.waste_s == pytest.approx((3 + 4 + 4) * 3600, abs=10)


def test_hybrid_goes_at_once_and_is_back_just_before_a_gap_that_it_knows() -> None:
    calls = _load(*((3600.0 * n, 1) for n in range(100)))
    found = run(calls, HybridHistogram(), World(end_s=100 * 3600.0))
    assert found.cold == 1
    # Of each hour from the 54th minute on, after five gaps; a timer's tail is 66 minutes.
    assert found.waste_s == pytest.approx(5 * 3600 + 94 * 0.1 * 3600, rel=0.1)


def test_hybrid_keeps_four_hours_where_gaps_are_anything() -> None:
    rng = np.random.default_rng(2)
    gaps_s = rng.uniform(60, 4 * 3600 - 200, 300)
    calls = Load("m", np.cumsum(gaps_s), np.zeros(300))
    found = run(calls, HybridHistogram(), World(end_s=float(calls.arrivals_s[-1]), wake_s=0))
    assert found.cold <= 30  # until the bins fill, a few gaps look like a pattern


def test_hybrid_forecasts_gaps_beyond_its_range() -> None:
    calls = _load(*((20_000.0 * n, 1) for n in range(40)))
    found = run(calls, HybridHistogram(), World(end_s=39 * 20_000.0))
    assert found.cold <= 6
    assert found.waste_s == pytest.approx(5 * 4 * 3600 + 34 * 0.15 * 20_000, rel=0.1)
