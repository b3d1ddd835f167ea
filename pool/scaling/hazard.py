"""When within an idle gap a replica is to be warm: the cheapest set of windows."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pool.scaling.gaps import BINS, EDGES_S, WIDTHS_S

Windows = list[tuple[float, float]]

# It is not worth the while to unload for less than this.
REST_S_MIN: Final = 60.0
REST_WAKES: Final = 2.0


def windows(shares: NDArray[np.float64], cost_s: float, wake_s: float) -> Windows:
    """Return the times within a gap, in seconds since its start, at which to be warm.

    A bin is warm iff a cold start that it spares costs more than idling through it:
    ``cost_s · p_j > w_j · (S_{j+1} + p_j / 2)``, where p_j is the share of gaps that end in
    the bin, w_j its width and S_{j+1} the share that outlasts it.  As idling and cold starts
    both add up over the bins, deciding every bin by itself is the optimum over all sets of
    windows.  A window opens `wake_s` early, so that the wake is over by then.  A rest between
    windows, or before the first, that is hardly longer than a wake saves nothing and is left out.

    Args:
        shares: probability of each bin, shape (BINS,); the last is beyond all edges and is
            never warm.
        cost_s: how long one replica may idle for the sake of one cold start spared.
        wake_s: how long a wake takes.

    Source:
        The policy "hazard windows" of our own research; a window per gap as in Shahrad et al.,
        Serverless in the Wild (ATC 2020), is the case of one head and one tail.
    """
    assert shares.shape == (BINS,)
    ends = shares[:-1]
    outlasts = np.maximum(1.0 - np.cumsum(ends), 0.0)
    is_warm = cost_s * ends > WIDTHS_S * (outlasts + ends / 2)
    turns = np.flatnonzero(np.diff(is_warm.astype(np.int8), prepend=0, append=0))
    rest_s = max(REST_S_MIN, REST_WAKES * wake_s)
    found: Windows = []
    for start, stop in zip(turns[::2], turns[1::2], strict=True):
        opens_s, closes_s = max(0.0, EDGES_S[start] - wake_s), EDGES_S[stop]
        if not found and opens_s <= rest_s:
            opens_s = 0.0
        elif found and opens_s - found[-1][1] <= rest_s:
            opens_s = found.pop()[0]
        found.append((opens_s, closes_s))
    return found
