"""Durations in buckets: the same bounds in every process of every host, so that counts add up.

A count says how many observations fell into one bucket, and nothing else.  Adding the counts of two
processes bucket by bucket therefore gives exactly what one process would have counted that had seen
both streams; no quantile is ever averaged.  What is lost is the place of a value within its bucket.
"""

from __future__ import annotations

from collections.abc import Sequence

# Seconds, each at most 3 times the one before.  They are part of the wire: counts travel without
# them, so a bound is never inserted, moved or removed without a new field for the counts.
BOUNDS_S = (
    0.000005, 0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005,
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5,
    1.0, 2.0, 5.0, 10.0, 30.0,
)  # fmt: skip
BUCKETS = len(BOUNDS_S) + 1  # the last one is for what is above every bound

# The same for how far one answer is from another, in parts of what it should be; see
# `pool.rollouts.compare`.
ERROR_BOUNDS = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 10.0)
ERROR_BUCKETS = len(ERROR_BOUNDS) + 1


def added(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """Return the counts of both; an empty sequence is one that has seen nothing.

    Raises:
        ValueError: they were counted by different bounds.
    """
    if not one or not other:
        return list(one or other)
    return [a + b for a, b in zip(one, other, strict=True)]


def since(now: Sequence[int], before: Sequence[int]) -> list[int]:
    """Return what was counted between two looks at the same cumulative counts."""
    if not before:
        return list(now)
    return [max(0, a - b) for a, b in zip(now, before, strict=True)]


def quantile_s(counts: Sequence[int], q: float) -> float | None:
    """Estimate the `q`-quantile from counts by `BOUNDS_S`; None if nothing was counted.

    The value lies in the same bucket as the true quantile; within it, it is interpolated as if the
    bucket were evenly filled, which is what Prometheus' `histogram_quantile` does.  Above the last
    bound nothing is known, and the last bound is the answer.

    >>> quantile_s([0] * 7 + [10] + [0] * 14, 0.5)
    0.00075
    """
    assert 0.0 <= q <= 1.0
    total = sum(counts)
    if not total:
        return None
    rank, below = q * total, 0
    for i, count in enumerate(counts):
        if count and below + count >= rank:
            if i >= len(BOUNDS_S):
                break
            low_s = BOUNDS_S[i - 1] if i else 0.0
            return low_s + (BOUNDS_S[i] - low_s) * max(0.0, rank - below) / count
        below += count
    return BOUNDS_S[-1]
