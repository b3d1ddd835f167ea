"""Alerts and the rules behind them: each is tried by promtool, in both directions."""

from __future__ import annotations

import functools
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.estimate.prices import load_prices
from tests.support.prometheus import FOLDER, RULES, promtool, rules

UNITS = sorted((FOLDER / "tests").glob("*.yml"))
ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
SEVERITIES = {"page", "ticket"}


@functools.cache
def expectations() -> dict[str, list[list[Any]]]:
    """Return for each alert what its unit tests expect, one list of alerts for each look."""
    found = defaultdict(list)
    for path in UNITS:
        for test in yaml.safe_load(path.read_text())["tests"]:
            for look in test["alert_rule_test"]:
                found[look["alertname"]].append(look["exp_alerts"])
    return found


@pytest.mark.prometheus
def test_configuration_and_rules_are_what_prometheus_takes() -> None:
    for arguments in (("check", "config", "prometheus.yml"), ("check", "rules", *RULES)):
        done = promtool(*arguments)
        assert done.returncode == 0, done.stdout


@pytest.mark.prometheus
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_only_then(path: Path) -> None:
    done = promtool("test", "rules", path)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_has_a_test_that_fires_it_and_one_that_does_not(alert: str) -> None:
    looks = expectations()[alert]
    assert any(looks), f"no test in {FOLDER / 'tests'} fires {alert}"
    assert not all(looks), f"no test in {FOLDER / 'tests'} leaves {alert} quiet"


def test_tests_are_of_alerts_that_there_are() -> None:
    assert expectations().keys() == ALERTS.keys()


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_says_what_is_wrong_and_what_to_do(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in SEVERITIES
    assert rule["annotations"].keys() == {"summary", "action"}
    assert all(0 < len(text) < 300 for text in rule["annotations"].values())


def test_every_unit_test_goes_by_the_rules_that_are_shipped() -> None:
    for path in UNITS:
        named = yaml.safe_load(path.read_text())["rule_files"]
        assert [(path.parent / name).resolve() for name in named] == list(RULES), path


def test_price_of_an_instance_is_the_one_of_the_list() -> None:
    (rule,) = [rule for rule in rules() if rule.get("record", "").startswith("tidepool:price:")]
    listed = load_prices("us-east-1").device_usd_per_h("g6.xlarge")
    assert (rule["labels"], rule["expr"]) == ({"pool": "gpu"}, f"vector({listed})")
