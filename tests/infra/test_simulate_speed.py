"""A million calls of a thousand models take a minute at most, all policies, on two cores."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import numpy as np
import pytest

from infra.simulate.engine import Load, Version, World
from infra.simulate.fixed import Fixed
from infra.simulate.study import Study, end_s_of, report_of
from infra.simulate.traces import Reading, read_trace
from pool.scaling.signals import Signals

WEEK_S = 7 * 86_400.0


def _rows(models: int, calls: int) -> list[tuple[float, str]]:
    """Return calls at random over a week, of models of which few have most calls."""
    rng = np.random.default_rng(4)
    shares = rng.lognormal(0, 1.5, models)
    whose = rng.choice(models, calls, p=shares / shares.sum())
    times_s = np.sort(rng.uniform(0, WEEK_S, calls))
    return [(float(t_s), f"m{model}") for t_s, model in zip(times_s, whose, strict=True)]


class _Counted(Fixed):
    """Counts how often it is asked."""

    asked = 0

    def observe(self, signals: Signals) -> None:
        self.asked += 1
        super().observe(signals)


def test_idle_time_costs_nothing() -> None:
    """A call is seen when it came, when it ended, and when what was kept for it goes."""
    year_s = 365 * 86_400.0
    load = Load("m", np.arange(0, year_s, 40_000.0), np.full(789, 60.0))
    policy = _Counted(600.0)
    assert Version(load, policy, World(end_s=year_s)).finish().calls == 789
    assert policy.asked <= 4 * 789


def test_calls_of_a_round_are_seen_together() -> None:
    load = Load("m", np.arange(0, 100, 0.001), np.full(100_000, 0.0005))
    policy = _Counted(600.0)
    assert Version(load, policy, World(end_s=100)).finish().calls == 100_000
    assert policy.asked <= 202


def _cpu_s() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    ours, theirs = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return ours.ru_utime + ours.ru_stime + theirs.ru_utime + theirs.ru_stime


@pytest.mark.slow
def test_a_million_calls_of_a_thousand_models_take_a_minute(tmp_path: Path) -> None:
    path = tmp_path / "million.csv"
    with path.open("w") as file:
        file.write("t_s,model\n")
        file.writelines(f"{t_s:.3f},{model}\n" for t_s, model in _rows(1000, 1_000_000))
    began_s, began_cpu_s = time.monotonic(), _cpu_s()
    loads = read_trace(path, Reading())
    report = report_of(Study(loads, World(end_s=end_s_of(loads))))
    took_s, cpu_s = time.monotonic() - began_s, _cpu_s() - began_cpu_s
    print(f"\nall policies: {took_s:.1f} s, CPU {cpu_s:.1f} s")
    assert len(loads) == 1000
    assert report.limit.cold_share == pytest.approx(0.001, abs=2e-4)
    assert cpu_s <= 2 * 60  # what two cores have in a minute; the wall is also the neighbours'
