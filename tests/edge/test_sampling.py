"""Which requests get a line in the access log."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.sampling import BURST_S, FAILED, FINE, REFUSED, Sampler, kind_of

KINDS = (FINE, REFUSED, FAILED)


@pytest.mark.parametrize(
    ("status", "total_s", "kind"),
    [
        (200, 0.001, FINE), (304, 0.001, FINE), (400, 0.001, REFUSED), (401, 0.001, REFUSED),
        (429, 0.001, REFUSED), (499, 0.001, REFUSED), (500, 0.001, FAILED), (503, 0.001, FAILED),
        (200, 1.0, FAILED), (499, 2.0, FAILED),
    ],
)  # fmt: skip
def test_what_failed_or_was_slow_is_told_from_what_was_fine(
    status: int, total_s: float, kind: int
) -> None:
    assert kind_of(status, total_s, slow_s=1.0) == kind


def test_every_request_has_a_line_while_there_are_few() -> None:
    sampler = Sampler((10.0, 10.0, 10.0))
    for _ in range(100):
        assert sampler.takes(FINE)
        sampler.refill(0.1)
    assert sampler.dropped_total == 0


def test_flood_of_one_kind_takes_no_lines_from_another() -> None:
    sampler = Sampler((10.0, 10.0, 10.0))
    for _ in range(1000):
        sampler.takes(FINE)
        sampler.takes(REFUSED)
    assert sampler.takes(FAILED)


def test_what_is_off_never_has_a_line_however_long_one_waits() -> None:
    sampler = Sampler((0.0, 0.0, 5.0))
    sampler.refill(3600.0)
    assert [sampler.takes(kind) for kind in KINDS] == [False, False, True]


def test_everything_has_a_line_where_that_is_asked_for() -> None:
    sampler = Sampler((math.inf,) * 3)
    assert all(sampler.takes(kind) for kind in KINDS for _ in range(10_000))
    sampler.refill(1.0)
    assert sampler.takes(FINE)


def test_each_line_says_what_went_without_one_since_the_last() -> None:
    sampler = Sampler((1.0, 1.0, 1.0))
    taken = [sampler.takes(FINE) for _ in range(4)]
    sampler.refill(1.0)
    assert taken == [True, False, False, False]
    assert sampler.takes(FINE)
    assert (sampler.take_dropped(), sampler.take_dropped()) == (3, 0)


def test_quiet_hour_saves_up_no_more_than_a_burst() -> None:
    sampler = Sampler((5.0, 5.0, 5.0))
    sampler.refill(3600.0)
    assert sum(sampler.takes(FINE) for _ in range(1000)) == 5 * BURST_S


steps = st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from([0.0, 0.01, 0.1, 1.0, 60.0])))


@given(steps, st.floats(0.1, 50.0))
def test_lines_and_what_they_say_was_dropped_are_all_requests(
    steps: list[tuple[int, float]], rate: float
) -> None:
    sampler = Sampler((rate, rate, rate))
    lines = said = 0
    for kind, passed_s in steps:
        if sampler.takes(kind):
            lines += 1
            said += sampler.take_dropped()
        sampler.refill(passed_s)
    assert lines + said + sampler.dropped == len(steps)
    assert said + sampler.dropped == sampler.dropped_total


@given(steps, st.floats(0.1, 50.0))
def test_lines_are_never_more_than_the_budget(steps: list[tuple[int, float]], rate: float) -> None:
    sampler = Sampler((rate, rate, rate))
    lines = dict.fromkeys(KINDS, 0)
    passed_s = 0.0
    for kind, pause_s in steps:
        lines[kind] += sampler.takes(kind)
        assert lines[kind] <= max(1.0, rate * BURST_S) + rate * passed_s + 1e-6
        sampler.refill(pause_s)
        passed_s += pause_s
