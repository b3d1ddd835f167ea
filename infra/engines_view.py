"""How `tidepool engines list` shows plans: lines for a pipe, a table for a terminal.

Both are views of the rows that `--json` prints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from infra.printable import printable
from infra.status_view import UNKNOWN, add_row, shown_bytes

Row = Mapping[str, Any]

_STYLES = {"passed": "green", "failed": "red", "not_run": "yellow"}
_KEY_CHARS = 12


def lines(rows: Sequence[Row]) -> list[str]:
    """Return plans as lines, each with what its gate says against it below."""
    found = []
    for row in printable(rows):
        words = [row["key"][:_KEY_CHARS], _of(row), row["device"] or UNKNOWN, _engine(row)]
        words += [row["precision"] or UNKNOWN, shown_bytes(row["bytes"]), _gate(row)]
        found.append("  ".join([*words, f"used {row['used'] or UNKNOWN}"]))
        found.extend(f"  {text}" for text in _against(row))
    return found


def table(rows: Sequence[Row]) -> RenderableType:
    """Return plans as a table for a terminal."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("key", "model", "device", "engine", "precision", "size", "gate", "used"):
        made.add_column(column, overflow="fold")
    for row in printable(rows):
        gate = Text(_gate(row), _STYLES.get(row["gate"], ""))
        for text in _against(row):
            gate.append(f"\n{text}", "red")
        add_row(
            made,
            *(row["key"][:_KEY_CHARS], _of(row), row["device"] or UNKNOWN, _engine(row)),
            *(row["precision"] or UNKNOWN, shown_bytes(row["bytes"]), gate),
            row["used"] or UNKNOWN,
        )
    return made


def _of(row: Row) -> str:
    return f"{row['model']}/{row['version']}" if row["model"] else UNKNOWN


def _engine(row: Row) -> str:
    return f"{row['engine']} {row['runtime']}".strip() or UNKNOWN


def _gate(row: Row) -> str:
    words = [row["gate"].replace("_", " ")]
    if row["relative_error"] is not None:
        words.append(f"error {row['relative_error']:.1e}")
    if row["top1_agreement"] is not None:
        words.append(f"top-1 {row['top1_agreement'] * 100:.4g} %")
    return ", ".join(words)


def _against(row: Row) -> Iterator[str]:
    """Yield why a plan will not be loaded; that no device has come yet is nothing against it."""
    if row["gate"] == "failed" or row["problem"]:
        yield row["reason"] or "no reason is known"
