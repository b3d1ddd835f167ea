"""Runs every policy over the same calls, on all cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import reduce
from multiprocessing import get_context
from operator import add
from typing import Final

from infra.simulate.engine import Load, Outcome, World, run_all
from infra.simulate.ideal import ideal_s
from infra.simulate.policies import FAMILIES

# Models that learn from each other are in one share, and there are two shares at most however many
# cores there are: the outcome does not depend on the machine.
SHARES: Final = 2
SHARE_MODELS_MIN: Final = 64

# Below so many calls a process of its own takes longer to start than the work.
CALLS_MIN: Final = 50_000


@dataclass(frozen=True)
class Job:
    """One row to come: a policy, by its name, in a world."""

    policy: str
    world: World


def run_jobs(
    loads: Sequence[Load], jobs: Sequence[Job], done: Callable[[Job], None] = lambda job: None
) -> list[Outcome]:
    """Return the outcome of every job over all models; `done` is told of each in turn."""
    tasks = [(job, share) for job in jobs for share in _shares(loads)]
    calls = sum(len(load.arrivals_s) for load in loads)
    processes = min(len(os.sched_getaffinity(0)), len(tasks))
    if processes > 1 and calls * len(jobs) >= CALLS_MIN:
        # A fresh interpreter: what this one has loaded or started is nobody else's business.
        with ProcessPoolExecutor(processes, get_context("spawn")) as executor:
            return list(_by_job(tasks, executor.map(_run, tasks), done))
    return list(_by_job(tasks, map(_run, tasks), done))


def ideal_all_s(loads: Sequence[Load]) -> float:
    """Return `ideal_s` of all models together."""
    return sum(map(ideal_s, loads))


def _shares(loads: Sequence[Load]) -> list[list[Load]]:
    """Deal the models out, so that each share has about as many calls."""
    shares = SHARES if len(loads) >= SHARES * SHARE_MODELS_MIN else 1
    by_size = sorted(loads, key=lambda load: -len(load.arrivals_s))
    return [by_size[first::shares] for first in range(shares)]


def _run(task: tuple[Job, Sequence[Load]]) -> Outcome:
    job, loads = task
    make = FAMILIES[job.policy]()
    return reduce(add, run_all(loads, make, job.world), Outcome())


def _by_job(
    tasks: Sequence[tuple[Job, Sequence[Load]]],
    outcomes: Iterator[Outcome],
    done: Callable[[Job], None],
) -> Iterator[Outcome]:
    """Add up the shares of every job; they come one after the other."""
    total = Outcome()
    for index, ((job, _), outcome) in enumerate(zip(tasks, outcomes, strict=True)):
        total += outcome
        if index + 1 == len(tasks) or tasks[index + 1][0] is not job:
            yield total
            done(job)
            total = Outcome()
