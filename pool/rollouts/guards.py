"""What a rollout's candidate is watched for: counts of both arms in, a verdict out.

The guards know no policy.  They say of what there is evidence, and what is missing to more; what is
done about it is decided elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from pool.rollouts.eprocess import (
    Odds,
    SplitTest,
    chained,
    exposure_lift,
    mean_log_e,
    rate_bounds,
)
from pool.rollouts.signals import ArmCounts, Verdict
from registry_sync.rollout_terms import ArmSeen, Guard, Segment

# The part of a guard's α for 100 %, where the baseline is no longer there to compare with.
FULL_PART: Final = 0.1
# The chance that a split that is right is ever taken for wrong, in a whole rollout.
MISMATCH_ALPHA: Final = 0.001


class Stratum(msgspec.Struct, frozen=True):
    """One kind of event in one segment; each field is the baseline's and the candidate's."""

    share: float  # the candidate's, as configured
    units: tuple[float, float]  # each once in a look window
    calls: tuple[float, float]
    events: tuple[float, float]  # each unit's once
    event_calls: tuple[float, float]

    @property
    def lift(self) -> float:
        """See `exposure_lift`."""
        arms = zip(self.units, self.calls, strict=True)
        return float(exposure_lift(self.share, *arms)) if 0.0 < self.share < 1.0 else 1.0


class Rates(msgspec.Struct, frozen=True):
    """Which share of either arm's calls has an event."""

    baseline: float
    candidate: float

    @property
    def harm(self) -> float:
        """By how much the candidate's is higher."""
        return self.candidate - self.baseline


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
            past: the segments that have ended, with their counts and log e-values.
            candidate: the arm's name.
            baseline: the other's.
            steps: how many steps the rollout has.
            sticky: whether units keep their arm, and so may count for less than their calls.
            cached: whether a cache may answer, so that arms with as many units have other calls.
        """
        self._guard, self._share, self._steps = guard, share, max(1, steps)
        self._names = (baseline, candidate)
        self._past = [segment for segment in past if segment.step > 0]
        kinds = [*(["errors"] if guard.errors else []), *(["slow"] if guard.slower_than_ms else [])]
        count = len(kinds) + (guard.latency_ratio_max is not None)
        self._alpha = guard.alpha / max(1, count)
        self._kinds = [
            RateGuard(
                kind,
                alpha=self._alpha,
                margin=guard.margin_points / 100.0,
                share=share,
                past=[self._past_stratum(kind, segment) for segment in self._past],
                past_log_es=self._past_log_es(kind),
                steps=self._steps,
                is_uneven=sticky and cached,
            )
            for kind in kinds
        ]
        self._is_sticky = sticky
        # The whole mutable state, but for what the guards of rates remember.
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

        `now_s` is not needed: what is known depends on how much was seen, not on when.
        """
        self._counts = (baseline, candidate)
        self._mismatch_log_e = mismatch_log_e
        for kind in self._kinds:
            kind.look(_stratum(kind.name, self._share, baseline, candidate))

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
            worse += kind.worse()
        if self._guard.latency_ratio_max is not None:
            segment_log_e["latency"] = self._latency_log_e()
            log_es = [*self._past_log_es("latency"), segment_log_e["latency"]]
            log_e["latency"] = float(chained(log_es, self._steps))
            worse += (longer := list(self._longer()))
            if log_e["latency"] >= -math.log(self._alpha):
                evidence = f"e-value {_shown(log_e['latency'])}, {1 / self._alpha:.0f} needed"
                harms += [f"{text} ({evidence})" for text in longer]
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
        if self._guard.latency_ratio_max is not None:
            found["latency"] = 1.0 / self._alpha
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
            f"(e-value {_shown(self._mismatch_log_e)})"
        )

    def _latency_log_e(self) -> float:
        ratio_max = self._guard.latency_ratio_max
        if ratio_max is None or not 0.0 < self._share < 1.0:
            return 0.0
        baseline, candidate = self._counts
        units = (baseline.assigned, candidate.assigned) if self._is_sticky else (math.inf, math.inf)
        return mean_log_e(_logs(baseline), _logs(candidate), math.log(ratio_max), units)

    def _longer(self) -> Iterator[str]:
        ratio_max = self._guard.latency_ratio_max
        baseline, candidate = self._counts
        if ratio_max is None or not (baseline.log_calls and candidate.log_calls):
            return
        gap = candidate.log_sum / candidate.log_calls - baseline.log_sum / baseline.log_calls
        if gap > math.log(ratio_max):
            yield (
                f"calls of {self._names[1]} take {math.exp(min(gap, 100.0)):.3g} times as long, "
                f"{ratio_max:g} times are allowed"
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

    def _past_log_es(self, kind: str) -> list[float]:
        return [segment.log_e.get(kind, 0.0) for segment in self._past]

    def _past_stratum(self, kind: str, segment: Segment) -> Stratum:
        seen = [segment.arms.get(name, ArmSeen()) for name in self._names]
        weights = [segment.weights.get(name, 0.0) for name in self._names]
        share = weights[1] / sum(weights) if sum(weights) else 0.0
        return _seen_stratum(kind, share, seen[0], seen[1])


class RateGuard:
    """Watches the share of calls with one kind of event."""

    def __init__(
        self,
        name: str,
        *,
        alpha: float,
        margin: float,
        share: float,
        past: Sequence[Stratum],
        past_log_es: Sequence[float],
        steps: int,
        is_uneven: bool,
    ) -> None:
        self.name = name
        self._margin, self._steps, self._is_uneven = margin, steps, is_uneven
        self._past, self._past_log_es = past, past_log_es
        # Half of the part for 100 % is for the bound of the baseline's rate.
        full = FULL_PART * alpha / 2
        self.alphas = {name: (1.0 - FULL_PART) * alpha, f"{name}_full": full}
        # How high the candidate's rate may be at 100 %: 1 if the baseline was not seen.
        self._units = sum(stratum.units[0] for stratum in past)
        self._events = sum(stratum.events[0] for stratum in past)
        limit = rate_bounds(self._events, self._units, full)[1] + margin
        self._limit = np.array([min(1.0, limit)])
        # The whole mutable state: the last look, and the evidence so far.
        self._now = Stratum(share, (0, 0), (0, 0), (0, 0), (0, 0))
        self._split = SplitTest(share) if 0.0 < share < 1.0 else None
        self._full = Odds(limit) if share >= 1.0 and 0.0 < limit < 1.0 else None

    def look(self, now: Stratum) -> None:
        """Take in the counts since the segment began."""
        if self._split is not None:
            lift = now.lift if self._is_uneven else 1.0
            self._split.look(*now.units, *now.events, lift)
        if self._full is not None:
            events = max(0.0, now.events[1] - self._now.events[1])
            units = max(events, now.units[1] - self._now.units[1])
            # Here every unit falls on one of two sides: with an event, or without.
            self._full.add(np.array([units]), np.array([events]), self._limit)
        self._now = now

    def segment_log_es(self) -> dict[str, float]:
        """Return the evidence of this segment alone."""
        split = float(self._split.log_e[0]) if self._split is not None else 0.0
        full = {f"{self.name}_full": float(self._full.log_e[0])} if self._full is not None else {}
        return {self.name: split} | full

    def log_es(self) -> dict[str, float]:
        """Return the evidence of all segments."""
        now = self.segment_log_es()
        log_es = [*self._past_log_es, now[self.name]]
        return now | {self.name: float(chained(log_es, self._steps))}

    def rates(self) -> Rates:
        """Estimate how bad both arms are: by this segment or by all, whichever is worse."""
        if self._now.share < 1.0:
            now, whole = self._rates_of([self._now]), self._rates_of([*self._past, self._now])
            return max(now, whole, key=lambda rates: rates.harm)
        candidate = self._now.events[1] / self._now.units[1] if self._now.units[1] else 0.0
        return Rates(self._events / self._units if self._units else candidate, candidate)

    def _rates_of(self, strata: Sequence[Stratum]) -> Rates:
        """Split the calls with an event by the ratio of both rates, each unit's event once.

        The ratio is that of Mantel and Haenszel (1959), which no change of the weights or of the
        rates from segment to segment misleads.
        """
        ours = theirs = 0.0
        for stratum in strata:
            units = [stratum.units[0], stratum.units[1]]
            if self._is_uneven:
                units[1] *= stratum.lift
            if min(units) > 0.0:
                ours += stratum.events[1] * units[0] / sum(units)
                theirs += stratum.events[0] * units[1] / sum(units)
        compared = [stratum for stratum in strata if min(stratum.units) > 0.0]
        failed = float(sum(sum(stratum.event_calls) for stratum in compared))
        calls = [float(sum(stratum.calls[arm] for stratum in compared)) for arm in (0, 1)]
        scale = theirs * calls[0] + ours * calls[1]
        if scale <= 0.0:
            return Rates(0.0, 0.0)
        return Rates(min(1.0, failed * theirs / scale), min(1.0, failed * ours / scale))

    def harms(self) -> Iterator[str]:
        """Say what there is evidence of, and that is worse than the margin allows."""
        log_es, rates = self.log_es(), self.rates()
        for name, log_e in log_es.items():
            if log_e >= -math.log(self.alphas[name]) and rates.harm >= self._margin:
                enough = f"{1 / self.alphas[name]:.0f} needed"
                yield f"{self._what(rates)} (e-value {_shown(log_e)}, {enough})"
                return

    def worse(self) -> Iterator[str]:
        """Say what looks worse than the margin allows, with evidence or without."""
        rates = self.rates()
        if rates.harm > self._margin:
            yield self._what(rates)

    def _what(self, rates: Rates) -> str:
        what = "fail" if self.name == "errors" else "are slow"
        theirs = f"{rates.baseline:.2%} of the baseline's"
        return f"{rates.candidate:.2%} of the candidate's calls {what}, {theirs}"


def _stratum(kind: str, share: float, baseline: ArmCounts, candidate: ArmCounts) -> Stratum:
    """Return what is counted now of one kind of event."""
    arms = (baseline, candidate)
    seen = _seen_stratum(kind, share, baseline.seen, candidate.seen)
    if kind == "errors":
        return msgspec.structs.replace(
            seen, units=_pair(a.units for a in arms), events=_pair(a.errors for a in arms)
        )
    return msgspec.structs.replace(
        seen,
        # A call that was never answered is no outcome, but it is slow.
        units=_pair(max(a.units + a.late, a.slow) for a in arms),
        calls=_pair(max(a.seen.calls + a.late, a.seen.slow) for a in arms),
        events=_pair(a.slow for a in arms),
    )


def _seen_stratum(kind: str, share: float, baseline: ArmSeen, candidate: ArmSeen) -> Stratum:
    """Return what a segment's record says of one kind of event."""
    arms = (baseline, candidate)
    if kind == "errors":
        return Stratum(
            share,
            units=_pair(a.units for a in arms),
            calls=_pair(a.calls for a in arms),
            events=_pair(a.failed_units for a in arms),
            event_calls=_pair(a.errors for a in arms),
        )
    return Stratum(
        share,
        units=_pair(max(a.units, a.slow_units) for a in arms),
        calls=_pair(max(a.calls, a.slow) for a in arms),
        events=_pair(a.slow_units for a in arms),
        event_calls=_pair(a.slow for a in arms),
    )


def _pair(numbers: Iterable[float]) -> tuple[float, float]:
    baseline, candidate = numbers
    return baseline, candidate


def _logs(arm: ArmCounts) -> tuple[float, float, float]:
    return arm.log_calls, arm.log_sum, arm.log_squares


def _shown(log_e: float) -> str:
    """Return an e-value as people read it.

    >>> _shown(3.0), _shown(2000.0)
    ('20.1', '1e868')
    """
    return f"{math.exp(log_e):.3g}" if log_e < 50.0 else f"1e{log_e / math.log(10):.0f}"
