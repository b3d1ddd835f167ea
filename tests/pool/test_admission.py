"""Who may wait for an engine: only who can be answered in time."""

from __future__ import annotations

import pytest

from pool.queueing.admission import (
    RETRY_AFTER_S_MIN,
    SHORT_S,
    STANDING_SHARE,
    Admission,
    Ahead,
    finish_in_s,
)
from pool.queueing.batching import Limits

ONE_BY_ONE = Limits(1, lambda _rows: 0.02)
BATCHES = Limits(32, lambda rows: 0.004 + 0.001 * rows)


def refused_s(
    admission: Admission,
    rows_ahead: int,
    *,
    limits: Limits = ONE_BY_ONE,
    left_s: float = 0.501,
    free_in_s: float = 0.0,
    rate: float = 0.0,
    at_once: int = 1,
) -> float:
    return admission.refused_s(
        "a", 1, left_s, left_s, Ahead(free_in_s, rows_ahead, at_once), limits, rate
    )


def test_a_call_is_taken_as_long_as_it_can_be_answered_in_time() -> None:
    assert refused_s(Admission(), 24) == 0.0  # 24 · 20 ms, and 20 of its own
    assert refused_s(Admission(), 25) == RETRY_AFTER_S_MIN
    assert refused_s(Admission(), 24, free_in_s=0.002) > 0
    assert refused_s(Admission(), 48, at_once=2) == 0.0


def test_the_run_under_way_counts() -> None:
    assert finish_in_s(1, Ahead(0.015, 3), ONE_BY_ONE, 0.5, 0.0) == pytest.approx((0.075, 0.095))


def test_runs_that_vary_make_up_for_one_another() -> None:
    varied = Ahead(0.0, 16, full_mean_s=0.015)
    assert finish_in_s(1, varied, ONE_BY_ONE, 0.5, 0.0)[0] == pytest.approx(16 * 0.015 + 4 * 0.005)


def test_what_waits_runs_in_full_batches_and_ones_own_grows_until_it_begins() -> None:
    full_s, own_s = BATCHES.run_s(32), BATCHES.run_s(7)
    assert finish_in_s(1, Ahead(0.0, 70), BATCHES, 0.5, 0.0) == pytest.approx(
        (2 * full_s, 2 * full_s + own_s)
    )
    # 200 more a second: 14 of them come before it begins.
    assert finish_in_s(1, Ahead(0.0, 70), BATCHES, 0.5, 200.0)[1] == pytest.approx(
        2 * full_s + BATCHES.run_s(7 + 14)
    )
    # However many come, it is no larger than a batch.
    assert finish_in_s(1, Ahead(0.0, 70), BATCHES, 0.5, 1e6)[1] == pytest.approx(3 * full_s)


def test_a_queue_that_stands_is_kept_shorter_until_it_is_empty() -> None:
    admission = Admission()
    shorter = int(STANDING_SHARE * 0.5 / 0.02)
    assert refused_s(admission, 24) == 0.0
    assert refused_s(admission, 25) > 0
    assert admission.standing == {"a"}
    assert refused_s(admission, shorter) == 0.0
    assert refused_s(admission, shorter + 1) > 0
    admission.standing.clear()
    assert refused_s(admission, 24) == 0.0


def test_one_callers_short_deadline_is_not_a_queue_that_stands() -> None:
    admission = Admission()
    assert refused_s(admission, 0, left_s=0.05, free_in_s=0.04) > 0
    assert not admission.standing


def test_a_standing_queue_still_fills_the_next_batch() -> None:
    admission = Admission()
    assert refused_s(admission, 10_000, limits=BATCHES) > 0
    assert refused_s(admission, 31, limits=BATCHES, left_s=0.12, free_in_s=0.08) == 0.0


def test_whose_whole_time_is_short_is_left_to_the_next_step() -> None:
    assert refused_s(Admission(), 1000, limits=BATCHES, left_s=SHORT_S) == 0.0
    assert refused_s(Admission(), 1000, left_s=SHORT_S) > 0


def test_an_engine_that_knows_nothing_refuses_nobody() -> None:
    assert refused_s(Admission(), 1000, limits=Limits(1, lambda _rows: 0.0)) == 0.0


def test_when_to_come_back_follows_the_queue() -> None:
    assert refused_s(Admission(), 250, left_s=4.0) == pytest.approx(5.0)


def test_rivals_are_others_that_called_lately() -> None:
    admission = Admission()
    for now_s in (0.0, 0.1, 0.2):
        admission.came("a", now_s)
    assert not admission.has_rivals(0.2)
    admission.came("b", 0.3)
    assert admission.has_rivals(0.3)
    admission.came("a", 0.4)
    assert admission.has_rivals(0.4)
    assert not admission.has_rivals(1.4)
    admission.came("a", 1.4)
    assert not admission.has_rivals(1.5)


def test_a_queue_that_others_have_filled_is_not_held_against_a_tenant() -> None:
    own = Limits(1, lambda _rows: 0.02)
    for own_s, standing in ((0.1, set[str]()), (0.4, {"a"})):
        admission = Admission()
        ahead = Ahead(0.1, 9, work_s=0.4, own_s=own_s)
        assert finish_in_s(1, ahead, own, 0.5, 0.0) == pytest.approx((0.5, 0.52))
        assert admission.refused_s("a", 1, 0.5, 0.5, ahead, own, 0.0) > 0
        assert admission.standing == standing
