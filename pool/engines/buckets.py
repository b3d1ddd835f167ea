"""The sizes of batch that a GPU engine is prepared for: a pure function of the largest.

Whoever builds for shapes (TensorRT's profiles, CUDA graphs) prepares these, and a batch in between
is padded to the next one.
"""

from __future__ import annotations


def buckets(rows_max: int) -> tuple[int, ...]:
    """Return 1, 2, 4, … and the largest batch itself.

    >>> buckets(6)
    (1, 2, 4, 6)
    """
    assert rows_max >= 1
    sizes = []
    size = 1
    while size < rows_max:
        sizes.append(size)
        size *= 2
    return (*sizes, rows_max)


def bucket_of(rows: int, rows_max: int) -> int:
    """Return the least bucket that holds a batch of ``0 <= rows <= rows_max``.

    >>> bucket_of(5, 6)
    6
    """
    assert 0 <= rows <= rows_max
    return min(1 << max(rows - 1, 0).bit_length(), rows_max)
