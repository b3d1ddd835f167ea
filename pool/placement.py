"""Where engines are to run: a pure function from what is wanted and what is there.

Decides which worker loads or unloads which engine, and what routes the edges get.  How many
replicas are wanted is decided in `scaling`; what fallback workers do, in `fallback`.  Carries
nothing out, knows no clock, and remembers nothing: the same views give the same plan.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

import msgspec

from pool.wire.control import UNLOADED, EngineRoute, EngineState

Ref: TypeAlias = tuple[str, str]  # model, version

# What has to be there before something can be loaded: nothing more, a process, or a machine too.
Reach: TypeAlias = Literal["up", "cold", "far"]

WAKE_AT_MAX = 3  # so many workers are named for a wake; a fourth would come too late anyway
UNWANTED_IDLE_S = (
    300.0  # an engine that no endpoint names any more stays so long after its last call
)
_RANKS = {"warm": 0, "loading": 1, "failed": 2}


class WorkerView(msgspec.Struct, frozen=True):
    """A worker as its last heartbeat showed it, or a place where one can be started."""

    id: str
    draining: bool
    engines: Mapping[Ref, EngineState]
    is_cold: bool = False  # there is no process; a call starts it, a command does not reach it
    memory_bytes_max: int = 0  # for engines; 0: not known
    pid: int = 0  # 0: its connection is lost, and it may have ended
    # It is cold, and nobody can dial it: its machine has to be started first, by the controller.
    is_far: bool = False
    is_starting: bool = False  # and that is under way
    is_fallback: bool = False  # see `RegisterWorker`


class Demand(msgspec.Struct, frozen=True):
    """What is wanted of one version now."""

    replicas: int
    owner: str = ""  # the endpoint on whose own workers it runs; empty: on those that all share
    size_bytes: int = 0  # once loaded; 0: not known
    failed_idle_s: float = 60.0  # one that nobody wants shows so long that it failed
    beside: Ref | None = None  # where that is warm, it is to be first
    tries: int = 1  # so many workers try to load it before one that failed is asked again
    # Fallback workers answer while no other worker has it warm, and keep it for so long after their
    # last call while nobody wants it; None: they have no part in it.
    fallback_idle_s: float | None = None


class Load(msgspec.Struct, frozen=True):
    """Let `worker` load `ref`."""

    worker: str
    ref: Ref


class Unload(msgspec.Struct, frozen=True):
    """Let `worker` drain and drop `ref`."""

    worker: str
    ref: Ref
    is_elsewhere: bool = False  # others have it warm; else it goes only while nobody calls


NOTHING = Demand(replicas=0)


def wake_order(ref: Ref, workers: Iterable[str]) -> list[str]:
    """Return `workers` in the order in which everybody tries them for `ref`.

    Rendezvous hashing: each worker is first for its share of the engines, and one that comes or
    goes moves only the engines that it wins or had won.

    >>> wake_order(("m", "1"), ["a", "b"]) == wake_order(("m", "1"), ["b", "a"])
    True
    """
    return list(_wake_order(ref, tuple(workers)))


@functools.lru_cache(maxsize=1 << 14)
def _wake_order(ref: Ref, workers: tuple[str, ...]) -> tuple[str, ...]:
    def score(worker: str) -> bytes:
        key = f"{ref[0]}\0{ref[1]}\0{worker}".encode()
        return hashlib.blake2b(key, digest_size=8).digest()

    return tuple(sorted(workers, key=score, reverse=True))


def owners(wanted: Mapping[Ref, Demand], workers: Sequence[WorkerView]) -> dict[str, str]:
    """Return by worker whose it is: a dedicated endpoint's, or all others' (the empty text).

    Every dedicated endpoint has one worker, also while it sleeps, and more as its versions want
    more replicas.  One worker is always left to those that share; a dedicated endpoint for which
    there is none shares as well.  One that runs the endpoint already is taken first, then one that
    runs nothing that others want, so that a plan made twice moves nothing.  While it sleeps, a
    place whose machine is down does for it: those that are up are there for who calls.
    """
    live = {w.id: w for w in workers if not w.draining and not w.is_fallback}
    wants: dict[str, int] = {}
    for demand in wanted.values():
        if demand.owner:
            wants[demand.owner] = max(1, demand.replicas, wants.get(demand.owner, 0))
    counts: dict[str, int] = {}
    free = len(live) - 1
    for is_first in (True, False):
        for owner in sorted(wants):
            more = 1 if is_first else wants[owner] - counts.get(owner, 0)
            granted = max(0, min(more, free))
            if granted:
                counts[owner] = counts.get(owner, 0) + granted
                free -= granted
    found = dict.fromkeys(live, "")
    for owner, count in counts.items():
        refs = [ref for ref, demand in wanted.items() if demand.owner == owner]
        left = [name for name, taken in found.items() if not taken]
        order = wake_order((owner, ""), left)
        others = {ref for ref, one in wanted.items() if one.replicas and one.owner != owner}
        sleeps = not any(wanted[ref].replicas for ref in refs)
        order.sort(
            key=lambda name: (
                _strangeness(live[name], refs, others),
                sleeps and not (live[name].is_far and not live[name].is_starting),
            )
        )
        found.update(dict.fromkeys(order[:count], owner))
    return found


def _strangeness(worker: WorkerView, refs: Collection[Ref], others: Collection[Ref]) -> int:
    """Return how much would move if the worker became the one of `refs`."""
    running = [ref for ref in worker.engines if _state(worker, ref) in ("warm", "loading")]
    if any(ref in refs for ref in running):
        return 0
    return 2 if any(ref in others for ref in running) else 1


def own(owner: str, workers: Sequence[WorkerView], whose: Mapping[str, str]) -> list[WorkerView]:
    """Return the workers on which an owner's versions may be.

    Args:
        owner: a dedicated endpoint; empty: all that share.
        workers: all of them.
        whose: what `owners` says.
    """
    live = [w for w in workers if not w.draining and not w.is_fallback]
    found = [worker for worker in live if whose.get(worker.id, "") == owner]
    return found or [worker for worker in live if not whose.get(worker.id, "")]


def own_by_owner(
    wanted: Mapping[Ref, Demand], workers: Sequence[WorkerView], whose: Mapping[str, str]
) -> dict[str, list[WorkerView]]:
    """Return `own` of every owner, and of those that share."""
    every = {"", *(demand.owner for demand in wanted.values())}
    return {owner: own(owner, workers, whose) for owner in every}


def reach(own: Sequence[WorkerView]) -> Reach:
    """Say what has to start before an owner's workers can load what sleeps: the least of it."""
    if any(not worker.is_cold for worker in own):
        return "up"
    return "far" if own and all(worker.is_far for worker in own) else "cold"


