"""Until when something is wanted, as a person writes it: a pure reading of words.

18:00                  the next time that this machine's clock shows it
90s  30m  2h  1d       from now
2026-12-01T18:00       by this machine's clock, or with an offset: …+01:00, …Z
now                    no longer
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
DAYS_MAX: Final = 366


class BadTime(ValueError):
    """A time that cannot be read, or that is no use."""


def parse(
    text: str, now: datetime, local: Callable[[datetime], datetime] = datetime.astimezone
) -> float:
    """Return the unix time of `text`; 0 for `now`.

    Args:
        text: see the module.
        now: the time of reading, by this machine's clock, with its offset from UTC.
        local: adds to a time of this machine's clock the offset that holds then.

    Raises:
        BadTime: names what cannot be read, or lies in the past or too far ahead.
    """
    word = text.strip()
    if word.lower() == "now":
        return 0.0
    try:
        at = _read(word, now, local)
        past = now - at
        unix_s = at.timestamp()
    except BadTime:
        raise
    except (ValueError, OverflowError):  # there is no such date, or none on this machine's clock
        raise BadTime(
            f"{text!r} is too far away; for what has no end set scale.replicas_min to 1"
        ) from None
    if past >= timedelta(0):
        raise BadTime(f"{text!r} is over: it was {_shown(past)} ago")
    if -past > timedelta(days=DAYS_MAX):
        raise BadTime(f"{text!r} is more than {DAYS_MAX} days ahead; set scale.replicas_min to 1")
    return unix_s


def _read(word: str, now: datetime, local: Callable[[datetime], datetime]) -> datetime:
    length = re.fullmatch(r"([0-9]{1,7})([smhd])", word)
    if length is not None:
        return now + timedelta(seconds=int(length[1]) * UNITS_S[length[2]])
    clock = re.fullmatch(r"([0-9]{1,2}):([0-9]{2})", word)
    try:
        if clock is not None:
            hour, minute = int(clock[1]), int(clock[2])
            at = now.replace(tzinfo=None, hour=hour, minute=minute, second=0, microsecond=0)
            day = timedelta(days=0 if at > now.replace(tzinfo=None) else 1)
            return local(at + day)
        at = datetime.fromisoformat(word)
    except ValueError:
        raise BadTime(
            f"{word!r} is no time; write 18:00, 30m, 2h, 2026-12-01T18:00, or now to end it"
        ) from None
    return at if at.tzinfo is not None else local(at)


def _shown(past: timedelta) -> str:
    seconds = int(past.total_seconds())
    for unit, length_s in reversed(UNITS_S.items()):
        if seconds >= 2 * length_s or unit == "s":
            return f"{seconds // length_s} {unit}"
    raise AssertionError("seconds always do")
