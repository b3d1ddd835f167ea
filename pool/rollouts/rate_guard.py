"""Whether a larger share of the candidate's calls fails than of the baseline's.

While both arms have traffic, errors are compared with how calls are split.  At 100 % there is no
baseline left: what the candidate does then is compared with what all callers saw before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final, Literal

import msgspec

from pool.rollouts.eprocess import Excess, SplitTest, chained, rate_bounds
from pool.rollouts.signals import ArmCounts
from registry_sync.rollout_terms import ArmSeen

# The part of a guard's α for 100 %, where the baseline is no longer there to compare with.
FULL_PART: Final = 0.1
# At 100 % counts are taken so many seconds at a time,
WINDOW_S: Final = 10.0
# and evidence has to come from more windows than this: what passes sooner is a burst.
BURST_WINDOWS: Final = 3
# How often calls may fail where nobody has seen a baseline, but for the margin.
UNSEEN_RATE_MAX: Final = 0.5

# What errors are a share of: calls of the model, or requests, of which a cache answers some.
Basis = Literal["calls", "requests"]


class Stratum(msgspec.Struct, frozen=True):
    """What was counted in one segment; each pair is the baseline's and the candidate's."""

    share: float  # the candidate's, as configured
    calls: tuple[float, float]
    requests: tuple[float, float]  # those that the cache has answered as well
    errors: tuple[float, float]  # of all calls
    # By whom they were made, each unit once; a call without one is its own.
    failed_units: tuple[float, float]
    lone_calls: tuple[float, float]  # without a unit, so that each stands for itself
    lone_errors: tuple[float, float]
    # Its evidence still counts, and so does what was seen.  Before the first step there is none.
    counts: bool = True

    def given(self, basis: Basis) -> tuple[float, float]:
        """Return what errors are a share of."""
        return self.calls if basis == "calls" else self.requests


class Rates(msgspec.Struct, frozen=True):
    """Which share of either arm's calls, or requests, fails."""

    baseline: float
    candidate: float
    basis: Basis = "calls"
    is_seen: bool = True  # the baseline's; else it is how much is too much for any

    @property
    def harm(self) -> float:
        """By how much the candidate's is higher."""
        return self.candidate - self.baseline


class RateGuard:
    """Watches the share of calls that fail.

    A cache changes which share that is: errors that may hit any call are a share of the calls, and
    errors of inputs, which no cache holds, one of the requests.  Where there is a cache, a
    candidate is worse only if it is by both.
    """

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
        cached: bool,
    ) -> None:
        """Begin a segment.

        Args:
            name: of its e-value.
            alpha: the chance that an equal candidate is ever taken for worse.
            margin: by how much the candidate may be worse, as a share of calls.
            share: the candidate's, as configured, 0 to 1; at 0 nothing is compared.
            past: what was seen in the segments before, also before the candidate had any traffic.
            past_log_es: the e-values of those with traffic.
            steps: how many steps the rollout has.
            cached: whether a cache answers requests.
        """
        self.name = name
        self._margin, self._share, self._steps = margin, share, steps
        self._past, self._past_log_es = [stratum for stratum in past if stratum.counts], past_log_es
        self._bases: tuple[Basis, ...] = ("calls", "requests") if cached else ("calls",)
        # Half of the part for 100 % is for the bound of the rate before.
        full = FULL_PART * alpha / 2
        self.alphas = {name: (1.0 - FULL_PART) * alpha, f"{name}_full": full}
        # The whole mutable state: the last look, and the evidence so far.
        self._now = stratum(share, ArmCounts(), ArmCounts())
        self._split = SplitTest(share, cached=cached) if 0.0 < share < 1.0 else None
        self._full = [self._full_test(b, full) for b in self._bases] if share >= 1.0 else []

    def look(self, now_s: float, now: Stratum) -> None:
        """Take in the counts since the segment began."""
        if self._split is not None:
            self._split.look(*now.lone_calls, *now.lone_errors)
        for test in self._full:
            test.look(now_s, now)
        self._now = now

    def segment_log_es(self) -> dict[str, float]:
        """Return the evidence of this segment alone."""
        found = {self.name: float(self._split.log_e[0]) if self._split is not None else 0.0}
        if self._full:
            found[f"{self.name}_full"] = min(test.log_e for test in self._full)
        return found

    def log_es(self) -> dict[str, float]:
        """Return the evidence of all segments."""
        now = self.segment_log_es()
        log_es = [*self._past_log_es, now[self.name]]
        return now | {self.name: float(chained(log_es, self._steps))}

    def rates(self) -> Rates:
        """Estimate how bad both arms are: by this segment or by all, whichever is worse."""
        return min((self._rates_of(basis) for basis in self._bases), key=lambda rates: rates.harm)

    def _rates_of(self, basis: Basis) -> Rates:
        if self._share < 1.0:
            now, whole = (
                compared(strata, basis) for strata in ([self._now], [*self._past, self._now])
            )
            return max(now, whole, key=lambda rates: rates.harm)
        errors, given = seen_before(self._past, basis)
        own = self._now.given(basis)[1]
        rate = min(1.0, self._now.errors[1] / own) if own else 0.0
        if not given:
            return Rates(UNSEEN_RATE_MAX, rate, basis, is_seen=False)
        return Rates(errors / given, rate, basis)

    def _full_test(self, basis: Basis, alpha: float) -> _FullTest:
        errors, given = seen_before(self._past, basis)
        each = errors_each(self._past)
        above = rate_bounds(errors / each, given / each, alpha)[1]
        if errors <= UNSEEN_RATE_MAX * given:
            above = min(above, UNSEEN_RATE_MAX)  # too little was seen to say more
        is_based = len(self._bases) > 1
        return _FullTest(basis, above + self._margin, alpha, is_based=is_based)

    def harms(self) -> Iterator[str]:
        """Say what there is evidence of, and that is worse than the margin allows."""
        log_es, rates = self.log_es(), self.rates()
        for name, log_e in log_es.items():
            if log_e >= -math.log(self.alphas[name]) and rates.harm >= self._margin:
                enough = f"{1 / self.alphas[name]:.0f} needed"
                yield f"{_what(rates)} (e-value {shown(log_e)}, {enough})"
                return

    def worse(self) -> Iterator[str]:
        """Say what looks worse than the margin allows, with evidence or without."""
        rates = self.rates()
        if rates.harm > self._margin:
            yield _what(rates)


