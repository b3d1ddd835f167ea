"""An estimate as a picture (PNG); needs the extra `plots`.

Loaded by name where a picture is asked for: nothing else needs matplotlib.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from infra.estimate.lines import Bill
from infra.estimate.report import Month

PANEL_IN, HEIGHT_IN, DOTS_PER_IN = 2.2, 3.8, 100
BARS: Final = ("as needed", "always on")
OTHERS: Final = "network, logs, registry"
COLOURS: Final = ("#1b6ca8", "#5aa9e6", "#9fd3c7", "#f4a259", "#8cb369", "#bc4b51")


def draw(months: Sequence[Month], title: str, path: Path) -> None:
    """Draw for each scale what a month costs, beside GPUs that are always on.

    Each panel has its own axis: the scales are orders of magnitude apart.

    Args:
        months: of one deployment.
        title: what was priced.
        path: of the PNG; made or replaced.
    """
    figure = Figure(
        figsize=(PANEL_IN * max(len(months), 2), HEIGHT_IN), dpi=DOTS_PER_IN, layout="constrained"
    )
    FigureCanvasAgg(figure)
    figure.suptitle(title, parse_math=False)
    names = list(dict.fromkeys(name for month in months for name in _parts(month.bill)))
    panels = figure.subplots(1, len(months), squeeze=False)[0]
    for axes, month in zip(panels, months, strict=True):
        _draw_panel(axes, month, names)
    panels[0].set_ylabel("USD a month")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(names), fontsize=8)
    # Without the date and version that matplotlib writes, the same bill gives the same bytes.
    figure.savefig(path, metadata={"Software": None})


def _draw_panel(axes: Axes, month: Month, names: Sequence[str]) -> None:
    bills = (month.bill, month.always_on)
    below = [0.0] * len(bills)
    for name, colour in zip(names, COLOURS * len(names), strict=False):
        heights = [_parts(bill).get(name, 0.0) for bill in bills]
        axes.bar(BARS, heights, bottom=below, label=name, color=colour, width=0.6)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    for place, (bill, top) in enumerate(zip(bills, below, strict=True)):
        low, high = bill.cents / 100, bill.cents_high / 100
        text = f"{low:,.0f}" if low == high else f"{low:,.0f}-{high:,.0f}"
        axes.annotate(text, (place, top), ha="center", va="bottom", fontsize=8)
    axes.set_title(f"{month.scale}x", fontsize=10)
    axes.tick_params(labelsize=8)
    axes.margins(y=0.12)


def _parts(bill: Bill) -> Mapping[str, float]:
    """Return USD by tier; of a range its middle."""
    found: dict[str, float] = {}
    for line in bill.lines:
        is_tier = line.component in ("edge", "controller", "fallback")
        name = line.component if is_tier or line.component.startswith("pool ") else OTHERS
        found[name] = found.get(name, 0.0) + (line.cents + line.cents_high) / 200
    return found
