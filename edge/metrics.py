"""What one edge process counts, cheaply, and the sum over all edge processes of a node.

The hot path adds to plain lists.  Every second, and when it ends, a process writes its totals to a
file of its own; whichever process is asked adds up the files of its siblings.  A process goes on
from the file of the one before it that had its name, so that no counter ever falls.
(prometheus_client's own multiprocess mode locks and writes a shared page for each observation,
several of them per request.)
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec
import structlog

from edge.arm_metrics import ArmMetrics, ArmTotal, is_ours, sum_of, total_of
from edge.device_prices import NO_PRICES
from edge.exposition import native_text, triton_text

ArmKey = tuple[str, int, str, str]  # endpoint, revision, variant, version
Arm = tuple[str, str, str]  # endpoint, variant, version
# Every process shows the same, or the worst of them is what matters.
OF_THE_NODE = {"tidepool_cache_disk_bytes", "tidepool_controller_silence_seconds"}
FRESH_S = 5.0  # a gauge in a file that is older belongs to a process that has ended

_log = structlog.get_logger()


class Counter(msgspec.Struct, array_like=True, frozen=True):
    """One labelled counter that belongs to no arm."""

    name: str
    labels: tuple[str, ...]
    value: float


class ArmRow(msgspec.Struct, array_like=True, frozen=True):
    """One arm's totals; revisions of an endpoint are one."""

    arm: Arm
    total: ArmTotal
    pending: int = 0  # calls that a worker has not answered: a gauge, not a count


class Totals(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one process, or all of a node, have counted: a value, and the form of the file."""

    counters: list[Counter]
    arms: list[ArmRow]
    in_flight: int = 0
    rejected: int = 0
    gauges: list[Counter] = []


_totals_of = msgspec.json.Decoder(Totals)


class Metrics:
    """Everything that this process counts."""

    def __init__(self, folder: Path, name: str, usd_per_h: Mapping[str, float] = NO_PRICES) -> None:
        self._folder = folder
        self._usd_per_h = usd_per_h  # of devices
        self._file = folder / f"{name}.json"
        # What the process of this name before this one had counted; a counter never falls.
        before = _read(self._file)
        self._before = [] if before is None else [_without_gauges(before)]
        self._counters: dict[tuple[str, tuple[str, ...]], float] = {}
        self._followed: dict[str, Callable[[], float]] = {}
        self.arms: dict[ArmKey, ArmMetrics] = {}
        self.in_flight: Callable[[], int] = lambda: 0
        self.pending: Callable[[], dict[Arm, int]] = dict
        # Counters and gauges that somebody else keeps, read when they are wanted.
        self.extra: Callable[[], tuple[list[Counter], list[Counter]]] = lambda: ([], [])
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

    def own(self) -> Totals:
        """Return what the processes of this name have counted."""
        unix_s, now_s = time.time(), time.monotonic()
        counters = [Counter(name, labels, n) for (name, labels), n in self._counters.items()]
        counters += [Counter(name, (), read()) for name, read in self._followed.items()]
        pending = self.pending()
        rows = []
        for (endpoint, _, variant, version), arm in self.arms.items():
            key = (endpoint, variant, version)
            total = total_of(arm, unix_s, now_s, self._usd_per_h)
            rows.append(ArmRow(key, total, pending.pop(key, 0)))
        extra, gauges = self.extra()
        own = Totals(counters + extra, rows, self.in_flight(), self.rejected, gauges)
        return merged([*self._before, own])

    def node(self) -> Totals:
        """Return what all edge processes of this node have counted."""
        own = self.own()
        self._write(own)  # what was shown once must not be forgotten
        paths = [path for path in sorted(self._folder.glob("*.json")) if path != self._file]
        siblings = [total for total in map(_read, paths) if total is not None]
        return merged([own, *siblings])

    def save(self) -> None:
        """Write this process's totals for its siblings; a full disk costs them, not the service."""
        self._write(self.own())

    def text(self) -> bytes:
        """Return the totals of all edge processes of this node as Prometheus text.

        With many endpoints this takes milliseconds; a server renders `node()` in a thread.
        """
        return native_text(self.node())

    def triton_text(self) -> bytes:
        """Return the same counters under the names of NVIDIA's Triton server."""
        return triton_text(self.node())

    def _write(self, totals: Totals) -> None:
        partial = self._file.with_suffix(".partial")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(msgspec.json.encode(totals))
            partial.replace(self._file)
        except OSError as error:
            _log.warning("metrics_not_saved", error=str(error))


def merged(totals: Iterable[Totals]) -> Totals:
    """Add up counts and gauges; documents rejected are the same ones everywhere."""
    counters: dict[tuple[str, tuple[str, ...]], float] = {}
    arms: dict[Arm, ArmRow] = {}
    gauges: dict[tuple[str, tuple[str, ...]], float] = {}
    in_flight = rejected = 0
    for total in totals:
        for gauge in total.gauges:
            key = (gauge.name, gauge.labels)
            together = max if gauge.name in OF_THE_NODE else operator.add
            gauges[key] = together(gauges.get(key, 0), gauge.value)
        for counter in total.counters:
            key = (counter.name, counter.labels)
            counters[key] = counters.get(key, 0) + counter.value
        for row in total.arms:
            old = arms.get(row.arm)
            arms[row.arm] = row if old is None else _sum(old, row)
        in_flight += total.in_flight
        rejected = max(rejected, total.rejected)
    return Totals(
        [Counter(*key, value) for key, value in counters.items()],
        list(arms.values()),
        in_flight,
        rejected,
        [Counter(*key, value) for key, value in gauges.items()],
    )


def _sum(one: ArmRow, other: ArmRow) -> ArmRow:
    return ArmRow(one.arm, sum_of(one.total, other.total), one.pending + other.pending)


def _without_gauges(totals: Totals) -> Totals:
    rows = [ArmRow(row.arm, row.total) for row in totals.arms]
    return Totals(totals.counters, rows)


def _read(path: Path) -> Totals | None:
    try:
        age_s = time.time() - path.stat().st_mtime
        totals = _totals_of.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError):
        return None  # written by another release, or gone
    if not all(is_ours(row.total.histograms) for row in totals.arms):
        return None
    return totals if age_s < FRESH_S else _without_gauges(totals)
