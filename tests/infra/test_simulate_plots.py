"""The pictures: every name is whole, and covers no other."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from infra.simulate import plots
from infra.simulate.report import Report, Row

# As the 684 applications come out: dots beside each other, at the edge, and on top of each other.
ROWS = (
    Row("tidepool", 0.062, 1.2, 0.998, 1.22),
    Row("fixed-10m", 0.295, 1.0, 0.999, 1.9),
    Row("fixed-20m", 0.184, 1.52, 0.999, 1.9),
    Row("fixed-60m", 0.071, 2.45, 0.999, 1.9),
    Row("hybrid-histogram", 0.029, 2.45, 0.999, 1.91),
    Row("kpa", 0.55, 0.2, 0.977, 1.45),
    Row("ray", 0.295, 1.01, 0.9, 2.27),
)
REPORT = Report(ROWS, Row("limit", 0.0247, 0.01, 1.0, 1.15))
CURVE = [Row("tidepool", share, waste, 0.9, 2.0) for share, waste in ((0.3, 0.4), (0.02, 2.6))]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    return figures


def _is_readable(axes: Axes) -> bool:
    boxes = [text.get_window_extent() for text in axes.texts]
    frame = axes.bbox
    assert len(boxes) == 8
    return all(
        frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        for box in boxes
    ) and not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_names_of_the_pareto_are_whole_and_apart(drawn: list[Figure], tmp_path: Path) -> None:
    plots.draw_pareto(REPORT, {"tidepool": CURVE}, "a title", tmp_path / "pareto.png")
    assert _is_readable(drawn[0].axes[0])


def test_names_of_the_attainment_are_whole_and_apart(drawn: list[Figure], tmp_path: Path) -> None:
    plots.draw_attainment(REPORT, "a title", tmp_path / "attainment.png")
    assert _is_readable(drawn[0].axes[0])


def test_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        plots.draw_attainment(REPORT, "x$_{$ <b>", tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
