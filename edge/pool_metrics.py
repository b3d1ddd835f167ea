"""The pool's state as Prometheus text, out of the controller's status.

It speaks for the whole pool, whichever edge is asked: scrape it from one place, or every sum over
instances counts the pool as often as there are edges.  That is why it is a view of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import accumulate

import msgspec
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from edge.exposition import text_of
from edge.launcher_metrics import launcher_families
from edge.rollout_metrics import Rollout, rollout_families
from pool.wire.histogram import BOUNDS_S

_ENGINE = ("worker", "model", "version", "engine")
_GAUGES = {
    "calls": "Calls that wait or run.",
    "waiting": "Calls that wait.",
    "bytes": "Memory, as the engine says.",
}
_COUNTERS = {
    "loads": "Loads by this worker process.",
    "runs": "Runs since the engine was loaded.",
    "rows": "Rows in these runs.",
    "run_s": "Seconds that they took.",
}


class _Engine(msgspec.Struct):
    model: str
    version: str
    engine: str
    state: str
    calls: int = 0
    waiting: int = 0
    bytes: int = 0
    loads: int = 0
    runs: int = 0
    rows: int = 0
    run_s: float = 0.0


class _Worker(msgspec.Struct):
    id: str
    device: str
    state: str
    calls: int
    wait_ms: float
    engines: list[_Engine]
    plans_refused: int = 0


class _Edge(msgspec.Struct):
    id: str
    in_flight: int = 0
    away: dict[str, str] = {}


class _Variant(msgspec.Struct):
    name: str
    version: str
    replicas: int
    weight: float
    # A controller of the release before sends none of these.
    model: str = ""
    fallbacks: int = 0
    state: str | None = None
    state_s: dict[str, float] = {}


class _Endpoint(msgspec.Struct):
    name: str
    variants: list[_Variant]
    rollout: Rollout | None = None
    held: int = 0


class _Build(msgspec.Struct):
    state: str


class _Phase(msgspec.Struct):
    of: str  # load | start
    engine: str
    phase: str  # empty: all of them together
    sum_s: float
    counts: list[int]  # by `BOUNDS_S`


class _Place(msgspec.Struct):
    state: str
    worker: str = ""


class _Node(msgspec.Struct):
    id: str
    places: list[_Place]
    counts: dict[str, int] = {}  # of a launcher of instances


class _Quarantined(msgspec.Struct):
    model: str
    version: str


class _Controller(msgspec.Struct, frozen=True):
    epoch: int = 0
    registry_age_s: float | None = None


class _Status(msgspec.Struct):
    workers: list[_Worker]
    edges: list[_Edge]
    endpoints: list[_Endpoint]
    # A controller of the release before sends none of these.
    builds: list[_Build] = []
    build_outcomes: dict[str, int] = {}
    phases: list[_Phase] = []
    nodes: list[_Node] = []
    quarantined: list[_Quarantined] = []
    instance_start_s: float | None = None
    controller: _Controller = _Controller()


_status_of = msgspec.json.Decoder(_Status)


def pool_text(status: bytes) -> bytes:
    """Return the document of `GET /admin/pool` as Prometheus text."""
    return text_of(_families(_status_of.decode(status)))


def _families(status: _Status) -> Iterator[Metric]:
    yield from _controller(status.controller)
    state = GaugeMetricFamily(
        "tidepool_worker_state", "1 for the state that a worker is in.", labels=("worker", "state")
    )
    calls = GaugeMetricFamily(
        "tidepool_worker_calls", "Calls that wait or run.", labels=("worker", "device")
    )
    wait = GaugeMetricFamily(
        "tidepool_worker_wait_seconds", "How long a call would wait now.", labels=("worker",)
    )
    refused = CounterMetricFamily(
        "tidepool_worker_plans_refused",
        "Built plans that this worker process would not or could not load.",
        labels=("worker",),
    )
    for worker in status.workers:
        refused.add_metric((worker.id,), worker.plans_refused)
        state.add_metric((worker.id, worker.state), 1)
        calls.add_metric((worker.id, worker.device), worker.calls)
        wait.add_metric((worker.id,), worker.wait_ms / 1e3)
    yield from (state, calls, wait, refused)
    places = GaugeMetricFamily(
        "tidepool_places",
        "Room for worker processes, with or without one.",
        labels=("node", "state"),
    )
    pending = GaugeMetricFamily(
        "tidepool_place_pending",
        "Places whose worker is to be there and is not: starting or silent.",
        labels=("node", "worker", "state"),
    )
    for node in status.nodes:
        found = Counter(place.state for place in node.places)
        for name in ("cold", "starting", "up", "silent", "draining"):
            places.add_metric((node.id, name), found[name])
        for place in node.places:
            if place.state in ("starting", "silent"):
                pending.add_metric((node.id, place.worker, place.state), 1)
    yield from (places, pending)
    yield from _engines(status)
    in_flight = GaugeMetricFamily(
        "tidepool_edge_in_flight", "Requests under way in an edge process.", labels=("edge",)
    )
    for edge in status.edges:
        in_flight.add_metric((edge.id,), edge.in_flight)
    yield in_flight
    away = GaugeMetricFamily(
        "tidepool_worker_away", "Edge processes that leave a worker alone.", labels=("worker",)
    )
    for name, count in sorted(Counter(name for e in status.edges for name in e.away).items()):
        away.add_metric((name,), count)
    yield away
    labels = ("endpoint", "variant", "version")
    warm = GaugeMetricFamily("tidepool_replicas", "Warm replicas.", labels=labels)
    weight = GaugeMetricFamily("tidepool_weight", "Share of the calls, in percent.", labels=labels)
    held = GaugeMetricFamily(
        "tidepool_held", "Calls that wait for a load of their version.", labels=("endpoint",)
    )
    for endpoint in status.endpoints:
        held.add_metric((endpoint.name,), endpoint.held)
        for variant in endpoint.variants:
            warm.add_metric((endpoint.name, variant.name, variant.version), variant.replicas)
            weight.add_metric((endpoint.name, variant.name, variant.version), variant.weight)
    yield from (warm, weight, held)
    yield from _states(status)
    yield from rollout_families(
        [(one.name, one.rollout) for one in status.endpoints if one.rollout is not None]
    )
    quarantined = GaugeMetricFamily(
        "tidepool_quarantined",
        "Requests that are refused because two workers died of them.",
        labels=("model", "version"),
    )
    for ref, count in Counter((q.model, q.version) for q in status.quarantined).items():
        quarantined.add_metric(ref, count)
    yield quarantined
    yield from _builds(status)
    yield from _phases(status)
    yield from launcher_families([(node.id, node.counts) for node in status.nodes])


def _controller(found: _Controller) -> Iterator[Metric]:
    epoch = GaugeMetricFamily(
        "tidepool_controller_epoch", "Of the leadership; another one leads when it rises."
    )
    epoch.add_metric((), found.epoch)
    age = GaugeMetricFamily(
        "tidepool_registry_age_seconds", "Since the controller last read the registry in full."
    )
    if found.registry_age_s is not None:
        age.add_metric((), found.registry_age_s)
    yield from (epoch, age)


def _states(status: _Status) -> Iterator[Metric]:
    labels = ("model", "version")
    copies = GaugeMetricFamily("tidepool_fallbacks", "Warm on fallback workers.", labels=labels)
    state = GaugeMetricFamily(
        "tidepool_version_state",
        "1 for where a version is for its callers; asleep on a machine that is up (asleep) or on "
        "none (no_instance, starting).",
        labels=(*labels, "state"),
    )
    seconds = CounterMetricFamily(
        "tidepool_version_state_seconds",
        "How long it was so, since the controller leads.",
        labels=(*labels, "state"),
    )
    found = {(v.model, v.version): v for one in status.endpoints for v in one.variants if v.state}
    for ref, variant in sorted(found.items()):
        copies.add_metric(ref, variant.fallbacks)
        state.add_metric((*ref, variant.state or ""), 1)
        for name, state_s in sorted(variant.state_s.items()):
            seconds.add_metric((*ref, name), state_s)
    start = GaugeMetricFamily(
        "tidepool_instance_start_seconds",
        "From an instance's being wanted to its worker: learned, or a first guess.",
    )
    if status.instance_start_s is not None:
        start.add_metric((), status.instance_start_s)
    yield from (copies, state, seconds, start)


def _engines(status: _Status) -> Iterator[Metric]:
    found = [
        ((worker.id, engine.model, engine.version, engine.engine), engine)
        for worker in status.workers
        for engine in worker.engines
    ]
    for field, help_text in _GAUGES.items():
        gauge = GaugeMetricFamily(f"tidepool_engine_{field}", help_text, labels=_ENGINE)
        for labels, engine in found:
            gauge.add_metric(labels, getattr(engine, field))
        yield gauge
    for field, help_text in _COUNTERS.items():
        name = f"tidepool_engine_{field.replace('run_s', 'run_seconds')}"
        counter = CounterMetricFamily(name, help_text, labels=_ENGINE)
        for labels, engine in found:
            counter.add_metric(labels, getattr(engine, field))
        yield counter


def _phases(status: _Status) -> Iterator[Metric]:
    labels = ("of", "engine")
    whole = HistogramMetricFamily(
        "tidepool_wake_seconds",
        "Loads of engines (load) and starts of worker processes (start).",
        labels=labels,
    )
    each = HistogramMetricFamily(
        "tidepool_wake_phase_seconds",
        "The same, phase by phase; one load's phases add up to it.",
        labels=(*labels, "phase"),
    )
    for row in status.phases:
        bounds = [*map(str, BOUNDS_S), "+Inf"]
        buckets = list(zip(bounds, accumulate(row.counts), strict=True))
        if row.phase:
            each.add_metric((row.of, row.engine, row.phase), buckets, row.sum_s)
        else:
            whole.add_metric((row.of, row.engine), buckets, row.sum_s)
    yield from (whole, each)


def _builds(status: _Status) -> Iterator[Metric]:
    found = Counter(build.state for build in status.builds)
    plans = GaugeMetricFamily(
        "tidepool_plans",
        "Plans of versions that are wished, wanted, there or refused.",
        labels=("state",),
    )
    for state in ("waiting", "building", "built", "failed", "refused"):
        plans.add_metric((state,), found[state])
    yield plans
    outcomes = CounterMetricFamily(
        "tidepool_builds",
        "Builds given to workers (asked) and how they ended, since the controller leads.",
        labels=("outcome",),
    )
    for outcome, count in sorted(status.build_outcomes.items()):
        outcomes.add_metric((outcome,), count)
    yield outcomes
