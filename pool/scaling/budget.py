"""How many replica-hours one version has had of late: what a budget of them goes by."""

from __future__ import annotations

import math
from typing import Annotated, Final

import msgspec

from pool.scaling.kept import unpack

HOUR_S: Final = 3600.0
HOURS: Final = 24
REPLICAS_MAX: Final = 1 << 16  # more than that were never warm

_TookS = Annotated[float, msgspec.Meta(ge=0, le=REPLICAS_MAX * HOUR_S)]


class _Saved(msgspec.Struct, array_like=True):
    # Replica-seconds in each of the last hours, the one that runs last.
    hours_s: Annotated[list[_TookS], msgspec.Meta(max_length=HOURS)]


_saved_of = msgspec.msgpack.Decoder(_Saved)


class Budget:
    """Adds up warm replica-seconds over the last 24 hours, in steps of an hour."""

    def __init__(self) -> None:
        # The whole mutable state: replica-seconds by hour, the last look, and what was warm then.
        self._hours_s: dict[int, float] = {}
        self._seen_s = -math.inf
        self._warm = 0

    def observe(self, now_s: float, warm: int) -> None:
        """From now on so many replicas are warm."""
        if self._warm:
            begin_s = max(self._seen_s, now_s - HOURS * HOUR_S)
            while begin_s < now_s:
                hour = math.floor(begin_s / HOUR_S)
                end_s = min(now_s, (hour + 1) * HOUR_S)
                self._hours_s[hour] = self._hours_s.get(hour, 0.0) + (end_s - begin_s) * self._warm
                begin_s = end_s
        if self._hours_s:
            first = math.floor(now_s / HOUR_S) - HOURS
            for hour in [hour for hour in self._hours_s if hour <= first]:
                del self._hours_s[hour]
        self._seen_s, self._warm = now_s, warm

    def left(self, now_s: float, replica_hours: float) -> tuple[float, float]:
        """Return the replica-seconds that are left of so many hours, and until when that holds.

        It holds until they are spent if what is warm stays warm, or once none are left until an
        hour of the past no longer counts.
        """
        first = math.floor(now_s / HOUR_S) - HOURS
        spent_s = sum(took_s for hour, took_s in self._hours_s.items() if hour > first)
        if self._warm:
            spent_s += (now_s - self._seen_s) * self._warm
        left_s = replica_hours * HOUR_S - spent_s
        if left_s <= 0:
            return 0.0, (math.floor(now_s / HOUR_S) + 1) * HOUR_S
        return left_s, now_s + left_s / self._warm if self._warm else math.inf

    def save(self) -> bytes:
        """Return what was spent, as of the last look."""
        if not self._hours_s:
            return b""
        last = math.floor(self._seen_s / HOUR_S)
        hours = range(last - HOURS + 1, last + 1)
        return msgspec.msgpack.encode(_Saved([self._hours_s.get(hour, 0.0) for hour in hours]))

    def restore(self, data: bytes, now_s: float) -> None:
        """Take over what was spent until `now_s`; what is not readable is ignored."""
        saved = unpack(data, _saved_of)
        if saved is None:
            return
        last = math.floor(now_s / HOUR_S)
        for back, took_s in enumerate(reversed(saved.hours_s)):
            if took_s:
                self._hours_s[last - back] = took_s
