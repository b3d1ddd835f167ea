"""How long instances are there in a month: by a load's figures, or by playing a trace.  Pure.

A month has 730 hours, as AWS counts it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import numpy as np

from infra.estimate.deployment import Pool
from infra.simulate.engine import Load, Outcome

HOURS: Final = 730.0
DAYS: Final = HOURS / 24
MINUTE_S: Final = 60.0

# Copies of a trace's calls come this much before or after them: a crowd of callers is no choir.
SHIFT_S: Final = 60.0
SEED: Final = 8


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """What one pool has to do in a month, and what that takes."""

    pool: str
    requests: float
    requests_per_s: float  # mean of the hours in which they come
    active_hours: float  # of the month
    instance_hours: float
    on_demand_hours: float  # of these; the others are spot
    instances_peak: int  # as the busiest minute needs; who is always on has so many


def use_by_load(pool: Pool, scale: float) -> Use:
    """Return what the load of a pool takes, `scale` times as many requests.

    In the active hours there are as many instances as their mean rate needs.  Outside of them there
    are `instances_min`; each wake costs the start of an instance, and the rest before its end.
    """
    load = pool.load
    requests_per_day = load.requests_per_day * scale
    active_s = load.active_hours_per_day * 3600
    busy = requests_per_day / active_s * load.gpu_s_per_request
    needed = _instances(pool, busy) if requests_per_day else 0
    mean = max(needed, pool.instances_min)
    wakes = load.wakes_per_day if needed > pool.instances_min else 0.0

    def hours_of(count: Callable[[int], int]) -> float:
        """Return hours a day of those instances of so many that `count` counts."""
        hours = count(mean) * load.active_hours_per_day
        hours += count(pool.instances_min) * (24 - load.active_hours_per_day)
        woken = count(pool.instances_min + 1) - count(pool.instances_min)
        hours += wakes * (pool.start_s + pool.rest_s) / 3600 * woken
        return min(hours, 24 * count(max(mean, 1)))

    return Use(
        pool=pool.name,
        requests=requests_per_day * DAYS,
        requests_per_s=requests_per_day / active_s,
        active_hours=load.active_hours_per_day * DAYS,
        instance_hours=hours_of(lambda instances: instances) * DAYS,
        on_demand_hours=hours_of(lambda instances: on_demand(pool, instances)) * DAYS,
        instances_peak=max(_instances(pool, busy * load.peak_to_mean), pool.instances_min),
    )


def use_by_trace(pool: Pool, loads: Sequence[Load], outcome: Outcome, span_s: float) -> Use:
    """Return what a trace takes that comes again and again for a month.

    Args:
        pool: whose calls they are.
        loads: the calls.
        outcome: of the simulated policy over them, with `start_s` from the wish to a warm replica.
            After its last call a replica's instance stays for `rest_s`, whatever comes then: that
            is paid for on top, once for each wake, and at most.
        span_s: as long as the trace is.
    """
    per_month = HOURS * 3600 / span_s
    replica_s = outcome.gpu_s + outcome.wakes * pool.rest_s
    hours = replica_s / 3600 / pool.workers_per_instance * per_month
    hours = max(hours, pool.instances_min * HOURS)
    # How many there are at a time is not told: all that the first ones could be is on demand.
    base_hours = min(hours, pool.on_demand_base * HOURS)
    return Use(
        pool=pool.name,
        requests=outcome.calls * per_month,
        requests_per_s=outcome.calls / span_s,
        active_hours=HOURS,
        instance_hours=hours,
        on_demand_hours=hours - (hours - base_hours) * (1 - pool.on_demand_percent / 100),
        instances_peak=max(_instances(pool, busiest(loads)), pool.instances_min),
    )


def busiest(loads: Sequence[Load]) -> float:
    """Return how many replicas all calls of the busiest minute keep busy, without a pause."""
    arrivals_s = np.concatenate([load.arrivals_s for load in loads])
    work_s = np.concatenate([load.exec_s for load in loads])
    minutes = (arrivals_s // MINUTE_S).astype(np.int64)
    return float(np.bincount(minutes, weights=work_s).max()) / MINUTE_S


def scaled(loads: Sequence[Load], scale: int) -> list[Load]:
    """Return so many times the calls, each copy up to a minute off; always the same ones."""
    if scale == 1:
        return list(loads)
    draw = np.random.RandomState(SEED)
    return [_scaled(load, scale, draw) for load in loads]


def _scaled(load: Load, scale: int, draw: np.random.RandomState) -> Load:
    arrivals_s = np.repeat(load.arrivals_s, scale)
    last_s = float(load.arrivals_s[-1])
    arrivals_s = arrivals_s + draw.uniform(-SHIFT_S, SHIFT_S, len(arrivals_s))
    arrivals_s = np.clip(arrivals_s, 0.0, last_s)
    order = np.argsort(arrivals_s, kind="stable")
    return Load(load.model, arrivals_s[order], np.repeat(load.exec_s, scale)[order])


def on_demand(pool: Pool, instances: int) -> int:
    """Return how many of so many instances are on demand; a fraction of one is one, as on AWS."""
    base = min(instances, pool.on_demand_base)
    return base + math.ceil(round((instances - base) * pool.on_demand_percent / 100, 9))


def _instances(pool: Pool, busy: float) -> int:
    """Return how many instances keep so many workers' worth of work below `utilisation`."""
    return math.ceil(round(busy / pool.utilisation / pool.workers_per_instance, 9)) if busy else 0
