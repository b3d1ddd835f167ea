"""How long a version idles, as one of a few hundred smooth distributions: known from few gaps."""

from __future__ import annotations

from typing import Final

import numpy as np

from pool.scaling.gaps import BINS, EDGES, HOUR_S, Floats

# Weibull distributions: in clusters (shape below 1), at random (1), and ever more like a clock.
SHAPES: Final = (0.6, 1.0, 2.5, 6.0, 20.0)
SCALES_S: Final = np.geomspace(1.0, 48 * HOUR_S, 36)
# Some of every distribution is spread over all bins, so that no single gap rules one out; half
# of that is in the open bin, as who has outlasted all that was expected may never come again.
SPREAD: Final = 0.01
# With every gap, what the older ones told fades by this: half is gone after 140.
KEEP: Final = 0.995


def _shares() -> Floats:
    """Return the share of each bin under each distribution, shape (MEMBERS, BINS)."""
    shape = np.repeat(SHAPES, len(SCALES_S))[:, None]
    scale_s = np.tile(SCALES_S, len(SHAPES))[:, None]
    ends_by = 1 - np.exp(-((EDGES / scale_s) ** shape))
    shares = np.diff(ends_by, append=1.0)
    spread = np.full(BINS, 0.5 / (BINS - 1))
    spread[-1] = 0.5
    return np.asarray((1 - SPREAD) * shares + SPREAD * spread)


_SHARES: Final = _shares()
_LOGS: Final = np.ascontiguousarray(np.log(_SHARES).T)  # shape (BINS, MEMBERS)
_COLUMNS: Final = np.ascontiguousarray(_SHARES.T)
MEMBERS: Final = len(_SHARES)


class Renewal:
    """The distributions, each weighed by how well it foretold the gaps (Bayes' rule)."""

    def __init__(self, prior: Floats) -> None:
        # The whole mutable state: logarithms of the prior and of the likelihood of what was seen.
        self._prior = np.log(prior)
        self._evidence = np.zeros(MEMBERS)

    def suppose(self, prior: Floats) -> None:
        """Put another prior, shape (MEMBERS,), in place of the first."""
        self._prior = np.log(prior)

    def weights(self) -> Floats:
        """Return how likely each distribution is by now, shape (MEMBERS,)."""
        weights = self._unscaled()
        return np.asarray(weights / weights.sum())

    def _unscaled(self) -> Floats:
        logs = self._prior + self._evidence
        logs -= logs.max()
        return np.asarray(np.exp(logs, out=logs))

    def share(self, index: int) -> float:
        """Return the probability that the next gap ends in this bin."""
        weights = self._unscaled()
        return float(weights.dot(_COLUMNS[index]) / weights.sum())

    def shares(self) -> Floats:
        """Return the probability of every bin, shape (BINS,)."""
        return np.asarray(self.weights() @ _SHARES)

    def add(self, index: int) -> None:
        """Take note of a gap that ended in this bin."""
        self._evidence *= KEEP
        self._evidence += _LOGS[index]

    def evidence(self) -> Floats:
        """Return what `take` takes: the logarithms, shape (MEMBERS,), the greatest at 0."""
        return np.asarray(self._evidence - self._evidence.max())

    def take(self, evidence: Floats) -> None:
        """Put this in place of what was seen."""
        assert evidence.shape == (MEMBERS,)
        self._evidence = evidence
