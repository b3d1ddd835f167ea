"""The sizes of batch that are prepared."""

from __future__ import annotations

import pytest

from pool.engines.buckets import bucket_of, buckets


@pytest.mark.parametrize(
    ("rows_max", "sizes"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (8, (1, 2, 4, 8)),
        (24, (1, 2, 4, 8, 16, 24)),
        (33, (1, 2, 4, 8, 16, 32, 33)),
    ],
)
def test_they_double_up_to_the_largest_which_is_one_itself(
    rows_max: int, sizes: tuple[int, ...]
) -> None:
    assert buckets(rows_max) == sizes


@pytest.mark.parametrize("rows_max", [1, 2, 3, 7, 8, 9, 32, 100])
def test_a_batch_goes_into_the_least_that_holds_it(rows_max: int) -> None:
    for rows in range(rows_max + 1):
        assert bucket_of(rows, rows_max) == min(b for b in buckets(rows_max) if b >= rows)
