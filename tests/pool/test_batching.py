"""The rules by which an idle engine chooses what to run."""

from __future__ import annotations

import random

import pytest

from pool.queueing.batching import (
    PAUSE_S_MIN,
    SCAN_BATCHES_MAX,
    TIGHT_RUNS,
    Decision,
    Limits,
    Run,
    Shed,
    Wait,
    decide,
    largest_rows,
    target_rows,
)
from pool.queueing.ticket import ROWS_UNBOUNDED, Ticket
from registry_sync.documents import PRIORITY_DEFAULT
from tests.support.tickets import asked


def ticket(
    *,
    rows: int = 1,
    arrived_s: float = 0.0,
    slo_s: float = 10.0,
    shape: str = "x",
    rows_max: int = ROWS_UNBOUNDED,
    priority: int = PRIORITY_DEFAULT,
) -> Ticket:
    made = asked(
        [0] * rows, arrived_s=arrived_s, slo_s=slo_s, shape_key=shape, priority=priority
    ).ticket
    made.rows_max = rows_max
    return made


def limits(*, rows_max: int = 8, per_row_s: float = 0.001, fixed_s: float = 0.004) -> Limits:
    return Limits(rows_max, lambda rows: fixed_s + per_row_s * rows)


def next_step(
    waiting: list[Ticket],
    *,
    now_s: float = 0.0,
    limits: Limits = limits(),  # noqa: B008  frozen
    arrival_rows_per_s: float = 0.0,
) -> Decision:
    return decide(waiting, now_s, limits, arrival_rows_per_s)


def test_a_lone_ticket_runs_at_once() -> None:
    assert next_step([ticket()]) == Run(1)


def test_all_that_wait_run_together() -> None:
    assert next_step([ticket() for _ in range(5)]) == Run(5)


def test_a_batch_has_no_more_rows_than_the_engine_takes() -> None:
    assert next_step([ticket() for _ in range(20)]) == Run(8)


def test_tickets_count_by_their_rows() -> None:
    assert next_step([ticket(rows=3), ticket(rows=3), ticket(rows=3)]) == Run(2)


def test_a_ticket_that_does_not_fit_is_neither_split_nor_passed() -> None:
    assert next_step([ticket(rows=5), ticket(rows=4), ticket(rows=1)]) == Run(1)


def test_a_ticket_larger_than_a_batch_runs_alone() -> None:
    assert next_step([ticket(rows=20), ticket()]) == Run(1)


def test_an_engine_without_batches_runs_one_by_one() -> None:
    assert next_step([ticket(), ticket()], limits=limits(rows_max=1)) == Run(1)


def test_only_tickets_of_the_heads_shape_share_a_run() -> None:
    waiting = [ticket(shape="a"), ticket(shape="b"), ticket(shape="a"), ticket(shape="b")]
    assert next_step(waiting) == Run(2)


def test_the_second_shape_is_next_once_the_first_is_taken() -> None:
    assert next_step([ticket(shape="b"), ticket(shape="b")]) == Run(2)


def test_company_is_not_looked_for_further_than_the_bound() -> None:
    strangers = [ticket(shape="b") for _ in range(SCAN_BATCHES_MAX * 8)]
    assert next_step([ticket(shape="a"), *strangers, ticket(shape="a")]) == Run(1)


def test_a_head_that_would_be_late_alone_is_shed() -> None:
    assert next_step([ticket(slo_s=0.004), ticket()]) == Shed(1)


def test_a_ticket_that_is_exactly_on_time_runs() -> None:
    assert next_step([ticket(slo_s=0.005)]) == Run(1)


def test_heads_that_cannot_be_on_time_are_shed_together() -> None:
    waiting = [ticket(slo_s=0.001), ticket(slo_s=0.002), ticket(), ticket(slo_s=0.001)]
    assert next_step(waiting) == Shed(2)


def test_shedding_stops_at_another_shape() -> None:
    waiting = [ticket(slo_s=0.001, shape="a"), ticket(slo_s=0.001, shape="b")]
    assert next_step(waiting) == Shed(1)


