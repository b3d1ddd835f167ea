"""Until when something is wanted, in the words of a person."""

from __future__ import annotations

import time
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from infra import until
from infra.until import BadTime

BERLIN = ZoneInfo("Europe/Berlin")


def parse(text: str, now: datetime) -> float:
    return until.parse(text, now, lambda at: at.replace(tzinfo=BERLIN))


NOW = datetime(2026, 11, 26, 12, 0, 30, tzinfo=BERLIN)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("18:00", "2026-11-26T18:00+01:00"),
        ("12:00", "2026-11-27T12:00+01:00"),  # today it is over
        ("9:30", "2026-11-27T09:30+01:00"),
        ("90s", "2026-11-26T12:02+01:00"),
        ("30m", "2026-11-26T12:30:30+01:00"),
        ("2h", "2026-11-26T14:00:30+01:00"),
        ("1d", "2026-11-27T12:00:30+01:00"),
        ("2026-12-01T18:00", "2026-12-01T18:00+01:00"),
        ("2026-12-01 18:00", "2026-12-01T18:00+01:00"),
        ("2026-12-01T18:00Z", "2026-12-01T18:00+00:00"),
        ("2027-07-01T18:00", "2027-07-01T18:00+02:00"),
        (" 18:00 ", "2026-11-26T18:00+01:00"),
    ],
)
def test_time_is_read(text: str, at: str) -> None:
    assert parse(text, NOW) == datetime.fromisoformat(at).timestamp()


def test_now_ends_it() -> None:
    assert parse("now", NOW) == 0.0


def test_clock_time_is_of_the_wall_clock_also_when_it_is_changed_meanwhile() -> None:
    night = datetime(2026, 10, 24, 23, 0, tzinfo=BERLIN)  # the clocks go back at 03:00
    assert parse("8:00", night) == datetime(2026, 10, 25, 8, 0, tzinfo=BERLIN).timestamp()
    assert parse("8:00", night) - night.timestamp() == 10 * 3600


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "'' is no time; write 18:00, 30m, 2h"),
        ("later", "'later' is no time"),
        ("25:00", "'25:00' is no time"),
        ("12:60", "'12:60' is no time"),
        ("-2h", "'-2h' is no time"),
        ("2 weeks", "'2 weeks' is no time"),
        ("2026-13-01", "'2026-13-01' is no time"),
        ("0m", "'0m' is over: it was 0 s ago"),
        ("2026-11-26T09:00", "'2026-11-26T09:00' is over: it was 3 h ago"),
        ("9999999d", "'9999999d' is too far away; for what has no end set scale.replicas_min"),
        ("0001-01-01T00:00+14:00", "'0001-01-01T00:00+14:00' is over: it was 739"),
        ("9999-12-31T23:59-14:00", "'9999-12-31T23:59-14:00' is more than 366 days ahead"),
        ("2028-01-01", "'2028-01-01' is more than 366 days ahead; set scale.replicas_min to 1"),
    ],
)
def test_what_is_no_use_is_refused_by_name(text: str, problem: str) -> None:
    with pytest.raises(BadTime) as raised:
        parse(text, NOW)
    assert str(raised.value).startswith(problem)


@pytest.mark.parametrize("text", ["0001-01-01T00:00", "9999-12-31T23:59"])
@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York"])
def test_end_of_the_calendar_is_refused_by_name(
    text: str, zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        with pytest.raises(BadTime, match=text):
            until.parse(text, NOW)
    finally:
        monkeypatch.undo()
        time.tzset()
