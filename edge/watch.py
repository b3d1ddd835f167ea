"""What the arms of a rollout do, as guards may judge it: outcomes of calls, by segment and arm.

Counts only calls that a worker was given.  A hit of the cache, an answer that somebody else's call
brought, a refusal, and a caller that left say nothing of a candidate; nor does a caller that picked
its arm.  Calls of one unit may all be alike, so a unit is part of the traffic once in a look
window; and of each unit that an error or a slow call has happened to, it is told how many of its
calls that were.

A call belongs to the segment in which its arm was chosen, however late it ends.

    200             an outcome
    500, 502, 504   an outcome, and an error; a 504 is slow as well, where the guard has a limit
    anything else   nothing
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Final

import numpy as np

from edge.arm_metrics import ROWS_MAX, Histogram
from edge.output_metrics import OutputMetrics
from pool.wire.control import UNIT_HASHES, ArmEvidence, UnitSeen
from pool.wire.data import TensorLike

LOOK_S: Final = 10.0
WINDOW_UNITS_MAX: Final = 32_768  # told apart in one look window; then the next one begins
FIRST_UNITS_MAX: Final = 65_536  # told apart in one segment
TOLD_UNITS_MAX: Final = 1024  # of both arms of a segment together
SEGMENTS_KEPT: Final = 2  # of which is still told: the controller may not be as far as this edge
LOOKS_FREE: Final = 256  # so many answers of an arm are looked into first,
LOOK_EACH: Final = 256  # and then one of so many: a look costs more than all of a request

_HASH_BYTES = 7
_HASH_SHIFT = 4  # 52 bits: whole numbers that a double holds as well


class UnitHash:
    """Names a unit to others without giving it away: sha256 of salt, NUL, unit.

    >>> UnitHash("magika").hex_of(b"ada")[:13]
    'e131559b119be'
    """

    __slots__ = ("_salted",)

    def __init__(self, salt: str) -> None:
        self._salted = hashlib.sha256(salt.encode() + b"\0")

    def hex_of(self, unit: bytes) -> str:
        """Return the whole hash: 64 digits."""
        hashed = self._salted.copy()
        hashed.update(unit)
        return hashed.hexdigest()

    def number_of(self, unit: bytes) -> int:
        """Return its first 13 digits as a number below 2^52."""
        hashed = self._salted.copy()
        hashed.update(unit)
        return int.from_bytes(hashed.digest()[:_HASH_BYTES], "big") >> _HASH_SHIFT


class Firsts:
    """Which units have been here, for as many as `FIRST_UNITS_MAX`; then it forgets them all.

    Attributes:
        key: names the stretch of time that this is about.
        is_whole: nobody was forgotten yet, so that who is new here is new.
    """

    __slots__ = ("_seen", "is_whole", "key")

    def __init__(self, key: Hashable = None) -> None:
        self.key = key
        self._seen: set[int] = set()  # hashes that hold in this process alone
        self.is_whole = True

    def take(self, unit: bytes) -> bool:
        """Tell whether `unit` is here for the first time."""
        hashed = hash(unit)
        if hashed in self._seen:
            return False
        if len(self._seen) >= FIRST_UNITS_MAX:
            self._seen.clear()
            self.is_whole = False
        self._seen.add(hashed)
        return True

    def forget(self, unit: bytes) -> None:
        """Let `unit` be new once more."""
        self._seen.discard(hash(unit))
        self.is_whole = False


class _Told:
    """A unit, from the first error or slow call on that it had in a segment."""

    __slots__ = ("calls", "errors", "number", "slow")

    def __init__(self, number: int) -> None:
        self.number = number
        self.calls = 1
        self.errors = 0
        self.slow = 0


class ArmWatch:
    """What one arm did in one segment; only ever grows, but for the units that are told.

    Held by the snapshot, so that the request's way looks nothing up.
    """

    __slots__ = (
        "_log_squares", "_log_sum", "_seconds", "_segment", "_unlogged", "_unsorted", "assigned",
        "calls", "errors", "lone_calls", "lone_errors", "lone_slow", "outputs", "requests", "slow",
        "told", "units", "variant",
    )  # fmt: skip

    def __init__(self, segment: SegmentWatch, variant: str) -> None:
        self._segment = segment
        self.variant = variant
        self.requests = 0
        self.assigned = 0  # units; a request without one is its own
        self.calls = 0
        self.lone_calls = 0
        self.units = 0
        self.errors = 0
        self.lone_errors = 0
        self.slow = 0
        self.lone_slow = 0
        self.told: dict[int, _Told] = {}  # by hashes that hold in this process alone
        self._seconds = Histogram()
        self._log_sum = 0.0
        self._log_squares = 0.0
        # Of calls, and of those that were their unit's first in a window: not added up yet.
        self._unsorted: list[float] = []
        self._unlogged: list[float] = []
        self.outputs = OutputMetrics()

    def observe(
        self,
        unit: bytes | None,
        status: int,
        seconds: float,
        now_s: float,
        outputs: Sequence[TensorLike] = (),
    ) -> None:
        """Take a call that a worker was given and that has ended.

        Args:
            unit: whose it was; None: it is its own.
            status: how it ended.
            seconds: from being sent to the answer.
            now_s: when it ended, on this process's monotonic clock.
            outputs: the answer's tensors.
        """
        if status != 200 and status != 500 and status != 502 and status != 504:
            return
        segment = self._segment
        is_slow = seconds > segment.slow_s or (status == 504 and segment.slow_s < math.inf)
        is_new = True
        told = None
        self.calls += 1
        self._unsorted.append(seconds)
        if unit is None:
            self.lone_calls += 1
        else:
            hashed = hash(unit)
            if now_s >= segment.until_s or len(segment.seen) >= WINDOW_UNITS_MAX:
                segment.turn(now_s)
            is_new = hashed not in segment.seen
            if is_new:
                segment.seen.add(hashed)
            told = self.told.get(hashed)
            if told is not None:
                told.calls += 1
            elif is_slow or status != 200:
                told = self._tell(unit)
        if is_new:
            self.units += 1
            self._unlogged.append(seconds)
        if is_slow:
            self.slow += 1
            self.lone_slow += unit is None
            if told is not None:
                told.slow += 1
        if status != 200:
            self._fail(unit, told)
        elif self.calls <= LOOKS_FREE or not self.calls % LOOK_EACH:
            self.outputs.look(outputs)
        if len(self._unsorted) >= ROWS_MAX:
            self._sort()

    def fail(self, unit: bytes | None) -> None:
        """Count an error of a call that is counted already: its answer was none."""
        told = None if unit is None else self.told.get(hash(unit)) or self._tell(unit)
        self._fail(unit, told)
        if told is not None:
            told.calls = max(told.calls, told.errors)  # some ended before it was kept count of

    def _fail(self, unit: bytes | None, told: _Told | None) -> None:
        self.errors += 1
        self.lone_errors += unit is None
        if told is not None:
            told.errors += 1

    def _tell(self, unit: bytes) -> _Told | None:
        """Begin to keep count of a unit, with one call; None: it is not in the sample."""
        segment = self._segment
        number = segment.rollout.hashed.number_of(unit)
        while number < segment.units_below and segment.told_units() >= TOLD_UNITS_MAX:
            segment.halve()
        if number >= segment.units_below:
            return None
        told = self.told[hash(unit)] = _Told(number)
        return told

    def _sort(self) -> None:
        """Add up the durations that were taken."""
        seconds, self._unsorted = self._unsorted, []
        self._seconds.observe_all(np.array(seconds))
        logs = np.log1p(np.array(self._unlogged) * 1e6)
        self._unlogged = []
        self._log_sum += float(logs.sum())
        self._log_squares += float(logs @ logs)

    def evidence(self) -> ArmEvidence:
        """Return what is told to the controller."""
        self._sort()
        segment = self._segment
        outputs = self.outputs
        return ArmEvidence(
            endpoint=segment.rollout.endpoint,
            rollout=segment.rollout.id,
            segment=segment.number,
            variant=self.variant,
            requests=self.requests,
            assigned=self.assigned,
            calls=self.calls,
            lone_calls=self.lone_calls,
            units=self.units,
            errors=self.errors,
            lone_errors=self.lone_errors,
            slow=self.slow,
            lone_slow=self.lone_slow,
            told=tuple(
                UnitSeen(told.number, told.calls, told.errors, told.slow)
                for told in self.told.values()
            ),
            units_below=segment.units_below,
            seconds=tuple(self._seconds.counts),
            log_calls=self.units,
            log_sum=self._log_sum,
            log_squares=self._log_squares,
            scores=outputs.scores,
            score_sum=outputs.score_sum,
            score_squares=outputs.score_squares,
            classes=dict(outputs.classes),
        )


class SegmentWatch:
    """Both arms between two changes of their weights.

    They share the look windows, and with that the bound: a window that is full ends for both.

    Attributes:
        slow_s: what takes longer is slow; `math.inf`: the guard has no limit.
        until_s: when the window ends.
        seen: units of the window with an outcome; hashes that hold in this process alone.
        units_below: only units whose number is less are told of.  Every edge takes the same ones
            away when there are too many, so that what several have seen of a unit adds up.
    """

    __slots__ = ("arms", "number", "rollout", "seen", "slow_s", "units_below", "until_s")

    def __init__(
        self, rollout: RolloutWatch, number: int, variants: Sequence[str], slow_s: float
    ) -> None:
        self.rollout = rollout
        self.number = number
        self.slow_s = slow_s
        self.until_s = -math.inf
        self.seen: set[int] = set()
        self.units_below = UNIT_HASHES
        self.arms: Mapping[str, ArmWatch] = {name: ArmWatch(self, name) for name in variants}

    def turn(self, now_s: float) -> None:
        """Begin the look window that `now_s` is in."""
        self.end()
        self.until_s = (now_s // LOOK_S + 1) * LOOK_S

    def end(self) -> None:
        """End the look window; who was in it is forgotten."""
        self.until_s = -math.inf
        self.seen.clear()

    def told_units(self) -> int:
        """Return how many units are told of."""
        return sum(len(arm.told) for arm in self.arms.values())

    def halve(self) -> None:
        """Tell of half as many units from now on."""
        self.units_below //= 2
        for arm in self.arms.values():
            kept = {key: t for key, t in arm.told.items() if t.number < self.units_below}
            arm.told = kept


class RolloutWatch:
    """What this process has seen of one rollout of one endpoint.

    Args:
        endpoint: its name.
        rollout: the rollout's id.
        salt: of the endpoint's assignment.
    """

    __slots__ = ("_segments", "endpoint", "hashed", "id")

    def __init__(self, endpoint: str, rollout: str, salt: str) -> None:
        self.endpoint = endpoint
        self.id = rollout
        self.hashed = UnitHash(salt)
        # The whole mutable state, by number.
        self._segments: dict[int, SegmentWatch] = {}

    def segment(
        self, number: int, variants: Sequence[str], slow_s: float = math.inf
    ) -> SegmentWatch:
        """Return the segment's counters, which begin at 0 once.

        Args:
            number: of the segment.
            variants: names of the baseline and the candidate.
            slow_s: the guard's limit; that of a segment under way may change.
        """
        found = self._segments.get(number)
        if found is None:
            for ended in self._segments.values():
                ended.end()
            found = self._segments[number] = SegmentWatch(self, number, variants, slow_s)
            while len(self._segments) > SEGMENTS_KEPT:
                del self._segments[min(self._segments)]
        found.slow_s = slow_s
        return found

    def evidence(self) -> tuple[ArmEvidence, ...]:
        """Return what is told to the controller: the last segments of the rollout."""
        return tuple(
            arm.evidence() for segment in self._segments.values() for arm in segment.arms.values()
        )
