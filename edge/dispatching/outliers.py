"""Which replicas of an engine get no calls for a while, because they do far worse than the others.

    in        takes its part of the calls; its ends are compared with those of the others
    out       takes none, first for 5 s, then for longer each time
    on trial  takes one call at a time: three good ones in a row and it is in, a bad one and it
              is out again

A replica is bad when a third of its calls fail and 2.5 times as many as elsewhere do, or when its
calls take four times as long as elsewhere in the geometric mean, and that is no chance: two-sample
tests of its last 64 ends with those of the others tell so, the likelihood ratio of failures and the
rank sum of times.  As replicas of equal load are chosen by chance, what the requests are puts
nobody out: one that fails everywhere, some that take twenty times as long, a slow model, a pool
that is overloaded.  While one replica ends a single long call the other may end a hundred that one
client sent: of ends in a row at one replica only two count.

A replica that fails all its calls, or takes ten times as long, is out after 8 to 16 ends of its own
that count; one that fails half of them after some 40.  Where a third of all requests fail or take
long anyway, that takes some times as many.  Never more than half of the replicas are out, those
included that cannot be reached at all; and if only such are left, they are taken.  Pure.

Source:
    Wilks, "The Large-Sample Distribution of the Likelihood Ratio" (1938); Mann and Whitney, "On a
    Test of Whether One of Two Random Variables Is Stochastically Larger than the Other" (1947).
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from statistics import fmean, geometric_mean
from typing import Final, NamedTuple, Protocol, TypeVar

ENDS_MIN: Final = 8  # of a replica, and of the others, before it is judged
ENDS_MAX: Final = 64  # the last ones say how a replica does
IN_A_ROW_MAX: Final = 2  # ends of one replica count until another one has an end
LOOK_EVERY: Final = 4  # ends that failed, or took long enough to matter: then it is judged
STALE_S: Final = 60.0  # what was seen so long ago says nothing of now
FAILED_SHARE_MIN: Final = 1 / 3
FAILED_FACTOR: Final = 2.5  # more than of the others', and
FACTOR: Final = 4.0  # longer than theirs is bad
SLOWER_S_MIN: Final = 0.02  # less is not worth it: a small model's times go up and down by more
LOG_RATIO_MIN: Final = 14.0  # of failures, and
SIGMAS_MIN: Final = 5.0  # of ranks: one look in some ten million is wrong
USUAL: Final = 0.9  # on trial, what one call in ten of the others exceeds is usual
OUT_S: Final = 5.0  # the first time
OUT_S_MAX: Final = 60.0
CALM_S: Final = 300.0  # after so long without, the next time is a first time again
TRIALS: Final = 3
TRIAL_S_MAX: Final = 10.0  # a call on trial that did not end by then is not waited for

ERRORS, SLOW = "errors", "slow"


class Named(Protocol):
    """Somebody who takes calls."""

    id: str


N = TypeVar("N", bound=Named)


class End(NamedTuple):
    """How a call ended."""

    at_s: float
    failed: bool
    run_s: float | None  # None: there is none that could be compared


class Replica:
    """What is known of one replica."""

    __slots__ = ("doubts", "ends", "in_a_row", "times_out", "trial_s", "trials", "until_s", "why")

    def __init__(self) -> None:
        self.ends: deque[End] = deque(maxlen=ENDS_MAX)
        self.in_a_row = 0  # ends since another replica had one
        self.doubts = 0  # ends that may speak against it
        self.why = ""  # out or on trial because of errors or slow; empty: in
        self.until_s = -math.inf  # then it is on trial
        self.times_out = 0
        self.trial_s = -math.inf  # when the call on trial was sent
        self.trials = 0  # that went well, in a row

    def recent(self, now_s: float) -> Sequence[End]:
        """Return what still says something."""
        while self.ends and self.ends[0].at_s < now_s - STALE_S:
            self.ends.popleft()
        return self.ends


def log_ratio(failed: int, ends: int, failed_elsewhere: int, ends_elsewhere: int) -> float:
    """Return ln of how much likelier two shares of failures are than one.

    >>> round(log_ratio(8, 8, 0, 16), 2)
    15.28
    >>> log_ratio(5, 10, 10, 20)
    0.0
    """

    def best(failed: int, ends: int) -> float:
        return sum(n * math.log(n / ends) for n in (failed, ends - failed) if n)

    apart = best(failed, ends) + best(failed_elsewhere, ends_elsewhere)
    return apart - best(failed + failed_elsewhere, ends + ends_elsewhere)


def sigmas(times_s: Sequence[float], elsewhere_s: Sequence[float]) -> float:
    """Return by how many standard deviations the rank sum says that times are longer.

    Args:
        times_s: of one replica, not empty.
        elsewhere_s: of the others, not empty.

    >>> sigmas([2.0], [1.0, 3.0])
    0.0
    """
    others_s = sorted(elsewhere_s)
    n, m = len(times_s), len(others_s)
    below = sum(bisect_left(others_s, t) + bisect_right(others_s, t) for t in times_s) / 2
    return (below - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)


def _is_slower(times_s: Sequence[float], elsewhere_s: Sequence[float]) -> bool:
    """Tell whether times are longer by far: by their typical ratio, and by what that costs."""
    if fmean(times_s) < fmean(elsewhere_s) + SLOWER_S_MIN:
        return False
    return geometric_mean(times_s) >= FACTOR * geometric_mean(elsewhere_s)


class Outliers:
    """The replicas of one engine, as one edge sees them."""

    def __init__(self) -> None:
        # The whole mutable state: what is known of each, and who of them is out or on trial.
        self._replicas: dict[str, Replica] = {}
        self._away: dict[str, Replica] = {}
        self._last = ""  # who had the last end

    @property
    def away(self) -> Mapping[str, str]:
        """Who is out or on trial, and why: errors or slow."""
        return {name: replica.why for name, replica in self._away.items()}

    @property
    def is_calm(self) -> bool:
        """Tell whether everybody is in."""
        return not self._away

    def keep(self, names: Collection[str]) -> None:
        """Forget all but these."""
        self._replicas = {n: r for n, r in self._replicas.items() if n in names}
        self._away = {n: r for n, r in self._away.items() if n in names}

    def allowed(self, up: list[N], now_s: float) -> list[N]:
        """Return who of `up` may take the next call: the one whose trial it is, or all that are in.

        >>> outliers = Outliers()
        >>> outliers.allowed([], 0.0)
        []
        """
        inside = [one for one in up if one.id not in self._away]
        if not inside:
            return up
        for one in up:
            replica = self._away.get(one.id)
            if replica is not None and max(replica.until_s, replica.trial_s + TRIAL_S_MAX) <= now_s:
                return [one]
        return inside

    def sent(self, name: str, now_s: float) -> None:
        """Take note that a call goes to a replica."""
        replica = self._away.get(name)
        if replica is not None:
            replica.trial_s = now_s

    def ended(self, name: str, now_s: float, *, failed: bool, run_s: float | None) -> str:
        """Take the end of a call that ran, or was lost; return why its replica is to go out, or "".

        Args:
            name: of the replica.
            now_s: monotonic.
            failed: it ended with an error that may be the replica's fault.
            run_s: from when it was sent to its answer, without its wait in the queue; None: there
                is none that could be compared.
        """
        replica = self._replicas.get(name)
        if replica is None:
            replica = self._replicas[name] = Replica()
        end = End(now_s, failed, run_s)
        if replica.why:
            return self._try(name, replica, end)
        replica.in_a_row = replica.in_a_row + 1 if self._last == name else 1
        self._last = name
        if replica.in_a_row > IN_A_ROW_MAX and self.is_calm:
            return ""
        replica.ends.append(end)
        if not failed and (run_s is None or run_s < SLOWER_S_MIN):
            return ""
        replica.doubts += 1
        return "" if replica.doubts % LOOK_EVERY else self._verdict(name, replica, now_s)

    def put_out(
        self, name: str, why: str, now_s: float, replicas: Collection[str], up: Collection[str]
    ) -> bool:
        """Give a replica that is bad no calls for a while, unless too few would be left.

        Args:
            name: of the replica.
            why: it is bad.
            now_s: monotonic.
            replicas: all of the engine.
            up: those of them that can be sent calls.
        """
        left = [one for one in replicas if one in up and one not in self._away and one != name]
        if 2 * len(left) < len(replicas):
            return False
        replica = self._replicas[name]
        if now_s - replica.until_s >= CALM_S:
            replica.times_out = 0
        replica.times_out += 1
        replica.why = why
        replica.until_s = now_s + min(OUT_S * 2 ** (replica.times_out - 1), OUT_S_MAX)
        replica.trial_s = -math.inf
        replica.trials = 0
        self._away[name] = replica
        return True

    def _try(self, name: str, replica: Replica, end: End) -> str:
        if end.at_s < replica.until_s:
            return ""  # it was sent before
        replica.trial_s = -math.inf
        elsewhere = self._elsewhere(name, end.at_s - STALE_S)
        if end.failed and FAILED_FACTOR * sum(one.failed for one in elsewhere) <= len(elsewhere):
            return ERRORS
        times_s = _times_s(elsewhere)
        if end.run_s is not None and times_s:
            usual_s = sorted(times_s)[int(USUAL * len(times_s))]
            if _is_slower([end.run_s], [usual_s]):
                return SLOW
        replica.trials += 1
        if replica.trials >= TRIALS:
            replica.why = ""
            del self._away[name]
            for one in self._replicas.values():
                one.ends.clear()  # what they had meanwhile, it did not have
        return ""

    def _verdict(self, name: str, replica: Replica, now_s: float) -> str:
        ends = replica.recent(now_s)
        elsewhere = self._elsewhere(name, ends[0].at_s)
        if min(len(ends), len(elsewhere)) < ENDS_MIN:
            return ""
        failed, failed_elsewhere = (sum(one.failed for one in some) for some in (ends, elsewhere))
        share = failed / len(ends)
        if (
            share >= max(FAILED_SHARE_MIN, FAILED_FACTOR * failed_elsewhere / len(elsewhere))
            and log_ratio(failed, len(ends), failed_elsewhere, len(elsewhere)) >= LOG_RATIO_MIN
        ):
            return ERRORS
        times_s, others_s = _times_s(ends), _times_s(elsewhere)
        if (
            min(len(times_s), len(others_s)) >= ENDS_MIN
            and _is_slower(times_s, others_s)
            and sigmas(times_s, others_s) >= SIGMAS_MIN
        ):
            return SLOW
        return ""

    def _elsewhere(self, name: str, since_s: float) -> list[End]:
        """Return the ends of the others that are in, during the same time."""
        others = (one for other, one in self._replicas.items() if other != name and not one.why)
        return [end for other in others for end in other.ends if end.at_s >= since_s]


def _times_s(ends: Sequence[End]) -> list[float]:
    return [max(end.run_s, 1e-6) for end in ends if end.run_s is not None]
