"""A rollout as gauges of the pool's view."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from edge.pool_metrics import pool_text
from tests.support.rollout_documents import shown_rollout, shown_shadow


def gauges(*rollouts: dict[str, Any] | None) -> dict[tuple[str, ...], float]:
    """Return the samples about rollouts: name without the prefix and labels' values → value."""
    status = {
        **{"workers": [], "edges": []},
        "endpoints": [
            {"name": f"m{at}", "variants": [], "rollout": rollout}
            for at, rollout in enumerate(rollouts)
        ],
    }
    text = pool_text(msgspec.json.encode(status)).decode()
    return {
        (sample.name.removeprefix("tidepool_rollout_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("tidepool_rollout_")
    }


def test_every_number_of_the_status_is_a_gauge() -> None:
    found = gauges(shown_rollout(shadow=shown_shadow()))
    assert found[("step", "m0")] == 2
    assert found[("steps", "m0")] == 3
    assert found[("share_seen", "m0", "stable", "1")] == 94.6
    assert found[("calls", "m0", "stable", "1")] == 1234
    assert found[("failed_calls", "m0", "stable", "1")] == 12
    assert found[("error_rate", "m0", "stable", "1")] == 0.00972
    assert found[("error_low", "m0", "stable", "1")] == 0.0051
    assert found[("error_high", "m0", "stable", "1")] == 0.0172
    assert found[("e_value", "m0", "errors")] == 1.5
    assert (found[("warm", "m0")], found[("wanted", "m0")]) == (1, 1)
    assert found[("shadow_compared", "m0")] == 99
    assert found[("shadow_top1_off", "m0")] == 3


def test_what_is_not_known_is_no_sample() -> None:
    found = gauges(shown_rollout())
    assert ("error_rate", "m0", "canary", "2") not in found
    assert not [labels for labels in found if labels[0].startswith("shadow")]


@pytest.mark.parametrize("state", ["running", "paused", "promoted", "rolled_back"])
def test_exactly_one_state_holds(state: str) -> None:
    found = gauges(shown_rollout(state=state))
    states = {labels[2]: value for labels, value in found.items() if labels[0] == "state"}
    assert {name for name, value in states.items() if value} == {state}
    assert len(states) == 4


def test_harm_and_mismatch_can_be_alarmed_on() -> None:
    found = gauges(shown_rollout(harms=["errors"]), shown_rollout(mismatch="split"), None)
    assert [found[("harm", name)] for name in ("m0", "m1")] == [1, 0]
    assert [found[("mismatch", name)] for name in ("m0", "m1")] == [0, 1]
    assert ("harm", "m2") not in found


def test_a_status_without_rollouts_has_none() -> None:
    assert gauges(None) == {}
