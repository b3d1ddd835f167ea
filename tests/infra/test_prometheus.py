"""A real Prometheus scrapes a running stack: rules and dashboards name what it finds there."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from infra.monitoring.dashboards import texts
from registry_sync.documents import Quota
from tests.support import models
from tests.support.dashboards import choices_of, expressions_of
from tests.support.prometheus import Prometheus, family_of, names_in, prometheus, rules
from tests.support.stack import Stack, until

pytestmark = pytest.mark.prometheus

BOARDS = {name: json.loads(text) for name, text in texts().items()}
# What a machine without a cloud announces and has nothing to say of, by the beginning of the name.
WITHOUT_A_CLOUD = ("tidepool_instances", "tidepool_launcher_", "tidepool:instances:")
# What only happens where something goes wrong, or where all instances are gone.
RARE = (
    "tidepool_dispatch_ejections_total",
    "tidepool_fallback_answers_total",
    "tidepool_instance_start_seconds",
    "tidepool_no_instance_refusals_total",
    "tidepool_place_pending",
    "tidepool_quarantined",
    "tidepool_worker_away",
)


def shifted(path: Path, by: float) -> Path:
    """Write a model that adds `by` to the first number of each row."""
    return models.save(
        path,
        [helper.make_node("Add", ["x", "by"], ["y"])],
        [models.tensor("x", models.ELEMENT_TYPES["FP32"], ["N", "W"])],
        [models.tensor("y", models.ELEMENT_TYPES["FP32"], ["N", "W"])],
        [numpy_helper.from_array(np.float32([[by, 0.0]]), "by")],
    )


def roll_out(stack: Stack, name: str, folder: Path) -> None:
    """Begin a rollout with copies that stays at its first step."""
    stack.publish(name, shifted(folder / "1.onnx", 1))
    stack.publish(name, shifted(folder / "2.onnx", 2))
    arms = (("stable", "1", 100), ("canary", "2", 0))
    stack.set_endpoint(
        {
            "endpoint": name,
            "variants": [
                {"name": arm, "model": name, "version": version, "weight": weight}
                for arm, version, weight in arms
            ],
            "cache": None,
            "rollout": {
                "steps": [{"weight": 50, "hold_s": 3600}, {"weight": 100}],
                "shadow": {"sample": 1.0, "calls_per_s_max": 1000},
            },
        }
    )


@dataclass
class Watched:
    """A stack, and the Prometheus that scrapes it."""

    stack: Stack
    server: Prometheus
    seen: str  # endpoints: one with a cache, one with a rollout
    rolled: str
    sent: int = 0

    def call(self) -> None:
        """Have something of everything happen once more."""
        self.sent += 1
        for x in (0, self.sent):  # the first one comes out of the cache
            assert self.stack.infer_observed(self.seen, x).status == 200
        for unit in range(4):
            x = ("FP32", [1, 2], [unit, 2 * self.sent])
            assert self.stack.infer(self.rolled, {"x": x}).status == 200


@pytest.fixture(scope="module")
def watched(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("prometheus")
    with prometheus(folder, f"127.0.0.1:{stack.admin_port}") as server:
        seen, rolled = (f"{what}-{secrets.token_hex(3)}" for what in ("seen", "rolled"))
        found = Watched(stack, server, seen, rolled)
        stack.publish_observed(seen, deterministic=True)
        limited = stack.make_key(quota=Quota(requests_per_s=0.001))
        until(lambda: stack.infer_observed(seen, 0, key=limited).status == 429)
        roll_out(stack, rolled, folder)
        until(lambda: stack.engine(rolled, "2") and stack.engine(rolled, "2")[0]["state"] == "warm")
        until(server.is_ready, 20.0, "Prometheus answers")

        def is_all_there() -> bool:
            found.call()
            return named() <= server.series() | absent(server)

        with suppress(AssertionError):  # the first test says what is missing
            until(is_all_there, 20.0, pause_s=0.2)
        yield found
        stack.request("POST", f"/admin/endpoints/{rolled}/rollout/abort", admin=True)


def named() -> set[str]:
    """Return every name in a rule or a dashboard."""
    texts = [rule["expr"] for rule in rules()]
    for board in BOARDS.values():
        texts += [*choices_of(board), *(expression for _, expression, _ in expressions_of(board))]
    return {name for text in texts for name in names_in(text)}


def absent(server: Prometheus) -> set[str]:
    """Return the names that a stack like this one announces without a series."""
    announced = server.families()
    return {
        name
        for name in named()
        if name.startswith(WITHOUT_A_CLOUD) or name in RARE
        if name.startswith("tidepool:") or family_of(name) in announced
    }


def test_every_metric_that_is_named_is_found(watched: Watched) -> None:
    found = watched.server.series() | absent(watched.server)
    missing = sorted(named() - found)
    assert missing == [], "rules or dashboards name what nobody has"


def test_jobs_are_up_and_rules_are_in_good_health(watched: Watched) -> None:
    assert {row["job"] for row in watched.server.query("up == 1")} == {"tidepool", "tidepool-pool"}
    groups = watched.server.get("rules")["groups"]
    found = {
        rule["name"]: (rule["health"], rule.get("lastError")) for g in groups for rule in g["rules"]
    }
    assert found.keys() == {rule.get("alert") or rule.get("record") for rule in rules()}
    assert set(found.values()) == {("ok", None)}


@pytest.mark.parametrize("name", BOARDS)
def test_every_panel_shows_something_by_the_labels_of_its_legend(
    watched: Watched, name: str
) -> None:
    nothing = []
    for title, expression, labels in expressions_of(BOARDS[name]):
        of = watched.rolled if name == "rollout.json" else watched.seen
        rows = watched.server.query(expression.replace("$endpoint", of))
        known = {label for row in rows for label in row}
        assert not rows or labels <= known, (title, expression, known)
        if not rows and not names_in(expression) & {*absent(watched.server)}:
            nothing.append((title, expression))
    assert [entry for entry in nothing if 'status=~"5.."' not in entry[1]] == []


@pytest.mark.parametrize("name", BOARDS)
def test_choices_of_a_dashboard_are_there(watched: Watched, name: str) -> None:
    for query in choices_of(BOARDS[name]):
        metric, label = query.removeprefix("label_values(").removesuffix(")").split(", ")
        values = watched.server.get(f"label/{label}/values", **{"match[]": metric})
        assert {watched.seen, watched.rolled} & {*values}, query


def test_alerts_of_a_stack_that_is_well_are_quiet(watched: Watched) -> None:
    watched.call()
    alerts: list[Any] = watched.server.get("alerts")["alerts"]
    of_others = ("TidepoolRolloutRolledBack",)  # by tests before this one, on the same stack
    firing = [a["labels"] for a in alerts if a["state"] == "firing"]
    assert [labels for labels in firing if labels["alertname"] not in of_others] == []
