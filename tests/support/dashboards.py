"""Grafana's dashboards as their JSON has them: panels, and what they ask Prometheus for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_LABEL = re.compile(r"{{(\w+)}}")


def panels_of(board: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the panels of a dashboard, rows and what is in them."""
    for panel in board["panels"]:
        yield panel
        yield from panel.get("panels") or ()


def expressions_of(board: Mapping[str, Any]) -> list[tuple[str, str, set[str]]]:
    """Return each query of a dashboard: its panel's title, it, and the labels in its legend."""
    return [
        (panel["title"], target["expr"], set(_LABEL.findall(target.get("legendFormat", ""))))
        for panel in panels_of(board)
        for target in panel.get("targets", ())
    ]


def choices_of(board: Mapping[str, Any]) -> list[str]:
    """Return the queries behind the variables of a dashboard."""
    return [
        variable["query"]["query"]
        for variable in board["templating"]["list"]
        if variable["type"] == "query"
    ]