def reach_more(
    ref: Ref, own: Sequence[WorkerView], size_bytes: int, *, is_far_fleet: bool
) -> Reach:
    """Say what has to start before one more of an owner's workers can have `ref`.

    The first makes room for itself when it is called; others go where there is room.  Where all
    have it, it is what the first needs once they rest: a machine, if it may be that.

    Args:
        ref: the version.
        own: the owner's workers.
        size_bytes: of the version, once loaded; 0: not known.
        is_far_fleet: some place has a machine that is started only when it is needed.
    """
    without = [worker for worker in own if _state(worker, ref) not in ("warm", "loading")]
    if len(without) == len(own):
        return reach(own)
    left = [worker for worker in without if worker.is_cold or fits(worker, size_bytes)]
    return reach(left) if left else "far" if is_far_fleet else "up"


class _Place(msgspec.Struct, frozen=True):
    """Where one version is to be, and what has to happen for that."""

    at: list[WorkerView]  # the workers that may have it
    keep: list[str]  # those that are to
    loads: list[str]
    unloads: list[Unload]
    leaving: set[str]  # workers that have it and are asked no more


def _place(
    ref: Ref,
    demand: Demand,
    workers: Sequence[WorkerView],
    whose: Mapping[str, str],
    planned_bytes: Mapping[str, int],
    companions: Collection[str] = (),  # workers that are to have what it is to be beside
) -> _Place:
    live = [worker for worker in workers if not worker.draining]
    at = own(demand.owner, workers, whose)
    states = {worker.id: _state(worker, ref) for worker in live}
    up = [worker for worker in at if not worker.is_cold]
    order = wake_order(ref, [worker.id for worker in up])
    if demand.beside is not None:
        there = {worker.id for worker in up if _state(worker, demand.beside) == "warm"}
        order.sort(key=lambda name: name not in there)
    having = sorted(
        (name for name in order if states[name] in _RANKS), key=lambda name: _RANKS[states[name]]
    )
    failed = [name for name in having if states[name] == "failed"]
    if len(failed) < demand.tries:
        having = having[: len(having) - len(failed)]
    keep = having[: demand.replicas]
    if len(keep) < demand.replicas:
        fitting = {
            worker.id
            for worker in up
            if fits(worker, planned_bytes.get(worker.id, 0) + demand.size_bytes)
        }
        tried = {*having, *failed}
        others = [name for name in order if name in fitting and name not in tried]
        if companions:
            others.sort(key=lambda name: name not in companions)
        others += [name for name in failed if name not in having]
        keep += others[: demand.replicas - len(keep)]
    is_warm = any(states[name] == "warm" for name in keep)
    is_tried = demand.tries == 1 or all(states[name] == "warm" for name in keep)
    extra = [
        worker
        for worker in live
        if worker.id not in keep and states[worker.id] in ("warm", "failed")
    ]
    return _Place(
        at,
        keep,
        [name for name in keep if states[name] in ("", "draining", "failed")],
        [
            Unload(worker.id, ref, is_warm and states[worker.id] == "warm")
            for worker in extra
            if (is_warm and (is_tried or states[worker.id] == "warm"))
            or (not demand.replicas and _may_go(worker.engines[ref], demand))
        ],
        {worker.id for worker in extra} if is_warm else set(),
    )


def _may_go(engine: EngineState, demand: Demand) -> bool:
    is_fresh = engine.state == "failed" and engine.idle_s < demand.failed_idle_s
    return not engine.calls and not is_fresh


