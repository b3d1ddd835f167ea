"""What a worker has found of a rollout's candidate, and what it may still spend on that.  Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import msgspec

from pool.rollouts.compare import Comparison, bucket_of
from pool.rollouts.shadow_view import worst_first
from pool.wire.control import ShadowCount, ShadowExample
from pool.wire.histogram import ERROR_BUCKETS

BURST_S: Final = 1.0  # of its budget, a rollout may spend so much at once


class Found(msgspec.Struct, frozen=True):
    """What became of one copy of a call."""

    comparison: Comparison
    failure: str = ""  # why the candidate gave no answer
    example: ShadowExample | None = None  # one to keep


@dataclass(slots=True)
class Count:
    """A pair of versions in one rollout; every copy offered is dropped, failed or compared once."""

    rollout: str
    baseline: str
    candidate: str
    calls_per_s_max: float
    # The whole mutable state: what is left of the budget, how long a copy takes, what was found.
    filled_s: float
    tokens: float = 0.0
    run_s: float = 0.0  # 0: nobody knows
    offered: int = 0
    dropped: int = 0
    absent: int = 0
    failed: int = 0
    compared: int = 0
    unlike: int = 0
    rows: int = 0
    top1_off: int = 0
    error_sum: float = 0.0
    error_max: float = 0.0
    errors: list[int] = field(default_factory=lambda: [0] * ERROR_BUCKETS)
    worst: tuple[ShadowExample, ...] = ()
    last_failure: str = ""
    device_us: int = 0  # that copies had of the device, compared or not

    def __post_init__(self) -> None:
        """Begin with a full budget."""
        self.tokens = self._tokens_max

    @property
    def _tokens_max(self) -> float:
        return max(1.0, self.calls_per_s_max * BURST_S)

    def pay(self, now_s: float) -> bool:
        """Take one call out of the budget; tell whether there was one left."""
        earned = self.calls_per_s_max * (now_s - self.filled_s)
        self.tokens = min(self._tokens_max, self.tokens + earned)
        self.filled_s = now_s
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True

    def has_had(self, device_us: int) -> None:
        """Count what a run has cost."""
        self.device_us += device_us

    def add(self, found: Found) -> None:
        """Count a copy that ran."""
        if found.example is not None:
            self.worst = worst_first((*self.worst, found.example))
        if found.failure:
            self.failed += 1
            self.last_failure = found.failure
            return
        self.compared += 1
        comparison = found.comparison
        if comparison.unlike:
            self.unlike += 1
            return
        self.rows += comparison.rows
        self.top1_off += comparison.top1_off
        self.error_sum += comparison.relative_error
        self.error_max = max(self.error_max, comparison.relative_error)
        self.errors[bucket_of(comparison.relative_error)] += 1

    def told(self) -> ShadowCount:
        """Return it as the controller is told."""
        return ShadowCount(
            rollout=self.rollout,
            baseline=self.baseline,
            candidate=self.candidate,
            offered=self.offered,
            dropped=self.dropped,
            failed=self.failed,
            compared=self.compared,
            unlike=self.unlike,
            rows=self.rows,
            top1_off=self.top1_off,
            error_sum=self.error_sum,
            error_max=self.error_max,
            errors=tuple(self.errors),
            worst=self.worst,
            last_failure=self.last_failure,
            absent=self.absent,
            device_us=self.device_us,
        )
