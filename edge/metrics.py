"""What one edge process counts, cheaply; shown for all edge processes of a node as Prometheus text.

The hot path adds to plain lists.  Every second, and when it ends, a process writes its totals to a
file of its own; whichever process is scraped adds up the files of its siblings.  A process goes on
from the file of the one before it that had its name, so that no counter ever falls.
(prometheus_client's own multiprocess mode locks and writes a shared page for each observation,
several of them per request.)
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

# Seconds; a ratio of ~2 between bounds keeps any quantile within a factor of 1.5.
BOUNDS_S = (
    0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
)  # fmt: skip
ArmKey = tuple[str, int, str, str]  # endpoint, revision, variant, version
BOUNDS_ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)

_log = structlog.get_logger()

_COUNTERS = {
    "tidepool_requests": ("Requests by their end.", ("endpoint", "variant", "status")),
    "tidepool_cache": ("First-level cache by outcome.", ("endpoint", "outcome")),
    "tidepool_dispatch_retries": ("Calls sent again because their worker broke.", ()),
}
_HISTOGRAMS = {
    "tidepool_request_seconds": ("From head to answer, at the edge.", ("endpoint", "variant")),
    "tidepool_queue_seconds": ("Waiting in the worker.", ("endpoint", "variant")),
    "tidepool_infer_seconds": ("The engine's run.", ("endpoint", "variant")),
    "tidepool_batch_rows": ("Rows of the batch that a call was part of.", ("endpoint", "variant")),
}


class Histogram:
    """Counts per bucket, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count `value`."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value


class ArmMetrics:
    """What is counted of one arm, held by the snapshot so that the request's way looks nothing up.

    Cumulative since the process began.
    """

    __slots__ = ("batch_rows", "errors", "hits", "infer_s", "queue_s", "request_s", "requests",
                 "statuses")  # fmt: skip

    def __init__(self) -> None:
        self.requests = 0  # answered, or failed by the model
        self.errors = 0  # failed by the model
        self.hits = 0  # answered without a call of their own
        self.statuses: dict[int, int] = {}
        self.request_s = Histogram(BOUNDS_S)
        self.queue_s = Histogram(BOUNDS_S)
        self.infer_s = Histogram(BOUNDS_S)
        self.batch_rows = Histogram(BOUNDS_ROWS)

    def by_name(self) -> dict[str, Histogram]:
        """Return the histograms by their metric's name."""
        return {
            "tidepool_request_seconds": self.request_s,
            "tidepool_queue_seconds": self.queue_s,
            "tidepool_infer_seconds": self.infer_s,
            "tidepool_batch_rows": self.batch_rows,
        }


class _Total(msgspec.Struct):
    """One process's totals as they lie in its file."""

    counters: list[tuple[str, tuple[str, ...], float]]
    histograms: list[tuple[str, tuple[str, ...], list[int], float]]


class Metrics:
    """Everything that this process counts."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._file = folder / f"{name}.json"
        # What the process of this name before this one had counted; a counter never falls.
        self._before = _read(self._file) or _Total([], [])
        self._counters: dict[tuple[str, tuple[str, ...]], float] = {}
        self._followed: dict[str, Callable[[], float]] = {}
        self.arms: dict[ArmKey, ArmMetrics] = {}
        self.in_flight: Callable[[], int] = lambda: 0
        self.rejected = 0  # documents that did not fit; the last good ones serve

    def arm(self, key: ArmKey) -> ArmMetrics:
        """Return what is counted of an arm."""
        found = self.arms.get(key)
        if found is None:
            found = self.arms[key] = ArmMetrics()
        return found

    def count(self, name: str, *labels: str) -> None:
        """Add one to a counter."""
        key = (name, labels)
        self._counters[key] = self._counters.get(key, 0) + 1

    def follow(self, name: str, read: Callable[[], float]) -> None:
        """Show what somebody else counts as a counter without labels."""
        self._followed[name] = read

    def _total(self) -> _Total:
        total = _Total(
            [(name, labels, value) for (name, labels), value in self._counters.items()], []
        )
        total.counters += [(name, (), read()) for name, read in self._followed.items()]
        for (endpoint, _, variant, _), arm in self.arms.items():
            for status, count in arm.statuses.items():
                labels = (endpoint, variant, str(status))
                total.counters.append(("tidepool_requests", labels, count))
            for outcome, count in (("hit", arm.hits), ("miss", arm.requests - arm.hits)):
                total.counters.append(("tidepool_cache", (endpoint, outcome), count))
            for name, histogram in arm.by_name().items():
                total.histograms.append(
                    (name, (endpoint, variant), histogram.counts, histogram.sum)
                )
        return _merged([self._before, total])

    def save(self) -> None:
        """Write this process's totals for its siblings; a full disk costs them, not the service."""
        partial = self._file.with_suffix(".partial")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(msgspec.json.encode(self._total()))
            partial.replace(self._file)
        except OSError as error:
            _log.warning("metrics_not_saved", error=str(error))

    def text(self) -> bytes:
        """Return the totals of all edge processes of this node as Prometheus text."""
        self.save()
        registry = CollectorRegistry(auto_describe=False)
        self.save()  # what was shown once must not be forgotten
        paths = [path for path in sorted(self._folder.glob("*.json")) if path != self._file]
        siblings = [total for total in map(_read, paths) if total is not None]
        registry.register(
            _Merged(_merged([self._total(), *siblings]), self.in_flight(), self.rejected)
        )
        return generate_latest(registry)


