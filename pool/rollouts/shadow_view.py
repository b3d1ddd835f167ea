"""What all workers together have found of a candidate's answers beside the baseline's.  Pure.

Workers report cumulative counts of their process; the last report of each process counts, so a
report that is lost, doubled or late changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import Any, Final

import msgspec

from pool.wire.control import ShadowCount, ShadowExample, ShadowReport
from pool.wire.histogram import ERROR_BOUNDS, ERROR_BUCKETS, added

ROLLOUTS_MAX: Final = 256  # kept; the one that was reported of longest ago goes first
PROCESSES_MAX: Final = 256  # told apart in a rollout; older ones are only a sum
WORST_MAX: Final = 4  # examples of each kind
KINDS: Final = ("failed", "unlike", "top1", "values")  # of examples; what is looked at first

_SUMS: Final = (
    "offered", "dropped", "absent", "failed", "compared", "unlike", "rows", "top1_off", "error_sum",
    "device_us",
)  # fmt: skip
_SHOWN_OTHERWISE: Final = ("error_sum", "device_us")


class ShadowView:
    """The comparisons of every rollout that workers report of."""

    def __init__(self) -> None:
        # The whole mutable state: by rollout, what each process has reported last, and the sum of
        # what those said that are not told apart any more.
        self._counts: dict[str, dict[str, ShadowCount]] = {}
        self._folded: dict[str, ShadowCount] = {}

    def take(self, incarnation: str, report: ShadowReport) -> None:
        """Take a worker's report.

        Args:
            incarnation: of the worker's process.
            report: cumulative since that began.
        """
        for count in report.counts:
            if len(count.errors) not in (0, ERROR_BUCKETS):
                count = msgspec.structs.replace(count, errors=())  # by bounds that are not ours
            name = count.rollout
            found = self._counts.pop(name, {})
            found.pop(incarnation, None)
            found[incarnation] = count
            self._counts[name] = found  # the last one in order
            if len(found) > PROCESSES_MAX:
                oldest = found.pop(next(iter(found)))
                self._folded[name] = merged([self._folded.get(name, _nothing(count)), oldest])
        while len(self._counts) > ROLLOUTS_MAX:
            name = next(iter(self._counts))
            del self._counts[name]
            self._folded.pop(name, None)

    def seen(self, endpoint: str, rollout: str) -> dict[str, Any] | None:
        """Return what `rollout status` shows of a rollout, by its id; None: nothing is known."""
        name = rollout_name(endpoint, rollout)
        found = self._counts.get(name)
        if not found:
            return None
        total = merged([*found.values(), *filter(None, [self._folded.get(name)])])
        alike = total.compared - total.unlike
        return {
            **{part: getattr(total, part) for part in _SUMS if part not in _SHOWN_OTHERWISE},
            "device_s": total.device_us / 1e6,
            "top1_off_share": total.top1_off / total.rows if total.rows else None,
            "error_mean": total.error_sum / alike if alike else None,
            "error_p99": _at_most(total, 0.99) if alike else None,
            "error_max": total.error_max if alike else None,
            "last_failure": total.last_failure,
            "worst": [msgspec.structs.asdict(example) for example in total.worst],
        }

    def reset(self) -> None:
        """Forget everything: somebody else leads."""
        self._counts.clear()
        self._folded.clear()


def rollout_name(endpoint: str, rollout: str) -> str:
    """Return how a rollout is called where only a copy of a call is; ids alone may be alike."""
    return f"{endpoint}/{rollout}"


def merged(counts: Iterable[ShadowCount]) -> ShadowCount:
    """Return the counts of several processes as if one had done it all; of one at least."""
    return reduce(_both, counts)


def worst_first(examples: Iterable[ShadowExample]) -> tuple[ShadowExample, ...]:
    """Return the examples to keep: of each kind, since many of one must not hide another's."""
    ranked = sorted(examples, key=lambda one: one.relative_error, reverse=True)
    return tuple(
        example
        for kind in KINDS
        for example in [one for one in ranked if one.kind == kind][:WORST_MAX]
    )


def _both(one: ShadowCount, other: ShadowCount) -> ShadowCount:
    return msgspec.structs.replace(
        other,
        **{part: getattr(one, part) + getattr(other, part) for part in _SUMS},
        error_max=max(one.error_max, other.error_max),
        errors=tuple(added(one.errors, other.errors)),
        worst=worst_first((*one.worst, *other.worst)),
        last_failure=other.last_failure or one.last_failure,
    )


def _nothing(like: ShadowCount) -> ShadowCount:
    return ShadowCount(like.rollout, like.baseline, like.candidate)


def _at_most(total: ShadowCount, q: float) -> float:
    """Return a bound on the relative errors of the share `q` of calls: the least that is known."""
    rank, below = q * sum(total.errors), 0
    for bound, count in zip(ERROR_BOUNDS, total.errors, strict=False):
        below += count
        if below >= rank:
            return min(bound, total.error_max)
    return total.error_max
