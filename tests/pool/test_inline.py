"""When a run may hold up the loop."""

from __future__ import annotations

from pool.queueing.inline import (
    FAST_RUNS_MIN,
    FORGIVE_RUNS,
    INLINE_S_LEAVE,
    INLINE_S_MAX,
    InlineRule,
)

FAST_S = INLINE_S_MAX / 2
SLOW_S = INLINE_S_LEAVE * 1.5
SURPRISE_S = 0.05


def fast(rows: int = 1) -> InlineRule:
    rule = InlineRule()
    for _ in range(FAST_RUNS_MIN):
        rule.record(rows, FAST_S, was_inline=False)
    assert rule.allows(rows)
    return rule


def threaded_runs_until_allowed(rule: InlineRule) -> int:
    runs = 0
    while not rule.allows(1):
        rule.record(1, FAST_S, was_inline=False)
        runs += 1
    return runs


def test_an_engine_that_is_not_known_runs_in_its_thread() -> None:
    assert not InlineRule().allows(1)


def test_a_few_fast_runs_are_enough() -> None:
    assert threaded_runs_until_allowed(InlineRule()) == FAST_RUNS_MIN


def test_a_slow_engine_stays_in_its_thread() -> None:
    rule = InlineRule()
    for _ in range(1000):
        rule.record(1, SLOW_S, was_inline=False)
    assert not rule.allows(1)


def test_threaded_runs_that_waited_for_the_interpreter_lock_do_not_hide_the_fast_ones() -> None:
    rule = InlineRule()
    for i in range(20):
        rule.record(1, FAST_S if i % 4 == 0 else SLOW_S, was_inline=False)
    assert rule.allows(1)


def test_a_size_is_allowed_up_to_twice_what_was_fast() -> None:
    rule = fast(rows=4)
    assert rule.allows(8)
    assert not rule.allows(9)


def test_a_size_that_is_too_slow_leaves_the_loop_and_smaller_ones_stay() -> None:
    rule = fast(rows=4)
    rule.record(8, SLOW_S, was_inline=True)
    assert rule.allows(4)
    rule.record(8, SLOW_S, was_inline=True)
    rule.record(4, SLOW_S, was_inline=True)
    assert not rule.allows(8)


def test_a_run_a_little_over_the_bound_changes_nothing() -> None:
    rule = fast()
    rule.record(1, (INLINE_S_MAX + INLINE_S_LEAVE) / 2, was_inline=True)
    assert rule.allows(1)


def test_a_slow_run_leaves_the_loop_at_once() -> None:
    rule = fast()
    rule.record(1, SLOW_S, was_inline=True)
    assert not rule.allows(1)


def test_each_surprise_doubles_the_fast_runs_it_takes_to_come_back() -> None:
    rule = fast()
    needed = []
    for _ in range(4):
        rule.record(1, SURPRISE_S, was_inline=True)
        needed.append(threaded_runs_until_allowed(rule))
    assert needed == [FAST_RUNS_MIN * factor for factor in (2, 4, 8, 16)]


def test_a_long_calm_forgives_a_surprise() -> None:
    rule = fast()
    for _ in range(3):
        rule.record(1, SURPRISE_S, was_inline=True)
        threaded_runs_until_allowed(rule)
    for _ in range(2 * FORGIVE_RUNS):
        rule.record(1, FAST_S, was_inline=True)
    rule.record(1, SURPRISE_S, was_inline=True)
    assert threaded_runs_until_allowed(rule) == FAST_RUNS_MIN * 4
