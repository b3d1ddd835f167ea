"""What the edges have counted over the last minute, all of them together.

An edge reports cumulative counts of its incarnation.  What is recent is the difference to what the
same incarnation had reported a minute ago, so neither a lost report nor a new controller, which
hears an old edge's counts for the first time, makes a peak that was none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pool.wire.control import VariantCount
from pool.wire.histogram import BUCKETS, added, quantile_s, since

WINDOW_S = 60.0
STEP_S = 5.0  # between two looks that are kept: the window is as long as said to within this

Arm = tuple[str, str, str]  # endpoint, variant, version
_Key = tuple[str, int, str, str]
_Look = tuple[float, Mapping[_Key, VariantCount]]


@dataclass(frozen=True, slots=True)
class Rates:
    """The last minute of an arm, or of several together."""

    ended_per_s: float = 0.0
    failed_per_s: float = 0.0  # with a status of 500 or more
    answered: int = 0  # or failed by the model
    hits: int = 0  # of these, without a call of their own
    seconds: list[int] = field(default_factory=list)  # by `BOUNDS_S`

    def __add__(self, other: Rates) -> Rates:
        return Rates(
            self.ended_per_s + other.ended_per_s,
            self.failed_per_s + other.failed_per_s,
            self.answered + other.answered,
            self.hits + other.hits,
            added(self.seconds, other.seconds),
        )

    def shown(self) -> dict[str, float | None]:
        """Return what `status` shows; None where nothing has happened."""
        p50_s, p99_s = quantile_s(self.seconds, 0.5), quantile_s(self.seconds, 0.99)
        return {
            "window_s": WINDOW_S,
            "requests_per_s": round(self.ended_per_s, 3),
            "p50_ms": None if p50_s is None else round(p50_s * 1e3, 3),
            "p99_ms": None if p99_s is None else round(p99_s * 1e3, 3),
            "failed_share": _share(self.failed_per_s, self.ended_per_s),
            "hit_share": _share(self.hits, self.answered),
        }


def _share(part: float, whole: float) -> float | None:
    return round(min(1.0, part / whole), 4) if whole else None


class Recent:
    """A minute of looks at the counts of every incarnation of every edge."""

    def __init__(self) -> None:
        # The whole mutable state: the first look is the one that the last is compared with.
        self._looks: dict[str, deque[_Look]] = {}

    def report(self, incarnation: str, counts: Iterable[VariantCount], now_s: float) -> None:
        """Take the cumulative `counts` of an incarnation."""
        look = (now_s, {(c.endpoint, c.revision, c.variant, c.version): c for c in counts})
        looks = self._looks.setdefault(incarnation, deque([look]))
        if len(looks) > 1 and now_s - looks[-2][0] < STEP_S:
            looks[-1] = look
        else:
            looks.append(look)
        while len(looks) > 2 and looks[1][0] <= now_s - WINDOW_S:
            looks.popleft()

    def rates(self, now_s: float) -> dict[Arm, Rates]:
        """Return the last minute by arm; silent incarnations are forgotten."""
        for name in [n for n, looks in self._looks.items() if looks[-1][0] < now_s - WINDOW_S]:
            del self._looks[name]
        found: dict[Arm, Rates] = {}
        for looks in self._looks.values():
            (from_s, before), (_, now) = looks[0], looks[-1]
            for key, count in now.items():
                arm = (count.endpoint, count.variant, count.version)
                rates = _between(before.get(key), count, max(now_s - from_s, 1.0))
                found[arm] = found[arm] + rates if arm in found else rates
        return found


def _between(before: VariantCount | None, now: VariantCount, passed_s: float) -> Rates:
    if before is None:  # an arm that this incarnation had not heard of
        before = VariantCount(now.endpoint, now.revision, now.variant, now.version, 0, 0, 0)
    # Another release may count by other bounds; its requests are then not among the recent ones.
    seconds: list[int] = []
    if len(now.seconds) == BUCKETS and len(before.seconds) in (0, BUCKETS):
        seconds = since(now.seconds, before.seconds)
    return Rates(
        sum(seconds) / passed_s,
        (now.failed - before.failed) / passed_s,
        now.requests - before.requests,
        now.hits - before.hits,
        seconds,
    )
