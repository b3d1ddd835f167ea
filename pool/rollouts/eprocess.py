"""Evidence that may be looked at as often as one likes: e-values, and intervals made of them.

An e-value is a number that is on average at most 1 while nothing is wrong, at every look and
wherever one stops (Ville's inequality): the chance that it ever reaches 1/α is at most α.  All
functions give natural logarithms.

Counts of several independent runs go through at once as arrays, which is how the error rates of
these very classes are measured; the controller has one run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

# Cells of the prior.  Cubes put most of them where the odds are near even, since that is where a
# lot of data tells candidates apart.
CELLS: Final = 128
# A block ends when both arms have this many calls: fewer say too little about how calls are split.
BLOCK_CALLS_MIN: Final = 5
# The sequential test of means is tightest at about this many calls of each arm.
MEAN_CALLS_BEST: Final = 1000
# Fewer calls of one arm are no ground for a normal distribution.
MEAN_CALLS_MIN: Final = 50
# A mismatch of the split is looked for as if this many units had been seen as they should be.
MISMATCH_UNITS: Final = 200.0
# The chance that a later segment is where the trouble begins, all of them together.
LATER: Final = 0.2


class Odds:
    """A likelihood ratio mixed over how many times as likely an event is for one arm.

    Of m events, each falls on the candidate with probability w if it is as good as the baseline,
    and θ = wψ / (wψ + 1 - w) if its events are ψ times as likely.  The prior of ψ is such that θ
    is uniform in (share, 1) at w = share; so with w = share throughout, the e-value is
    ``∫ θ^k (1-θ)^(m-k) dθ / ((1 - share) · share^k (1 - share)^(m-k))``, θ from share to 1.
    With another w for every stretch it stays an e-value, as every ψ's ratio is one.

    Source:
        The conditional test of two rates with a mixture as in Robbins (1970); that strata multiply
        within the mixture as in Turner, Ly and Grünwald, Safe tests for 2×k tables (2024).
    """

    def __init__(self, share: float, runs: int = 1) -> None:
        """Begin without evidence; `share` in (0, 1)."""
        assert 0.0 < share < 1.0, share
        edges = np.linspace(0.0, 1.0, CELLS + 1) ** 3
        theta = share + (1.0 - share) * (edges[1:] + edges[:-1]) / 2
        self._ratios: Floats = theta * (1.0 - share) / (share * (1.0 - theta))
        self._log_ratios: Floats = np.log(self._ratios)
        self._log_prior: Floats = np.log(np.diff(edges))
        # The whole mutable state: by run and cell, and what follows from it by run.
        self._log_likelihoods: Floats = np.zeros((runs, CELLS))
        self.log_e: Floats = np.zeros(runs)

    def add(self, events: Floats, of_candidate: Floats, share: Floats) -> None:
        """Take in `events`, of which `of_candidate` fell on an arm with `share`; shape (runs,)."""
        rows = np.flatnonzero(events > 0)
        if not len(rows):
            return
        ones = np.log1p(share[rows, None] * (self._ratios - 1.0))
        self._log_likelihoods[rows] += (
            of_candidate[rows, None] * self._log_ratios - events[rows, None] * ones
        )
        terms = self._log_likelihoods[rows] + self._log_prior
        peaks = terms.max(axis=1)
        self.log_e[rows] = peaks + np.log(np.exp(terms - peaks[:, None]).sum(axis=1))


class Excess:
    """Evidence that a share of calls is above a limit for longer than a burst lasts.

    For every rate above the limit the likelihood ratio of that rate against the limit, where no
    window has a factor above `log_factor_max`: a factor that is cut is still at most 1 on average.
    These are mixed over all rates above the limit and, so that a good past hides nothing, over the
    window in which the trouble begins: the first one has 1 - LATER of the chance, the n-th after it
    LATER / (n (n + 1)).
    """

    def __init__(self, limit: float, log_factor_max: float) -> None:
        """Begin without evidence; `limit` in (0, 1)."""
        assert 0.0 < limit < 1.0, limit
        edges = np.linspace(0.0, 1.0, CELLS + 1) ** 3
        above = (1.0 - limit) * (edges[1:] + edges[:-1]) / 2
        self._with: Floats = np.log1p(above / limit)
        self._without: Floats = np.log1p(-above / (1.0 - limit))
        self._log_prior: Floats = np.log(np.diff(edges))
        self._log_factor_max = log_factor_max
        # The whole mutable state: by rate, of what has begun so far; and what follows from it.
        self._windows = 0
        self._logs: Floats = np.full(CELLS, -math.inf)
        self.log_e = 0.0

    def add(self, calls: float, events: float) -> None:
        """Take in a window that has ended."""
        if calls <= 0.0:
            return
        n, self._windows = self._windows, self._windows + 1
        factors = events * self._with + (calls - events) * self._without
        begins = math.log(LATER / (n * (n + 1)) if n else 1.0 - LATER)
        self._logs = np.logaddexp(self._logs, begins) + np.minimum(factors, self._log_factor_max)
        to_begin = math.log(LATER / self._windows)
        self.log_e = log_sum([*(self._logs + self._log_prior).tolist(), to_begin])


class SplitTest:
    """Evidence that events fall on the candidate more often than its share of calls explains.

    Which calls have an event is taken as given; what is tested is on which arm they are.  The
    share is not the configured one but what was dispatched, as answers out of the cache leave
    fewer calls of one arm to fail.  It may change all the time, so that it is taken block by block:
    given how many calls of each arm are in a block, every event is on any of these calls with the
    same chance.  Sampling without replacement varies less than the binomial distribution that the
    ratio assumes (Hoeffding, 1963), hence each block's factor is at most 1 on average.

    Where there is a cache this holds for errors that may hit any call.  Those that belong to their
    inputs are never in the cache: they are split as all requests are, which is as configured.
    Nobody knows of which sort they are, so that the smaller evidence of both counts.  And counts of
    a long time are no block there: the first look is what others are compared with.
    """

    def __init__(self, share: float, runs: int = 1, *, cached: bool = False) -> None:
        """Begin without evidence.

        Args:
            share: the candidate's, as configured, in (0, 1).
            runs: how many go through at once.
            cached: whether a cache answers for calls.
        """
        self._share = share
        self._of_calls = Odds(share, runs)
        self._of_requests = Odds(share, runs) if cached else None
        self._is_new = cached
        # The whole mutable state: cumulative counts (baseline's calls, candidate's, events of
        # both, events of the candidate), up to the last block and up to the last look.
        self._closed: Sequence[Floats] = [np.zeros(runs) for _ in range(4)]
        self._seen: Sequence[Floats] = [np.zeros(runs) for _ in range(4)]

    @property
    def log_e(self) -> Floats:
        """The evidence of all blocks that have ended, shape (runs,)."""
        if self._of_requests is None:
            return self._of_calls.log_e
        return np.minimum(self._of_calls.log_e, self._of_requests.log_e)

    def look(
        self,
        baseline_calls: ArrayLike,
        candidate_calls: ArrayLike,
        baseline_events: ArrayLike,
        candidate_events: ArrayLike,
    ) -> None:
        """Take in cumulative counts, each of shape (runs,) or one number.

        A count that is lower than at the last look counts as unchanged.
        """
        given = (baseline_calls, candidate_calls, baseline_events, candidate_events)
        now = [np.asarray(count, np.float64) for count in given]
        now[2] = now[2] + now[3]
        self._seen = [np.maximum(old, new) for old, new in zip(self._seen, now, strict=True)]
        if self._is_new:
            self._closed, self._is_new = self._seen, False
        theirs, ours, events, of_candidate = (
            seen - closed for seen, closed in zip(self._seen, self._closed, strict=True)
        )
        ends = np.minimum(theirs, ours) >= BLOCK_CALLS_MIN
        if not ends.any():
            return
        self._closed = [
            np.where(ends, seen, closed)
            for seen, closed in zip(self._seen, self._closed, strict=True)
        ]
        if events[ends].any():
            events = np.where(ends, events, 0.0)
            self._of_calls.add(events, of_candidate, ours / np.maximum(ours + theirs, 1.0))
            if self._of_requests is not None:
                self._of_requests.add(events, of_candidate, np.full_like(ours, self._share))


def exposure_lift(
    share: float,
    baseline: tuple[ArrayLike, ArrayLike],
    candidate: tuple[ArrayLike, ArrayLike],
) -> Floats:
    """Return how many times as likely to have an event a unit of the candidate may be, at least 1.

    For units that keep their arm and count once, where a cache answers for one arm more often.  In
    a look window a unit of the other arm makes more calls that can fail; so calls count where they
    are split more towards the candidate than units.  And an arm that is called less has its failing
    units still before it when the other's are all counted: so at least the configured share counts.
    Both err on the candidate's side.

    Args:
        share: the configured one, in (0, 1).
        baseline: its units (each once in a look window) and its calls so far.
        candidate: the same.
    """
    units, calls, own_units, own_calls = (
        np.maximum(np.asarray(count, np.float64), 1.0) for count in (*baseline, *candidate)
    )
    by_calls = own_calls / calls
    return np.asarray(
        np.maximum(np.maximum(by_calls, share / (1.0 - share)) * units / own_units, 1.0)
    )


def rate_bounds(events: float, units: float, alpha: float) -> tuple[float, float]:
    """Return an interval for a rate that holds at every look with probability 1 - alpha.

    It is all rates that a mixture over all rates, each as likely, does not refute:
    ``B(k+1, n-k+1) / (q^k (1-q)^(n-k)) < 1/α`` for k events of n (Robbins, 1970).

    >>> [round(bound, 3) for bound in rate_bounds(5, 500, 0.05)]
    [0.002, 0.03]
    """
    if units <= 0.0:
        return 0.0, 1.0
    events = min(events, units)
    others, rate = units - events, events / units
    marginal = math.lgamma(events + 1) + math.lgamma(others + 1) - math.lgamma(units + 2)

    def is_refuted(q: float) -> bool:
        likelihood = (events * math.log(q) if events else 0.0) + (
            others * math.log1p(-q) if others else 0.0
        )
        return marginal - likelihood >= -math.log(alpha)

    def bound(outside: float) -> float:
        inside = rate
        for _ in range(50):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if is_refuted(middle) else (middle, outside)
        return outside

    return (bound(0.0) if events else 0.0), (bound(1.0) if others else 1.0)


def mean_log_e(
    baseline: tuple[float, float, float],
    candidate: tuple[float, float, float],
    above: float = 0.0,
    told_apart: tuple[float, float] = (math.inf, math.inf),
) -> float:
    """Return the log e-value that the candidate's mean exceeds the baseline's by more than `above`.

    It is an e-value only asymptotically, for many calls of each arm, whatever their distribution:
    the likelihood ratio of a Brownian motion with a half-normal prior over drifts above zero, the
    dual of an asymptotic confidence sequence.

    Args:
        baseline: count, sum and sum of squares.
        candidate: the same.
        told_apart: different units behind either arm's calls, if units keep their arm.  Calls of
            one unit may be all alike, so no arm has more observations than units.

    Source:
        Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, Time-uniform central limit theory and
        asymptotic confidence sequences (2021), the one-sided form.
    """
    counts = [
        min(arm[0], units) for arm, units in zip((baseline, candidate), told_apart, strict=True)
    ]
    if min(counts) < MEAN_CALLS_MIN:
        return 0.0
    means = [total / count for count, total, _ in (baseline, candidate)]
    spreads = [
        max(squares / count - mean * mean, 0.0)
        for (count, _, squares), mean in zip((baseline, candidate), means, strict=True)
    ]
    variance = sum(spread / count for spread, count in zip(spreads, counts, strict=True))
    gap = means[1] - means[0] - above
    if variance <= 0.0:
        return 0.0
    z = gap / math.sqrt(variance)
    # What both arms know of the difference, as a number of calls of each.
    calls = 2.0 / (1.0 / counts[0] + 1.0 / counts[1])
    t = calls * 10.0 / MEAN_CALLS_BEST  # 10 = -2 ln α + ln(1 - 2 ln α) at α = 0.02
    shrunk = t / (t + 1.0)
    return math.log(2.0) - 0.5 * math.log1p(t) + z * z * shrunk / 2 + log_phi(z * math.sqrt(shrunk))


def log_phi(z: float) -> float:
    """Return the logarithm of the normal distribution function; by its tail where that is 0."""
    if z > -30.0:
        return math.log(0.5 * math.erfc(-z / math.sqrt(2.0)))
    return -z * z / 2 - math.log(-z * math.sqrt(2.0 * math.pi))


def mismatch_log_e(assigned: Sequence[Mapping[str, float]], weights: Mapping[str, float]) -> float:
    """Return the log e-value that units are not split as the weights say.

    Every edge has an e-value of its own, since edges see the same units; the mean of e-values is
    one.

    Args:
        assigned: by edge incarnation, the units that were given each arm, each unit once.
        weights: by arm, in any unit; arms without weight are left out.

    Source:
        The Dirichlet-multinomial mixture of Lindon and Malek, Anytime-valid inference for
        multinomial count data (2020), with its prior around the weights.
    """
    total = sum(weights.values())
    shares = {arm: weight / total for arm, weight in weights.items() if weight > 0.0}
    if len(shares) < 2 or not assigned:
        return 0.0
    units = max(MISMATCH_UNITS, 1.0 / min(shares.values()))
    prior = {arm: share * units for arm, share in shares.items()}
    log_es = [
        _split_log_e([(seen.get(a, 0), shares[a], prior[a]) for a in shares]) for seen in assigned
    ]
    return log_sum(log_es) - math.log(len(log_es))


def _split_log_e(arms: Sequence[tuple[float, float, float]]) -> float:
    """Return it for one edge; by arm: units, share, and the prior's weight in units."""
    before, units = sum(arm[2] for arm in arms), sum(arm[0] for arm in arms)
    found = math.lgamma(before) - math.lgamma(before + units)
    for seen, share, prior in arms:
        found += math.lgamma(prior + seen) - math.lgamma(prior) - seen * math.log(share)
    return found


def chained(log_es: Sequence[ArrayLike], steps: int) -> Floats:
    """Return what the segments' log e-values say together, the oldest first; shape of each.

    The e-values of segments multiply.  So that a candidate that did well for long is found out as
    fast when it begins to fail, later segments are also looked at without what came before: the
    mean, by chances fixed beforehand, of the products that begin with each segment.
    """
    later = LATER / (steps - 1) if steps > 1 else 0.0
    chances = [1.0 - LATER if later else 1.0, *([later] * (steps - 1))]
    found, product = np.asarray(-np.inf), np.asarray(0.0)
    for index in range(len(log_es) - 1, -1, -1):
        product = product + np.asarray(log_es[index], np.float64)
        if index < len(chances):
            found = np.logaddexp(found, math.log(chances[index]) + product)
    return np.asarray(found, np.float64)


def log_sum(logs: Sequence[float]) -> float:
    """Return the logarithm of the sum of what these are logarithms of."""
    peak = max(logs)
    return peak + math.log(sum(math.exp(log - peak) for log in logs))
