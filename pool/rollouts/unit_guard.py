"""Whether units that keep their arm do worse in the candidate's than in the baseline's.

Calls of one unit may all be alike, so that a unit is one observation, however often it calls: which
part of its calls had an event.  Whatever units do, if both arms are as good, which arm a unit is in
has nothing to do with it: it is in the candidate's with the configured share, each for itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pool.rollouts.eprocess import exposure_lift
from pool.rollouts.rate_guard import Rates, shown
from pool.rollouts.signals import ArmCounts, Unit

Floats = NDArray[np.float64]

# What is looked for: units with an event are so many times as likely to be in the candidate's arm.
ODDS: Final = np.array([1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 1000.0, 10_000.0])
# Ways to measure what became of a unit, between 0 and 1, each of which sees other things best:
# - to its calls this part of what is usual (the median, at least `CALLS_MORE_MIN`) is added, all
#   without events: who has just had the first one is not taken for one who always has;
# - this of all units' parts is 1, and so is what is more: with the median, many units that fail a
#   little are seen beside a few that always fail;
# - to the power of that: a few that always fail are seen beside many that do a little.
MEASURES: Final[tuple[tuple[float, Callable[[Floats], Any], int], ...]] = (
    (0.0, np.max, 1),
    (0.0, np.median, 1),
    (1.0, np.max, 1),
    (1.0, np.median, 1),
    (1.0, np.max, 4),
)
CALLS_MORE_MIN: Final = 10.0
# After so many requests evidence is looked at first, and then each time they are so much more.
LOOK_REQUESTS: Final = 50.0
LOOK_FACTOR: Final = 1.5
# Of a guard's α, where units keep their arm; the rest is for calls without a unit.
UNITS_PART: Final = 0.8
# Calls that differ by so many margins hold a rollout, even if one unit may be all there is to it.
MARGINS_MAX: Final = 10.0


def units_log_e(share: float, baseline: Sequence[Unit], candidate: Sequence[Unit]) -> float:
    """Return the log e-value that the candidate's units have larger parts of their calls failed.

    With ``s`` in [0, 1] made of a unit's calls and events, and ``w`` the share, it is the mean of
    ``Π (1 + λ(1-w)s) · Π (1 - λws)`` over the units of the candidate and of the baseline.  A unit
    is in the candidate's arm with the chance w, so each factor is 1 on average, for every λ < 1/w;
    how s is made may depend on all units, but not on their arms.

    Args:
        share: the candidate's of all units, in (0, 1).
        baseline: its units with an event: calls and events.
        candidate: the same.
    """
    units = np.array([*baseline, *candidate], np.float64).reshape(-1, 2)
    if not len(units):
        return 0.0
    theta = share * (ODDS - 1.0) / (share * ODDS + 1.0 - share)  # λw
    usual = max(CALLS_MORE_MIN, float(np.median(units[:, 0])))
    logs = []
    for more, full, power in MEASURES:
        parts = units[:, 1] / (units[:, 0] + more * usual)
        scores = np.minimum(parts / full(parts), 1.0) ** power
        theirs, ours = scores[: len(baseline), None], scores[len(baseline) :, None]
        logs.append(
            np.log1p(ours * theta * (1.0 - share) / share).sum(axis=0)
            + np.log1p(-theirs * theta).sum(axis=0)
        )
    found = np.concatenate(logs)
    peak = float(found.max())
    return peak + math.log(float(np.exp(found - peak).mean()))


class UnitTest:
    """The evidence of one segment that units have more of one kind of event in the candidate's arm.

    What units have done changes all the time, so that this is an e-value at any one time, but may
    not be looked at as often as one likes.  It is at fixed numbers of requests, the j-th time at a
    price: of the segment's chance to be wrong it has 1/((j+1)(j+2)).  Segments have the same units;
    so each has its part of the whole chance as well.  Both are taken off what is told, so that one
    limit is right for all.
    """

    def __init__(
        self, kind: str, share: float, *, steps: int, cached: bool, has_lone: bool = False
    ) -> None:
        """Begin a segment.

        Args:
            kind: of the events, as in `ArmCounts.unit_events`.
            share: the candidate's, as configured; at 0 and 1 nothing can be compared.
            steps: how many the rollout has.
            cached: whether a cache may answer.
            has_lone: whether slow calls without a unit are in it too, each as its own.
        """
        self._kind, self._share, self._steps, self._cached = kind, share, max(1, steps), cached
        self._has_lone = has_lone
        # The whole mutable state: when it is looked at next, how often it was, what was found last
        # in which counts, and the most that was ever found, which is evidence whatever comes then.
        self._next, self._looks = LOOK_REQUESTS, 0
        self._found: tuple[ArmCounts, ArmCounts, float] | None = None
        self.log_e = -math.log(2.0 * self._steps)

    def look(self, baseline: ArmCounts, candidate: ArmCounts) -> None:
        """Take in the counts since the segment began, if it is time."""
        asked = sum(max(arm.requests, arm.seen.calls) for arm in (baseline, candidate))
        if not 0.0 < self._share < 1.0 or asked < self._next:
            return
        while asked >= self._next:
            self._next *= LOOK_FACTOR
            self._looks += 1
        price = math.log(self._steps * self._looks * (self._looks + 1))
        self.log_e = max(self.log_e, self.now_log_e(baseline, candidate) - price)

    def now_log_e(self, baseline: ArmCounts, candidate: ArmCounts) -> float:
        """Return the log e-value of these counts, as if they were the only ones looked at."""
        if self._found is not None and self._found[:2] == (baseline, candidate):
            return self._found[2]
        theirs, ours = (arm.unit_events.get(self._kind, ()) for arm in (baseline, candidate))
        share = self._share
        if self._cached:
            scale = of_requests(baseline, candidate)
            ours = tuple((calls, events * scale) for calls, events in ours)
            arms = [(arm.seen.units, arm.seen.calls) for arm in (baseline, candidate)]
            odds = max(arms[1][0], 1) / max(arms[0][0], 1)
            odds *= float(exposure_lift(share, arms[0], arms[1]))
            share = odds / (1.0 + odds)
        found = units_log_e(share, theirs, ours)
        if self._has_lone:
            found = np.logaddexp(found, lone_log_e(share, baseline.slow, candidate.slow))
            found = float(found) - math.log(2.0)
        self._found = (baseline, candidate, found)
        return found


def lone_log_e(share: float, baseline: int, candidate: int) -> float:
    """Return what `units_log_e` does for units of one call each, which had the event.

    Args:
        share: the candidate's of all, in (0, 1).
        baseline: how many are the baseline's.
        candidate: the same.
    """
    theta = share * (ODDS - 1.0) / (share * ODDS + 1.0 - share)
    found = candidate * np.log1p(theta * (1.0 - share) / share) + baseline * np.log1p(-theta)
    peak = float(found.max())
    return peak + math.log(float(np.exp(found - peak).mean()))


def of_requests(baseline: ArmCounts, candidate: ArmCounts) -> float:
    """Return what events of the candidate's calls are worth if its cache answers more requests.

    Errors of inputs are never in a cache: the fewer calls are left, the more of them fail.
    """
    arms = (baseline, candidate)
    if any(arm.requests < arm.seen.calls or not arm.seen.calls for arm in arms):
        return 1.0
    dispatched = [arm.seen.calls / arm.requests for arm in arms]
    return min(1.0, dispatched[1] / dispatched[0])


class UnitGuard:
    """Watches which part of their calls fails for units that keep their arm."""

    name: Final = "errors_units"

    def __init__(
        self,
        *,
        alpha: float,
        margin: float,
        share: float,
        past_log_es: Sequence[float],
        steps: int,
        cached: bool,
    ) -> None:
        """Begin a segment.

        Args:
            alpha: the chance that an equal candidate is ever taken for worse.
            margin: by how much the candidate may be worse, as a share of calls.
            share: the candidate's, as configured, 0 to 1; at 0 and 1 nothing is compared.
            past_log_es: what was found in the segments before.
            steps: how many the rollout has.
            cached: whether a cache may answer.
        """
        self.alphas = {self.name: alpha}
        self._margin, self._is_compared, self._cached = margin, 0.0 < share < 1.0, cached
        self._past_log_es = past_log_es
        # The whole mutable state: the evidence of this segment, and the last look.
        self._test = UnitTest("errors", share, steps=steps, cached=cached)
        self._now = (ArmCounts(), ArmCounts())

    def look(self, baseline: ArmCounts, candidate: ArmCounts) -> None:
        """Take in the counts since the segment began."""
        self._now = (baseline, candidate)
        self._test.look(baseline, candidate)

    def segment_log_es(self) -> dict[str, float]:
        """Return the evidence of this segment alone."""
        return {self.name: self._test.log_e} if self._is_compared else {}

    def log_es(self) -> dict[str, float]:
        """Return the evidence of all segments: the most that was found in one of them."""
        found = self.segment_log_es()
        return {name: max([log_e, *self._past_log_es]) for name, log_e in found.items()}

    def harms(self) -> Iterator[str]:
        """Say what there is evidence of, and that is worse than the margin allows."""
        log_e, needed = self.log_es().get(self.name, -math.inf), -math.log(self.alphas[self.name])
        for rates, text in self._estimates():
            if log_e >= needed and rates.harm >= self._margin:
                yield f"{text} (e-value {shown(log_e)}, {math.exp(needed):.0f} needed)"
                return

    def worse(self) -> Iterator[str]:
        """Say what looks worse than the margin allows, and by more than chance may do.

        A few units say little, so that it has to lean that way; but calls that differ a lot are
        never taken for chance.
        """
        estimates = [found for found in self._estimates() if found[0].harm > self._margin]
        if not estimates:
            return
        by_calls = next(iter(self._estimates()))
        if by_calls[0].harm > MARGINS_MAX * self._margin:
            yield by_calls[1]
        elif self._test.now_log_e(*self._now) > 0.0:
            yield estimates[0][1]

    def _estimates(self) -> Iterator[tuple[Rates, str]]:
        """Estimate how bad both arms are: by calls, and by units, each of which is as much."""
        if not self._is_compared:
            return
        scale = of_requests(*self._now) if self._cached else 1.0
        calls = [arm.seen.errors / max(1, arm.seen.calls) for arm in self._now]
        rates = Rates(calls[0], calls[1] * scale)
        yield rates, _said(rates, "calls fail")
        if all(arm.assigned for arm in self._now):
            units = [
                sum(events / max(1, seen) for seen, events in arm.unit_events.get("errors", ()))
                / (arm.told_share * arm.assigned)
                for arm in self._now
            ]
            rates = Rates(min(1.0, units[0]), min(1.0, units[1]) * scale)
            yield rates, _said(rates, "calls fail, each unit's alike")


def _said(rates: Rates, what: str) -> str:
    theirs = f"{rates.baseline:.2%} of the baseline's"
    return f"{rates.candidate:.2%} of the candidate's {what}, {theirs}"
