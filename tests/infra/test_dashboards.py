"""Grafana's dashboards: files that code makes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from infra.monitoring.dashboards import FOLDER, texts
from tests.support.dashboards import panels_of

BOARDS = texts()


def test_files_are_what_the_code_makes() -> None:
    files = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    assert files == BOARDS, "run `python -m infra.monitoring.dashboards`"


@pytest.mark.parametrize("name", BOARDS)
def test_panels_do_not_lie_over_each_other(name: str) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in panels_of(json.loads(BOARDS[name])):
        at = panel["gridPos"]
        assert 0 <= at["x"] <= 24 - at["w"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


@pytest.mark.parametrize("name", BOARDS)
def test_every_query_of_a_panel_has_a_name_and_the_chosen_source(name: str) -> None:
    board: dict[str, Any] = json.loads(BOARDS[name])
    assert board["templating"]["list"][0]["name"] == "source"
    for panel in panels_of(board):
        if panel["type"] == "row":
            continue
        names = [target["refId"] for target in panel["targets"]]
        assert names
        assert len(set(names)) == len(names)
        assert all(names)
        assert {t["datasource"]["uid"] for t in (panel, *panel["targets"])} == {"${source}"}
