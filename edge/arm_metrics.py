"""What is counted of one arm: plain numbers in the process that answers, and their sums elsewhere.

`ArmMetrics` is what the request's way adds to.  `ArmTotal` is its copy as a value: what lies in a
process's file, what the sum over processes is, and what every view of it is made from (Prometheus
text, `nv_inference_*`, `/v2/models/…/stats`).  There is no second place that counts calls.

A request leaves one row of durations; rows are sorted into buckets many at a time, which costs a
fifth of doing it one by one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.device_prices import NO_PRICES, added, costs_usd
from pool.wire import histogram
from pool.wire.histogram import BOUNDS_S, BUCKETS

BOUNDS_ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)
# Each of them a histogram of seconds; a phase that a request did not go through is not observed.
PHASES = ("auth", "parse", "cache", "queue", "infer", "respond")
# request, auth, parse, cache, respond in seconds; queue, infer in µs; rows of the batch, own rows.
Row = tuple[float, float, float, float, float, float, float, int, int]
ABSENT = -1.0  # of a phase that a request did not go through
MODEL_FAILED = (500, 502, 504)  # the model failed, its worker was lost, it took too long
ROWS_MAX = 512  # sorted together


class Histogram:
    """Counts per bucket, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...] = BOUNDS_S) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count `value`; one that equals a bound belongs below it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def observe_all(self, values: NDArray[np.float64]) -> None:
        """Count each of `values`, but for those below 0."""
        there = values[values >= 0]
        places = np.searchsorted(np.array(self.bounds), there, side="left")
        added = np.bincount(places, minlength=len(self.counts)).tolist()
        self.counts = [count + more for count, more in zip(self.counts, added, strict=True)]
        self.sum += float(there.sum())


class ArmMetrics:
    """What one process has counted of one arm since it began; only ever grows.

    Held by the snapshot, so that the request's way looks nothing up.
    """

    __slots__ = (
        "auth_s", "batch_rows", "batches", "cache_s", "cold_calls", "device_us", "errors",
        "executions", "hit_s", "hits", "infer_s", "last_s", "ok_s", "parse_s", "queue_s",
        "request_s", "requests", "respond_s", "rows", "statuses", "unsorted",
    )  # fmt: skip

    def __init__(self) -> None:
        self.requests = 0  # answered, or failed by the model
        self.errors = 0  # failed by the model
        self.hits = 0  # answered without a call of their own
        self.cold_calls = 0  # began while no worker had the version warm
        self.rows = 0  # computed: of the answers that came from a worker
        self.executions = 0.0  # batches run: a call of 3 rows in a batch of 12 is a quarter of one
        self.ok_s = 0.0  # of the requests that were answered, from head to answer
        self.hit_s = 0.0  # looking up what was then a hit
        self.last_s = 0.0  # when the last one was answered, on the monotonic clock
        self.batches: dict[int, list[float]] = {}  # rows → the fields of `Batches`
        self.statuses: dict[int, int] = {}
        # By device, for how long calls held it: each its part of its runs, also those that failed,
        # were given up, or were sent twice.
        self.device_us: dict[str, int] = {}
        self.request_s = Histogram()
        self.auth_s = Histogram()
        self.parse_s = Histogram()
        self.cache_s = Histogram()
        self.queue_s = Histogram()
        self.infer_s = Histogram()
        self.respond_s = Histogram()
        self.batch_rows = Histogram(BOUNDS_ROWS)
        self.unsorted: list[Row] = []

    def add(self, row: Row) -> None:
        """Take the durations of a request that has ended."""
        self.unsorted.append(row)
        if len(self.unsorted) >= ROWS_MAX:
            self.sort()

    def sort(self) -> None:
        """Sort what was taken into the histograms; who reads these calls it before."""
        if not self.unsorted:
            return
        taken, self.unsorted = np.array(self.unsorted), []
        request_s, auth_s, parse_s, cache_s, respond_s, queue_us, infer_us, batch = taken.T[:8]
        self.request_s.observe_all(request_s)
        self.auth_s.observe_all(auth_s)
        self.parse_s.observe_all(parse_s)
        self.cache_s.observe_all(cache_s)
        self.respond_s.observe_all(respond_s)
        self.queue_s.observe_all(queue_us / 1e6)
        self.infer_s.observe_all(infer_us / 1e6)
        self.batch_rows.observe_all(batch)
        self._sort_batches(taken[batch > 0])

    def _sort_batches(self, ran: NDArray[np.float64]) -> None:
        """Count each call's share of the batch that it was part of."""
        _, _, parse_s, _, respond_s, _, infer_us, batch, own = ran.T
        share = own / batch
        self.executions += float(share.sum())
        self.rows += int(own.sum())
        for size in np.unique(batch).tolist():
            its = batch == size
            sums = self.batches.setdefault(int(size), [0.0, 0.0, 0.0, 0.0])
            sums[0] += float(share[its].sum())
            sums[1] += float(np.maximum(parse_s[its], 0.0).sum())
            sums[2] += float((infer_us[its] * share[its]).sum()) / 1e6
            sums[3] += float(np.maximum(respond_s[its], 0.0).sum())

    @property
    def failed(self) -> int:
        """How many ended with a status of 500 or more."""
        return sum([count for status, count in self.statuses.items() if status >= 500])

    @property
    def model_failed(self) -> int:
        """How many ended as a rollout's guards take for an error."""
        return sum([self.statuses.get(status, 0) for status in MODEL_FAILED])

    def histograms(self) -> dict[str, Histogram]:
        """Return the histograms by what they measure."""
        phases = {phase: getattr(self, f"{phase}_s") for phase in PHASES}
        return {"request": self.request_s, **phases, "batch_rows": self.batch_rows}


