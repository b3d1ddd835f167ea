"""Seeded arrivals for autoscalers: what a day looks like, frozen for good.

A replica takes 20 calls a second.  Numbers are drawn from `numpy.random.RandomState`, whose stream
never changes with numpy's version (NEP 19).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from infra.simulate.engine import Load

EXEC_S: Final = 0.05
DAY_S: Final = 86_400
HOUR_S: Final = 3600

Floats = NDArray[np.float64]


def diurnal(seed: int = 1) -> Load:
    """A day between 10 and 90 calls a second, with a wander of minutes on top."""
    draw = np.random.RandomState(seed)
    seconds = np.arange(DAY_S)
    day = 50.0 - 40.0 * np.cos(2 * np.pi * seconds / DAY_S)
    knots = draw.normal(0.0, 0.1, DAY_S // 600 + 2)
    wander = np.interp(seconds, np.arange(len(knots)) * 600.0, knots)
    return _by_rate("diurnal", draw, day * np.exp(wander))


def bursty(seed: int = 2) -> Load:
    """20 calls a second, and 60 bursts at any time: 50 to 250 more for two to twelve minutes."""
    draw = np.random.RandomState(seed)
    rates = np.full(DAY_S, 20.0)
    for _ in range(60):
        _add(rates, draw.uniform(0, DAY_S), draw.uniform(120, 720), draw.uniform(50, 250))
    return _by_rate("bursty", draw, rates)


def hourly(seed: int = 3) -> Load:
    """20 calls a second, and 150 more or less for five minutes from every full hour on."""
    draw = np.random.RandomState(seed)
    rates = np.full(DAY_S, 20.0)
    for hour in range(24):
        begin_s = hour * HOUR_S + draw.uniform(0, 3)
        _add(rates, begin_s, draw.uniform(270, 330), draw.uniform(120, 180))
    return _by_rate("hourly", draw, rates)


def sparse(seed: int = 4) -> Load:
    """Nothing, but for 20 sessions of five to fifteen minutes with 5 to 50 calls a second."""
    draw = np.random.RandomState(seed)
    rates = np.zeros(DAY_S)
    for _ in range(20):
        _add(rates, draw.uniform(0, DAY_S), draw.uniform(300, 900), draw.uniform(5, 50))
    return _by_rate("sparse", draw, rates)


def repeating(seed: int = 5) -> Load:
    """Three days: 10 calls a second, and 20 bursts that come again a few seconds early or late."""
    draw = np.random.RandomState(seed)
    rates = np.full(3 * DAY_S, 10.0)
    bursts = [
        (draw.uniform(0, DAY_S - 900), draw.uniform(120, 720), draw.uniform(50, 250))
        for _ in range(20)
    ]
    for day in range(3):
        for begin_s, length_s, height in bursts:
            late_s = draw.uniform(-3, 3)
            _add(rates, day * DAY_S + begin_s + late_s, length_s, height * draw.uniform(0.9, 1.1))
    return _by_rate("repeating", draw, rates)


def poisson(seed: int = 6) -> Load:
    """Six hours of 50 calls a second that know nothing of each other."""
    draw = np.random.RandomState(seed)
    return _by_rate("poisson", draw, np.full(6 * HOUR_S, 50.0))


def gamma(cv: float, seed: int = 7) -> Load:
    """Six hours of 50 calls a second, with gaps whose deviation is `cv` times their mean."""
    draw = np.random.RandomState(seed)
    calls = 50 * 6 * HOUR_S
    shape = 1.0 / cv**2
    arrivals_s = np.cumsum(draw.standard_gamma(shape, calls) / shape / 50.0)
    return _load(f"gamma-cv{cv:g}", arrivals_s[arrivals_s < 6 * HOUR_S])


def _add(rates: Floats, begin_s: float, length_s: float, height: float) -> None:
    rates[max(0, int(begin_s)) : int(begin_s + length_s)] += height


def _by_rate(name: str, draw: np.random.RandomState, rates: Floats) -> Load:
    """Draw Poisson arrivals whose rate changes from second to second."""
    counts = draw.poisson(rates)
    arrivals_s = np.repeat(np.arange(len(rates)), counts) + draw.random_sample(int(counts.sum()))
    return _load(name, np.sort(arrivals_s))


def _load(name: str, arrivals_s: Floats) -> Load:
    return Load(name, arrivals_s, np.full(len(arrivals_s), EXEC_S))