def _read(path: Path) -> _Total | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Total)
    except (OSError, msgspec.DecodeError):
        return None  # written by another release, or gone


def _merged(totals: Sequence[_Total]) -> _Total:
    counters: dict[tuple[str, tuple[str, ...]], float] = {}
    histograms: dict[tuple[str, tuple[str, ...]], tuple[list[int], float]] = {}
    for total in totals:
        for name, labels, value in total.counters:
            counters[name, labels] = counters.get((name, labels), 0) + value
        for name, labels, counts, sum_ in total.histograms:
            old_counts, old_sum = histograms.get((name, labels), ([0] * len(counts), 0.0))
            merged = [a + b for a, b in zip(old_counts, counts, strict=False)]
            histograms[name, labels] = (merged, old_sum + sum_)
    return _Total(
        [(*key, value) for key, value in counters.items()],
        [(*key, *found) for key, found in histograms.items()],
    )


class _Merged(Collector):
    """The sum over all edge processes of a node."""

    def __init__(self, total: _Total, in_flight: int, rejected: int) -> None:
        self._total = total
        self._in_flight = in_flight
        self._rejected = rejected

    def collect(self) -> Iterator[Metric]:
        yield from _counter_families({(n, labels): v for n, labels, v in self._total.counters})
        yield from _histogram_families(
            {(n, labels): (counts, sum_) for n, labels, counts, sum_ in self._total.histograms}
        )
        gauge = GaugeMetricFamily("tidepool_in_flight", "Requests under way in this process.")
        gauge.add_metric([], self._in_flight)
        yield gauge
        gauge = GaugeMetricFamily(
            "tidepool_documents_rejected", "Documents that do not fit; the last good ones serve."
        )
        gauge.add_metric([], self._rejected)
        yield gauge


def _counter_families(
    counters: dict[tuple[str, tuple[str, ...]], float],
) -> Iterator[Metric]:
    for name, (help_text, label_names) in _COUNTERS.items():
        counter = CounterMetricFamily(name, help_text, labels=label_names)
        for (found, labels), value in sorted(counters.items()):
            if found == name:
                counter.add_metric(labels, value)
        yield counter


def _histogram_families(
    histograms: dict[tuple[str, tuple[str, ...]], tuple[list[int], float]],
) -> Iterator[Metric]:
    for name, (help_text, label_names) in _HISTOGRAMS.items():
        bounds = BOUNDS_ROWS if name == "tidepool_batch_rows" else BOUNDS_S
        family = HistogramMetricFamily(name, help_text, labels=label_names)
        for (found, labels), (counts, sum_) in sorted(histograms.items()):
            if found != name:
                continue
            running, buckets = 0, []
            for bound, count in zip((*map(str, bounds), "+Inf"), counts, strict=False):
                running += count
                buckets.append((bound, running))
            family.add_metric(labels, buckets, sum_value=sum_)
        yield family
