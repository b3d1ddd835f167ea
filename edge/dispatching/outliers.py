"""Which replicas of an engine get no calls for a while, because they do far worse than the others.

    in        takes its part of the calls; every end of one is judged against the other replicas
    out       takes none, first for 5 s, then for longer each time
    on trial  takes one call at a time: three good ones in a row and it is in, a bad one and it
              is out again

A replica is bad when half of its calls fail and four times as many as elsewhere do, or when it
takes four times as long as the others: so a request that fails everywhere, a slow model and a pool
that is overloaded put nobody out.  Never more than half of the replicas are out, those included
that cannot be reached at all; and if only such are left, they are taken.  Pure.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from statistics import median_low
from typing import Final, Protocol, TypeVar

CALLS_MIN: Final = 5  # before a replica is judged
RECENT_ENDS: Final = 16  # so many ends weigh more than all those before them,
RECENT_TIMES: Final = 8  # and so many times
STALE_S: Final = 30.0  # what was seen so long ago says nothing of now
FAILED_SHARE_MIN: Final = 0.5
FACTOR: Final = 4.0  # worse than the others: of failures, and of seconds
SLOWER_S_MIN: Final = 0.02  # less is not worth it: a small model's times go up and down by more
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


class Replica:
    """What is known of one replica."""

    __slots__ = (
        "calls", "failed_share", "last_s", "log_s", "out_s", "timed", "times_out", "trial_s",
        "trials", "until_s", "why",
    )  # fmt: skip

    def __init__(self) -> None:
        self.forget()
        self.why = ""  # out or on trial because of errors or slow; empty: in
        self.until_s = -math.inf  # then it is on trial
        self.times_out = 0
        self.trial_s = -math.inf  # when the call on trial was sent
        self.trials = 0  # that went well, in a row

    def forget(self) -> None:
        """Judge by what comes from now on."""
        self.calls = 0
        self.failed_share = 0.0
        self.timed = 0
        self.log_s = 0.0  # the mean of ln(seconds): one slow call in a while changes little
        self.last_s = -math.inf

    def count(self, failed: bool, run_s: float | None, now_s: float) -> None:
        """Take the end of a call."""
        if now_s - self.last_s > STALE_S:
            self.forget()
        self.last_s = now_s
        self.calls += 1
        self.failed_share += (failed - self.failed_share) / min(self.calls, RECENT_ENDS)
        if run_s is not None:
            self.timed += 1
            log_s = math.log(max(run_s, 1e-6))
            self.log_s += (log_s - self.log_s) / min(self.timed, RECENT_TIMES)


class Outliers:
    """The replicas of one engine, as one edge sees them."""

    def __init__(self) -> None:
        # The whole mutable state: what is known of each, and who of them is out or on trial.
        self._replicas: dict[str, Replica] = {}
        self._away: dict[str, Replica] = {}

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
        replica.count(failed, run_s, now_s)
        if replica.why:
            return self._try(name, replica, now_s, failed, run_s)
        if replica.calls < CALLS_MIN:
            return ""
        return self._verdict(name, now_s, replica.failed_share, replica.timed, replica.log_s)

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

    def _try(
        self, name: str, replica: Replica, now_s: float, failed: bool, run_s: float | None
    ) -> str:
        if now_s < replica.until_s:
            return ""  # it was sent before
        replica.trial_s = -math.inf
        log_s = 0.0 if run_s is None else math.log(max(run_s, 1e-6))
        timed = 0 if run_s is None else CALLS_MIN
        why = self._verdict(name, now_s, float(failed), timed, log_s)
        if why:
            return why
        replica.trials += 1
        if replica.trials >= TRIALS:
            replica.why = ""
            replica.forget()
            del self._away[name]
        return ""

    def _verdict(
        self, name: str, now_s: float, failed_share: float, timed: int, log_s: float
    ) -> str:
        others = list(self._others(name, now_s))
        if failed_share >= FAILED_SHARE_MIN:
            shares = [other.failed_share for other in others if other.calls]
            elsewhere = sum(shares) / len(shares) if shares else 0.0
            if failed_share >= FACTOR * elsewhere:
                return ERRORS
        logs_s = [other.log_s for other in others if other.timed]
        if timed >= CALLS_MIN and logs_s:
            typical_s, own_s = math.exp(median_low(logs_s)), math.exp(log_s)
            if own_s >= FACTOR * typical_s and own_s >= typical_s + SLOWER_S_MIN:
                return SLOW
        return ""

    def _others(self, name: str, now_s: float) -> Iterable[Replica]:
        for other, replica in self._replicas.items():
            if other != name and not replica.why and now_s - replica.last_s <= STALE_S:
                yield replica
