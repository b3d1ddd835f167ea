"""What `tidepool status --json` and `GET /admin/pool` show: a pure view of the controller."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pool.phase_times import phases_ms
from pool.recent import Arm, Rates
from pool.rollouts.report import ArmFigures
from pool.tally import Ended
from pool.wire.control import EngineRoute, EngineState
from registry_sync.documents import EndpointSpec, EndpointState
from registry_sync.rollouts import effective_weights

_LONG = ("segments", "evidence")  # of a rollout


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A live worker as its last heartbeat showed it."""

    id: str
    pid: int
    device: str
    address: str
    draining: bool
    wait_us: int
    calls: int
    engines: Sequence[EngineState]
    plans_refused: int = 0
    device_class: str = ""
    builds: Sequence[str] = ()  # "engine/device class"
    phases: Mapping[str, int] = field(default_factory=dict)  # of its start, in µs
    is_fallback: bool = False

    @property
    def state(self) -> str:
        """One of starting, parked, ready and draining."""
        if self.draining:
            return "draining"
        if any(engine.state == "warm" for engine in self.engines):
            return "ready"
        return "starting" if any(e.state == "loading" for e in self.engines) else "parked"


@dataclass(frozen=True, slots=True)
class EdgeStatus:
    """A registered edge as its last report showed it."""

    id: str
    pid: int
    in_flight: int
    away: Mapping[str, str] = field(default_factory=dict)  # worker → why it gets no calls


