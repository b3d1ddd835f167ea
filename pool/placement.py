"""Where engines are to run: a pure function from what is wanted and what is there.

Decides which worker loads or unloads which engine, and what routes the edges get.  Carries nothing
out, knows no clock, and remembers nothing: the same views give the same plan.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import msgspec

from pool.wire.control import UNLOADED, EngineRoute, EngineState
from registry_sync.documents import EndpointSpec

Ref: TypeAlias = tuple[str, str]  # model, version

WAKE_AT_MAX = 3  # so many workers are named for a wake; a fourth would come too late anyway
UNWANTED_IDLE_S = (
    300.0  # an engine that no endpoint names any more stays so long after its last call
)


class WorkerView(msgspec.Struct, frozen=True):
    """A registered worker as its last heartbeat showed it."""

    id: str
    draining: bool
    engines: Mapping[Ref, EngineState]
    is_cold: bool = False  # there is no process; a call starts it, a command does not reach it


class Demand(msgspec.Struct, frozen=True):
    """What the endpoints want of one version of a model.

    `idle_s` is None where some endpoint keeps it awake; else the longest time that any of them
    lets it idle, and nothing loads it before a call does.
    """

    replicas_min: int
    replicas_max: int
    idle_s: float | None


class Load(msgspec.Struct, frozen=True):
    """Let `worker` load `ref`."""

    worker: str
    ref: Ref


class Unload(msgspec.Struct, frozen=True):
    """Let `worker` drain and drop `ref`."""

    worker: str
    ref: Ref


def demands(
    specs: Iterable[EndpointSpec], weights: Mapping[str, Mapping[str, float]]
) -> dict[Ref, Demand]:
    """Return what all endpoints together want of each version they name.

    Args:
        specs: the current specs.
        weights: effective weights by endpoint and variant, where they differ from the spec's.
    """
    found: dict[Ref, Demand] = {}
    for spec in specs:
        effective = weights.get(spec.endpoint, {})
        for variant in spec.variants:
            scale = spec.scale
            serves = effective.get(variant.name, variant.weight) > 0
            idle_s = None if scale.idle_s == "auto" else float(scale.idle_s)
            if not serves:
                # Nobody is routed there; a call for the version itself still wakes it.
                idle_s = UNWANTED_IDLE_S if idle_s is None else idle_s
            ref = (variant.model, variant.version)
            new = Demand(
                replicas_min=scale.replicas_min if serves else 0,
                replicas_max=scale.replicas_max if serves else 0,
                idle_s=idle_s,
            )
            old = found.get(ref)
            found[ref] = new if old is None else _both(old, new)
    return found


def _both(one: Demand, other: Demand) -> Demand:
    # Only who keeps it awake has its replicas kept; the bound of one that sleeps adds none.
    awake = [demand for demand in (one, other) if demand.idle_s is None]
    return Demand(
        max(one.replicas_min, other.replicas_min),
        max(demand.replicas_max for demand in awake or (one, other)),
        None if awake else max(one.idle_s or 0.0, other.idle_s or 0.0),
    )


def wake_order(ref: Ref, workers: Iterable[str]) -> list[str]:
    """Return `workers` in the order in which everybody tries them for `ref`.

    Rendezvous hashing: each worker is first for its share of the engines, and one that comes or
    goes moves only the engines that it wins or had won.

    >>> wake_order(("m", "1"), ["a", "b"]) == wake_order(("m", "1"), ["b", "a"])
    True
    """

    def score(worker: str) -> bytes:
        key = f"{ref[0]}\0{ref[1]}\0{worker}".encode()
        return hashlib.blake2b(key, digest_size=8).digest()

    return sorted(workers, key=score, reverse=True)


def replicas_wanted(demand: Demand, workers: int) -> int:
    """Return how many replicas are kept without anybody calling.

    Before the autoscaler exists an endpoint that never sleeps has min(workers, replicas_max).
    """
    if demand.idle_s is None:
        return min(workers, max(demand.replicas_max, demand.replicas_min))
    return min(workers, demand.replicas_min)


def plan(wanted: Mapping[Ref, Demand], workers: Sequence[WorkerView]) -> list[Load | Unload]:
    """Return the steps from what the workers have to what is wanted; empty when they agree.

    A worker that has an engine (loading, warm or failed) keeps it before another one is asked, so
    that a plan made twice moves nothing.  One that failed is asked to load again; the worker waits
    as long as its backoff says.  An engine with calls is never unloaded.
    """
    live = [worker for worker in workers if not worker.draining and not worker.is_cold]
    steps: list[Load | Unload] = []
    for ref, demand in wanted.items():
        order = wake_order(ref, (worker.id for worker in live))
        having = _having(ref, live)
        count = replicas_wanted(demand, len(live))
        others = [worker_id for worker_id in order if worker_id not in having]
        steps.extend(
            Load(worker_id, ref)
            for worker_id in (*having, *others)[:count]
            if having.get(worker_id, "failed") == "failed"
        )
    for worker in live:
        steps.extend(_unloads(worker, wanted, live))
    return steps


def _having(ref: Ref, live: Sequence[WorkerView]) -> dict[str, str]:
    """Return the state of `ref` by worker that has it: those that work first, in wake order."""
    states = {
        worker.id: worker.engines[ref].state
        for worker in live
        if ref in worker.engines and worker.engines[ref].state in ("loading", "warm", "failed")
    }
    order = sorted(wake_order(ref, states), key=lambda worker: states[worker] == "failed")
    return {worker: states[worker] for worker in order}


def _unloads(
    worker: WorkerView, wanted: Mapping[Ref, Demand], live: Sequence[WorkerView]
) -> list[Unload]:
    steps = []
    for ref, engine in worker.engines.items():
        if engine.state not in ("warm", "failed") or engine.calls:
            continue
        demand = wanted.get(ref)
        idle_s = UNWANTED_IDLE_S if demand is None else demand.idle_s
        if idle_s is None or engine.idle_s < idle_s:
            continue
        keep = 0 if demand is None else replicas_wanted(demand, len(live))
        if worker.id not in list(_having(ref, live))[:keep]:
            steps.append(Unload(worker.id, ref))
    return steps


def _warm(ref: Ref, workers: Iterable[WorkerView]) -> tuple[str, ...]:
    return tuple(
        sorted(w.id for w in workers if ref in w.engines and w.engines[ref].state == "warm")
    )


def route(ref: Ref, workers: Sequence[WorkerView], *, is_let_go: bool = False) -> EngineRoute:
    """Return where `ref` runs now and who is to wake it, for the edges.

    One that sleeps because somebody had it unloaded says so.  Workers that drain serve on for a
    while: they are named as long as nobody else could answer.
    """
    live = [worker for worker in workers if not worker.draining] or list(workers)
    cold = {worker.id for worker in live if worker.is_cold}
    states = {worker.id: worker.engines[ref] for worker in live if ref in worker.engines}
    warm = _warm(ref, live) or _warm(ref, workers)
    order = wake_order(ref, (worker.id for worker in live))
    # Whoever is already loading it is asked first: the call joins that load.  Who failed to is
    # asked last: another worker may well do.  A process is there sooner than one that has to start.
    ranks = {"loading": 0, "failed": 3}
    order.sort(
        key=lambda worker: (
            ranks.get(states[worker].state, 1) if worker in states else 1 + (worker in cold)
        )
    )
    failed = [engine for engine in states.values() if engine.state == "failed"]
    if warm:
        state, detail = "warm", ""
    elif any(engine.state == "loading" for engine in states.values()):
        state, detail = "loading", ""
    elif failed:
        state, detail = "failed", failed[0].detail
    else:
        state, detail = "asleep", UNLOADED if is_let_go else ""
    return EngineRoute(ref[0], ref[1], warm, tuple(order[:WAKE_AT_MAX]), state, detail)
