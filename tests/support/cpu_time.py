"""How much CPU time something takes, on a machine that is shared."""

from __future__ import annotations

import time
from collections.abc import Callable


def least_s(action: Callable[[], object], enough_s: float, tries: int = 5) -> float:
    """Return the least CPU time of a few tries, seconds of this thread.

    A machine that is shared only ever adds to it, up to a second at a time.  No further try is
    made once one took less than `enough_s`.
    """
    best_s = float("inf")
    for _ in range(tries):
        started_s = time.thread_time()
        action()
        best_s = min(best_s, time.thread_time() - started_s)
        if best_s < enough_s:
            break
    return best_s
