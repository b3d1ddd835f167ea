"""Whether a version without calls is to be warm: learned from how long it idled before."""

from __future__ import annotations

import math
from typing import Annotated, Final

import msgspec
import numpy as np

from pool.scaling.gaps import BINS, HOUR_S, Floats, GapHistogram, GapPool, bin_of
from pool.scaling.hazard import Windows, windows
from pool.scaling.kept import unpack
from pool.scaling.renewal import MEMBERS, Renewal
from pool.scaling.ticks import TICKS_MAX, Ticks

# A version that nobody has called yet stays warm for this long.
EXPLORE_S: Final = 4 * HOUR_S
EXPLORE_GAPS: Final = 1
# With every gap the older ones fade by this, in the histogram.
KEEP: Final = 0.995
# The histogram's own word weighs its gaps; what is supposed weighs so many.
SUPPOSED_GAPS: Final = (1.0, 6.0)
# A clock is believed by so much; the rest is left to what the distributions say.
CLOCK: Final = 0.8
# With every gap, what the older ones told of who foretells best fades by this.
TRUST_KEEP: Final = 0.98
# A plan is made anew once this share more gaps are known, or the last plan missed a call.
REPLAN_SHARE: Final = 1 / 16
# Unless a clock foretells at least so well, as a logarithm against the best of the predictors:
# its windows move with every tick.
CLOCK_MATTERS: Final = math.log(0.01)

# What is read back: as all of it fades, it cannot get beyond these.
_PREDICTORS: Final = 2 + len(SUPPOSED_GAPS)
_Gaps = Annotated[float, msgspec.Meta(ge=0, le=10 / (1 - KEEP))]
_Log = Annotated[float, msgspec.Meta(ge=-1e4, le=0)]  # of a likelihood, the greatest at 0
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e18)]
_SignedSeconds = Annotated[float, msgspec.Meta(ge=-1e18, le=1e18)]


class _Saved(msgspec.Struct, array_like=True):
    """What is kept of a version over a restart; nothing in it is a time of day."""

    gaps: Annotated[int, msgspec.Meta(gt=0, le=2**53)]
    counts: dict[Annotated[int, msgspec.Meta(ge=0, lt=BINS)], _Gaps]
    evidence: Annotated[list[_Log], msgspec.Meta(min_length=MEMBERS, max_length=MEMBERS)]
    ticks: tuple[
        Annotated[int, msgspec.Meta(ge=0, le=TICKS_MAX)], _Seconds, _SignedSeconds, _Seconds
    ]
    trust: Annotated[list[_Log], msgspec.Meta(min_length=_PREDICTORS, max_length=_PREDICTORS)]


_saved_of = msgspec.msgpack.Decoder(_Saved)


