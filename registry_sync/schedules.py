"""Hours of the week at which an endpoint is to be warm: how they are written, and when they are.

    Mon-Fri 08:00-18:00 Europe/Berlin; Sat,Sun 10:00-12:00,14:00-16:00 Europe/Berlin

Hours are those of the wall clocks of the named zone.  An hour that a clock skips when summer time
begins is not there; one that it shows twice when it ends is due both times.  Pure: what time it is
comes in.
"""

from __future__ import annotations

import difflib
import functools
import re
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from registry_sync.fitting import show

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MIN: Final = 24 * 60
PARTS_MAX: Final = 16
FORM: Final = '"Mon-Fri 08:00-18:00 Europe/Berlin"'
_HOURS = re.compile(r"([0-9]{1,2}):([0-9]{2})-([0-9]{1,2}):([0-9]{2})")


class BadSchedule(ValueError):
    """A schedule that cannot be read; the text names the part and the way out."""


class _Part(NamedTuple):
    """Some days of the week, some minutes of each, in one zone.

    `to_min` is beyond 24:00 where the hours run past midnight; they belong to the day on which
    they begin.
    """

    days: frozenset[int]
    hours: tuple[tuple[int, int], ...]  # from_min, to_min
    zone: ZoneInfo


class Schedule(NamedTuple):
    """When to be warm."""

    parts: tuple[_Part, ...]

    def is_due(self, unix_s: float) -> bool:
        """Tell whether `unix_s` is in one of its hours."""
        return any(_is_due(part, unix_s) for part in self.parts)


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> Schedule:
    """Read a schedule; parts stand between semicolons.

    Raises:
        BadSchedule: names the first part that cannot be read.
    """
    pieces = [piece.strip() for piece in text.split(";")]
    if len(pieces) > PARTS_MAX:
        raise BadSchedule(f"{len(pieces)} parts between semicolons; at most {PARTS_MAX} are read")
    return Schedule(tuple(_part(piece) for piece in pieces))


def check(text: str) -> None:
    """Raise `BadSchedule` unless `text` is a schedule; an empty one is none at all."""
    if text:
        parse(text)


def _is_due(part: _Part, unix_s: float) -> bool:
    at = datetime.fromtimestamp(unix_s, UTC).astimezone(part.zone)
    minute = at.hour * 60 + at.minute
    today, yesterday = at.weekday(), (at.date() - timedelta(days=1)).weekday()
    return any(
        (today in part.days and from_min <= minute < to_min)
        or (yesterday in part.days and from_min <= minute + DAY_MIN < to_min)
        for from_min, to_min in part.hours
    )


def _part(text: str) -> _Part:
    words = text.split()
    if not words:
        raise BadSchedule(f"a part is empty; write e.g. {FORM}")
    if len(words) != 3:
        raise BadSchedule(
            f"{show(text)} has {len(words)} words, not days, hours and a time zone; write e.g. "
            f"{FORM}"
        )
    days, hours, zone = words
    return _Part(_days(days), tuple(_hours(one) for one in hours.split(",")), _zone(zone))


def _days(text: str) -> frozenset[int]:
    found: set[int] = set()
    for word in text.split(","):
        first, dash, last = word.partition("-")
        start = _day(first)
        end = _day(last) if dash else start
        # Round the end of the week: Sat-Mon is three days.
        found |= {day % 7 for day in range(start, end + 1 + (7 if end < start else 0))}
    return frozenset(found)


def _day(text: str) -> int:
    if text.lower() not in DAYS:
        names = ", ".join(day.capitalize() for day in DAYS)
        raise BadSchedule(f"{show(text)} is no day; days are {names}, and ranges like Mon-Fri")
    return DAYS.index(text.lower())


def _hours(text: str) -> tuple[int, int]:
    match = _HOURS.fullmatch(text)
    if match is None:
        raise BadSchedule(f"{show(text)} are no hours; write them as 08:00-18:00")
    from_h, from_m, to_h, to_m = map(int, match.groups())
    start, end = from_h * 60 + from_m, to_h * 60 + to_m
    if from_m > 59 or to_m > 59 or start >= DAY_MIN or end > DAY_MIN:
        raise BadSchedule(f"{show(text)} are no hours; they go from 00:00 to 24:00")
    if start == end:
        raise BadSchedule(f"{show(text)} is no time at all; a whole day is 00:00-24:00")
    return start, end if end > start else end + DAY_MIN


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # no such file, no name, or a folder
        pass
    zones = sorted(available_timezones())
    by_lower = {zone.lower(): zone for zone in zones}
    cities = {zone.lower().rpartition("/")[2]: zone for zone in zones}
    found = by_lower.get(name.lower()) or cities.get(name.lower())
    close = [found] if found else difflib.get_close_matches(name, zones, 1)
    way_out = f"did you mean {close[0]}?" if close else "write e.g. Europe/Berlin"
    raise BadSchedule(f"{show(name)} is no time zone that is known here; {way_out}")
