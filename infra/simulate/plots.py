"""The two trades of a scaling policy as pictures (PNG); needs the extra `plots`.

Loaded by name where a picture is asked for: nothing else needs matplotlib.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Final, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox, BboxBase

from infra.simulate.report import Report, Row

WIDTH_IN, HEIGHT_IN, DOTS_PER_IN = 7.0, 4.5, 100

OURS: Final = "tidepool"

# Where the name of a dot may stand, the best place first: how far from it, and to which side.
REACHES_PT: Final = (5, 10, 16, 24)
SIDES: Final = ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))
ACROSS: Final[Mapping[int, Literal["left", "center", "right"]]] = {
    1: "left",
    0: "center",
    -1: "right",
}
ALONG: Final[Mapping[int, Literal["bottom", "center", "top"]]] = {
    1: "bottom",
    0: "center",
    -1: "top",
}
DOT_PX: Final = 5.0


def draw_pareto(report: Report, curves: dict[str, Sequence[Row]], title: str, path: Path) -> None:
    """Draw cold share over waste: a dot per policy, a curve per knob.

    Args:
        report: the policies.
        curves: by name, the rows of one policy along its knob.
        title: what was simulated.
        path: of the PNG; made or replaced.
    """

    def place(row: Row) -> tuple[float | None, float | None]:
        cold = None if row.cold_share is None else 100 * row.cold_share
        return row.waste_ratio, cold

    figure, axes = _blank(title)
    for name, rows in curves.items():
        dots = [(x, y) for x, y in map(place, rows) if x is not None and y is not None]
        axes.plot(
            [x for x, _ in dots],
            [y for _, y in dots],
            marker=".",
            linestyle="-" if name == OURS else "--",
            label=f"{name}, over its knob",
        )
    _dots(axes, (*report.policies, report.limit), place)
    axes.set_xlabel("idle-warm seconds ÷ fixed-10m's")
    axes.set_ylabel("cold calls, %")
    _save(figure, axes, path)


def draw_attainment(report: Report, title: str, path: Path) -> None:
    """Draw calls on time over GPU-hours: a dot per policy.

    Args:
        report: the policies.
        title: what was simulated.
        path: of the PNG; made or replaced.
    """

    def place(row: Row) -> tuple[float | None, float | None]:
        on_time = None if row.attainment is None else 100 * row.attainment
        return row.gpu_hours_ratio, on_time

    figure, axes = _blank(title)
    _dots(axes, (*report.policies, report.limit), place)
    axes.set_xlabel("GPU-hours ÷ those of whole replicas that are there by the second")
    axes.set_ylabel("calls that wait no longer than 2 s, %")
    _save(figure, axes, path)


def _blank(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), dpi=DOTS_PER_IN, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, parse_math=False)  # it may be the name of a file
    axes.grid(visible=True, alpha=0.3)
    return figure, axes


def _dots(
    axes: Axes, rows: Sequence[Row], place: Callable[[Row], tuple[float | None, float | None]]
) -> None:
    for row in rows:
        x, y = place(row)
        if x is None or y is None:
            continue
        is_ours = row.name == OURS
        axes.scatter([x], [y], s=70 if is_ours else 30, marker="*" if is_ours else "o", zorder=3)
        label = axes.annotate(
            row.name,
            (x, y),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=8,
            annotation_clip=False,
        )
        label.set_in_layout(False)


def _save(figure: Figure, axes: Axes, path: Path) -> None:
    axes.margins(x=0.12, y=0.1)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
    figure.draw_without_rendering()  # now everything but the labels is where it will be
    _place_labels(axes)
    # Without the date and version that matplotlib writes, the same rows give the same bytes.
    figure.savefig(path, metadata={"Software": None})


def _place_labels(axes: Axes) -> None:
    """Move the name of every dot to where it is whole and covers neither a dot nor a name."""
    labels = [text for text in axes.texts if isinstance(text, Annotation)]
    dots = [axes.transData.transform(label.xy) for label in labels]
    taken = [Bbox.from_bounds(x - DOT_PX, y - DOT_PX, 2 * DOT_PX, 2 * DOT_PX) for x, y in dots]
    legend = axes.get_legend()
    if legend is not None:
        taken.append(legend.get_window_extent())
    for label in labels:
        for reach_pt, (right, up) in product(REACHES_PT, SIDES):
            label.set_horizontalalignment(ACROSS[right])
            label.set_verticalalignment(ALONG[up])
            label.set_position((right * reach_pt, up * reach_pt))
            box = label.get_window_extent()
            if _is_inside(box, axes.bbox) and not box.count_overlaps(taken):
                break
        taken.append(box)


def _is_inside(box: BboxBase, frame: BboxBase) -> bool:
    return bool(
        frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    )
