"""Durations in buckets: what adding them keeps, and what a quantile says."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool.wire.histogram import BOUNDS_S, BUCKETS, added, quantile_s, since

seconds = st.lists(st.floats(0.0, 100.0), max_size=60)


def counted(values: list[float]) -> list[int]:
    """Count as every process does."""
    counts = [0] * BUCKETS
    for value in values:
        counts[bisect_left(BOUNDS_S, value)] += 1
    return counts


def test_bounds_rise_and_are_close() -> None:
    ratios = [b / a for a, b in itertools.pairwise(BOUNDS_S)]
    assert all(1 < ratio <= 3.001 for ratio in ratios)


@given(st.lists(seconds, max_size=5))
def test_adding_is_what_one_process_would_have_counted(streams: list[list[float]]) -> None:
    merged: list[int] = []
    for stream in streams:
        merged = added(merged, counted(stream))
    assert merged == (counted([*itertools.chain(*streams)]) if streams else [])


@given(seconds, seconds)
def test_what_came_since_a_look_is_what_came_after_it(old: list[float], new: list[float]) -> None:
    assert since(counted(old + new), counted(old)) == counted(new)


@given(seconds.filter(bool), st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
def test_quantile_lies_in_the_bucket_of_the_true_one(values: list[float], q: float) -> None:
    rank = max(0, math.ceil(q * len(values)) - 1)
    bucket = bisect_left(BOUNDS_S, sorted(values)[rank])
    low_s = BOUNDS_S[bucket - 1] if bucket else 0.0
    high_s = BOUNDS_S[min(bucket, len(BOUNDS_S) - 1)]
    found_s = quantile_s(counted(values), q)
    assert found_s is not None
    assert min(low_s, high_s) <= found_s <= high_s


def test_nothing_has_no_quantile() -> None:
    assert quantile_s([0] * BUCKETS, 0.5) is None
    assert quantile_s([], 0.5) is None


def test_counts_by_other_bounds_are_not_added() -> None:
    with pytest.raises(ValueError, match="zip"):
        added([1] * BUCKETS, [1] * (BUCKETS - 1))