def test_the_batch_is_the_largest_with_which_all_in_it_are_on_time() -> None:
    # 4 ms + 1 ms a row: six rows take 10 ms.
    assert next_step([ticket(slo_s=0.0105) for _ in range(8)]) == Run(6)


def test_a_tight_deadline_in_the_middle_ends_the_batch_before_it() -> None:
    waiting = [ticket(), ticket(), ticket(slo_s=0.006), ticket()]
    assert next_step(waiting) == Run(2)


def test_under_load_a_head_that_only_a_small_batch_could_save_is_shed() -> None:
    # Alone it would take 5 ms and be on time; a batch that keeps up takes 10 ms.
    waiting = [ticket(arrived_s=-0.013, slo_s=0.02), *(ticket(slo_s=0.02) for _ in range(7))]
    assert next_step(waiting, arrival_rows_per_s=10_000.0) == Shed(1)


def test_without_load_that_head_is_served() -> None:
    waiting = [ticket(arrived_s=-0.013, slo_s=0.02), *(ticket(slo_s=0.02) for _ in range(7))]
    assert next_step(waiting, arrival_rows_per_s=10.0) == Run(3)


def test_under_load_a_head_that_waits_alone_is_served() -> None:
    lone = [ticket(arrived_s=-0.013, slo_s=0.02)]
    assert next_step(lone, arrival_rows_per_s=10_000.0) == Run(1)


def test_an_engine_that_knows_nothing_sheds_only_what_is_overdue() -> None:
    unknown = Limits(8, lambda rows: 0.0)
    assert next_step([ticket(slo_s=0.001)], limits=unknown) == Run(1)
    assert next_step([ticket(slo_s=0.001)], limits=unknown, now_s=0.002) == Shed(1)


def test_an_empty_queue_is_the_callers_mistake() -> None:
    with pytest.raises(AssertionError):
        next_step([])


@pytest.mark.parametrize(
    ("rate", "rows"),
    [(0.0, 1), (10.0, 1), (1000.0, 8), (5000.0, 13), (1e9, 16)],
)
def test_the_size_that_keeps_up_grows_with_the_load_up_to_what_fits(rate: float, rows: int) -> None:
    # b = λ(SLO − β) / (1 + λα) with α = 1 ms, β = 4 ms, SLO = 20 ms.
    assert target_rows(limits(rows_max=64), 0.0201, rate) == rows


def test_the_size_that_keeps_up_is_bounded_by_the_engine() -> None:
    assert target_rows(limits(rows_max=4), 10.0, 1e6) == 4


def test_an_endpoints_own_bound_holds_besides_the_engines() -> None:
    waiting = [ticket(rows_max=2), ticket(rows_max=2), ticket(rows_max=2)]
    assert decide(waiting, 0.0, limits(), 0.0) == Run(2)


def test_the_narrowest_bound_in_a_batch_holds() -> None:
    waiting = [ticket(), ticket(rows_max=2), ticket()]
    assert decide(waiting, 0.0, limits(), 0.0) == Run(2)


# Tight deadlines: below 4 β, which is 16 ms for an engine of 1 ms a row and 4 ms.

TIGHT_S = 0.0155
TIGHT_END_S = TIGHT_RUNS * 0.004


def aged(*ages_s: float, slo_s: float = TIGHT_S) -> list[Ticket]:
    """Tickets that have waited so long at time 0."""
    return [ticket(arrived_s=-age_s, slo_s=slo_s) for age_s in ages_s]


def pause_s(step: Decision) -> float:
    return step.until_s if isinstance(step, Wait) else 0.0


@pytest.mark.parametrize(("slo_s", "is_tight"), [(TIGHT_END_S - 1e-6, True), (TIGHT_END_S, False)])
def test_the_regime_changes_where_a_deadline_is_four_times_the_fixed_cost(
    slo_s: float, is_tight: bool
) -> None:
    # Who is alone waits for company, or runs at once.
    assert pause_s(next_step(aged(0.0, slo_s=slo_s))) == pytest.approx(0.001 if is_tight else 0.0)
    # Without a load that speaks for it the head is shed for a larger batch, or served in a small.
    behind = [ticket(slo_s=slo_s) for _ in range(7)]
    waiting = [ticket(arrived_s=6e-3 - slo_s, slo_s=slo_s), *behind]
    assert next_step(waiting) == (Shed(1) if is_tight else Run(2))


