"""What the arms of a rollout do, as guards may judge it: outcomes of calls, by segment and arm.

Counts only calls that a worker was given.  A hit of the cache, an answer that somebody else's call
brought, a refusal, and a caller that left say nothing of a candidate; nor does a caller that picked
its arm.  A unit's own bad luck counts once: it is part of the traffic once in a look window, and
part of what failed, or was slow, once in a rollout.

A call belongs to the segment in which its arm was chosen, however late it ends.

    200             an outcome
    500, 502        an outcome, and an error
    504             slow, where the guard has a limit; no outcome, as nobody knows how it would end
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
from pool.wire.control import ArmEvidence
from pool.wire.data import TensorLike

LOOK_S: Final = 10.0
WINDOW_UNITS_MAX: Final = 32_768  # told apart in one look window; then the next one begins
FIRST_UNITS_MAX: Final = 65_536  # told apart in one segment
EVENT_UNITS_MAX: Final = 65_536  # told apart in one rollout
# Told to the controller, of both arms and all segments together: half of what a message takes, as
# what is told of a rollout fits one.
TOLD_UNITS_MAX: Final = 4000
SEGMENTS_KEPT: Final = 16  # of which is still told
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


class _Once:
    """The units that something has happened to in a rollout; both arms share the bounds.

    Shared, because an arm that were told of for longer than the other would seem to be worse.
    """

    __slots__ = ("_known", "_told")

    def __init__(self) -> None:
        self._known: set[int] = set()
        self._told = 0

    def take(self, hashed: int, told: list[int]) -> bool:
        """Take note of a unit, and put it with those that are told if there is room.

        Returns:
            True if it must be counted without its name: it is new, and there is no room.
        """
        if hashed in self._known:
            return False
        if len(self._known) >= EVENT_UNITS_MAX:
            self._known.clear()
        self._known.add(hashed)
        if self._told >= TOLD_UNITS_MAX:
            return True
        self._told += 1
        told.append(hashed)
        return False


class ArmWatch:
    """What one arm did in one segment; only ever grows, but for `late`.

    Held by the snapshot, so that the request's way looks nothing up.
    """

    __slots__ = (
        "_log_squares", "_log_sum", "_seconds", "_segment", "_unlogged", "_unsorted", "assigned",
        "calls", "error_units", "errors", "late", "lone_errors", "lone_slow", "outputs", "slow",
        "slow_units", "units", "variant",
    )  # fmt: skip

    def __init__(self, segment: SegmentWatch, variant: str) -> None:
        self._segment = segment
        self.variant = variant
        self.assigned = 0  # units; a request without one is its own
        self.calls = 0
        self.units = 0
        self.errors = 0
        self.lone_errors = 0
        self.error_units: list[int] = []
        self.slow = 0
        self.lone_slow = 0
        self.slow_units: list[int] = []
        self.late = 0
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
        segment = self._segment
        if status == 504:
            if segment.slow_s < math.inf:
                self._observe_late(unit, now_s)
            return
        if status != 200 and status != 500 and status != 502:
            return
        self.calls += 1
        self._unsorted.append(seconds)
        is_new = True
        if unit is not None:
            hashed = hash(unit)
            if now_s >= segment.until_s or len(segment.seen) >= WINDOW_UNITS_MAX:
                segment.turn(now_s)
            is_new = hashed not in segment.seen
            if is_new:
                segment.seen.add(hashed)
                if segment.seen_late and hashed in segment.seen_late:
                    segment.seen_late.discard(hashed)
                    self.late -= 1
        if is_new:
            self.units += 1
            self._unlogged.append(seconds)
        if seconds > segment.slow_s:
            self._slow(unit)
        if status != 200:
            self.fail(unit)
        elif self.calls <= LOOKS_FREE or not self.calls % LOOK_EACH:
            self.outputs.look(outputs)
        if len(self._unsorted) >= ROWS_MAX:
            self._sort()

    def fail(self, unit: bytes | None) -> None:
        """Count an error of a call that is counted already: its answer was none."""
        self.errors += 1
        if unit is None:
            self.lone_errors += 1
        else:
            rollout = self._segment.rollout
            hashed = rollout.hashed.number_of(unit)
            self.lone_errors += rollout.errors.take(hashed, self.error_units)

    def _slow(self, unit: bytes | None) -> None:
        self.slow += 1
        if unit is None:
            self.lone_slow += 1
        else:
            rollout = self._segment.rollout
            hashed = rollout.hashed.number_of(unit)
            self.lone_slow += rollout.slow.take(hashed, self.slow_units)

    def _observe_late(self, unit: bytes | None, now_s: float) -> None:
        segment = self._segment
        if unit is None:
            self.late += 1
        else:
            hashed = hash(unit)
            if now_s >= segment.until_s or len(segment.seen_late) >= WINDOW_UNITS_MAX:
                segment.turn(now_s)
            if hashed not in segment.seen and hashed not in segment.seen_late:
                segment.seen_late.add(hashed)
                self.late += 1
        self._slow(unit)

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
            assigned=self.assigned,
            calls=self.calls,
            units=self.units,
            errors=self.errors,
            lone_errors=self.lone_errors,
            error_units=tuple(self.error_units),
            slow=self.slow,
            lone_slow=self.lone_slow,
            slow_units=tuple(self.slow_units),
            seconds=tuple(self._seconds.counts),
            log_calls=self.units,
            log_sum=self._log_sum,
            log_squares=self._log_squares,
            scores=outputs.scores,
            score_sum=outputs.score_sum,
            score_squares=outputs.score_squares,
            classes=dict(outputs.classes),
            late=self.late,
        )


class SegmentWatch:
    """Both arms between two changes of their weights.

    They share the look windows, and with that the bound: a window that is full ends for both.

    Attributes:
        slow_s: what takes longer is slow; `math.inf`: the guard has no limit.
        until_s: when the window ends.
        seen: units of the window with an outcome; hashes that hold in this process alone.
        seen_late: units of the window whose calls have all been late.
    """

    __slots__ = ("arms", "number", "rollout", "seen", "seen_late", "slow_s", "until_s")

    def __init__(
        self, rollout: RolloutWatch, number: int, variants: Sequence[str], slow_s: float
    ) -> None:
        self.rollout = rollout
        self.number = number
        self.slow_s = slow_s
        self.until_s = -math.inf
        self.seen: set[int] = set()
        self.seen_late: set[int] = set()
        self.arms: Mapping[str, ArmWatch] = {name: ArmWatch(self, name) for name in variants}

    def turn(self, now_s: float) -> None:
        """Begin the look window that `now_s` is in."""
        self.end()
        self.until_s = (now_s // LOOK_S + 1) * LOOK_S

    def end(self) -> None:
        """End the look window; who was in it is forgotten."""
        self.until_s = -math.inf
        self.seen.clear()
        self.seen_late.clear()


class RolloutWatch:
    """What this process has seen of one rollout of one endpoint.

    Args:
        endpoint: its name.
        rollout: the rollout's id.
        salt: of the endpoint's assignment.
    """

    __slots__ = ("_segments", "endpoint", "errors", "hashed", "id", "slow")

    def __init__(self, endpoint: str, rollout: str, salt: str) -> None:
        self.endpoint = endpoint
        self.id = rollout
        self.hashed = UnitHash(salt)
        # The whole mutable state: who failed or was slow so far, and the segments.
        self.errors = _Once()
        self.slow = _Once()
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
        """Return what is told to the controller: the segments of the rollout, also ended ones.

        Those have the units that count no more; a new controller knows them from nobody else.
        """
        return tuple(
            arm.evidence() for segment in self._segments.values() for arm in segment.arms.values()
        )