class _FullTest:
    """Compares the candidate's rate with a limit, window by window."""

    def __init__(self, basis: Basis, limit: float, alpha: float, *, is_based: bool) -> None:
        self._basis: Basis = basis
        self._test = Excess(limit, -math.log(alpha) / BURST_WINDOWS) if limit < 1.0 else None
        self._is_based = is_based  # the first look is what others are compared with
        # The whole mutable state: when the window began, and what was counted by then.
        self._from_s: float | None = None
        self._before = (0.0, 0.0)

    @property
    def log_e(self) -> float:
        return self._test.log_e if self._test is not None else 0.0

    def look(self, now_s: float, now: Stratum) -> None:
        seen = (now.given(self._basis)[1], now.errors[1])
        if self._from_s is None:
            self._from_s = now_s
            if self._is_based:
                self._before = seen
        elif now_s >= self._from_s + WINDOW_S:
            given, errors = (
                max(0.0, new - old) for new, old in zip(seen, self._before, strict=True)
            )
            if self._test is not None:
                each = errors_each([now])
                self._test.add(max(given, errors) / each, errors / each)
            self._from_s, self._before = now_s, seen


def compared(strata: Sequence[Stratum], basis: Basis) -> Rates:
    """Split what has failed by the ratio of both arms' rates.

    The ratio is that of Mantel and Haenszel (1959), which no change of the weights or of the rates
    from segment to segment misleads.
    """
    strata = [stratum for stratum in strata if min(stratum.given(basis)) > 0.0]
    ours = theirs = 0.0
    failed, totals = 0.0, [0.0, 0.0]
    for stratum in strata:
        given = stratum.given(basis)
        ours += stratum.errors[1] * given[0] / sum(given)
        theirs += stratum.errors[0] * given[1] / sum(given)
        failed += sum(stratum.errors)
        totals = [totals[0] + given[0], totals[1] + given[1]]
    scale = theirs * totals[0] + ours * totals[1]
    if scale <= 0.0:
        return Rates(0.0, 0.0, basis)
    return Rates(min(1.0, failed * theirs / scale), min(1.0, failed * ours / scale), basis)


def seen_before(past: Sequence[Stratum], basis: Basis) -> tuple[float, float]:
    """Return the errors of both arms in these segments, and what they are a share of.

    Of both, because all callers together are who calls at 100 %.
    """
    given = float(sum(sum(stratum.given(basis)) for stratum in past))
    return min(float(sum(sum(stratum.errors) for stratum in past)), given), given


def errors_each(strata: Sequence[Stratum]) -> float:
    """Return how many errors are one unit's on average, at least 1.

    Calls that belong together vary so many times as much as if each were for itself.
    """
    units = sum(sum(stratum.failed_units) for stratum in strata)
    return max(1.0, sum(sum(stratum.errors) for stratum in strata) / units) if units else 1.0


def stratum(share: float, baseline: ArmCounts, candidate: ArmCounts) -> Stratum:
    """Return what is counted now."""
    return msgspec.structs.replace(
        past_stratum(share, baseline.seen, candidate.seen),
        lone_calls=(baseline.lone_calls, candidate.lone_calls),
        lone_errors=(baseline.errors, candidate.errors),
    )


def past_stratum(
    share: float, baseline: ArmSeen, candidate: ArmSeen, *, counts: bool = True
) -> Stratum:
    """Return what a segment's record says."""
    return Stratum(
        share,
        calls=(baseline.calls, candidate.calls),
        requests=(
            max(baseline.requests, baseline.calls),
            max(candidate.requests, candidate.calls),
        ),
        errors=(baseline.errors, candidate.errors),
        failed_units=(baseline.failed_units, candidate.failed_units),
        lone_calls=(0.0, 0.0),
        lone_errors=(0.0, 0.0),
        counts=counts,
    )


def _what(rates: Rates) -> str:
    whose = f"{rates.candidate:.2%} of the candidate's {rates.basis} fail"
    if rates.is_seen:
        return f"{whose}, {rates.baseline:.2%} of the baseline's"
    return f"{whose}, more than {rates.baseline:.0%} are too many for a baseline that nobody saw"


def shown(log_e: float) -> str:
    """Return an e-value as people read it.

    >>> shown(3.0), shown(2000.0)
    ('20.1', '1e868')
    """
    return f"{math.exp(log_e):.3g}" if log_e < 50.0 else f"1e{log_e / math.log(10):.0f}"
