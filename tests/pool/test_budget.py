"""The budget of replica-hours: what is spent, what is left, and when that changes."""

from __future__ import annotations

import math

import pytest

from pool.scaling.budget import HOUR_S, Budget


def test_warm_replicas_are_added_up() -> None:
    budget = Budget()
    budget.observe(0.0, 2)
    budget.observe(1800.0, 1)
    assert budget.left(3600.0, 2.0) == (pytest.approx(1800.0), pytest.approx(5400.0))


def test_spent_budget_comes_back_as_hours_no_longer_count() -> None:
    budget = Budget()
    budget.observe(0.0, 1)
    budget.observe(2 * HOUR_S, 0)
    assert budget.left(2 * HOUR_S, 2.0) == (0.0, 3 * HOUR_S)
    assert budget.left(23.5 * HOUR_S, 2.0)[0] == 0.0
    assert budget.left(24 * HOUR_S, 2.0)[0] == HOUR_S
    assert budget.left(25 * HOUR_S, 2.0) == (2 * HOUR_S, math.inf)


def test_spent_hours_outlive_a_restart() -> None:
    before, after = Budget(), Budget()
    before.observe(500 * HOUR_S, 1)
    before.observe(501.5 * HOUR_S, 0)
    after.restore(before.save(), 7 * HOUR_S + 60)
    assert after.left(7 * HOUR_S + 60, 2.0)[0] == pytest.approx(0.5 * HOUR_S)


def test_unreadable_state_is_ignored() -> None:
    budget = Budget()
    for data in (b"", b"\x91", b"\x91\x91\xa1x", b"nonsense"):
        budget.restore(data, 0.0)
    assert budget.left(0.0, 1.0)[0] == HOUR_S
