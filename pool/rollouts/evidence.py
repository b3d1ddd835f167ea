"""What all edges together have seen of each rollout: their reports, merged and bounded.

An edge reports cumulative counts of one incarnation, so a lost report loses nothing and one that
comes twice adds nothing.  Counts of incarnations add up, and so do those of a unit, which goes by
its hash: whoever calls two edges is one unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec
from msgspec.structs import replace

from pool.rollouts.signals import ArmCounts, Unit, added_seen
from pool.wire.control import UNIT_HASHES, ArmEvidence
from pool.wire.histogram import BUCKETS, added
from registry_sync.rollout_terms import ArmSeen

INCARNATIONS_MAX: Final = 1024  # in one segment; of older ones only the sum stays
UNITS_MAX: Final = 4096  # with an event, of all arms of a segment; above it is a sample
ARMS_MAX: Final = 16  # as in a document
CLASSES_MAX: Final = 1024
_FOLDED: Final = ""  # stands for the incarnations that are a sum
_SUMS: Final = (
    "requests", "assigned", "calls", "lone_calls", "units", "errors", "lone_errors", "slow",
    "lone_slow", "log_calls", "log_sum", "log_squares", "scores", "score_sum", "score_squares",
)  # fmt: skip


class Shown(msgspec.Struct, frozen=True):
    """What people are shown of one arm over all segments that were heard of, besides its counts."""

    seen: ArmSeen = ArmSeen()  # in segments that have ended, as far as they were heard of
    seconds: tuple[int, ...] = ()  # by `histogram.BOUNDS_S`
    scores: int = 0
    score_sum: float = 0.0
    score_squares: float = 0.0
    classes: Mapping[str, int] = {}


@dataclass(slots=True)
class _Units:
    """The units with an event, in one segment: a sample by their hash, all edges' together."""

    below: int = UNIT_HASHES  # who is in the sample: the least that any edge has said
    # By arm and hash: calls, errors and slow calls of all edges.
    by_arm: dict[str, dict[int, tuple[int, int, int]]] = field(default_factory=dict)

    def take(self, old: ArmEvidence | None, new: ArmEvidence) -> None:
        """Add what an edge tells now, and has not told before in `old`."""
        self.narrow(new.units_below)
        before = {unit.hash: unit for unit in (old.told if old is not None else ())}
        arm = self.by_arm.setdefault(new.variant, {})
        for unit in new.told:
            was = before.get(unit.hash)
            if unit.hash >= self.below or unit == was:
                continue
            calls, errors, slow = arm.get(unit.hash, (0, 0, 0))
            if was is not None:
                calls, errors, slow = calls - was.calls, errors - was.errors, slow - was.slow
            arm[unit.hash] = (calls + unit.calls, errors + unit.errors, slow + unit.slow)
        while sum(map(len, self.by_arm.values())) > UNITS_MAX:
            self.narrow(self.below // 2)

    def narrow(self, below: int) -> None:
        """Keep only whose hash is less."""
        if below < self.below:
            self.below = below
            self.by_arm = {
                arm: {hashed: seen for hashed, seen in units.items() if hashed < below}
                for arm, units in self.by_arm.items()
            }

    def events(self, arm: str, kind: str) -> tuple[Unit, ...]:
        """Return every unit with such events: its calls, and how many of them had one."""
        place = {"errors": 1, "slow": 2}[kind]
        found = self.by_arm.get(arm, {}).values()
        return tuple((max(seen[0], seen[place]), seen[place]) for seen in found if seen[place])


@dataclass(slots=True)
class _Rollout:
    """One rollout in its current segment."""

    id: str
    segment: int
    arms: set[str] = field(default_factory=set)
    rows: dict[str, dict[str, ArmEvidence]] = field(default_factory=dict)  # incarnation → by arm
    units: _Units = field(default_factory=_Units)
    folded: set[str] = field(default_factory=set)  # incarnations that are in the sum
    shown: dict[str, Shown] = field(default_factory=dict)  # of ended segments
    is_over: bool = False


class EvidenceBook:
    """The evidence of every rollout that somebody follows; nobody else's is kept."""

    def __init__(self) -> None:
        # The whole mutable state, by endpoint.
        self._rollouts: dict[str, _Rollout] = {}

    def follow(self, endpoint: str, rollout: str, segment: int) -> None:
        """Count what belongs to this segment from now on; what was counted before it has ended."""
        found = self._rollouts.get(endpoint)
        if found is None or found.id != rollout or segment < found.segment:
            self._rollouts[endpoint] = _Rollout(rollout, segment)
        elif segment > found.segment:
            found.is_over = False
            found.shown = {arm: _ended(found, arm) for arm in _arms(found)}
            found.segment = segment
            found.rows, found.folded, found.units = {}, set(), _Units()

    def settle(self, endpoint: str) -> None:
        """Count nothing more: the rollout has ended, and only people look at it still."""
        found = self._rollouts.get(endpoint)
        if found is not None:
            found.is_over = True

    def forget(self, endpoint: str) -> None:
        """Follow an endpoint no longer."""
        self._rollouts.pop(endpoint, None)

    def report(self, incarnation: str, rows: Iterable[ArmEvidence]) -> set[str]:
        """Take what an edge reports; returns the endpoints of which there is news.

        Args:
            incarnation: of the edge; no other edge has the same.
            rows: cumulative since it began; those of other rollouts, and of other segments, say
                nothing, nor do those with more errors than calls.
        """
        news = set()
        for row in rows:
            found = self._rollouts.get(row.endpoint)
            if found is None or row.rollout != found.id or row.segment != found.segment:
                continue
            if found.is_over or row.errors > row.calls or row.lone_errors > row.lone_calls:
                continue
            found.arms.update([row.variant] if len(found.arms) < ARMS_MAX else [])
            if incarnation in found.folded or row.variant not in found.arms:
                continue
            arms = found.rows.pop(incarnation, {})
            found.units.take(arms.get(row.variant), row)
            arms[row.variant] = row
            found.rows[incarnation] = arms  # the last one heard of is the last one in order
            if len(found.rows) > INCARNATIONS_MAX:
                _fold(found)
            news.add(row.endpoint)
        return news

    def counts(self, endpoint: str) -> dict[str, ArmCounts]:
        """Return what was counted in the current segment, by arm."""
        found = self._rollouts.get(endpoint)
        return {} if found is None else {arm: _counts(found, arm) for arm in _arms(found)}

    def assigned(self, endpoint: str) -> list[Mapping[str, int]]:
        """Return by incarnation how many units got each arm in the current segment."""
        found = self._rollouts.get(endpoint)
        return [
            {arm: row.assigned for arm, row in arms.items()}
            for name, arms in (found.rows.items() if found is not None else ())
            if name != _FOLDED  # a unit at two of them would be two
        ]

    def shown(self, endpoint: str, arm: str) -> Shown:
        """Return what people are shown of an arm."""
        found = self._rollouts.get(endpoint)
        return Shown() if found is None else _shown(found, arm)

    def reset(self) -> None:
        """Forget everything: somebody else leads."""
        self._rollouts.clear()


def _arms(rollout: _Rollout) -> list[str]:
    arms = dict.fromkeys(arm for rows in rollout.rows.values() for arm in rows)
    return list({**dict.fromkeys(rollout.shown), **arms})


def _rows(rollout: _Rollout, arm: str) -> list[ArmEvidence]:
    return [rows[arm] for rows in rollout.rows.values() if arm in rows]


def _counts(rollout: _Rollout, arm: str) -> ArmCounts:
    rows = _rows(rollout, arm)
    units = sum(row.units for row in rows)
    calls, lone = sum(row.calls for row in rows), sum(row.lone_calls for row in rows)
    errors, slow = sum(row.lone_errors for row in rows), sum(row.lone_slow for row in rows)
    told_share = max(1, rollout.units.below) / UNIT_HASHES
    told = {kind: rollout.units.events(arm, kind) for kind in ("errors", "slow")}
    requests = sum(row.requests for row in rows)
    return ArmCounts(
        ArmSeen(
            calls=calls,
            units=units,
            errors=sum(row.errors for row in rows),
            failed_units=errors + round(len(told["errors"]) / told_share),
            slow=sum(row.slow for row in rows),
            slow_units=slow + round(len(told["slow"]) / told_share),
            requests=requests,
        ),
        units=float(units),
        errors=errors,
        slow=slow,
        log_calls=sum(row.log_calls for row in rows),
        log_sum=sum(row.log_sum for row in rows),
        log_squares=sum(row.log_squares for row in rows),
        assigned=max((row.assigned for row in rows), default=0),
        requests=requests,
        lone_calls=lone,
        unit_events=told,
        told_share=told_share,
    )


def _fold(rollout: _Rollout) -> None:
    """Make the incarnation that has been silent longest part of the sum."""
    name = next(name for name in rollout.rows if name != _FOLDED)
    rollout.folded.add(name)
    total = rollout.rows.setdefault(_FOLDED, {})
    for arm, row in rollout.rows.pop(name).items():
        old = total.get(arm)
        total[arm] = row if old is None else _both(old, row)


def _both(one: ArmEvidence, other: ArmEvidence) -> ArmEvidence:
    return replace(
        one,
        **{name: getattr(one, name) + getattr(other, name) for name in _SUMS},
        told=(),  # of those that are in the sum nothing is subtracted any more
        seconds=_seconds(one.seconds, other.seconds),
        classes=_classes(one.classes, other.classes),
    )


def _ended(rollout: _Rollout, arm: str) -> Shown:
    """Return what is shown of an arm once the current segment has ended."""
    shown = _shown(rollout, arm)
    return replace(shown, seen=added_seen(shown.seen, _counts(rollout, arm).seen))


def _shown(rollout: _Rollout, arm: str) -> Shown:
    total = rollout.shown.get(arm, Shown())
    for row in _rows(rollout, arm):
        total = Shown(
            total.seen,
            _seconds(total.seconds, row.seconds),
            total.scores + row.scores,
            total.score_sum + row.score_sum,
            total.score_squares + row.score_squares,
            _classes(total.classes, row.classes),
        )
    return total


def _seconds(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    # Another release may count by other bounds; its calls are then not in the histogram.
    return tuple(added(one, other)) if len(other) == BUCKETS else one


def _classes(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    found = dict(one)
    for name, count in other.items():
        if name in found or len(found) < CLASSES_MAX:
            found[name] = found.get(name, 0) + count
    return found
