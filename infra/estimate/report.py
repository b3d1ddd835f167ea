"""An estimate as JSON and as lines for people.  Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec

from infra.estimate.deployment import Deployment
from infra.estimate.hours import Use
from infra.estimate.lines import (
    Bill,
    Line,
    Unpriced,
    always_on_of,
    bill_of,
    unpriced_of,
    warnings_of,
)
from infra.estimate.prices import Price, Prices

BY_LOAD: Final = "the load of FILE"


class Month(msgspec.Struct, frozen=True, kw_only=True):
    """One month, at one scale of the load."""

    scale: int
    uses: tuple[Use, ...]
    bill: Bill
    always_on: Bill
    not_priced: tuple[Unpriced, ...]
    warnings: tuple[str, ...]

    @property
    def requests(self) -> float:
        """Of all pools."""
        return sum(use.requests for use in self.uses)


def month_of(deployment: Deployment, uses: Sequence[Use], prices: Prices, scale: int) -> Month:
    """Put everything together; raises `NoPrice`."""
    return Month(
        scale=scale,
        uses=tuple(uses),
        bill=bill_of(deployment, uses, prices),
        always_on=always_on_of(deployment, uses, prices),
        not_priced=unpriced_of(deployment, uses),
        warnings=tuple(warnings_of(deployment, uses)),
    )


def to_json(deployment: Deployment, months: Sequence[Month], hours_by: str) -> dict[str, Any]:
    """Return the JSON of `tidepool estimate`; amounts are USD a month."""
    return {
        "name": deployment.name,
        "region": deployment.region,
        "gpu_hours_by": hours_by,
        "scales": [
            {
                "scale": month.scale,
                "requests": round(month.requests),
                "pools": [msgspec.structs.asdict(use) for use in month.uses],
                **_bill(month.bill),
                "usd_per_1000_answers": _per_1000(month.bill, month.requests),
                "always_on": _bill(month.always_on),
                "not_priced": [msgspec.structs.asdict(one) for one in month.not_priced],
                "warnings": list(month.warnings),
            }
            for month in months
        ],
    }


def _bill(bill: Bill) -> dict[str, Any]:
    return {
        "lines": [
            {
                "component": line.component,
                "what": line.what,
                "quantity": line.quantity,
                "unit": line.unit,
                "unit_usd": line.price.usd,
                "unit_usd_max": line.price.usd_high,
                "usd": line.cents / 100,
                "usd_max": line.cents_high / 100,
                "source": line.price.source,
                "date": line.price.date,
            }
            for line in bill.lines
        ],
        "usd": bill.cents / 100,
        "usd_max": bill.cents_high / 100,
    }


def _per_1000(bill: Bill, requests: float) -> dict[str, float] | None:
    if not requests:
        return None
    return {
        "usd": round(bill.cents / requests * 10, 6),
        "usd_max": round(bill.cents_high / requests * 10, 6),
    }


def to_lines(deployment: Deployment, months: Sequence[Month], hours_by: str) -> list[str]:
    """Return a table for people: a row for each line, a column for each scale."""
    return list(_lines(deployment, months, hours_by))


def _lines(deployment: Deployment, months: Sequence[Month], hours_by: str) -> Iterator[str]:
    yield f"{deployment.name} in {deployment.region}, USD a month; GPU hours by {hours_by}"
    yield _row("", "", *(f"{month.scale}x" for month in months))
    sources = _sources(months)
    for component, what in _names(months, lambda month: month.bill):
        line = next(line for m in months if (line := _find(m.bill, component, what)) is not None)
        mark = f"[{sources.index(line.price) + 1}]"
        cells = [_usd(_find(month.bill, component, what)) for month in months]
        yield _row(component, what, *cells, mark)
    yield _row("total", "", *(_usd(month.bill) for month in months))
    yield _row("", "per 1,000 answers", *(_each(month) for month in months))
    yield _row("GPUs always on", "", *(_usd(month.always_on) for month in months))
    yield _row("", "requests a month", *(f"{month.requests:,.0f}" for month in months))
    for place, pool in enumerate(deployment.pools):
        hours = [f"{month.uses[place].instance_hours:,.0f}" for month in months]
        yield _row(f"pool {pool.name}", "instance-hours", *hours)
        peaks = [str(month.uses[place].instances_peak) for month in months]
        yield _row("", "instances, busiest minute", *peaks)
    yield ""
    for number, price in enumerate(sources, 1):
        most = "" if price.usd_max is None else f" to {price.usd_max:g}"
        usd = f"{price.usd:g}{most} USD/{price.unit}"
        yield f"[{number}] {price.id}: {usd} ({price.source}, {price.date})"
    yield f"not priced: {', '.join(_unpriced(one) for one in months[-1].not_priced)}"
    for month in months:
        for warning in month.warnings:
            yield f"warning: at {month.scale}x {warning}; priced as if there were as many"


def _row(component: str, what: str, *cells: str) -> str:
    return f"{component:<14} {what:<26}" + "".join(f" {cell:>21}" for cell in cells).rstrip()


def _names(months: Sequence[Month], bill: Callable[[Month], Bill]) -> list[tuple[str, str]]:
    names = [(line.component, line.what) for month in months for line in bill(month).lines]
    return list(dict.fromkeys(names))


def _find(bill: Bill, component: str, what: str) -> Line | None:
    found = (one for one in bill.lines if (one.component, one.what) == (component, what))
    return next(found, None)


def _sources(months: Sequence[Month]) -> list[Price]:
    prices = [
        line.price
        for month in months
        for bill in (month.bill, month.always_on)
        for line in bill.lines
    ]
    return list(dict.fromkeys(prices))


def _usd(amount: Line | Bill | None) -> str:
    if amount is None:
        return "-"
    low, high = f"{amount.cents / 100:,.2f}", f"{amount.cents_high / 100:,.2f}"
    return low if low == high else f"{low}-{high}"


def _each(month: Month) -> str:
    found = _per_1000(month.bill, month.requests)
    if found is None:
        return "-"
    low, high = f"{found['usd']:.4g}", f"{found['usd_max']:.4g}"
    return low if low == high else f"{low}-{high}"


def _unpriced(one: Unpriced) -> str:
    return one.what if one.quantity is None else f"{one.what} ({one.quantity:,.1f} {one.unit})"
