"""The keep-alive's windows laid in hindsight: the limit of what goes by idle gaps alone."""

from __future__ import annotations

import math

import numpy as np

from infra.simulate.engine import Load, World
from infra.simulate.fixed import Fixed
from pool.scaling.gaps import BINS, EDGES, Floats
from pool.scaling.hazard import Windows, windows
from pool.scaling.signals import Decision, Limits, Signals

# Calls at once are no part of it: more than one replica is kept as providers do.
KEEP_MORE_S = 600.0


class InSample:
    """Lays the cheapest windows for the histogram of all gaps that the load will turn out to have.

    Of a model with few calls it knows every gap beforehand, which nobody could.
    """

    def __init__(self, load: Load, world: World) -> None:
        gaps_s = np.maximum(np.diff(load.arrivals_s) - load.exec_s[:-1], 0.0)
        self._shares = _shares(gaps_s)
        self._more = Fixed(KEEP_MORE_S)
        # The whole mutable state: calls seen, since when it idles, and the windows by what for.
        self._arrived = 0
        self._idle_since_s: float | None = None
        self._laid: dict[tuple[float, float], Windows] = {}

    def observe(self, signals: Signals) -> None:
        """Take note of when a gap begins."""
        self._more.observe(signals)
        if signals.waiting + signals.running:
            self._idle_since_s = None
        elif self._idle_since_s is None or signals.arrived > self._arrived:
            self._idle_since_s = signals.now_s
        self._arrived = signals.arrived

    def decide(self, limits: Limits, signals: Signals) -> Decision:
        """Return one within a window or in use, and what calls at once need."""
        more = self._more.decide(limits, signals)
        if self._idle_since_s is None:
            wanted, until_s = 1, math.inf
        else:
            wanted, until_s = self._within(limits, signals, self._idle_since_s)
        if more.replicas > max(1, wanted):
            return more
        replicas = max(wanted, limits.replicas_min)
        return Decision(replicas=replicas, reason="window", until_s=min(until_s, more.until_s))

    def _within(self, limits: Limits, signals: Signals, since_s: float) -> tuple[int, float]:
        key = (limits.cold_start_cost_s, signals.wake_s)
        if key not in self._laid:
            self._laid[key] = windows(self._shares, *key)
        idle_s = signals.now_s - since_s
        for opens_s, closes_s in self._laid[key]:
            if idle_s < opens_s:
                return 0, since_s + opens_s
            if idle_s < closes_s:
                return 1, since_s + closes_s
        return 0, math.inf


def _shares(gaps_s: Floats) -> Floats:
    """Return the share of the gaps in every bin, shape (BINS,)."""
    counts = np.bincount(np.searchsorted(EDGES, gaps_s, "right") - 1, minlength=BINS)
    return np.asarray(counts / max(1, len(gaps_s)))