def test_who_waits_has_the_pause_of_one_row_after_the_last_arrival() -> None:
    assert pause_s(next_step(aged(0.003, 0.0004))) == pytest.approx(0.0006)
    assert next_step(aged(0.003, 0.0011)) == Run(2)


def test_a_pause_ends_where_one_more_would_be_late() -> None:
    # Two take 6 ms, and three 7 ms; half a millisecond is for the timer.
    assert pause_s(next_step(aged(TIGHT_S - 0.0078, 0.0))) == pytest.approx(0.0003)
    assert next_step(aged(TIGHT_S - 0.0074, 0.0)) == Run(2)


def test_the_newest_first_make_the_same_pause() -> None:
    assert pause_s(next_step(aged(0.0004, 0.003))) == pytest.approx(0.0006)


@pytest.mark.parametrize(
    ("waiting", "step"),
    [
        (aged(*[0.0] * 8), Run(8)),  # it is full
        (aged(*[0.0] * 9), Run(8)),
        ([ticket(slo_s=TIGHT_S, rows_max=1)], Run(1)),
        ([ticket(rows=9, slo_s=TIGHT_S)], Run(1)),
        ([ticket(slo_s=TIGHT_S), ticket(slo_s=TIGHT_S, shape="b")], Run(1)),
        ([ticket(slo_s=TIGHT_S), ticket(slo_s=TIGHT_S, rows=8)], Run(1)),
    ],
)
def test_there_is_no_pause_while_nobody_could_join_or_somebody_else_waits(
    waiting: list[Ticket], step: Run
) -> None:
    if waiting[0].rows == 9:
        assert next_step(waiting, limits=Limits(8, lambda rows: 0.004)) == step
    else:
        assert next_step(waiting) == step


def test_pauses_that_no_timer_can_make_are_not_made() -> None:
    short = limits(per_row_s=0.9 * PAUSE_S_MIN)
    assert next_step(aged(0.0), limits=short) == Run(1)


def test_a_tight_head_is_served_where_shedding_it_wins_nothing() -> None:
    # Each of these could be in a batch of six, of nine who wait.
    assert next_step(aged(*[TIGHT_S - 0.0105] * 9)) == Run(6)


def test_no_head_is_shed_for_the_sake_of_a_lower_priority() -> None:
    lower = [ticket(slo_s=TIGHT_S, priority=PRIORITY_DEFAULT + 1) for _ in range(7)]
    assert next_step([*aged(TIGHT_S - 0.0062), *lower]) == Run(2)


def test_the_newest_are_never_shed_for_those_behind_them() -> None:
    dice = random.Random(7)
    for _ in range(300):
        ages_s = sorted(dice.uniform(0, TIGHT_S - 0.0055) for _ in range(dice.randint(1, 30)))
        assert not isinstance(next_step(aged(*ages_s)), Shed)


def test_the_largest_batch_is_the_largest() -> None:
    """Against every window of every queue."""
    dice = random.Random(11)
    engine = limits(rows_max=12)
    for case in range(500):
        count = dice.randint(1, 28)
        waiting = aged(*sorted((dice.uniform(0, TIGHT_S) for _ in range(count)), reverse=True))
        best = 0
        for first in range(count):
            left_s = waiting[first].deadline_s
            sizes = range(1, min(engine.rows_max, count - first) + 1)
            best = max([best, *[size for size in sizes if engine.run_s(size) <= left_s]])
        assert largest_rows(waiting, 0.0, engine) == max(1, best), f"case {case}"


def test_repeated_decisions_run_the_largest_batch_with_its_oldest_tickets() -> None:
    dice = random.Random(12)
    for case in range(300):
        ages_s = sorted((dice.uniform(0.002, 0.0114) for _ in range(12)), reverse=True)
        waiting = aged(*ages_s)
        largest = largest_rows(waiting, 0.0, limits())
        while isinstance(step := next_step(waiting), Shed):
            del waiting[: step.count]
        assert step == Run(largest), f"case {case}"