def _state(worker: WorkerView, ref: Ref) -> str:
    engine = worker.engines.get(ref)
    return "" if engine is None else engine.state


def fits(worker: WorkerView, more_bytes: int) -> bool:
    """Tell whether a worker has room for so much more, as far as that is known."""
    if not worker.memory_bytes_max:
        return True
    used_bytes = sum(engine.bytes for engine in worker.engines.values())
    return used_bytes + more_bytes <= worker.memory_bytes_max


def plan(wanted: Mapping[Ref, Demand], workers: Sequence[WorkerView]) -> list[Load | Unload]:
    """Return the steps from what the workers have to what is wanted; empty when they agree.

    A worker that has an engine keeps it before another one is asked (warm ones first, failed ones
    last), so that a plan made twice moves nothing.  One that failed is asked to load again, once
    as many as `tries` have; the worker waits as long as its backoff says.  A version is loaded only
    where its size is known to fit.  The last replica is never unloaded under a call; one of several
    is, and drains.
    """
    workers = _without_fallback(workers)
    whose = owners(wanted, workers)
    steps: list[Load | Unload] = []
    unloads: list[Unload] = []
    planned_bytes: dict[str, int] = {}  # by the loads that are decided
    kept: dict[Ref, list[str]] = {}
    # Who is to be beside another comes last: it may be that both are to be loaded now.
    for ref, demand in sorted(wanted.items(), key=lambda item: item[1].beside is not None):
        beside = () if demand.beside is None else kept.get(demand.beside, ())
        place = _place(ref, demand, workers, whose, planned_bytes, beside)
        kept[ref] = place.keep
        steps += [Load(worker_id, ref) for worker_id in place.loads]
        for worker_id in place.loads:
            planned_bytes[worker_id] = planned_bytes.get(worker_id, 0) + demand.size_bytes
        unloads += place.unloads
    for worker in workers:
        if not worker.draining:
            unloads += [
                Unload(worker.id, ref)
                for ref, engine in worker.engines.items()
                if ref not in wanted
                and engine.state in ("warm", "failed")
                and not engine.calls
                and engine.idle_s >= UNWANTED_IDLE_S
            ]
    return [*steps, *unloads]


def route(
    ref: Ref,
    workers: Sequence[WorkerView],
    demand: Demand = NOTHING,
    whose: Mapping[str, str] | None = None,
    *,
    is_let_go: bool = False,
    is_undecided: bool = False,
    wake_ms: int = 0,
) -> EngineRoute:
    """Return where `ref` runs now and who is to wake it, for the edges.

    One that sleeps because somebody had it unloaded says so; one that sleeps and is about to be
    loaded, or may be, says that it loads; one that can wake on no machine that is up says whether
    one is on its way.  Workers that drain, or give this version up, serve on
    for a while: they are named as long as nobody else could answer.

    Args:
        ref: the version.
        workers: all of them.
        demand: what is wanted of it.
        whose: what `owners` says.
        is_let_go: it was unloaded by request.
        is_undecided: nobody has said yet how many replicas are wanted.
        wake_ms: how long a call would wait that found it asleep; 0: not known.
    """
    workers = _without_fallback(workers)
    place = _place(ref, demand, workers, whose or {}, {})
    found = place.at or list(workers)
    live = [worker for worker in found if not worker.is_far]
    states = {worker.id: worker.engines[ref] for worker in live if ref in worker.engines}
    staying = [worker for worker in workers if worker.id not in place.leaving]
    warm = _warm(ref, (w for w in staying if not w.draining)) or _warm(ref, workers)
    order = wake_order(ref, (worker.id for worker in live))
    # Whoever is already loading it is asked first: the call joins that load.  A process is there
    # sooner than one that has to start.  Who failed to load is asked last: another may well do.
    ranks = {"loading": 0, "failed": 3}
    cold = {worker.id for worker in live if worker.is_cold}
    order.sort(key=lambda name: ranks.get(states[name].state, 1) if name in states else
               1 + (name in cold))  # fmt: skip
    failed = [engine for engine in states.values() if engine.state == "failed"]
    detail = ""
    if warm:
        state = "warm"
    elif any(engine.state == "loading" for engine in states.values()):
        state = "loading"
    elif failed:
        state, detail = "failed", failed[0].detail
    elif found and not live:
        state = "starting" if any(worker.is_starting for worker in found) else "no_instance"
        detail = UNLOADED if is_let_go else ""
    elif place.loads or (is_undecided and not is_let_go):
        state = "loading"
    else:
        state, detail = "asleep", UNLOADED if is_let_go else ""
    return EngineRoute(
        *(*ref, warm, tuple(order[:WAKE_AT_MAX]), state, detail, 0 if warm else wake_ms)
    )


def _without_fallback(workers: Sequence[WorkerView]) -> list[WorkerView]:
    return [worker for worker in workers if not worker.is_fallback]


def _warm(ref: Ref, workers: Iterable[WorkerView]) -> tuple[str, ...]:
    return tuple(sorted(worker.id for worker in workers if _state(worker, ref) == "warm"))
