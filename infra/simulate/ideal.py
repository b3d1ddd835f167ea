"""What one who knows everything would pay: replicas that are there by the second."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from infra.simulate.engine import Load

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Sums of fractions of a second are this exact; a replica more takes more work than that.
_ROUNDING_S: Final = 1e-6


def ideal_s(load: Load) -> float:
    """Return the replica-seconds of one who knows all and whose replicas wake in no time.

    In every second so many whole replicas as that second has work, each call running from its
    arrival: what `gpu_hours_ratio` is over.
    """
    return float(needs(load)[1].sum())


def needs(load: Load) -> tuple[Floats, Integers]:
    """Return the seconds that have work, by their begin, and how many replicas each needs."""
    if not len(load.arrivals_s):
        return np.empty(0), np.empty(0, np.int64)
    zero_s = float(np.floor(load.arrivals_s[0]))
    begin_s = load.arrivals_s - zero_s
    end_s = begin_s + load.exec_s
    first, last = begin_s.astype(np.int64), end_s.astype(np.int64)
    pieces = last - first + 1
    if pieces.sum() < last.max():
        # Few seconds have work: list those of every call, and add up what is the same second.
        at = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        every = np.repeat(first, pieces) + at
        work_s = np.minimum(np.repeat(end_s, pieces), every + 1.0)
        work_s -= np.maximum(np.repeat(begin_s, pieces), every)
        seconds, same = np.unique(every, return_inverse=True)
        total_s = np.bincount(same, work_s)
    else:
        # Every second: the pieces at the ends of calls, and how many run right through it.
        many = int(last.max()) + 2
        seconds = np.arange(many)
        is_one = first == last
        head_s = np.where(is_one, load.exec_s, first + 1 - begin_s)
        tail_s = np.where(is_one, 0.0, end_s - last)
        total_s = np.bincount(first, head_s, many) + np.bincount(last, tail_s, many)
        total_s += np.cumsum(
            np.bincount(first + 1, ~is_one, many) - np.bincount(last, ~is_one, many)
        )
    replicas = np.ceil(total_s - _ROUNDING_S).astype(np.int64)
    has_work = replicas > 0
    return seconds[has_work] + zero_s, replicas[has_work]
