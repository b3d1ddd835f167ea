"""How much calls clump: by chance, in clumps, in rises, and by the clock."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pool.scaling.clumps import Clumps


def learn(
    clumps: Clumps,
    counts: NDArray[np.int64],
    begin_s: float = 0.0,
    call_s: float = 0.05,
    look_s: float = 0.5,
) -> None:
    """Let so many calls come from one look to the next."""
    clumps.restart(begin_s, 0)
    for tick, arrived in enumerate(np.cumsum(counts)):
        clumps.observe(begin_s + (tick + 1) * look_s, int(arrived), call_s)


def counts_of(cv: float, seed: int = 1) -> NDArray[np.int64]:
    """Return calls by half seconds: 50 a second for half an hour, with independent gaps."""
    shape = 1 / cv**2
    gaps_s = np.random.RandomState(seed).standard_gamma(shape, 90_000) / shape / 50
    return np.histogram(np.cumsum(gaps_s), 3600, (0.0, 1800.0))[0]


def poisson(rates: NDArray[np.float64], seed: int = 1) -> NDArray[np.int64]:
    return np.random.RandomState(seed).poisson(rates / 2)


@pytest.mark.parametrize("rate", [0.5, 5.0, 500.0])
def test_calls_that_know_nothing_of_each_other_have_one(rate: float) -> None:
    clumps = Clumps()
    learn(clumps, poisson(np.full(3600, rate)))
    assert clumps.dispersion < 1.35


@pytest.mark.parametrize("cv", [3.0, 5.0])
def test_independent_gaps_have_the_square_of_their_cv(cv: float) -> None:
    clumps = Clumps()
    learn(clumps, counts_of(cv))
    assert cv**2 * 0.6 < clumps.dispersion < cv**2 * 1.4


def test_looks_at_odd_times_change_little() -> None:
    clumps, counts = Clumps(), poisson(np.full(3600, 50.0))
    clumps.restart(0.0, 0)
    arrived = 0
    for tick, calls in enumerate(counts):
        arrived += int(calls)
        if tick % 7 in (0, 1, 4):
            clumps.observe((tick + 1) / 2, arrived, 0.05)
    assert clumps.dispersion < 1.35


def test_one_rise_is_no_clump() -> None:
    clumps = Clumps()
    rates = np.full(3600, 20.0)
    rates[2000:] = 2000.0
    learn(clumps, poisson(rates)[:2010])
    assert clumps.dispersion < 1.4


def test_batches_within_one_call_are_none() -> None:
    batches = np.tile([9, 0, 0, 0, 0, 0], 600)
    fast, slow = Clumps(), Clumps()
    learn(fast, batches)
    learn(slow, batches, call_s=30.0)
    assert fast.dispersion > 3
    assert slow.dispersion < 1.1


def test_what_came_before_an_idle_time_is_not_compared_with_what_comes_after() -> None:
    clumps = Clumps()
    for session in range(20):
        learn(clumps, poisson(np.full(8, 200.0 * (session % 2) + 1.0), session), session * 1e4)
    assert clumps.dispersion < 1.4