class Buckets(msgspec.Struct, array_like=True, frozen=True):
    """A histogram as a value."""

    counts: list[int]
    sum: float = 0.0


class Batches(msgspec.Struct, array_like=True, frozen=True):
    """The batches of one size: how many ran, and how long they took in all."""

    runs: float  # each call of r of its b rows adds r/b
    input_s: float  # reading the bodies of their calls
    infer_s: float
    output_s: float  # rendering their answers


class ArmTotal(msgspec.Struct, array_like=True, frozen=True):
    """What one or several processes have counted of one arm, as a value.

    `histograms` are by "request", each of `PHASES`, and "batch_rows"; all of them are there.
    """

    statuses: dict[int, int]
    requests: int
    errors: int
    hits: int
    rows: int
    executions: float
    ok_s: float
    hit_s: float
    last_ms: int  # Unix time of the last answer; 0: none yet
    histograms: dict[str, Buckets]
    batches: dict[int, Batches] = {}  # by their rows
    cold_calls: int = 0
    device_us: dict[str, int] = {}  # by device
    device_usd: dict[str, float] = {}  # of that, by the prices of the day; none where none is known

    def seconds(self, phase: str) -> float:
        """Return the sum of a histogram."""
        return self.histograms[phase].sum

    def count(self, phase: str) -> int:
        """Return how many observations a histogram has."""
        return sum(self.histograms[phase].counts)

    @property
    def ok(self) -> int:
        """How many requests were answered with a result."""
        return self.statuses.get(200, 0)

    @property
    def failed(self) -> int:
        """How many requests ended in any other way."""
        return sum(self.statuses.values()) - self.ok

    @property
    def failed_s(self) -> float:
        """How long those took."""
        return max(0.0, self.seconds("request") - self.ok_s)

    @property
    def misses(self) -> int:
        """How many looked into the cache and then had to be computed, or failed."""
        return max(0, self.count("cache") - self.hits)


def total_of(
    arm: ArmMetrics, unix_s: float, now_s: float, usd_per_h: Mapping[str, float] = NO_PRICES
) -> ArmTotal:
    """Return what `arm` has counted.

    Args:
        arm: of one process, since it began.
        unix_s: this moment.
        now_s: the same moment on the monotonic clock.
        usd_per_h: of devices, see `edge.device_prices`.
    """
    arm.sort()
    return ArmTotal(
        dict(arm.statuses),
        arm.requests,
        arm.errors,
        arm.hits,
        arm.rows,
        arm.executions,
        arm.ok_s,
        arm.hit_s,
        int((unix_s - (now_s - arm.last_s)) * 1000) if arm.last_s else 0,
        {name: Buckets(list(h.counts), h.sum) for name, h in arm.histograms().items()},
        {rows: Batches(*batch) for rows, batch in arm.batches.items()},
        arm.cold_calls,
        dict(arm.device_us),
        costs_usd(arm.device_us, usd_per_h),
    )


def sum_of(one: ArmTotal, other: ArmTotal) -> ArmTotal:
    """Return the counts of both together."""
    statuses = dict(one.statuses)
    for status, count in other.statuses.items():
        statuses[status] = statuses.get(status, 0) + count
    return ArmTotal(
        statuses,
        one.requests + other.requests,
        one.errors + other.errors,
        one.hits + other.hits,
        one.rows + other.rows,
        one.executions + other.executions,
        one.ok_s + other.ok_s,
        one.hit_s + other.hit_s,
        max(one.last_ms, other.last_ms),
        {
            name: Buckets(
                histogram.added(buckets.counts, other.histograms[name].counts),
                buckets.sum + other.histograms[name].sum,
            )
            for name, buckets in one.histograms.items()
        },
        {
            rows: _both(one.batches.get(rows), other.batches.get(rows))
            for rows in one.batches.keys() | other.batches.keys()
        },
        one.cold_calls + other.cold_calls,
        added(one.device_us, other.device_us),
        added(one.device_usd, other.device_usd),
    )


def _both(one: Batches | None, other: Batches | None) -> Batches:
    if one is None or other is None:
        found = one or other
        assert found is not None
        return found
    return Batches(
        one.runs + other.runs,
        one.input_s + other.input_s,
        one.infer_s + other.infer_s,
        one.output_s + other.output_s,
    )


def is_ours(histograms: Mapping[str, Buckets]) -> bool:
    """Tell whether histograms out of a file were counted by this release's bounds."""
    sizes = {"request": BUCKETS, **dict.fromkeys(PHASES, BUCKETS)}
    sizes["batch_rows"] = len(BOUNDS_ROWS) + 1
    return sizes == {name: len(buckets.counts) for name, buckets in histograms.items()}
