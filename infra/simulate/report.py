"""What the policies came to, beside each other: as rows, JSON and lines for people."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from infra.simulate.engine import Outcome

YARDSTICK: Final = "fixed-10m"  # whose waste is 1.0
LIMIT: Final = "limit"  # knows every arrival beforehand


class Row(msgspec.Struct, frozen=True):
    """One policy; a share or ratio of nothing is None."""

    name: str
    cold_share: float | None  # of the calls: they found no warm replica
    waste_ratio: float | None  # idle-warm seconds over those of fixed-10m
    attainment: float | None  # of the calls: they waited no longer than 2 s
    gpu_hours_ratio: float | None  # over replicas that are there by the second, just for the calls


class Report(msgspec.Struct, frozen=True):
    """The JSON of `tidepool simulate`."""

    policies: tuple[Row, ...]
    limit: Row


def make_report(outcomes: Mapping[str, Outcome], ideal_s: float, names: Sequence[str]) -> Report:
    """Return rows for `names`; `outcomes` has the yardstick and the limit as well."""
    waste_s = outcomes[YARDSTICK].waste_s
    rows = {name: row_of(name, found, waste_s, ideal_s) for name, found in outcomes.items()}
    return Report(tuple(rows[name] for name in names if name != LIMIT), rows[LIMIT])


def row_of(name: str, found: Outcome, waste_s: float, ideal_s: float) -> Row:
    """Return the row of one outcome."""
    return Row(
        name,
        _ratio(found.cold, found.calls),
        1.0 if found.waste_s == waste_s else _ratio(found.waste_s, waste_s),
        _ratio(found.on_time, found.calls),
        _ratio(found.gpu_s, ideal_s),
    )


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 6) if whole > 0 else None


def to_json(report: Report) -> bytes:
    """Return it as it is printed by `--json`."""
    return msgspec.json.encode(report)


def to_lines(report: Report) -> list[str]:
    """Return a table for people."""
    lines = [f"{'policy':<18} {'cold':>8} {'waste':>8} {'on time':>9} {'GPU-hours':>10}"]
    for row in (*report.policies, report.limit):
        lines.append(
            f"{row.name:<18} {_percent(row.cold_share):>8} {_times(row.waste_ratio):>8}"
            f" {_percent(row.attainment):>9} {_times(row.gpu_hours_ratio):>10}"
        )
    for row in report.policies[:1]:
        for trade, names in dominators(row, report.policies).items():
            lines.append(f"{row.name} in {trade}: {_behind(names)}")
    return lines


def _behind(names: Sequence[str]) -> str:
    return f"behind {', '.join(names)}" if names else "behind no other"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f} x"


def dominators(row: Row, others: Sequence[Row]) -> dict[str, list[str]]:
    """Return who is at least as good in everything and better in something.

    A policy trades cold calls for waste, and calls on time for GPU-hours; somebody may be ahead in
    one of the two trades and behind in the other, so there is a third entry for all four.
    """
    return {
        trade: [other.name for other in others if _dominates(place(other), place(row))]
        for trade, place in TRADES.items()
    }


def _dominates(theirs: tuple[float, ...], mine: tuple[float, ...]) -> bool:
    return theirs != mine and all(t <= m for t, m in zip(theirs, mine, strict=True))


def _less(value: float | None) -> float:
    return math.inf if value is None else value


def _warmth(row: Row) -> tuple[float, ...]:
    return _less(row.cold_share), _less(row.waste_ratio)


def _speed(row: Row) -> tuple[float, ...]:
    return 1 - (row.attainment or 0.0), _less(row.gpu_hours_ratio)


WARMTH: Final = "cold share x waste"
SPEED: Final = "late share x GPU-hours"
ALL: Final = "all four"

# Each with what is to be small.
TRADES: Final[Mapping[str, Callable[[Row], tuple[float, ...]]]] = {
    WARMTH: _warmth,
    SPEED: _speed,
    ALL: lambda row: (*_warmth(row), *_speed(row)),
}
