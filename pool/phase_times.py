"""How long loads and starts of processes took, phase by phase: counted over all workers.

Values only.  Counted are the loads and the starts that this controller has heard of.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any, Final

from pool.wire.histogram import BOUNDS_S, BUCKETS, quantile_s

LOAD: Final = "load"
START: Final = "start"
WHOLE: Final = ""  # the phase that stands for all of them together
ROWS_MAX: Final = 512  # engines of others may name phases as they like


class PhaseTimes:
    """Histograms by what was done, with which engine, in which phase.

    >>> times = PhaseTimes()
    >>> times.add(LOAD, "onnxruntime", {"deserialise": 4_000, "warm_up": 3_000})
    >>> [(row["phase"], row["count"], row["p50_ms"]) for row in times.rows()]
    [('deserialise', 1, 3.5), ('warm_up', 1, 3.5), ('', 1, 7.5)]
    """

    def __init__(self) -> None:
        # The whole mutable state: counts by `BOUNDS_S`, and the sum in µs.
        self._counts: dict[tuple[str, str, str], list[int]] = {}
        self._sums_us: dict[tuple[str, str, str], int] = {}

    def add(self, what: str, engine: str, phases: Mapping[str, int]) -> None:
        """Count one load or start, whose phases took so many µs; an empty one is not known."""
        if not phases:
            return
        for phase, took_us in (*phases.items(), (WHOLE, sum(phases.values()))):
            key = (what, engine, phase)
            counts = self._counts.get(key)
            if counts is None:
                if len(self._counts) >= ROWS_MAX:
                    continue
                counts = self._counts[key] = [0] * BUCKETS
            counts[bisect_left(BOUNDS_S, took_us / 1e6)] += 1
            self._sums_us[key] = self._sums_us.get(key, 0) + took_us

    def rows(self) -> list[dict[str, Any]]:
        """Return what `status` shows: a row for each phase, in the order in which they came."""
        return [
            {
                "of": what,
                "engine": engine,
                "phase": phase,
                "count": sum(counts),
                "sum_s": self._sums_us[what, engine, phase] / 1e6,
                "p50_ms": _ms(quantile_s(counts, 0.5)),
                "p99_ms": _ms(quantile_s(counts, 0.99)),
                "counts": counts,
            }
            for (what, engine, phase), counts in self._counts.items()
        ]


def phases_ms(phases: Mapping[str, int]) -> dict[str, float]:
    """Return phases as they are shown."""
    return {name: took_us / 1000 for name, took_us in phases.items()}


def _ms(value_s: float | None) -> float:
    return round((value_s or 0.0) * 1000, 3)
