"""When an endpoint is to be warm by the clock, and what of a schedule cannot be read."""

from __future__ import annotations

import contextlib
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_sync.schedules import BadSchedule, check, parse

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str, fold: int = 0) -> float:
    """Unix seconds of a moment on the clocks of Berlin."""
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN, fold=fold).timestamp()


def due(schedule: str, *moments: str) -> list[bool]:
    return [parse(schedule).is_due(at(moment)) for moment in moments]


def test_hours_of_a_working_week() -> None:
    week = "Mon-Fri 08:00-18:00 Europe/Berlin"
    moments = ["2026-11-27T07:59:59", "2026-11-27T08:00", "2026-11-27T17:59:59", "2026-11-27T18:00"]
    assert due(week, *moments) == [False, True, True, False]
    assert due(week, "2026-11-28T12:00", "2026-11-30T12:00") == [False, True]


def test_parts_days_and_hours_are_joined() -> None:
    several = "sat,SUN 10:00-12:00,14:00-16:00 Europe/Berlin; Wed 00:00-24:00 Europe/Berlin"
    saturday = [f"2026-11-28T{hour:02}:00" for hour in (9, 10, 12, 14, 16)]
    assert due(several, *saturday) == [False, True, False, True, False]
    assert due(several, "2026-12-02T00:00", "2026-12-02T23:59:59", "2026-12-03T00:00") == [
        *(True, True, False)
    ]


def test_hours_past_midnight_belong_to_the_day_they_begin_on() -> None:
    night = "Fri 22:00-06:00 Europe/Berlin"
    moments = ["2026-11-27T05:00", "2026-11-27T22:00", "2026-11-28T05:59:59", "2026-11-28T06:00"]
    assert due(night, *moments) == [False, True, True, False]
    assert due(night, "2026-11-28T22:00") == [False]


def test_days_go_round_the_end_of_the_week() -> None:
    days = [f"2026-11-{day}T12:00" for day in (27, 28, 29, 30)] + ["2026-12-01T12:00"]
    assert due("Sat-Mon 10:00-14:00 Europe/Berlin", *days) == [False, True, True, True, False]


def test_the_zone_decides_what_hour_it_is() -> None:
    assert parse("Mon-Sun 08:00-09:00 UTC").is_due(at("2026-07-01T10:30"))
    assert parse("Mon-Sun 08:00-09:00 UTC").is_due(at("2026-12-01T09:30"))
    assert parse("Mon-Sun 08:00-09:00 America/New_York").is_due(at("2026-12-01T14:30"))


def test_hour_that_the_clocks_skip_is_not_there() -> None:
    """On 29 March 2026 Berlin's clocks go from 02:00 to 03:00."""
    spring = parse("Sun 02:00-03:30 Europe/Berlin")
    start_s = at("2026-03-29T01:59:59") + 1
    found = [spring.is_due(start_s + minutes * 60) for minutes in range(-10, 60, 10)]
    assert found == [False, True, True, True, False, False, False]  # from 03:00 to 03:30


def test_hour_that_the_clocks_show_twice_is_due_both_times() -> None:
    """On 25 October 2026 Berlin's clocks go from 03:00 back to 02:00."""
    autumn = parse("Sun 02:00-03:00 Europe/Berlin")
    moments = [at("2026-10-25T02:30", fold) for fold in (0, 1)]
    assert moments[1] - moments[0] == 3600
    assert [autumn.is_due(moment) for moment in moments] == [True, True]
    assert not autumn.is_due(at("2026-10-25T03:00"))


def test_no_schedule_is_none() -> None:
    check("")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Mon-Fri 8-18 Europe/Berlin", '"8-18" are no hours; write them as 08:00-18:00'),
        ("Mon 08:00-24:01 UTC", '"08:00-24:01" are no hours; they go from 00:00 to 24:00'),
        ("Mon 24:00-25:00 UTC", '"24:00-25:00" are no hours; they go from 00:00 to 24:00'),
        ("Mon 08:60-09:00 UTC", '"08:60-09:00" are no hours; they go from 00:00 to 24:00'),
        ("Mon 08:00-08:00 UTC", '"08:00-08:00" is no time at all; a whole day is 00:00-24:00'),
        ("Mon -08:00-09:00 UTC", '"-08:00-09:00" are no hours; write them as 08:00-18:00'),
        ("Mo 08:00-09:00 UTC", '"Mo" is no day; days are Mon, Tue,'),
        ("Mon-Fry 08:00-09:00 UTC", '"Fry" is no day; days are'),
        ("Mon- 08:00-09:00 UTC", '"" is no day'),
        ("Mon 08:00-09:00", '"Mon 08:00-09:00" has 2 words, not days, hours and a time zone'),
        ("Mon 08:00-09:00 UTC; ", "a part is empty"),
        (";".join(["Mon 08:00-09:00 UTC"] * 17), "17 parts between semicolons; at most 16"),
        ("Mon 08:00-09:00 Berlin", '"Berlin" is no time zone that is known here; did you mean Eur'),
        ("Mon 08:00-09:00 europe/berlin", '"europe/berlin" is no time zone that is known here'),
        ("Mon 08:00-09:00 ../../etc/passwd", '"../../etc/passwd" is no time zone that is known'),
        ("Mon 08:00-09:00 Europe", '"Europe" is no time zone that is known here'),
        ("Mon 08:00-09:00 +01:00", '"+01:00" is no time zone that is known here'),
    ],
)
def test_what_cannot_be_read_is_named_with_the_way_out(text: str, problem: str) -> None:
    with pytest.raises(BadSchedule) as raised:
        check(text)
    assert str(raised.value).startswith(problem)


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(BadSchedule):
        check(text)
