"""What fallback workers do: they answer for who says so, while no other worker has a version warm.

Pure functions beside those of `placement`, which knows only of the other workers.  A fallback
worker is never told to load what the demand asks for: a call is the wake, and replicas are wanted
of the other workers meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from pool import placement
from pool.placement import (
    UNWANTED_IDLE_S,
    WAKE_AT_MAX,
    Demand,
    Load,
    Ref,
    Unload,
    WorkerView,
    wake_order,
)
from pool.wire.control import EngineRoute

# Who sleeps on a worker that wakes it so fast needs nobody's help.
QUICK_MS: Final = 1000
# A copy that nobody needs is kept so long after its last call: the next one finds it warm.
IDLE_S: Final = UNWANTED_IDLE_S
_RANKS: Final = {"loading": 0, "failed": 2}


def plan(wanted: Mapping[Ref, Demand], workers: Sequence[WorkerView]) -> list[Load | Unload]:
    """Return the steps of fallback workers; empty when there is nothing to do.

    A copy drains once another worker has the version warm.  One is loaded ahead of a call only
    where calls queue at the others, or the last worker that has it warm is about to go.

    Args:
        wanted: what is wanted of each version.
        workers: all of them.
    """
    helpers = [worker for worker in workers if worker.is_fallback and not worker.draining]
    if not helpers:
        return []
    others = [worker for worker in workers if not worker.is_fallback]
    steps: list[Load | Unload] = []
    for worker in helpers:
        for ref, engine in worker.engines.items():
            if engine.state not in ("warm", "failed"):
                continue
            if ref in wanted and _is_warm(ref, others):
                steps.append(Unload(worker.id, ref, is_elsewhere=engine.state == "warm"))
            elif not engine.calls and engine.idle_s >= _kept_s(wanted.get(ref)):
                steps.append(Unload(worker.id, ref))
    own = placement.own_by_owner(wanted, workers, placement.owners(wanted, workers))
    for ref, demand in wanted.items():
        if demand.fallback_idle_s is None or not demand.replicas or _is_warm(ref, others):
            continue
        states = {worker.id: _state(worker, ref) for worker in helpers}
        free = [name for name in _order(ref, helpers) if states[name] in ("", "failed")]
        if not free or "loading" in states.values():
            continue
        warm = [worker for worker in helpers if states[worker.id] == "warm"]
        has_queue = any(worker.engines[ref].waiting for worker in warm)
        is_up = placement.reach(own[demand.owner]) == "up"
        is_going = not is_up and any(_state(worker, ref) == "warm" for worker in others)
        if has_queue or (is_going and not warm):
            steps.append(Load(free[0], ref))
    return steps


def route(
    found: EngineRoute, workers: Sequence[WorkerView], demand: Demand, *, wake_ms: int = 0
) -> EngineRoute:
    """Return `found` with what fallback workers do for it.

    They come first while no other worker has the version warm, unless one that is up wakes it in
    no time.  Where one has it warm they are named last: for calls that it breaks under, once an
    edge has not reached it for a moment.

    Args:
        found: by `placement.route`.
        workers: all of them.
        demand: what is wanted of the version.
        wake_ms: how long a call would wait for a fallback worker to wake it; 0: not known.
    """
    if demand.fallback_idle_s is None:
        return found
    ref = (found.model, found.version)
    helpers = [worker for worker in workers if worker.is_fallback and not worker.draining]
    order = _order(ref, helpers)
    if not order:
        return found
    last = (*found.wake_at[: WAKE_AT_MAX - 1], order[0])
    if _is_warm(ref, (worker for worker in workers if not worker.is_fallback)):
        return replace(found, wake_at=last)
    is_quick = found.state != "failed" and 0 < found.wake_ms <= QUICK_MS
    warm = tuple(sorted(worker.id for worker in helpers if _state(worker, ref) == "warm"))
    if not warm and found.wake_at and is_quick:
        return replace(found, wake_at=last)
    helping = tuple(order[: WAKE_AT_MAX - 1])
    first = (*helping, *found.wake_at)[:WAKE_AT_MAX]
    if warm:
        return replace(found, warm=warm, wake_at=first, state="fallback", wake_ms=0)
    states = {_state(worker, ref) for worker in helpers}
    if states == {"failed"}:
        if found.wake_at or found.warm:
            return replace(found, wake_at=(*found.wake_at, *helping)[:WAKE_AT_MAX])
        detail = next(worker.engines[ref].detail for worker in helpers)
        return replace(found, wake_at=first, state="failed", detail=detail)
    state = found.state
    if "loading" in states and not found.warm:
        state = "loading"
    elif state == "failed":
        state = "asleep"
    return replace(found, wake_at=first, state=state, wake_ms=0 if found.warm else wake_ms)


def _kept_s(demand: Demand | None) -> float:
    """Return how long after its last call a copy is kept that no other worker replaces."""
    if demand is None:
        return IDLE_S
    if demand.fallback_idle_s is None:  # nobody says any more that it may serve
        return 0.0
    return math.inf if demand.replicas else demand.fallback_idle_s


def _order(ref: Ref, helpers: Sequence[WorkerView]) -> list[str]:
    ranks = {worker.id: _RANKS.get(_state(worker, ref), 1) for worker in helpers}
    return sorted(wake_order(ref, ranks), key=ranks.__getitem__)


def _is_warm(ref: Ref, workers: Iterable[WorkerView]) -> bool:
    return any(_state(worker, ref) == "warm" and not worker.draining for worker in workers)


def _state(worker: WorkerView, ref: Ref) -> str:
    engine = worker.engines.get(ref)
    return "" if engine is None else engine.state
