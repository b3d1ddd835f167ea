"""Who pays for a run: its time in whole microseconds, cut into parts that add up to it.  Pure."""

from __future__ import annotations

from collections.abc import Sequence


def parts_of(total_us: int, weights: Sequence[int]) -> list[int]:
    """Cut `total_us` into parts in proportion to `weights`, none of them off by a whole one.

    The parts add up to `total_us` exactly, whatever the weights: each is the difference of two
    bounds that are rounded down, and the last bound is the total.

    Args:
        total_us: 0 or more.
        weights: 0 or more each; at least one.  If all are 0, the parts are as equal as can be.

    >>> parts_of(100, [1, 1, 1])
    [33, 33, 34]
    >>> parts_of(7, [0, 0])
    [3, 4]
    """
    whole = sum(weights)
    if not whole:
        weights, whole = [1] * len(weights), len(weights)
    parts, weight, before = [], 0, 0
    for one in weights:
        weight += one
        bound = total_us * weight // whole
        parts.append(bound - before)
        before = bound
    return parts
