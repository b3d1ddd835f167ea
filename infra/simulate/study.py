"""One question put to the simulator: which calls, which world, which policies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from infra.simulate.engine import Load, World
from infra.simulate.policies import CURVES, FAMILIES
from infra.simulate.report import LIMIT, YARDSTICK, Report, Row, make_report, row_of
from infra.simulate.run import Job, ideal_all_s, run_jobs

# The knob of the Pareto curve: how long one replica may idle for the sake of one cold start.
COSTS_S: Final = tuple(60.0 * minutes for minutes in (5, 10, 20, 40, 60, 120, 240, 480, 960))

POLICIES: Final = tuple(name for name in FAMILIES if name not in (LIMIT, *CURVES))


@dataclass(frozen=True)
class Study:
    """Calls, world and policies, by names of `POLICIES`."""

    loads: Sequence[Load]
    world: World
    names: tuple[str, ...] = POLICIES


def end_s_of(loads: Sequence[Load]) -> float:
    """Return when the last call to arrive, of all models, would end if it did not wait."""
    return max(float(load.arrivals_s[-1] + load.exec_s[-1]) for load in loads)


def report_of(study: Study, done: Callable[[str], None] = lambda name: None) -> Report:
    """Run the policies, the yardstick and the limit; `done` is told of each."""
    names = tuple(dict.fromkeys((*study.names, YARDSTICK, LIMIT)))
    jobs = [Job(name, study.world) for name in names]
    outcomes = run_jobs(study.loads, jobs, lambda job: done(job.policy))
    found = dict(zip(names, outcomes, strict=True))
    return make_report(found, ideal_all_s(study.loads), study.names)


def curves_of(
    study: Study, done: Callable[[str], None] = lambda name: None
) -> dict[str, list[Row]]:
    """Run the policies that have a knob along it: rows by policy, in order of `COSTS_S`."""
    names = ("tidepool", *CURVES)
    jobs = [Job(name, _at(study.world, cost_s)) for name in names for cost_s in COSTS_S]
    told = [Job(YARDSTICK, study.world), *jobs]
    first, *others = run_jobs(study.loads, told, lambda job: done(job.policy))
    ideal_s = ideal_all_s(study.loads)
    rows = [
        row_of(job.policy, found, first.waste_s, ideal_s)
        for job, found in zip(jobs, others, strict=True)
    ]
    return {name: [row for row in rows if row.name == name] for name in names}


def _at(world: World, cost_s: float) -> World:
    return replace(world, limits=msgspec.structs.replace(world.limits, cold_start_cost_s=cost_s))
