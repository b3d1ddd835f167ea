"""What is shown of a rollout."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from pool.rollouts.report import ArmFigures, report
from pool.rollouts.signals import Verdict
from registry_sync.rollout_terms import Phase, RolloutState
from tests.support.rollouts import counts, look_at, spec_of

LATER = Verdict(harms=("all of it fails",), log_e={"errors": 0.0}, worse="worse than ever")
EVIDENCE = {"harms": ["5.00% fail"], "log_e": {"errors": 0.0, "errors_full": 10.9}}


def shown(
    state: Phase, figures: Mapping[str, ArmFigures] | None = None, **more: Any
) -> dict[str, Any]:
    rollout = RolloutState("r1", state, 2, 3, reason="5.00% fail", evidence=EVIDENCE)
    look = look_at(spec_of(), rollout, 100.0, LATER, **more)
    return report(
        look, is_held=True, mismatch_log_e=1.0, fires_at={}, figures=figures or {}, shadow=None
    )


@pytest.mark.parametrize("state", ["rolled_back", "promoted"])
def test_end_shows_what_decided_and_not_what_came_in_later(state: Phase) -> None:
    found = shown(state)
    assert found["e_values"] == {"errors": 1.0, "errors_full": pytest.approx(math.exp(10.9))}
    assert (found["harms"], found["worse"]) == (["5.00% fail"], "")
    assert found["verdict"] == found["reason"]


def test_running_rollout_shows_what_is_known_now() -> None:
    found = shown("running")
    assert found["e_values"] == {"errors": 1.0, "mismatch": pytest.approx(math.e)}
    assert found["verdict"] == "all of it fails"


def test_arm_has_all_of_its_requests_and_never_fewer_than_were_watched() -> None:
    given = {"canary": ArmFigures(708, 68, 72), "stable": ArmFigures(1, 0, 0)}
    seen = {"canary": counts(636), "stable": counts(300, 4)}
    stable, canary = shown("running", given, counts=seen)["variants"]
    told = [(arm["requests"], arm["errors"], arm["failed"]) for arm in (stable, canary)]
    assert told == [(300, 4, 4), (708, 68, 72)]
