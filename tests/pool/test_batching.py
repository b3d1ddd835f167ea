"""The rules by which an idle engine chooses what to run."""

from __future__ import annotations

import pytest

from pool.batching import SCAN_BATCHES_MAX, Decision, Limits, Run, Shed, decide, target_rows
from pool.ticket import ROWS_UNBOUNDED, Ticket
from tests.support.tickets import asked


def ticket(
    *,
    rows: int = 1,
    arrived_s: float = 0.0,
    slo_s: float = 10.0,
    shape: str = "x",
    rows_max: int = ROWS_UNBOUNDED,
) -> Ticket:
    made = asked([0] * rows, arrived_s=arrived_s, slo_s=slo_s, shape_key=shape).ticket
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