class KeepAlive:
    """Decides for one version whether one replica stays, or becomes, warm while nothing calls.

    Four predictors say how the next gap is distributed: the smooth distributions of
    `pool.scaling.renewal`, two histograms that add more or less of the gaps seen to these, and
    a clock.  They are mixed by how well each foretold the gaps so far, and the cheapest windows
    are laid into the mixture.  As every gap is seen to its end whether or not a replica was
    warm, nothing has to be tried out for the sake of learning.

    Times are in seconds on one clock that never falls.  A version counts as in use until
    `ended` is called for the first time; its owner does so when it first sees it idle.

    Args:
        pool: what versions tell one another; without, each learns for itself.

    Source:
        Bayesian model averaging with forgetting (Raftery et al., 2010).
    """

    def __init__(self, pool: GapPool | None = None) -> None:
        self._pool = pool or GapPool()
        # The whole mutable state: what was learned, who foretells best, what the pool was told,
        self._gaps = 0
        self._renewal = Renewal(self._pool.prior(MEMBERS))
        self._histogram = GapHistogram(KEEP)
        self._ticks = Ticks()
        self._trust = [0.0] * _PREDICTORS
        self._told: Floats | None = None
        # whether it was ever called and since when it idles, and the plan for an idle gap.
        self._was_called = False
        self._idle_since_s: float | None = None
        self._plan: Windows = []
        self._planned_for = (0.0, 0.0)
        self._planned_gaps = -1

    def began(self, now_s: float, idle_s: float) -> None:
        """A call came after `idle_s` without any.

        What was before the first call is no gap: it tells when the version came, not of its
        calls.  Nor is a call that finds others inside the end of one.
        """
        was_idle, self._idle_since_s = self._idle_since_s is not None, None
        if not self._was_called:
            self._was_called = True
            self._planned_gaps = -1
            return
        if not was_idle:
            return
        self._learn(max(0.0, idle_s))
        if not any(opens_s <= idle_s < closes_s for opens_s, closes_s in self._plan):
            self._planned_gaps = -1

    def ended(self, now_s: float) -> None:
        """Nothing is inside any more."""
        self._idle_since_s = now_s

    def wants(self, now_s: float, cost_s: float, wake_s: float) -> tuple[bool, float]:
        """Say whether to be warm now, and until when that holds if nothing happens.

        Args:
            now_s: the time of the decision.
            cost_s: how long one replica may idle for the sake of one cold start spared.
            wake_s: how long a wake takes; a window opens that much early.
        """
        if self._idle_since_s is None:
            return True, math.inf
        self._replan((cost_s, wake_s))
        idle_s = now_s - self._idle_since_s
        for opens_s, closes_s in self._plan:
            if idle_s < opens_s:
                return False, self._idle_since_s + opens_s
            if idle_s < closes_s:
                return True, self._idle_since_s + closes_s
        return False, math.inf

    def plan(self) -> Windows:
        """Return the windows within a gap, as last made; for people."""
        return list(self._plan)

    def _learn(self, gap_s: float) -> None:
        """Let every predictor take note of a gap, and weigh it by how well it foretold that."""
        index = bin_of(gap_s)
        smooth = self._renewal.share(index)
        count, total = self._histogram.count(index), self._histogram.total
        foretold = [smooth]
        foretold += [(count + gaps * smooth) / (total + gaps) for gaps in SUPPOSED_GAPS]
        tick = self._ticks.share(index) if self._ticks.is_known else smooth
        foretold.append(CLOCK * tick + (1 - CLOCK) * smooth)
        trust = [
            TRUST_KEEP * before + math.log(share)
            for before, share in zip(self._trust, foretold, strict=True)
        ]
        most = max(trust)
        self._trust = [each - most for each in trust]
        self._renewal.add(index)
        self._histogram.add(index)
        self._ticks.add(gap_s)
        self._gaps += 1
        if self._gaps & (self._gaps - 1) == 0:
            self._tell()

    def _tell(self) -> None:
        """Exchange with the pool; done whenever the gaps have doubled."""
        now = self._renewal.weights()
        self._pool.exchange(self._told, now)
        self._told = now
        self._renewal.suppose(self._pool.prior(MEMBERS))

    def _replan(self, cost_and_wake_s: tuple[float, float]) -> None:
        """Make the plan anew, if what it goes by has changed enough."""
        more, moves = self._gaps - self._planned_gaps, False
        if more and self._ticks.is_known:
            moves = self._trust[-1] > CLOCK_MATTERS
        is_fresh = self._planned_gaps >= 0 and more <= self._gaps * REPLAN_SHARE and not moves
        if is_fresh and self._planned_for == cost_and_wake_s:
            return
        self._planned_for, self._planned_gaps = cost_and_wake_s, self._gaps
        if self._gaps < EXPLORE_GAPS:
            self._plan = [(0.0, EXPLORE_S)]
        else:
            self._plan = windows(self._shares(), *cost_and_wake_s)

    def _shares(self) -> Floats:
        """Return the probability of every bin, shape (BINS,), as the predictors say together."""
        trust = np.exp(self._trust)
        trust /= trust.sum()
        smooth = self._renewal.shares()
        counts, total = self._histogram.counts(), self._histogram.total
        shares = trust[0] * smooth
        for weight, gaps in zip(trust[1:-1], SUPPOSED_GAPS, strict=True):
            shares += weight * (counts + gaps * smooth) / (total + gaps)
        tick = self._ticks.shares() if self._ticks.is_known else smooth
        return np.asarray(shares + trust[-1] * (CLOCK * tick + (1 - CLOCK) * smooth))

    def save(self) -> bytes:
        """Return what was learned."""
        counts = self._histogram.counts()
        saved = _Saved(
            gaps=self._gaps,
            counts={int(index): float(counts[index]) for index in np.flatnonzero(counts > 1e-3)},
            evidence=self._renewal.evidence().tolist(),
            ticks=self._ticks.save(),
            trust=self._trust,
        )
        return msgspec.msgpack.encode(saved)

    def restore(self, data: bytes) -> None:
        """Take over what a predecessor had learned; what is not readable is ignored."""
        saved = unpack(data, _saved_of)
        if saved is None:
            return
        counts = np.zeros(BINS)
        for index, count in saved.counts.items():
            counts[index] = count
        self._gaps, self._was_called, self._planned_gaps = saved.gaps, True, -1
        self._histogram.take(counts)
        self._renewal.take(np.array(saved.evidence))
        self._ticks.take(saved.ticks)
        most = max(saved.trust)
        self._trust = [each - most for each in saved.trust]
        self._tell()
