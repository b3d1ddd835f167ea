"""Whether the candidate's calls take longer than the baseline's, window by window.

Calls of one replica are not independent: a stall makes all of them slow, a batch shares its time.
So an observation is not a call but a window of 10 s: how much slower the candidate's calls in it
are, on average, than the baseline's in the same window.  Windows of arms that are as fast differ
either way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from pool.rollouts.eprocess import chained, log_phi, log_sum, mean_log_e, rate_bounds
from pool.rollouts.rate_guard import FULL_PART, Rates, shown
from pool.rollouts.signals import ArmCounts
from registry_sync.rollout_terms import ArmSeen, Segment

WINDOW_S: Final = 10.0
# A window ends when it has so many calls of each arm: fewer say too little of an arm.
CALLS_MIN: Final = 3
# Fewer windows are no ground for a normal distribution of them.
WINDOWS_MIN: Final = 8
# By how many standard deviations of a window the candidate's windows may be higher; half-normal.
DRIFT: Final = 1.0
# What is bet on a window being bad, as a part of all there is, and the chance of each bet.
BETS: Final = ((0.99, 0.5), (0.5, 0.1), (0.2, 0.1), (0.1, 0.1), (0.05, 0.1), (0.02, 0.1))
# No window at 100 % is more than such a part of the evidence: what is over sooner is a burst.
FULL_WINDOWS_MIN: Final = 3
# How high a share may be at 100 % that nothing was ever seen to compare with.
BLIND_RATE: Final = 0.5


class Windows:
    """Cuts cumulative counts into windows that have enough calls of each arm that is watched.

    The first look is where the first window begins: what was counted before it may be of any age.
    """

    def __init__(self, arms: Sequence[int] = (0, 1)) -> None:
        self._arms = arms
        # The whole mutable state: when the window began, and each arm's (calls, sum) then.
        self._begun_s: float | None = None
        self._begun: tuple[tuple[float, float], ...] = ()

    def look(self, now_s: float, *arms: tuple[float, float]) -> tuple[float, ...] | None:
        """Return the mean of every watched arm if a window ends, else None.

        Args:
            now_s: when it was counted, monotonic.
            arms: each arm's calls and the sum of what is averaged, since the segment began.
        """
        if self._begun_s is None or any(
            arm[0] < begun[0] for arm, begun in zip(arms, self._begun, strict=True)
        ):
            self._begun_s, self._begun = now_s, arms
            return None
        if now_s < self._begun_s + WINDOW_S:
            return None
        calls = [arms[i][0] - self._begun[i][0] for i in self._arms]
        if min(calls) < CALLS_MIN:
            return None
        sums = [arms[i][1] - self._begun[i][1] for i in self._arms]
        self._begun_s, self._begun = now_s, arms
        return tuple(total / count for total, count in zip(sums, calls, strict=True))


class Bets:
    """Evidence that numbers of at least -`loss_max` are above zero on average.

    Whoever bets a part of what he has on every number, and is paid by it, has on average never
    more than he began with while they are not: however they are spread and hang together.

    Source:
        Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting (2020).
    """

    def __init__(self, loss_max: float, gain_log_max: float = math.inf) -> None:
        """Begin without evidence; no number adds more than `gain_log_max` to it."""
        self._loss_max, self._gain_log_max = loss_max, gain_log_max
        # The whole mutable state: the logarithm of what each bet has made of its chance.
        self._logs = [math.log(chance) for _, chance in BETS]

    def add(self, number: float) -> None:
        """Take the next number."""
        for index, (part, _) in enumerate(BETS):
            gain = math.log1p(part * max(number, -self._loss_max) / self._loss_max)
            self._logs[index] += min(gain, self._gain_log_max)

    @property
    def log_e(self) -> float:
        """The evidence so far."""
        return log_sum(self._logs)


def drift_log_e(count: int, total: float, squares: float) -> float:
    """Return the log e-value that numbers are above zero on average, whatever their scale.

    The likelihood ratio of a sequential t-test: of normal numbers whose mean is δ standard
    deviations, δ half-normal, to such with mean 0, the scale integrated out on both sides.  It is
    an e-value exactly for normal numbers, and nearly so for others, as it goes by their own scale:
    an outlier makes it smaller.

    Args:
        count: of numbers, from `WINDOWS_MIN` on; of fewer there is none.
        total: their sum.
        squares: the sum of their squares.

    Source:
        Lai, On confidence sequences (1976); Wang and Ramdas, Anytime-valid t-tests (2024).  With
        ``k = DRIFT · total / sqrt(squares · (1 + count · DRIFT²))`` the integral over δ leaves
        ``2 (1 + count · DRIFT²)^(-1/2) · E[exp(k²u²/2) Φ(ku)]``, u chi-distributed.

    >>> round(drift_log_e(20, 0.0, 5.0), 3) == round(-0.5 * math.log(21.0), 3)
    True
    """
    if count < WINDOWS_MIN or squares <= 0.0:
        return 0.0
    known = 1.0 + count * DRIFT * DRIFT
    k = DRIFT * total / math.sqrt(squares * known)
    rest = max(1.0 - k * k, 1.0 / known)  # Cauchy and Schwarz, but for rounding
    # With v = u · sqrt(rest) the first factor is a power of it.  What is left to integrate is
    # where chi is; if Φ is a tail, which is nearly exp(-k²u²/2), where u is.
    center = math.sqrt(count) * (1.0 if k >= 0.0 else math.sqrt(rest))
    width = 1.0 if k >= 0.0 else math.sqrt(rest)
    slope = k / math.sqrt(rest)
    step = width / 4.0
    places = [center + index * step for index in range(-18, 19)]
    parts = [(count - 1) * math.log(v) - v * v / 2 + log_phi(slope * v) for v in places if v > 0.0]
    chi = (count / 2 - 1) * math.log(2.0) + math.lgamma(count / 2)
    mean = log_sum(parts) + math.log(step) - chi
    return math.log(2.0) - 0.5 * math.log(known) - count / 2 * math.log(rest) + mean


class Setting(msgspec.Struct, frozen=True):
    """The segment that guards are of."""

    share: float  # the candidate's of the calls, as configured
    past: Sequence[Segment]  # that have ended
    names: tuple[str, str]  # of the baseline and the candidate
    steps: int  # of the rollout
    sticky: bool  # units keep their arm


class SlowGuard:
    """Watches the share of calls that take longer than the guard's limit.

    Two kinds of evidence, each with half of the chance: bets, which hold whatever the windows are
    like, but need many of them for a small difference; and `drift_log_e`.
    """

    name: Final = "slow"

    def __init__(self, now: Setting, *, alpha: float, margin: float) -> None:
        """Begin a segment.

        Args:
            now: what it is like.
            alpha: the chance that a candidate that is as fast is ever taken for slower.
            margin: by how much its share may be higher, 0 to 1.
        """
        self._margin, self._share = margin, now.share
        # What was overruled has no evidence left, and takes no part in estimates either.
        counts = [segment.arms for segment in now.past if segment.log_e or segment.step == 0]
        self._past = [
            _slow_of([arms.get(name, ArmSeen()) for name in now.names]) for arms in counts
        ]
        self._evidence = _Evidence(self.name, now)
        # Half of the part for 100 % is for the bound of the rate before.
        full = FULL_PART * alpha / 2
        self.alphas = {self.name: (1.0 - FULL_PART) * alpha, f"{self.name}_full": full}
        calls = sum(arm[0] for arms in self._past for arm in arms)
        slow = sum(arm[1] for arms in self._past for arm in arms)
        self._before = slow / calls if calls else BLIND_RATE
        self._limit = (rate_bounds(slow, calls, full)[1] if calls else BLIND_RATE) + margin
        # The whole mutable state: the last look, and the evidence so far.
        self._now: _Slow = ((0.0, 0.0), (0.0, 0.0))
        self._unit_log_e = math.inf
        self._windows = Windows((1,) if now.share >= 1.0 else (0, 1))
        self._bets = Bets(1.0 + margin)
        self._drift = _Drift()
        self._full = Bets(self._limit, -math.log(full) / FULL_WINDOWS_MIN)

    def look(
        self,
        now_s: float,
        baseline: ArmCounts,
        candidate: ArmCounts,
        unit_log_e: float = math.inf,
    ) -> None:
        """Take in the counts since the segment began, at `now_s`.

        Args:
            now_s: monotonic.
            baseline: its counts.
            candidate: its counts.
            unit_log_e: what the same segment says of units that keep their arm; the smaller of
                both counts, as windows cannot tell one slow unit from a slow arm.
        """
        self._unit_log_e = unit_log_e
        self._now = _slow_of((baseline.seen, candidate.seen))
        shares = self._windows.look(now_s, *self._now)
        if shares is None or self._share <= 0.0:
            return
        if self._share >= 1.0:
            self._full.add(shares[0] - self._limit)
        else:
            self._bets.add(shares[1] - shares[0] - self._margin)
            self._drift.add(shares[1] - shares[0] - self._margin)

    def segment_log_es(self) -> dict[str, float]:
        """Return the evidence of this segment alone."""
        both = log_sum((self._bets.log_e, self._drift.log_e)) - math.log(2.0)
        now = {self.name: min(self._evidence.priced(both), self._unit_log_e)}
        return now | ({f"{self.name}_full": self._full.log_e} if self._share >= 1.0 else {})

    def log_es(self) -> dict[str, float]:
        """Return the evidence of all segments."""
        now = self.segment_log_es()
        return now | {self.name: self._evidence.together(now[self.name])}

    def harms(self) -> Iterator[str]:
        """Say what there is evidence of, and that is worse than the margin allows."""
        rates = self._rates()
        for name, log_e in self.log_es().items():
            if log_e >= -math.log(self.alphas[name]) and rates.harm >= self._margin:
                yield f"{_said(rates)} (e-value {shown(log_e)}, {1 / self.alphas[name]:.0f} needed)"
                return

    def worse(self) -> Iterator[str]:
        """Say what looks worse than the margin allows, with evidence or without."""
        rates = self._rates()
        if rates.harm > self._margin:
            yield _said(rates)

    def _rates(self) -> Rates:
        """Estimate both arms' shares: by this segment or by all, whichever is worse."""
        if self._share >= 1.0:
            calls, slow = self._now[1]
            return Rates(self._before, slow / calls if calls else 0.0)
        found = [_rates_of([self._now]), _rates_of([*self._past, self._now])]
        return max(found, key=lambda rates: rates.harm)