def status(
    *,
    epoch: int,
    leader: bool,
    workers: Sequence[WorkerStatus],
    edges: Sequence[EdgeStatus],
    specs: Mapping[str, EndpointSpec],
    states: Mapping[str, EndpointState],
    counts: Mapping[tuple[str, str, str], tuple[int, int, int]],
    recent: Mapping[Arm, Rates],
    loads: Mapping[tuple[str, str], int],
    rejected: Mapping[str, str],
    registry_error: str,
    registry_age_s: float | None,
    builds: Sequence[Mapping[str, Any]],
    build_outcomes: Mapping[str, int],
    phases: Sequence[Mapping[str, Any]],
    nodes: Sequence[Mapping[str, Any]] = (),
    wanted: Mapping[tuple[str, str], int] | None = None,
    routes: Mapping[tuple[str, str], EngineRoute] | None = None,
    state_s: Callable[[tuple[str, str]], Mapping[str, float]] = lambda ref: {},
    instance_start_s: float | None = None,
    rollouts: Mapping[str, Mapping[str, Any]] | None = None,
    signing: Mapping[str, Any] | None = None,
    quarantined: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Return the document that both commands print; only live processes are in it."""
    return {
        "controller": {
            "epoch": epoch,
            "leader": leader,
            "registry_error": registry_error,
            "registry_age_s": registry_age_s,  # of what is known of it; None: nothing yet
        },
        "workers": [_worker(worker) for worker in workers],
        "nodes": [dict(node) for node in nodes],
        "instance_start_s": instance_start_s,  # learned, or a first guess; None: no place needs one
        "edges": [
            {"id": e.id, "pid": e.pid, "in_flight": e.in_flight, "away": dict(e.away)}
            for e in edges
        ],
        "endpoints": [
            {
                **_endpoint(
                    *(spec, states.get(name), workers, counts, recent, loads, wanted or {}),
                    *(routes or {}, state_s),
                ),
                "rollout": _rollout((rollouts or {}).get(name)),
            }
            for name, spec in sorted(specs.items())
        ],
        "builds": [dict(row) for row in builds],
        "build_outcomes": dict(build_outcomes),
        "phases": [dict(row) for row in phases],
        "rejected": dict(rejected),
        "signing": dict(signing or {}),
        "quarantined": [dict(row) for row in quarantined],
    }


def _rollout(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what `rollout status` shows, without what is long."""
    if found is None:
        return None
    shown = {name: value for name, value in found.items() if name not in _LONG}
    shadow = found["shadow"]
    if shadow is not None:
        shown["shadow"] = {name: value for name, value in shadow.items() if name != "worst"}
    return shown


def rollout_figures(
    spec: EndpointSpec,
    totals: Mapping[tuple[str, str], Ended],
    recent: Mapping[Arm, Rates],
    workers: Sequence[WorkerStatus],
) -> dict[str, ArmFigures]:
    """Return what is known of the arms of a rollout besides the evidence.

    Args:
        spec: with the rollout.
        totals: by endpoint and variant, what has ended since the rollout began.
        recent: the last minute by arm.
        workers: the live ones.
    """
    found = {}
    for variant in spec.variants:
        ref = (variant.model, variant.version)
        rates = recent.get((spec.endpoint, variant.name, variant.version), Rates())
        ended = totals.get((spec.endpoint, variant.name), Ended())
        found[variant.name] = ArmFigures(
            ended.requests,
            ended.errors,
            ended.failed,
            hit_share=rates.hits / rates.answered if rates.answered else None,
            replicas=_warm(workers, ref),
        )
    return found


def zero_of(route: EngineRoute | None) -> dict[str, Any]:
    """Return where a version is for its callers, and how long one that finds it asleep waits.

    `state` tells the two zeros apart: `asleep` on a machine that is up, or on none (`no_instance`,
    and `starting` once one is on its way).  None: no edge was told yet.
    """
    if route is None:
        return {"state": None, "wake_ms": None}
    return {"state": route.state, "wake_ms": route.wake_ms or None}


def _warm(
    workers: Sequence[WorkerStatus], ref: tuple[str, str], *, is_fallback: bool = False
) -> int:
    return sum(
        engine.state == "warm" and (engine.model, engine.version) == ref
        for worker in workers
        if worker.is_fallback == is_fallback
        for engine in worker.engines
    )


def _worker(worker: WorkerStatus) -> dict[str, Any]:
    return {
        "id": worker.id,
        "pid": worker.pid,
        "device": worker.device,
        "device_class": worker.device_class,
        "builds": list(worker.builds),
        "address": worker.address,
        "state": worker.state,
        "wait_ms": worker.wait_us / 1000,
        "calls": worker.calls,
        "plans_refused": worker.plans_refused,
        "fallback": worker.is_fallback,
        "phases_ms": phases_ms(worker.phases),
        "engines": [
            {
                "model": engine.model,
                "version": engine.version,
                "engine": engine.engine,
                "state": engine.state,
                "bytes": engine.bytes,
                "calls": engine.calls,
                "loads": engine.loads,
                "waiting": engine.waiting,
                "runs": engine.runs,
                "rows": engine.rows,
                "run_s": engine.run_us / 1e6,
                "detail": engine.detail,
                "plan": engine.plan,
                "wake_ms": engine.wake_us / 1000,
                "phases_ms": phases_ms(engine.phases),
            }
            for engine in worker.engines
        ],
    }


def _endpoint(
    spec: EndpointSpec,
    state: EndpointState | None,
    workers: Sequence[WorkerStatus],
    counts: Mapping[tuple[str, str, str], tuple[int, int, int]],
    recent: Mapping[Arm, Rates],
    loads: Mapping[tuple[str, str], int],
    wanted: Mapping[tuple[str, str], int],
    routes: Mapping[tuple[str, str], EngineRoute],
    state_s: Callable[[tuple[str, str]], Mapping[str, float]],
) -> dict[str, Any]:
    refs = {(variant.model, variant.version) for variant in spec.variants}
    engines = [
        engine
        for worker in workers
        for engine in worker.engines
        if (engine.model, engine.version) in refs
    ]
    weights = effective_weights(spec, state)
    variants = []
    of_endpoint = [rates for arm, rates in recent.items() if arm[0] == spec.endpoint]
    for variant in spec.variants:
        ref = (variant.model, variant.version)
        arm = (spec.endpoint, variant.name, variant.version)
        rates = recent.get(arm, Rates())
        requests, errors, hits = counts.get(arm, (0, 0, 0))
        variants.append(
            {
                "name": variant.name,
                "model": variant.model,
                "version": variant.version,
                "weight": weights[variant.name],
                "replicas": _warm(workers, ref),
                "fallbacks": _warm(workers, ref, is_fallback=True),
                **zero_of(routes.get(ref)),
                "state_s": {state: round(s, 3) for state, s in state_s(ref).items()},
                "wanted": wanted.get(ref),  # replicas; None: nothing is decided yet
                "requests": requests,
                "errors": errors,
                "hits": hits,
                "recent": rates.shown(),
            }
        )
    return {
        "name": spec.endpoint,
        "revision": spec.revision,
        "fallback": spec.scale.fallback,
        "held": sum(engine.calls for engine in engines if engine.state == "loading"),
        "wakes": sum(loads.get(ref, 0) for ref in refs),
        "recent": sum(of_endpoint, Rates()).shown(),
        "variants": variants,
    }
