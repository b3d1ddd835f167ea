"""How long an engine's runs take, and how fast its work arrives: learned, never configured.

Owns the figures; decides nothing and reads no clock.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

# TCP's gains for a smoothed mean and deviation (RFC 6298), which have the same job: to follow
# a drifting time within a few dozen samples and not to jump at one outlier.
MEAN_GAIN: Final = 1 / 8
DEVIATION_GAIN: Final = 1 / 4
DEVIATION_FIRST: Final = 1 / 8  # of the first run that counts, over its duration
RUNS_MIN: Final = 8  # of like size, to tell how far such runs deviate
# A normal distribution's p99 lies 2.33 σ above its mean, and its mean deviation is 0.8 σ.
DEVIATIONS: Final = 3.0
# What varies by more than this part of the mean varies by what is asked, not by chance: to take
# every call for the longest would refuse those that are short, and these are most.
PESSIMISM_MAX: Final = 0.6
# A hiccup counts as no more than this times the prediction; a lasting change is still
# followed within a few runs, as every one of them may double it.
OUTLIER_FACTOR: Final = 2.0
# Rows in a larger batch are seldom dearer than in a smaller one, and never by more than this.
DEARER_FACTOR: Final = 2.0
# Without a run, a prediction loses half of itself in this time.  One wrong figure could
# otherwise make every call look hopeless; all would be shed, nothing run, nothing learned.
FORGET_HALF_S: Final = 1.0
# Bounds of the window in which arrivals are counted: below, one arrival more or less is all
# one would see; above, a load of a minute ago would still count.
WINDOW_S_MIN: Final = 0.01
WINDOW_S_MAX: Final = 10.0


def trust_after(idle_s: float) -> float:
    """Say how much of a prediction to believe so long after the last run, 0 to 1."""
    idle_s -= FORGET_HALF_S
    return 1.0 if idle_s <= 0 else 0.5 ** (idle_s / FORGET_HALF_S)


@dataclass(slots=True)
class _Bucket:
    """Runs of like size."""

    rows_mean: float
    rows_largest: int
    run_s_mean: float
    run_s_deviation: float  # from the line through the means of all buckets
    runs: int = 1


class _Line:
    """A run's duration by its rows, linear between points."""

    __slots__ = ("rows", "run_s")

    def __init__(self) -> None:
        self.rows: list[float] = []
        self.run_s: list[float] = []

    def add(self, rows: float, run_s: float) -> None:
        """Go on to a point with more rows."""
        self.rows.append(rows)
        self.run_s.append(run_s)

    def at(self, rows: int) -> float:
        """Before the first point it is level, beyond the last it grows in proportion."""
        points, run_s = self.rows, self.run_s
        if not points:
            return 0.0
        right = bisect_left(points, rows)
        if right == 0:
            return run_s[0]
        if right == len(points):
            return run_s[-1] * rows / points[-1]
        rows_0, rows_1 = points[right - 1], points[right]
        share = (rows - rows_0) / (rows_1 - rows_0)
        return run_s[right - 1] + share * (run_s[right] - run_s[right - 1])


