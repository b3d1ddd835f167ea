"""What edges are told about where engines are: out of what is wanted and what is there.

Changes nothing; who is tried for what, `placement` decides.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from pool import fallback, placement
from pool.members import Worker
from pool.placement import Demand, Ref, WorkerView
from pool.scale_orders import ScaleOrders
from pool.wire.control import EngineRoute, WorkerRoute


def engine_routes(
    refs: Iterable[Ref],
    views: Sequence[WorkerView],
    wanted: Mapping[Ref, Demand],
    let_go: Collection[Ref],
    scale: ScaleOrders,
    far_left_s: Callable[[Collection[str]], float] = lambda workers: 0.0,
) -> tuple[EngineRoute, ...]:
    """Return where each of `refs` is, and who is to load it if it is called.

    Args:
        refs: every version that may be called.
        views: all workers, and the places that wait for a call.
        wanted: what is wanted of each version.
        let_go: versions that somebody had unloaded.
        scale: says how long they sleep.
        far_left_s: how long until one of these workers is there, of which none has a machine yet.
    """
    whose = placement.owners(wanted, views)
    reach, left_s = {}, {}
    for owner, own in placement.own_by_owner(wanted, views, whose).items():
        reach[owner] = placement.reach(own)
        left_s[owner] = far_left_s([w.id for w in own]) if reach[owner] == "far" else 0.0

    def route(ref: Ref) -> EngineRoute:
        demand = wanted.get(ref, placement.NOTHING)
        found = placement.route(
            ref,
            views,
            demand,
            whose,
            is_let_go=ref in let_go,
            is_undecided=scale.is_undecided(ref),
            wake_ms=scale.wake_ms(ref, reach[demand.owner], left_s[demand.owner]),
        )
        return fallback.route(found, views, demand, wake_ms=scale.fallback_wake_ms(ref))

    return tuple(route(ref) for ref in refs)


def worker_routes(
    workers: Mapping[str, Worker], cold: Mapping[str, str], engines: Iterable[EngineRoute]
) -> tuple[WorkerRoute, ...]:
    """Return where the workers are that may be called, by name.

    Args:
        workers: those that have registered.
        cold: the addresses of places that a call starts; empty: only the controller can.
        engines: one that drains is told of only where one of these names it.
    """
    named = {worker for engine in engines for worker in (*engine.warm, *engine.wake_at)}
    found = [WorkerRoute(name, "", at, state="cold") for name, at in cold.items() if at]
    found += [
        WorkerRoute(
            *(w.register.id, w.register.incarnation, w.register.address),
            is_fallback=w.register.is_fallback,
        )
        for name, w in workers.items()
        if name not in cold and (name in named or not w.heartbeat.draining)
    ]
    return tuple(sorted(found, key=lambda worker: worker.id))
