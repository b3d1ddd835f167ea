"""Counters as Prometheus text: under our names, and under those of NVIDIA's Triton server.

Both are views of the same totals, so they add up with each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from edge.arm_metrics import BOUNDS_ROWS, ArmTotal, sum_of
from pool.wire.histogram import BOUNDS_S

ARM = ("endpoint", "variant", "version")

_COUNTERS = {
    "tidepool_requests": ("Requests by their end.", (*ARM, "status")),
    "tidepool_cache": ("First-level cache by outcome.", (*ARM, "outcome")),
    "tidepool_rows": ("Rows computed.", ARM),
    "tidepool_executions": ("Batches run, by the shares that calls had in them.", ARM),
    "tidepool_cold_calls": ("Calls that began while no worker had the version warm.", ARM),
    "tidepool_device_seconds": (
        "For which calls held a device, each its part of its runs.",
        (*ARM, "device"),
    ),
    "tidepool_device_cost_usd": (
        "What that cost by the device's price, where that is known.",
        (*ARM, "device"),
    ),
    "tidepool_quota_refusals": ("Requests that a limit of their key refused.", ("limit",)),
    "tidepool_dispatch_calls": ("Calls for workers, each counted once.", ()),
    "tidepool_dispatch_attempts": ("Times that a worker was sent a call.", ()),
    "tidepool_dispatch_retries": ("Calls sent again because their worker was lost.", ()),
    "tidepool_dispatch_retries_refused": ("Calls failed because their worker was lost.", ()),
    "tidepool_dispatch_hedges": ("Calls sent to a second replica because they took long.", ()),
    "tidepool_dispatch_hedges_won": ("Of these, those that the second one answered.", ()),
    "tidepool_dispatch_ejections": ("Times that an edge left a worker alone.", ("why",)),
    "tidepool_fallback_answers": (
        "Calls that fallback workers answered, while no other worker had the version warm.",
        ("model", "version"),
    ),
    "tidepool_no_instance_refusals": (
        "Calls refused because no instance is up, nor would be by their deadline.",
        ("model", "version"),
    ),
    "tidepool_quarantine_refusals": ("Calls refused because two workers died of them.", ()),
    "tidepool_quarantine_requests": ("Requests that were found to kill workers.", ()),
    "tidepool_dispatch_returns": ("Calls sent elsewhere because their worker drained.", ()),
    "tidepool_access_lines_dropped": ("Requests that have no line in the access log.", ()),
    "tidepool_audit_records_lost": ("Changes whose record the audit trail has not.", ()),
    "tidepool_cache_lookups": ("Lookups of answers by level.", ("level", "outcome")),
    "tidepool_cache_stored": ("Answers stored by level.", ("level",)),
    "tidepool_cache_stale": ("Answers served though they were not fresh.", ("why",)),
    "tidepool_cache_renewals": ("Computations behind stale answers.", ("outcome",)),
    "tidepool_cache_disk_dropped": ("Reads and writes that were not tried.", ("what",)),
    "tidepool_cache_disk_errors": ("Failures of the disk, each one a miss.", ("kind",)),
}
_GAUGES = {
    "tidepool_controller_silence_seconds": "Since an edge of this node heard of a controller.",
    "tidepool_dispatch_workers_away": "Workers that edges leave alone now, each edge by itself.",
    "tidepool_cache_memory_bytes": "What the answers in memory weigh.",
    "tidepool_cache_disk_bytes": "What the answers on disk weigh, at the last write.",
    "tidepool_cache_disk_off": "Edges that leave the disk alone for now because it failed.",
}
_HISTOGRAMS = {
    "request": "From head to answer, at the edge.",
    "auth": "From head to the key's being found good.",
    "parse": "From the body's last byte to its being checked.",
    "cache": "Looking up the answer.",
    "queue": "Waiting in the worker.",
    "infer": "The engine's run.",
    "respond": "From the result to the rendered answer.",
    "batch_rows": "Rows of the batch that a call was part of.",
}
# Triton's reasons, as its docs/user_guide/metrics.md has them.
_REASONS = {429: "REJECTED", 503: "REJECTED", 499: "CANCELED", 500: "BACKEND", 502: "BACKEND"}
_US = 1e6


class CounterLike(Protocol):
    """A counter that belongs to no arm."""

    @property
    def name(self) -> str: ...
    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def value(self) -> float: ...


class RowLike(Protocol):
    """An arm's totals."""

    @property
    def arm(self) -> tuple[str, str, str]: ...
    @property
    def total(self) -> ArmTotal: ...
    @property
    def pending(self) -> int: ...