class LatencyProfile:
    """The duration of a run as a function of its rows.

    Runs are kept in buckets of doubling size (1, 2, 3-4, 5-8, …).  A prediction is the mean
    and three mean deviations (about p99), but no more than 1.6 times the mean, linear between
    the buckets and never falling with the rows.  That a larger run of a bucket takes longer is
    no deviation: what counts is how far a run is from the line through the buckets' means.  The
    last line goes on to the largest size seen; beyond, a prediction grows in proportion, which
    is an upper bound as rows in a larger batch are not dearer; it is corrected by the first such
    run.  Below the smallest, the smallest holds.  Before the first counted run it is 0: nothing
    is given up on a guess.
    """

    def __init__(self) -> None:
        # The whole mutable state: the buckets, the lines through them, and what was last run.
        self._buckets: dict[int, _Bucket] = {}
        self._means = _Line()
        self._highs = _Line()
        self._relative_deviation = DEVIATION_FIRST  # of all runs, over the run's duration
        self._is_cold = True
        self._last_run_s = 0.0

    @property
    def runs_known(self) -> bool:
        """Whether there has been a run that counts."""
        return bool(self._buckets)

    def record(self, rows: int, run_s: float, now_s: float) -> None:
        """Learn from one run that ended at `now_s`.

        The first run after a load pays for allocations and compilations and is not counted.
        """
        assert rows >= 1
        if self._is_cold:
            self._is_cold = False
            return
        trust = self.trust(now_s - run_s)
        self._last_run_s = now_s
        if self._buckets:
            run_s = min(run_s, OUTLIER_FACTOR * self.run_s(rows))
        bucket = self._buckets.get((rows - 1).bit_length())
        if bucket is None:
            self._buckets[(rows - 1).bit_length()] = _Bucket(
                rows, rows, run_s, run_s * DEVIATION_FIRST
            )
        else:
            error_s = run_s - self._means.at(rows)
            if error_s < 0:
                # What is not trusted any more gives way to better news.
                bucket.run_s_mean += error_s * (1.0 - trust)
                bucket.run_s_deviation *= trust
                error_s *= trust
            bucket.run_s_deviation += (abs(error_s) - bucket.run_s_deviation) * DEVIATION_GAIN
            relative = abs(error_s) / max(bucket.run_s_mean, 1e-9)
            self._relative_deviation += (relative - self._relative_deviation) * MEAN_GAIN
            bucket.runs += 1
            # Together: of a run time of α·b + β, the means then stay on its line.
            bucket.rows_mean += (rows - bucket.rows_mean) * MEAN_GAIN
            bucket.run_s_mean += (run_s - bucket.run_s_mean) * MEAN_GAIN
            bucket.rows_largest = max(bucket.rows_largest, rows)
        self._draw_lines()

    def _draw_lines(self) -> None:
        means, highs = self._means, self._highs = _Line(), _Line()
        before_s, before_rows = 0.0, 0.0
        for _, bucket in sorted(self._buckets.items()):
            deviation_s = bucket.run_s_deviation
            if bucket.runs < RUNS_MIN:
                # Too few to tell: as far off as runs of other sizes have been.
                deviation_s = min(deviation_s, self._relative_deviation * bucket.run_s_mean)
            high_s = bucket.run_s_mean + min(
                DEVIATIONS * deviation_s, PESSIMISM_MAX * bucket.run_s_mean
            )
            if before_rows:
                # A size that looks too slow is not run, so only the others can correct it.
                dearest_s = DEARER_FACTOR * before_s * bucket.rows_mean / before_rows
                high_s = min(max(high_s, before_s), dearest_s)
            before_s, before_rows = high_s, bucket.rows_mean
            means.add(bucket.rows_mean, bucket.run_s_mean)
            highs.add(bucket.rows_mean, high_s)
        rows_more = bucket.rows_largest - before_rows
        if len(means.rows) > 1 and rows_more > 0:
            # The last piece goes on; what it adds is a matter of rows, not of deviations.
            rise_s = max(0.0, means.run_s[-1] - means.run_s[-2])
            rise_s *= rows_more / (means.rows[-1] - means.rows[-2])
            means.add(bucket.rows_largest, means.run_s[-1] + rise_s)
            highs.add(bucket.rows_largest, high_s + rise_s)

    @property
    def rows_per_s_max(self) -> float:
        """How many rows a second it has shown that it can do, one run after the other; or 0."""
        speeds = [one.rows_mean / max(one.run_s_mean, 1e-9) for one in self._buckets.values()]
        return max(speeds, default=0.0)

    def run_s(self, rows: int) -> float:
        """Predict the duration of a run of so many rows, pessimistically (about p99)."""
        return self._highs.at(rows)

    def mean_s(self, rows: int) -> float:
        """Predict the mean duration of runs of so many rows."""
        return self._means.at(rows)

    def trust(self, now_s: float) -> float:
        """Say how much of a prediction to believe when giving up a call, 0 to 1.

        Halves with every `FORGET_HALF_S` without a run; for a busy engine it is 1.
        """
        return trust_after(now_s - self._last_run_s)


class ArrivalRate:
    """Rows that arrived per second, over a sliding window of about one deadline.

    Two counters stand for the window: the one that fills, and a share of the full one before
    it (the sliding window counter known from rate limiters).  O(1) in time and memory.
    """

    def __init__(self) -> None:
        # The whole mutable state.
        self._window_s = WINDOW_S_MIN
        self._started_s = -WINDOW_S_MAX
        self._rows = 0.0
        self._rows_before = 0.0

    def add(self, rows: int, now_s: float, slo_s: float) -> None:
        """Count an arrival whose caller waits `slo_s`; the next window is that long."""
        self._turn(now_s, slo_s)
        self._rows += rows

    def rows_per_s(self, now_s: float) -> float:
        """Say how many rows arrive per second."""
        self._turn(now_s, self._window_s)
        share_before = max(0.0, 1.0 - (now_s - self._started_s) / self._window_s)
        return (self._rows + self._rows_before * share_before) / self._window_s

    def _turn(self, now_s: float, slo_s: float) -> None:
        elapsed_s = now_s - self._started_s
        if elapsed_s < self._window_s:
            return
        window_s = min(max(slo_s, WINDOW_S_MIN), WINDOW_S_MAX)
        if elapsed_s < 2 * self._window_s:
            # In proportion, as the next window may be longer or shorter than this one.
            self._rows_before = self._rows * window_s / self._window_s
            self._started_s += self._window_s
        else:
            self._rows_before = 0.0
            self._started_s = now_s
        self._window_s = window_s
        self._rows = 0.0