class MeanGuard:
    """Watches how many times as long the candidate's calls take, by the geometric mean."""

    name: Final = "latency"

    def __init__(self, now: Setting, *, alpha: float, ratio_max: float) -> None:
        """Begin a segment; with the chance `alpha`, a candidate that takes `ratio_max` is harm."""
        self.alphas = {self.name: alpha}
        self._ratio_max, self._is_sticky = ratio_max, now.sticky
        self._is_compared = 0.0 < now.share < 1.0
        self._candidate = now.names[1]
        self._evidence = _Evidence(self.name, now)
        # The whole mutable state: the last look, and the evidence so far.
        self._now = (ArmCounts(), ArmCounts())
        self._windows = Windows()
        self._drift = _Drift()

    def look(self, now_s: float, baseline: ArmCounts, candidate: ArmCounts) -> None:
        """Take in the counts since the segment began, at `now_s`."""
        self._now = (baseline, candidate)
        means = self._windows.look(now_s, *((arm.log_calls, arm.log_sum) for arm in self._now))
        if means is not None and self._is_compared:
            self._drift.add(means[1] - means[0] - math.log(self._ratio_max))

    def segment_log_es(self) -> dict[str, float]:
        """Return the evidence of this segment alone."""
        log_e = self._drift.log_e
        if self._is_sticky and log_e > 0.0:
            # One slow unit makes all windows of its arm slow: also units must say so, as many
            # observations as there are of them.
            logs = [(arm.log_calls, arm.log_sum, arm.log_squares) for arm in self._now]
            units = self._now[0].assigned, self._now[1].assigned
            log_e = min(log_e, mean_log_e(logs[0], logs[1], math.log(self._ratio_max), units))
        return {self.name: self._evidence.priced(log_e)}

    def log_es(self) -> dict[str, float]:
        """Return the evidence of all segments."""
        return {self.name: self._evidence.together(self.segment_log_es()[self.name])}

    def harms(self) -> Iterator[str]:
        """Say what there is evidence of, and that is worse than what is allowed."""
        log_e, alpha = self.log_es()[self.name], self.alphas[self.name]
        if log_e >= -math.log(alpha):
            enough = f"{1 / alpha:.0f} needed"
            yield from (f"{text} (e-value {shown(log_e)}, {enough})" for text in self.worse())

    def worse(self) -> Iterator[str]:
        """Say what looks worse than what is allowed, with evidence or without."""
        baseline, candidate = self._now
        if not (self._is_compared and baseline.log_calls and candidate.log_calls):
            return
        gap = candidate.log_sum / candidate.log_calls - baseline.log_sum / baseline.log_calls
        if gap > math.log(self._ratio_max):
            yield (
                f"calls of {self._candidate} take {math.exp(min(gap, 100.0)):.3g} times as long, "
                f"{self._ratio_max:g} times are allowed"
            )