class TotalsLike(Protocol):
    """See `edge.metrics.Totals`."""

    @property
    def counters(self) -> Sequence[CounterLike]: ...
    @property
    def arms(self) -> Sequence[RowLike]: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def rejected(self) -> int: ...
    @property
    def gauges(self) -> Sequence[CounterLike]: ...


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def text_of(families: Iterable[Metric]) -> bytes:
    """Return metric families as Prometheus text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(families))
    return generate_latest(registry)


def native_text(totals: TotalsLike) -> bytes:
    """Return `totals` under the names `tidepool_…`."""
    rows = sorted(totals.arms, key=lambda row: row.arm)
    lines: list[str] = []
    for what, help_text in _HISTOGRAMS.items():
        name = "tidepool_batch_rows" if what == "batch_rows" else f"tidepool_{what}_seconds"
        bounds = BOUNDS_ROWS if what == "batch_rows" else BOUNDS_S
        written = [*map(_bound, bounds), "+Inf"]
        lines += _histogram_lines(name, help_text, written, what, rows)
    return text_of(_native(totals, rows)) + "".join(lines).encode()


def _native(totals: TotalsLike, rows: Sequence[RowLike]) -> Iterator[Metric]:
    families = {
        name: CounterMetricFamily(name, help_text, labels=labels)
        for name, (help_text, labels) in _COUNTERS.items()
    }
    for counter in sorted(totals.counters, key=lambda counter: (counter.name, counter.labels)):
        if counter.name in families:
            families[counter.name].add_metric(counter.labels, counter.value)
    for row in rows:
        total = row.total
        for status, count in sorted(total.statuses.items()):
            families["tidepool_requests"].add_metric((*row.arm, str(status)), count)
        for outcome, count in (("hit", total.hits), ("miss", total.requests - total.hits)):
            families["tidepool_cache"].add_metric((*row.arm, outcome), count)
        families["tidepool_rows"].add_metric(row.arm, total.rows)
        families["tidepool_executions"].add_metric(row.arm, total.executions)
        families["tidepool_cold_calls"].add_metric(row.arm, total.cold_calls)
        for device, device_us in sorted(total.device_us.items()):
            families["tidepool_device_seconds"].add_metric((*row.arm, device), device_us / _US)
        for device, usd in sorted(total.device_usd.items()):
            families["tidepool_device_cost_usd"].add_metric((*row.arm, device), usd)
    yield from families.values()
    for found in totals.gauges:
        if found.name in _GAUGES:
            yield _gauge(found.name, _GAUGES[found.name], found.value)
    yield _gauge("tidepool_in_flight", "Requests under way at this node.", totals.in_flight)
    yield _gauge(
        "tidepool_documents_rejected",
        "Documents that do not fit; the last good ones serve.",
        totals.rejected,
    )


def _histogram_lines(
    name: str, help_text: str, bounds: Sequence[str], what: str, rows: Sequence[RowLike]
) -> Iterator[str]:
    """Yield a histogram as text.

    prometheus_client takes 6 µs for each sample, and there are 22 of each arm and phase: at 100
    endpoints a scrape would keep a core busy for over 0.1 s.  This takes a twentieth.
    """
    yield f"# HELP {name} {help_text}\n# TYPE {name} histogram\n"
    for row in rows:
        found = row.total.histograms[what]
        if not any(found.counts):
            continue
        labels = ",".join([f'{k}="{_escaped(v)}"' for k, v in zip(ARM, row.arm, strict=True)])
        running = 0
        for bound, count in zip(bounds, found.counts, strict=True):
            running += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {running}\n'
        yield f"{name}_count{{{labels}}} {running}\n{name}_sum{{{labels}}} {found.sum!r}\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _bound(bound: float) -> str:
    """Write a bound without an exponent, for whoever compares `le` as text."""
    return f"{bound:.6f}".rstrip("0").rstrip(".") if isinstance(bound, float) else str(bound)


def _gauge(name: str, help_text: str, value: float) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(name, help_text)
    gauge.add_metric([], value)
    return gauge


def triton_text(totals: TotalsLike) -> bytes:
    """Return `totals` under the names `nv_…` that dashboards for Triton ask for.

    `model` is the name that clients call.  Durations are sums of microseconds; `compute_input` is
    the phase parse, `compute_output` respond, both of cached answers too.
    """
    models: dict[tuple[str, str], ArmTotal] = {}
    pending: dict[tuple[str, str], int] = {}
    for row in totals.arms:
        key = (row.arm[0], row.arm[2])
        known = models.get(key)
        models[key] = row.total if known is None else sum_of(known, row.total)
        pending[key] = pending.get(key, 0) + row.pending
    return text_of(_triton(dict(sorted(models.items())), pending))


def _triton(
    models: Mapping[tuple[str, str], ArmTotal], pending: Mapping[tuple[str, str], int]
) -> Iterator[Metric]:
    def family(name: str, help_text: str, values: Mapping[tuple[str, str], float]) -> Metric:
        # Triton's names have no `_total`, which CounterMetricFamily would add.
        counter = Metric(name, help_text, "unknown")
        for (model, version), value in values.items():
            counter.add_sample(name, {"model": model, "version": version}, value)
        return counter

    def each(read: str) -> dict[tuple[str, str], float]:
        return {key: round(total.seconds(read) * _US) for key, total in models.items()}

    yield family(
        "nv_inference_request_success",
        "Requests that were answered.",
        {key: total.ok for key, total in models.items()},
    )
    failures = Metric("nv_inference_request_failure", "Requests that failed.", "unknown")
    for (model, version), total in models.items():
        reasons = dict.fromkeys(("REJECTED", "CANCELED", "BACKEND", "OTHER"), 0)
        for status, count in total.statuses.items():
            if status != 200:
                reasons[_REASONS.get(status, "OTHER")] += count
        for reason, count in reasons.items():
            labels = {"model": model, "version": version, "reason": reason}
            failures.add_sample("nv_inference_request_failure", labels, count)
    yield failures
    yield family(
        "nv_inference_count", "Rows computed.", {key: total.rows for key, total in models.items()}
    )
    yield family(
        "nv_inference_exec_count",
        "Batches run.",
        {key: round(total.executions) for key, total in models.items()},
    )
    yield family("nv_inference_pending_request_count", "Calls that wait or run.", pending)
    yield family(
        "nv_inference_request_duration_us",
        "From head to answer, of requests that were answered.",
        {key: round(total.ok_s * _US) for key, total in models.items()},
    )
    for name, phase in (
        ("queue", "queue"),
        ("compute_input", "parse"),
        ("compute_infer", "infer"),
        ("compute_output", "respond"),
    ):
        yield family(f"nv_inference_{name}_duration_us", f"The phase {phase}.", each(phase))
    yield family(
        "nv_cache_num_hits_per_model",
        "Answered without a call of their own.",
        {key: total.hits for key, total in models.items()},
    )
    yield family(
        "nv_cache_num_misses_per_model",
        "Looked up and computed.",
        {key: total.misses for key, total in models.items()},
    )
    yield family(
        "nv_cache_hit_duration_per_model",
        "Looking up what was a hit, in microseconds.",
        {key: round(total.hit_s * _US) for key, total in models.items()},
    )
    yield family(
        "nv_cache_miss_duration_per_model",
        "Looking up what was a miss, in microseconds.",
        {
            key: round(max(0.0, total.seconds("cache") - total.hit_s) * _US)
            for key, total in models.items()
        },
    )
