"""Whether a larger share of the candidate's calls fails, or is slow, than of the baseline's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec
import numpy as np

from pool.rollouts.eprocess import Odds, SplitTest, chained, exposure_lift, rate_bounds
from pool.rollouts.signals import ArmCounts
from registry_sync.rollout_terms import ArmSeen

# The part of a guard's α for 100 %, where the baseline is no longer there to compare with.
FULL_PART: Final = 0.1


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
                yield f"{self._what(rates)} (e-value {shown(log_e)}, {enough})"
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


def stratum(kind: str, share: float, baseline: ArmCounts, candidate: ArmCounts) -> Stratum:
    """Return what is counted now of one kind of event."""
    arms = (baseline, candidate)
    seen = seen_stratum(kind, share, baseline.seen, candidate.seen)
    if kind == "errors":
        return msgspec.structs.replace(
            seen, units=_pair(a.units for a in arms), events=_pair(a.errors for a in arms)
        )
    return msgspec.structs.replace(
        seen,
        units=_pair(max(a.units, a.slow) for a in arms),
        calls=_pair(max(a.seen.calls, a.seen.slow) for a in arms),
        events=_pair(a.slow for a in arms),
    )


def seen_stratum(kind: str, share: float, baseline: ArmSeen, candidate: ArmSeen) -> Stratum:
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


def shown(log_e: float) -> str:
    """Return an e-value as people read it.

    >>> shown(3.0), shown(2000.0)
    ('20.1', '1e868')
    """
    return f"{math.exp(log_e):.3g}" if log_e < 50.0 else f"1e{log_e / math.log(10):.0f}"
