"""What a rollout's candidate is watched for: counts of both arms in, a verdict out.

The guards know no policy.  They say of what there is evidence, and what is missing to more; what is
done about it is decided elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from pool.rollouts.eprocess import rate_bounds
from pool.rollouts.rate_guard import RateGuard, Stratum, past_stratum, shown, stratum
from pool.rollouts.signals import ArmCounts, Verdict
from pool.rollouts.unit_guard import UNITS_PART, UnitGuard, UnitTest
from pool.rollouts.window_guard import MeanGuard, Setting, SlowGuard
from registry_sync.rollout_terms import ArmSeen, Guard, Segment

# The chance that a split that is right is ever taken for wrong, in a whole rollout.
MISMATCH_ALPHA: Final = 0.001


class Guards:
    """All guards of one rollout in one segment."""

    def __init__(
        self,
        guard: Guard,
        *,
        share: float,
        past: Sequence[Segment] = (),
        candidate: str = "canary",
        baseline: str = "stable",
        steps: int = 1,
        sticky: bool = False,
        cached: bool = True,
    ) -> None:
        """Begin a segment.

        Args:
            guard: what is watched.
            share: the candidate's configured share, 0 to 1; at 0 and 1 nothing can be compared.
            past: the segments that have ended, with their counts and log e-values; also the one
                before the first step, in which nothing was compared.
            candidate: the arm's name.
            baseline: the other's.
            steps: how many steps the rollout has.
            sticky: whether units keep their arm, and so may count for less than their calls.
            cached: whether a cache may answer, so that arms with as many requests have other calls.
        """
        self._guard, self._share, self._steps = guard, share, max(1, steps)
        self._names = (baseline, candidate)
        self._past = [segment for segment in past if segment.step > 0]
        limits = (guard.slower_than_ms, guard.latency_ratio_max)
        count = guard.errors + sum(limit is not None for limit in limits)
        self._alpha = guard.alpha / max(1, count)
        margin = guard.margin_points / 100.0
        self._rates = RateGuard(
            "errors",
            alpha=self._alpha * (1.0 - UNITS_PART if sticky else 1.0),
            margin=margin,
            share=share,
            past=[self._past_stratum(segment) for segment in past],
            past_log_es=[segment.log_e.get("errors", 0.0) for segment in self._past],
            steps=self._steps,
            cached=cached,
        )
        self._units = UnitGuard(
            alpha=self._alpha * UNITS_PART,
            margin=margin,
            share=share,
            past_log_es=[s.log_e[UnitGuard.name] for s in self._past if UnitGuard.name in s.log_e],
            steps=self._steps,
            cached=cached,
        )
        now = Setting(share, past, self._names, self._steps, sticky)
        slower, ratio = limits
        self._slow = SlowGuard(now, alpha=self._alpha, margin=margin)
        self._slow_units = UnitTest("slow", share, steps=self._steps, cached=cached, has_lone=True)
        self._mean = MeanGuard(now, alpha=self._alpha, ratio_max=ratio or 1.0)
        self._kinds: list[RateGuard | UnitGuard | SlowGuard | MeanGuard] = [
            *([self._rates] if guard.errors else []),
            *([self._units] if guard.errors and sticky else []),
            *([self._slow] if slower else []),
            *([self._mean] if ratio else []),
        ]
        self._is_compared_by_units = sticky and 0.0 < share < 1.0
        # The whole mutable state, but for what the single guards remember.
        self._counts = (ArmCounts(), ArmCounts())
        self._mismatch_log_e = 0.0

    def look(
        self,
        now_s: float,
        baseline: ArmCounts,
        candidate: ArmCounts,
        mismatch_log_e: float = 0.0,
    ) -> None:
        """Take in both arms' counts since the segment began, and see `mismatch_log_e`.

        `now_s` is monotonic: what lasts for a moment is told apart from what stays.
        """
        self._counts = (baseline, candidate)
        self._mismatch_log_e = mismatch_log_e
        self._rates.look(now_s, stratum(self._share, baseline, candidate))
        if self._units in self._kinds:
            self._units.look(baseline, candidate)
        if self._slow in self._kinds:
            unit_log_e = math.inf
            if self._is_compared_by_units:
                self._slow_units.look(baseline, candidate)
                unit_log_e = self._slow_units.log_e
            self._slow.look(now_s, baseline, candidate, unit_log_e)
        if self._mean in self._kinds:
            self._mean.look(now_s, baseline, candidate)

    def verdict(self) -> Verdict:
        """Say what follows from the last look, and from the segments before."""
        log_e: dict[str, float] = {}
        segment_log_e: dict[str, float] = {}
        harms: list[str] = []
        worse: list[str] = []
        for kind in self._kinds:
            log_e |= kind.log_es()
            segment_log_e |= kind.segment_log_es()
            harms += kind.harms()
            # Where units keep their arm these say it, but for 100 %.
            if kind is not self._rates or not self._is_compared_by_units:
                worse += kind.worse()
        waits_for = "; ".join(self._missing())
        return Verdict(
            harms=tuple(harms),
            is_enough=not waits_for,
            waits_for=waits_for,
            worse="; ".join(worse),
            mismatch=self._mismatch(),
            log_e=log_e,
            segment_log_e=segment_log_e,
            intervals=self._intervals(),
        )

    def fires_at(self) -> dict[str, float]:
        """Return which e-values are evidence, by the names of `Verdict.log_e`; and "mismatch"."""
        found = {"mismatch": self._steps / MISMATCH_ALPHA}
        for kind in self._kinds:
            found |= {name: 1.0 / alpha for name, alpha in kind.alphas.items()}
        return found

    def _missing(self) -> Iterator[str]:
        needed = self._guard.outcomes_min
        for name, arm in zip(self._names, self._counts, strict=True):
            is_watched = name == self._names[1] if self._share >= 1.0 else self._share > 0.0
            if is_watched and arm.units < needed:
                yield f"{name} has {arm.units:.0f} of the {needed} outcomes that a step needs"

    def _mismatch(self) -> str:
        if self._mismatch_log_e < math.log(self._steps / MISMATCH_ALPHA):
            return ""
        baseline, candidate = (arm.assigned for arm in self._counts)
        seen = (
            f"{candidate / (baseline + candidate):.2%} of the"
            if candidate
            else "too few or too many"
        )
        return (
            f"{self._names[1]} was given {seen} units where its weight says {self._share:.2%} "
            f"(e-value {shown(self._mismatch_log_e)})"
        )

    def _intervals(self) -> Mapping[str, tuple[float, float, float]]:
        """Return every arm's share of failed calls in all segments, with an interval of units."""
        found = {}
        for name, arm in zip(self._names, self._counts, strict=True):
            seen = [arm.seen, *(s.arms[name] for s in self._past if name in s.arms)]
            calls, failed = sum(s.calls for s in seen), sum(s.errors for s in seen)
            units, events = sum(s.units for s in seen), sum(s.failed_units for s in seen)
            low, high = rate_bounds(events, units, self._guard.alpha)
            rate = failed / calls if calls else 0.0
            # A unit that fails again and again is one piece of evidence, whatever the rate.
            scale = rate / (events / units) if events and units and rate else 1.0
            found[name] = (min(rate, low * scale), rate, max(rate, min(1.0, high * scale)))
        return found

    def _past_stratum(self, segment: Segment) -> Stratum:
        seen = [segment.arms.get(name, ArmSeen()) for name in self._names]
        weights = [segment.weights.get(name, 0.0) for name in self._names]
        share = weights[1] / sum(weights) if sum(weights) else 0.0
        # Where a guard was overruled the state keeps what was seen, for people, and no evidence.
        counts = not segment.step or bool(segment.log_e)
        return past_stratum(share, seen[0], seen[1], counts=counts)
