"""Which engines leave a device when not all fit: a pure policy.

Those leave whose next call is the cheapest to keep waiting, for the memory that they give back;
never one that is in use.  How soon the next call comes is told from how often there were some
lately, and from how long there was none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, TypeAlias

import msgspec

Ref: TypeAlias = tuple[str, str]  # model, version

MEMORY_S: Final = 600.0  # so long ago, a use counts 1/e
STEP_S: Final = 0.5  # calls within it are one use: one wake would serve them all
# As if it had been used so often in so long before it was known: little, and so never nothing.
PRIOR_USES: Final = 0.1
PRIOR_S: Final = 60.0
# What nobody waits for takes the place only of what is worth less by this factor, or two engines
# that are wanted alike would drive each other out for ever.
HYSTERESIS: Final = 2.0


class Use(msgspec.Struct, frozen=True):
    """How often an engine was called lately.

    >>> once_a_minute = Use()
    >>> for minute in range(60):
    ...     once_a_minute = once_a_minute.seen(60.0 * minute, minute)
    >>> 1 / 70 < once_a_minute.per_s(60.0 * 60) < 1 / 50
    True
    """

    began_s: float = math.nan  # when it was first looked at
    used_s: float = math.nan  # when a look last found more calls than the one before
    count: float = 0.0  # of such looks; older ones count less
    arrived: int = 0  # calls ever, at the last look

    def seen(self, now_s: float, arrived: int) -> Use:
        """Return the use after a look that finds `arrived` calls ever."""
        if math.isnan(self.began_s):
            return Use(now_s, now_s, float(arrived > 0), arrived)
        if arrived <= self.arrived or now_s < self.used_s + STEP_S:
            return self
        count = self.count * math.exp((self.used_s - now_s) / MEMORY_S) + 1.0
        return Use(self.began_s, now_s, count, arrived)

    def per_s(self, now_s: float) -> float:
        """Return how many uses are to be expected in the next second.

        As many as lately; but after a pause no more than one in as long as the pause.
        """
        if math.isnan(self.began_s):
            return PRIOR_USES / PRIOR_S
        idle_s = now_s - self.used_s
        count = self.count * math.exp(-idle_s / MEMORY_S)
        seen_s = MEMORY_S * -math.expm1((self.began_s - now_s) / MEMORY_S)
        lately = (count + PRIOR_USES) / (seen_s + PRIOR_S)
        return min(lately, 1.0 / max(idle_s, STEP_S))


class Resident(msgspec.Struct, frozen=True):
    """An engine that holds memory, or that is to have some."""

    ref: Ref
    bytes: int
    uses_per_s: float
    wake_s: float  # how long the next call waits if it is gone
    is_busy: bool = False  # calls are inside, or it is being loaded: it stays

    @property
    def worth(self) -> float:
        """The waiting that keeping it saves, in seconds a second."""
        return self.uses_per_s * self.wake_s


class Room(msgspec.Struct, frozen=True):
    """It fits, once these have left."""

    leaving: tuple[Ref, ...] = ()


class NoRoom(msgspec.Struct, frozen=True):
    """It does not fit."""

    missing_bytes: int
    is_final: bool  # not even alone


Decision: TypeAlias = Room | NoRoom


def decide(
    newcomer: Resident, residents: Sequence[Resident], bytes_max: int, *, is_waited_for: bool
) -> Decision:
    """Decide who leaves so that `newcomer` fits.

    Args:
        newcomer: to be loaded; its memory is not counted yet.
        residents: all that hold memory, with what loads are under way.
        bytes_max: for all of them and the newcomer.
        is_waited_for: calls wait for it.  Otherwise only what is worth clearly less leaves.

    Returns:
        Room, with as few as must leave; nobody does where everything fits.

    Source:
        Cost over size is GreedyDual-Size's rank (Cao and Irani, 1997).  Going by it, and
        comparing every set that one more would make enough, costs at most twice the optimum
        (the greedy algorithm for min-knapsack of Csirik et al., 1991).

    >>> small = Resident(("small", "1"), 10, uses_per_s=1.0, wake_s=0.1)
    >>> big = Resident(("big", "1"), 80, uses_per_s=1.0, wake_s=0.1)
    >>> decide(Resident(("new", "1"), 50, 0.1, 0.1), [small, big], 100, is_waited_for=True)
    Room(leaving=(('big', '1'),))
    """
    free = bytes_max - sum(resident.bytes for resident in residents)
    missing = newcomer.bytes - free
    if missing <= 0:
        return Room()
    may_leave = [resident for resident in residents if not resident.is_busy and resident.bytes]
    leaving = _cheapest(may_leave, missing)
    given = sum(resident.bytes for resident in leaving)
    if given < missing:
        return NoRoom(missing - given, is_final=newcomer.bytes > bytes_max)
    if not is_waited_for and HYSTERESIS * _worth(leaving) >= newcomer.worth:
        return NoRoom(missing, is_final=False)
    return Room(tuple(resident.ref for resident in leaving))


def _cheapest(residents: Sequence[Resident], missing: int) -> list[Resident]:
    """Return residents of little worth that together have `missing` bytes; all if none have."""
    best: list[Resident] = list(residents)
    kept: list[Resident] = []
    given = 0
    for resident in sorted(residents, key=lambda one: (one.worth / one.bytes, one.ref)):
        if given + resident.bytes >= missing:
            best = min(best, [*kept, resident], key=_worth)
        else:
            kept.append(resident)
            given += resident.bytes
    spare = sum(resident.bytes for resident in best) - missing
    for resident in sorted(best, key=lambda one: (-one.worth, one.ref)):
        if resident.bytes <= spare:
            best.remove(resident)
            spare -= resident.bytes
    return best


def _worth(residents: Sequence[Resident]) -> float:
    return sum(resident.worth for resident in residents)
