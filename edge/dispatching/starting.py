"""When a worker is dialled, which may start it: pure functions of how workers can be reached."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol, TypeVar

EXPECTED_S: Final = 1.0  # so long a lost connection is waited for before a process is started
START_S_MAX: Final = 20.0  # for a process to start, before another one is started too
START_S_MIN: Final = 2.0  # it is given so long even where a call's deadline is near
START_AGAIN_S: Final = 1.0  # after one could not be reached; others are started meanwhile


class Reach(Protocol):
    """How a worker can be reached; times are monotonic."""

    @property
    def is_up(self) -> bool: ...

    is_cold: bool  # to dial it is to start it
    dialled_s: float | None  # since when it is dialled in vain; None: it is not
    failed_s: float  # when that was given up last


R = TypeVar("R", bound=Reach)


def needs_call(worker: Reach, now_s: float) -> bool:
    """Tell whether a worker that is not up is dialled only for a call, or by newer routes.

    To dial one that was lost and has not come back might start a process that nobody needs: it
    may have been told to rest, which routes that are old do not say.

    Args:
        worker: how it can be reached.
        now_s: monotonic.
    """
    if worker.is_cold:
        return True
    return worker.dialled_s is not None and now_s - worker.dialled_s > EXPECTED_S


def is_starting(worker: Reach, now_s: float) -> bool:
    """Tell whether a worker that is not up may still come up by itself: it is being dialled.

    Args:
        worker: how it can be reached.
        now_s: monotonic.
    """
    return worker.dialled_s is not None and now_s - worker.dialled_s < START_S_MAX


def are_missed(workers: Iterable[Reach], now_s: float, left_s: float) -> bool:
    """Tell whether a call waits for one of `workers` to come back rather than go to a helper.

    A helper that has to load a version first takes longer than most connections are lost for.  Who
    does not come back is waited for no longer than half of the time that a call has.

    Args:
        workers: those that are tried first; none of them can take the call now.
        now_s: monotonic.
        left_s: until the deadline of the call.
    """
    expected_s = min(EXPECTED_S, left_s)
    return any(
        worker.dialled_s is not None
        and not worker.is_cold
        and now_s - worker.dialled_s < expected_s
        for worker in workers
    )


def to_start(workers: Iterable[R], now_s: float, left_s: float) -> R | None:
    """Return the worker to start for a call that none of `workers` can take now.

    Nobody is started while somebody who has a process is expected back, or while one that starts
    has had no more than `START_S_MAX`, nor more than the call has left: it may hang, and another
    one has the second half of the call's time.  All edges are given the same order, so that one
    process is started and not many.

    Args:
        workers: those that may take the call, in the order in which they are tried.
        now_s: monotonic.
        left_s: until the deadline of the call, or of the first of those that wait.
    """
    start_s_max = min(max(left_s, START_S_MIN), START_S_MAX)
    for worker in workers:
        if worker.is_up:
            return None
        if worker.dialled_s is not None:
            if now_s - worker.dialled_s < (start_s_max if worker.is_cold else EXPECTED_S):
                return None
        elif worker.is_cold and now_s - worker.failed_s >= START_AGAIN_S:
            return worker
    return None
