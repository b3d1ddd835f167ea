"""What copies of every call cost the callers of a worker at its capacity, in virtual time.

The worker's device does one thing at a time, so that a copy is in the way of whoever comes while
it runs: the worst case of a device that both versions share.
"""

from __future__ import annotations

import numpy as np
import pytest

from pool.wire.control import ShadowCount
from tests.support import virtual_time
from tests.support.shadow_bench import Bench, load

RATIO_MAX = 1.05


def lives(
    seed: int, *, rows_max: int, share: float, calls: int
) -> tuple[list[float], list[float], ShadowCount]:
    """Live through the same arrivals without copies and with; return how long calls took."""

    async def live(*, is_shadowed: bool) -> tuple[list[float], ShadowCount | None]:
        bench = Bench(rows_max=rows_max)
        capacity = rows_max / bench.duration_s(rows_max)
        took_s = await load(
            bench,
            calls=calls,
            calls_per_s=share * capacity,
            seed=seed,
            slo_s=0.25 if share >= 1 else 1e6,  # nobody waits for ever
            is_shadowed=is_shadowed,
        )
        return took_s, bench.count if is_shadowed else None

    without, _ = virtual_time.run(live(is_shadowed=False))
    with_copies, count = virtual_time.run(live(is_shadowed=True))
    assert count is not None
    assert len(with_copies) == pytest.approx(len(without), rel=0.001)
    return without, with_copies, count


@pytest.mark.parametrize(("rows_max", "share"), [(1, 0.95), (8, 1.0)])
def test_copies_of_everything_leave_the_tail_as_it_is_at_capacity(
    rows_max: int, share: float
) -> None:
    without, with_copies, count = lives(1, rows_max=rows_max, share=share, calls=1500)
    assert np.percentile(with_copies, 99) <= RATIO_MAX * np.percentile(without, 99)
    assert count.offered == len(with_copies)
    assert count.dropped > 0.5 * count.offered
    assert count.compared > 0


@pytest.mark.slow
@pytest.mark.parametrize("rows_max", [1, 8])
@pytest.mark.parametrize("share", [0.9, 1.0, 1.3])
def test_figure_copies_of_everything_at_capacity(rows_max: int, share: float) -> None:
    """The p99 of callers with copies of everything is ≤ 1.05 × theirs without."""
    ratios, offered, compared = [], 0, 0
    for seed in range(3):
        without, with_copies, count = lives(seed, rows_max=rows_max, share=share, calls=4000)
        ratios.append(np.percentile(with_copies, 99) / np.percentile(without, 99))
        offered, compared = offered + count.offered, compared + count.compared
    print(
        f"rows_max {rows_max} at {share:.0%} of capacity: p99 × {np.mean(ratios):.3f} "
        f"({min(ratios):.3f}-{max(ratios):.3f}); {compared} of {offered} copies compared"
    )
    assert np.mean(ratios) <= RATIO_MAX
