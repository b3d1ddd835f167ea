"""How long the calls of a rollout's arms take, as replicas make it: not each call for itself.

Counts are cumulative over one segment, at the end of every window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pool.rollouts.signals import ArmCounts
from pool.rollouts.window_guard import WINDOW_S, MeanGuard, Setting, SlowGuard
from registry_sync.rollout_terms import ArmSeen, Segment

NAMES = ("stable", "canary")
SLOW_MS = 100.0
MARGIN = 0.005
ALPHA = 0.025  # of each: there are two guards

Floats = NDArray[np.float64]
# Given a generator and the arm of every call, in order, at 100 calls/s: milliseconds.
Latencies = Callable[[np.random.Generator, NDArray[np.int64]], Floats]
CALLS_PER_S = 100.0


def steady(spread: float = 0.5) -> Latencies:
    """Make calls that each take their own time, around 10 ms."""
    return lambda rng, arms: 10.0 * np.exp(spread * rng.normal(size=len(arms)))


def heavy(tail: float = 0.5) -> Latencies:
    """Make calls whose mean does not exist: of Pareto's distribution, from 1 ms on."""
    return lambda rng, arms: 1.0 + rng.pareto(tail, len(arms))


def stalling(every_s: float = 60.0, length_s: float = 0.5) -> Latencies:
    """Make each arm stand still now and then: whoever calls meanwhile waits for the end."""

    def made(rng: np.random.Generator, arms: NDArray[np.int64]) -> Floats:
        ms = 10.0 * np.exp(0.3 * rng.normal(size=len(arms)))
        at_s = np.arange(len(arms)) / CALLS_PER_S
        for arm in (0, 1):
            begins_s = np.cumsum(rng.exponential(every_s, int(3 * at_s[-1] / every_s) + 20))
            for begin_s in begins_s[begins_s < at_s[-1]]:
                first, last = np.searchsorted(at_s, (begin_s, begin_s + length_s))
                waiting = first + np.flatnonzero(arms[first:last] == arm)
                ms[waiting] += 1000.0 * (begin_s + length_s - at_s[waiting])
        return ms

    return made


def batching(shared: float = 0.3, own: float = 0.5, size: int = 20) -> Latencies:
    """Make calls of one arm that come together share a part of their time."""

    def made(rng: np.random.Generator, arms: NDArray[np.int64]) -> Floats:
        batch = np.arange(len(arms)) // size
        common = rng.normal(size=(len(arms) // size + 1, 2))[batch, arms]
        return 10.0 * np.exp(shared * common + own * rng.normal(size=len(arms)))

    return made


@dataclass(frozen=True)
class Candidate:
    """In what the candidate differs, from a time of the segment on."""

    times: float = 1.0  # as long
    slow: float = 0.0  # of its calls take a second more
    from_s: float = 0.0
    until_s: float = math.inf


EQUAL = Candidate()


def counts_of(
    latencies: Latencies,
    share: float,
    seconds: float,
    rng: np.random.Generator,
    candidate: Candidate = EQUAL,
) -> list[tuple[ArmCounts, ArmCounts]]:
    """Return both arms' counts at the end of every window."""
    size = round(seconds * CALLS_PER_S)
    arms = (rng.random(size) < share).astype(np.int64)
    ms = latencies(rng, arms)
    at_s = np.arange(size) / CALLS_PER_S
    differs = (arms == 1) & (at_s >= candidate.from_s) & (at_s < candidate.until_s)
    ms[differs] *= candidate.times
    ms[differs & (rng.random(size) < candidate.slow)] += 1000.0
    windows = (at_s // WINDOW_S).astype(np.int64)

    def summed(values: Floats | None = None) -> Floats:
        sums = np.bincount(2 * windows + arms, values, 2 * (windows[-1] + 1))
        return np.cumsum(sums.reshape(-1, 2), axis=0)

    logs = np.log1p(1000.0 * ms)
    sums = (summed(), summed((ms > SLOW_MS).astype(float)), summed(logs), summed(logs * logs))
    return [
        (_arm(*(kind[at, 0] for kind in sums)), _arm(*(kind[at, 1] for kind in sums)))
        for at in range(len(sums[0]))
    ]


def _arm(calls: float, slow: float, log_sum: float, log_squares: float) -> ArmCounts:
    count = int(calls)
    return ArmCounts(
        seen=ArmSeen(calls=count, units=count, slow=int(slow)),
        units=calls,
        log_calls=count,
        log_sum=log_sum,
        log_squares=log_squares,
        assigned=count,
    )


def slower_at_s(
    latencies: Latencies,
    steps: Sequence[tuple[float, float]],
    seed: int,
    *,
    ratio_max: float = 1.0,
    candidate: Candidate = EQUAL,
) -> dict[str, float]:
    """Return by guard after how many seconds of a rollout it says that there is harm.

    Args:
        latencies: of all calls, but for what the candidate does in the last step.
        steps: the candidate's share, and for how long.
        seed: of everything.
        ratio_max: of the guard of means.
        candidate: in what it differs in the last step.
    """
    rng = np.random.default_rng(seed)
    past: list[Segment] = []
    found = {SlowGuard.name: math.inf, MeanGuard.name: math.inf}
    began_s = 0.0
    for step, (share, seconds) in enumerate(steps, 1):
        now = Setting(share, past, NAMES, len(steps), sticky=False)
        guards = (
            SlowGuard(now, alpha=ALPHA, margin=MARGIN),
            MeanGuard(now, alpha=ALPHA, ratio_max=ratio_max),
        )
        for guard in guards:
            guard.look(0.0, ArmCounts(), ArmCounts())
        differs = candidate if step == len(steps) else EQUAL
        counts = counts_of(latencies, share, seconds, rng, differs)
        for index, arms in enumerate(counts, 1):
            for guard in guards:
                guard.look(index * WINDOW_S, *arms)
                if math.isinf(found[guard.name]) and any(guard.harms()):
                    found[guard.name] = began_s + index * WINDOW_S
        began_s += len(counts) * WINDOW_S
        log_e = {name: e for guard in guards for name, e in guard.segment_log_es().items()}
        seen = {name: arm.seen for name, arm in zip(NAMES, counts[-1], strict=True)}
        weights = {NAMES[0]: 100 * (1 - share), NAMES[1]: 100 * share}
        past.append(Segment(step, weights, seen, log_e))
    return found
