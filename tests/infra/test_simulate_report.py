"""Rows, shares over processes, and who is behind whom."""

from __future__ import annotations

import json

import numpy as np
import pytest

from infra.simulate import run as running
from infra.simulate.engine import Load, Outcome, World, run
from infra.simulate.fixed import Fixed
from infra.simulate.report import Row, dominators, make_report, to_json, to_lines
from infra.simulate.run import Job, run_jobs

NOTHING = Outcome(calls=4, on_time=4)


def _loads(models: int, calls: int) -> list[Load]:
    rng = np.random.default_rng(9)
    return [
        Load(str(model), np.cumsum(rng.exponential(400, calls)), rng.exponential(1, calls))
        for model in range(models)
    ]


def test_outcomes_of_all_models_add_up() -> None:
    loads, world = _loads(5, 30), World(end_s=20_000)
    alone = [run(load, Fixed(600), world) for load in loads]
    (found,) = run_jobs(loads, [Job("fixed-10m", world)])
    assert (found.calls, found.cold) == (150, sum(outcome.cold for outcome in alone))
    assert found.gpu_s == pytest.approx(sum(outcome.gpu_s for outcome in alone))


def test_processes_do_not_change_the_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    loads, world = _loads(2 * running.SHARE_MODELS_MIN, 10), World(end_s=5000)
    jobs = [Job("tidepool", world), Job("fixed-10m", world), Job("limit", world)]
    told: list[str] = []
    here = run_jobs(loads, jobs, lambda job: told.append(job.policy))
    monkeypatch.setattr(running, "CALLS_MIN", 0)
    assert run_jobs(loads, jobs) == here
    assert told == ["tidepool", "fixed-10m", "limit"]
    assert [outcome.calls for outcome in here] == [1280] * 3


def test_row_is_shares_and_ratios() -> None:
    ours = Outcome(calls=4, cold=1, on_time=3, busy_s=10, waste_s=30, loading_s=5)
    fixed = Outcome(calls=4, cold=2, on_time=2, busy_s=10, waste_s=60, loading_s=10)
    found = make_report({"a": ours, "fixed-10m": fixed, "limit": NOTHING}, 9.0, ["a"])
    assert json.loads(to_json(found)) == {
        "policies": [
            {
                "name": "a",
                "cold_share": 0.25,
                "waste_ratio": 0.5,
                "attainment": 0.75,
                "gpu_hours_ratio": 5.0,
            }
        ],
        "limit": {
            "name": "limit",
            "cold_share": 0.0,
            "waste_ratio": 0.0,
            "attainment": 1.0,
            "gpu_hours_ratio": 0.0,
        },
    }


def test_ratio_of_nothing_is_none_and_a_dash() -> None:
    fixed = Outcome(calls=1, cold=1)
    ours = Outcome(calls=1, waste_s=1)
    found = make_report({"a": ours, "fixed-10m": fixed, "limit": fixed}, 0.0, ["a", "fixed-10m"])
    assert [row.waste_ratio for row in found.policies] == [None, 1.0]
    assert to_lines(found)[1].split() == ["a", "0.00%", "-", "0.00%", "-"]


def test_who_is_ahead_on_both_sides_of_a_trade_is_named() -> None:
    mine = Row("mine", 0.1, 1.0, 0.99, 1.3)
    colder = Row("colder", 0.2, 0.9, 0.99, 1.3)
    better = Row("better", 0.1, 0.9, 0.98, 1.2)
    quicker = Row("quicker", 0.2, 1.1, 0.995, 1.3)
    assert dominators(mine, [mine, colder, better, quicker]) == {
        "cold share x waste": ["better"],
        "late share x GPU-hours": ["quicker"],
        "all four": [],
    }
    best = Row("best", 0.1, 0.9, 0.99, 1.3)
    assert dominators(mine, [mine, best])["all four"] == ["best"]
