"""The outcome of a bench: figures with their limits, the samples behind them, the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import msgspec
from rich.table import Table

from infra.bench.load import Sample, client_name
from infra.bench.rows import Spread

PACKAGES = ("onnxruntime", "granian", "fastapi", "uvicorn", "numpy")


class Figure(msgspec.Struct, frozen=True):
    """One promise or aim, and how it came out."""

    name: str
    value: float  # ratio of minima, or the least value
    low: float  # of the rounds
    median: float
    high: float
    limit: float
    unit: str  # "×", "µs", "MB", "s"
    promised: bool  # False: an aim
    ours: float  # the least of our samples, in `sample_unit`
    theirs: float | None  # the least of the other side's; None: no ratio
    sample_unit: str
    note: str = ""  # why it is not to be trusted; empty: nothing known against it

    @property
    def ok(self) -> bool:
        return self.value <= self.limit and not self.note


class Measured(msgspec.Struct, frozen=True):
    """A sample and where it belongs."""

    row: str
    side: str
    clients: int
    round: int
    sample: Sample


class Machine(msgspec.Struct, frozen=True):
    """Where it was measured."""

    cpu: str
    cores: int
    system: str
    python: str
    load_client: str
    versions: dict[str, str]


class Report(msgspec.Struct, frozen=True):
    """All of a bench."""

    machine: Machine
    rounds: int
    duration_s: float
    figures: tuple[Figure, ...]
    samples: tuple[Measured, ...]
    skipped: tuple[str, ...]  # what was not measured, and why

    @property
    def ok(self) -> bool:
        """Tell whether every promise that was measured was kept."""
        return all(figure.ok for figure in self.figures if figure.promised)


def figure(
    name: str,
    spread: Spread,
    limit: float,
    *,
    unit: str = "×",
    promised: bool = True,
    ours: float,
    theirs: float | None = None,
    sample_unit: str,
    note: str = "",
) -> Figure:
    """Join a spread with its limit."""
    return Figure(
        name,
        spread.of_minima,
        spread.low,
        spread.median,
        spread.high,
        limit,
        unit,
        promised,
        ours,
        theirs,
        sample_unit,
        note,
    )


def machine() -> Machine:
    """Describe this machine."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Machine(
        _cpu_name(),
        os.cpu_count() or 1,
        platform.platform(),
        platform.python_version(),
        client_name(),
        versions,
    )


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def to_json(report: Report) -> bytes:
    """Write the whole report, samples included."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2)


COLUMNS = ("figure", "value", "limit", "", "rounds min / median / max", "ours", "theirs")


def cells(figure: Figure) -> tuple[str, ...]:
    """Write one figure as a row of `COLUMNS`."""
    verdict = "ok" if figure.ok else "MISSED" if figure.promised else "aim missed"
    theirs = "" if figure.theirs is None else f"{figure.theirs:,.2f} {figure.sample_unit}"
    return (
        figure.name,
        f"{figure.value:,.2f} {figure.unit}",
        f"{'≤' if figure.promised else 'aim ≤'} {figure.limit:g} {figure.unit}",
        f"{verdict} ({figure.note})" if figure.note else verdict,
        f"{figure.low:,.2f} / {figure.median:,.2f} / {figure.high:,.2f}",
        f"{figure.ours:,.2f} {figure.sample_unit}",
        theirs,
    )


def table(report: Report) -> Table:
    """Lay the figures out for a terminal."""
    where = report.machine
    drawn = Table(title=f"{where.cpu}, {where.cores} cores, {report.rounds} rounds")
    for column in COLUMNS:
        drawn.add_column(column, justify="left" if column in ("figure", "") else "right")
    for each in report.figures:
        drawn.add_row(*cells(each), style=None if each.ok else "yellow")
    return drawn


def lines(report: Report) -> list[str]:
    """Lay the figures out for a pipe: tab-separated, header first, then what was skipped."""
    return [
        "\t".join(COLUMNS),
        *("\t".join(cells(each)) for each in report.figures),
        *(f"skipped\t{reason}" for reason in report.skipped),
    ]
