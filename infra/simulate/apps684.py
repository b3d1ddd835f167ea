"""684 small applications over seven days, as a provider of functions sees them: frozen for good.

29 % are timers, 31 % are called at random, 20 % by day, 20 % in bursts.  The distributions are
chosen so that what is known of such a mix (research, section 1.3) comes out: keeping everything
warm for 10, 20 and 60 minutes gives 29, 18 and 7 % cold calls at 1, 1.5 and 2.4 times the waste.

Numbers are drawn from `numpy.random.RandomState`, whose stream never changes with numpy's version
(NEP 19).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from infra.simulate.engine import Load

MINUTE_S: Final = 60.0
DAYS: Final = 7
END_S: Final = DAYS * 86_400.0
EXEC_S: Final = 0.05
APPS: Final = 684
SEED: Final = 15

TIMERS: Final = 198
AT_RANDOM: Final = 212
BY_DAY: Final = 137
IN_BURSTS: Final = APPS - TIMERS - AT_RANDOM - BY_DAY

PERIODS_MIN: Final = (1, 2, 5, 10, 15, 20, 30, 60, 120, 180, 240, 360, 480, 720, 1440)

Floats = NDArray[np.float64]
_END_MIN: Final = DAYS * 1440.0


def apps684(seed: int = SEED) -> list[Load]:
    """Return one load per application that is called at all."""
    draw = np.random.RandomState(seed)
    named = [(f"timer-{app}", _timer(draw)) for app in range(TIMERS)]
    named += [(f"random-{app}", _at_random(draw)) for app in range(AT_RANDOM)]
    named += [(f"day-{app}", _by_day(draw)) for app in range(BY_DAY)]
    named += [(f"burst-{app}", _in_bursts(draw)) for app in range(IN_BURSTS)]
    loads: list[Load] = []
    for name, minutes in named:
        inside = np.sort(minutes[(minutes >= 0) & (minutes < _END_MIN)])
        arrivals_s = np.round(inside * MINUTE_S, 3)
        if len(arrivals_s):
            loads.append(Load(name, arrivals_s, np.full(len(arrivals_s), EXEC_S)))
    return loads


def _timer(draw: np.random.RandomState) -> Floats:
    """Every one to 1,440 minutes, mostly about an hour, late or early by some 5 %."""
    likely = np.exp(-((np.log(np.array(PERIODS_MIN) / 60.0)) ** 2) / (2 * 1.3**2))
    period = float(draw.choice(PERIODS_MIN, p=likely / likely.sum()))
    times = np.arange(int(_END_MIN / period) + 1) * period
    jitter = draw.normal(0.0, 0.15 + 0.05 * period, len(times))
    return np.asarray(draw.uniform(0, period) + times + jitter)


def _at_random(draw: np.random.RandomState) -> Floats:
    return _poisson(draw, max(2.0, _log_normal(draw, 80.0, 2.0)))


def _by_day(draw: np.random.RandomState) -> Floats:
    """At random, most at an hour of its own and least twelve hours later."""
    mean = max(2.0, _log_normal(draw, 120.0, 1.25))
    busiest = draw.uniform(0, 1440)
    times = _poisson(draw, mean / 1.2)
    rates = (1 + np.cos(2 * np.pi * (times - busiest) / 1440)) / 2
    return np.asarray(times[draw.uniform(size=len(times)) < rates])


def _in_bursts(draw: np.random.RandomState) -> Floats:
    starts = _poisson(draw, max(10.0, _log_normal(draw, 330.0, 0.85)))
    bursts = [np.empty(0)]
    for start in starts:
        gaps = draw.exponential(1.35, draw.geometric(1 / 13.5))
        bursts.append(start + np.cumsum(np.concatenate(([0.0], gaps))))
    return np.concatenate(bursts)


def _poisson(draw: np.random.RandomState, mean: float) -> Floats:
    """Return moments at random with `mean` minutes between them."""
    return np.sort(draw.uniform(0, _END_MIN, draw.poisson(_END_MIN / mean)))


def _log_normal(draw: np.random.RandomState, median: float, sigma: float) -> float:
    return float(median * np.exp(draw.normal(0.0, sigma)))