class _Drift:
    """What `drift_log_e` goes by."""

    def __init__(self) -> None:
        # The whole mutable state: what was added up, and what follows from it.
        self._count, self._total, self._squares = 0, 0.0, 0.0
        self.log_e = 0.0

    def add(self, number: float) -> None:
        self._count += 1
        self._total += number
        self._squares += number * number
        self.log_e = drift_log_e(self._count, self._total, self._squares)


class _Evidence:
    """Puts the segments of a rollout together.

    Their e-values multiply, but not where units keep their arm: the next segment has the same
    units in it.  There the largest one counts, and pays for having been chosen.
    """

    def __init__(self, name: str, now: Setting) -> None:
        self._past = [segment.log_e.get(name, 0.0) for segment in now.past if segment.step > 0]
        self._steps, self._is_sticky = now.steps, now.sticky

    def priced(self, log_e: float) -> float:
        return log_e - math.log(self._steps) if self._is_sticky else log_e

    def together(self, log_e: float) -> float:
        log_es = [*self._past, log_e]
        return max(log_es) if self._is_sticky else float(chained(log_es, self._steps))


# Each arm's calls, and how many of them were slow.
_Slow = tuple[tuple[float, float], tuple[float, float]]


def _slow_of(arms: Sequence[ArmSeen]) -> _Slow:
    baseline, candidate = ((arm.calls, arm.slow) for arm in arms)
    return baseline, candidate


def _rates_of(segments: Sequence[_Slow]) -> Rates:
    """Split the slow calls by the ratio of both rates.

    It is that of Mantel and Haenszel (1959), which no change of weights or rates from segment to
    segment misleads.
    """
    compared = [arms for arms in segments if min(arms[0][0], arms[1][0]) > 0.0]
    theirs = sum(b[1] * c[0] / (b[0] + c[0]) for b, c in compared)
    ours = sum(c[1] * b[0] / (b[0] + c[0]) for b, c in compared)
    calls = [sum(arms[arm][0] for arms in compared) for arm in (0, 1)]
    slow = sum(arms[0][1] + arms[1][1] for arms in compared)
    scale = theirs * calls[0] + ours * calls[1]
    if scale <= 0.0:
        return Rates(0.0, 0.0)
    return Rates(min(1.0, slow * theirs / scale), min(1.0, slow * ours / scale))


def _said(rates: Rates) -> str:
    theirs = f"{rates.baseline:.2%} of the baseline's"
    return f"{rates.candidate:.2%} of the candidate's calls are slow, {theirs}"
