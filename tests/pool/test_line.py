"""The order in which tickets are served: by priority, then by arrival."""

from __future__ import annotations

import asyncio
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool.queueing.batching import Limits, Run, Shed, decide
from pool.queueing.line import CREDIT_S, EARNED_S, FIRST_ROWS, KNOWN_MAX, Line
from pool.queueing.ticket import Answer, Overdue, Ticket
from registry_sync.documents import PRIORITY_DEFAULT
from tests.pool.test_engine_queue import Bench
from tests.support import virtual_time
from tests.support.tickets import asked


def ticket(priority: int = PRIORITY_DEFAULT, *, slo_s: float = 10.0) -> Ticket:
    return asked(priority=priority, slo_s=slo_s).ticket


@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from([1, 2, 49, 50, 51, 100]), st.integers(0, 10)),
        max_size=60,
    )
)
def test_whoever_comes_and_goes_the_rest_is_sorted(
    steps: list[tuple[bool, int, int]],
) -> None:
    line, model = Line(), list[Ticket]()
    for comes, priority, index in steps:
        if comes:
            model.append(ticket(priority))
            line.add(model[-1])
        elif model:
            gone = model.pop(index % len(model))
            assert gone in line
            assert line.remove(gone)
            assert not line.remove(gone)
            assert gone not in line
        assert list(line) == sorted(model, key=lambda one: one.priority)  # stable: by arrival
        assert len(line) == len(model)
        assert bool(line) == bool(model)
        assert all(one in line for one in model)


def test_a_batch_is_filled_in_the_order_of_priorities() -> None:
    async def main() -> None:
        bench = Bench(rows_max=2)
        bench.submit(0)
        await asyncio.sleep(0.001)  # the engine is busy: the others wait
        order: list[int] = []
        for value, priority in enumerate([100, 50, 1, 50, 2, 100]):
            one = bench.submit(value, priority=priority)
            one.ticket.on_settled = lambda _, value=value: order.append(value)  # type: ignore[misc]
        await asyncio.sleep(1)
        assert bench.session.batch_rows == [1, 2, 2, 2]
        assert order == [2, 4, 1, 3, 0, 5]

    virtual_time.run(main())


def test_a_low_priority_under_a_flood_is_answered_at_its_deadline_at_the_latest() -> None:
    async def main() -> None:
        bench = Bench(rows_max=1)  # 11 ms a run: the flood below is more than it can do
        low = bench.submit(7, priority=100, slo_s=0.5)
        bench.submit(0)
        floods = []
        for _ in range(200):
            floods.append(bench.submit(1, slo_s=0.2))
            await asyncio.sleep(0.005)
        again = bench.submit(7, priority=100, slo_s=0.5)
        began_s = bench.loop.time()
        await again.settled.wait()
        assert bench.loop.time() <= began_s + 0.502
        await asyncio.sleep(1)
        assert isinstance(low.outcome, Answer | Overdue)
        assert sum(isinstance(one.outcome, Answer) for one in floods) > 70  # not slowed down by it

    virtual_time.run(main())


def test_nobody_is_shed_for_the_sake_of_a_lower_priority() -> None:
    # A run takes 4.5 ms for one, and 9.5 ms for the 11 that keep up with this many arrivals; 7 ms
    # are left.
    limits = Limits(32, lambda rows: 0.004 + 0.0005 * rows)
    urgent, equal = ticket(1, slo_s=0.010), ticket(slo_s=0.010)
    crowd = [ticket(slo_s=10.0) for _ in range(40)]
    assert decide([urgent, *crowd], 0.003, limits, arrival_rows_per_s=50_000) == Run(6)
    assert decide([equal, *crowd], 0.003, limits, arrival_rows_per_s=50_000) == Shed(1)


# Tenants.


def of(
    tenant: str, *, share: float = 1.0, rows: int = 1, priority: int = 50, arrived_s: float = 0.0
) -> Ticket:
    return asked(
        [0] * rows, tenant=tenant, share=share, priority=priority, arrived_s=arrived_s
    ).ticket


def names(line: Line, count: int) -> str:
    return "".join(ticket.tenant for ticket in islice(line, count))


def serve(line: Line, count: int = 1, row_s: float = 0.01) -> str:
    tickets = list(islice(line, count))
    for ticket in tickets:
        line.remove(ticket)
    line.charge(tickets, row_s)
    return "".join(ticket.tenant for ticket in tickets)


def test_tenants_take_turns_however_many_calls_one_has() -> None:
    line = Line()
    for tenant, count in (("a", 20), ("b", 3), ("c", 5)):
        for _ in range(count):
            line.add(of(tenant))
    assert names(line, 28) == "abc" * 3 + "ac" * 2 + "a" * 15
    assert "".join(serve(line) for _ in range(28)) == "abc" * 3 + "ac" * 2 + "a" * 15
    assert not line
    assert line.rows == 0


def test_turns_are_by_share_and_by_rows() -> None:
    line = Line()
    for _ in range(30):
        line.add(of("a", share=2.0))
        line.add(of("b", rows=3))
    served = "".join(serve(line) for _ in range(35))
    assert served.count("a") == pytest.approx(30, abs=2)
    assert served.count("b") == pytest.approx(5, abs=2)


def test_a_run_is_charged_with_what_it_takes_not_with_its_rows() -> None:
    line = Line()
    for _ in range(20):
        line.add(of("a"))
        line.add(of("b"))
    served = ""
    for _ in range(12):
        tenant = names(line, 1)
        served += serve(line, row_s=0.03 if tenant == "b" else 0.01)  # of a shape of its own
    assert served.count("a") == 9


def test_who_stays_within_his_share_goes_first() -> None:
    line = Line()
    for _ in range(100):
        line.add(of("noisy"))
    line.add(of("quiet"))
    for _ in range(20):  # a quarter of the engine's time
        serve(line, 3)
        line.add(of("quiet"))
        assert names(line, 1) == "quiet"


@pytest.mark.parametrize(("calls_meanwhile", "ahead_s"), [(0, CREDIT_S), (20, EARNED_S)])
def test_who_was_away_comes_back_less_far_ahead_than_who_called_now_and_then(
    calls_meanwhile: int, ahead_s: float
) -> None:
    line = Line()
    for number in range(1000):
        line.add(of("a"))
        if calls_meanwhile and number % (1000 // calls_meanwhile) == 0:
            line.add(of("b"))
            serve(line)
        serve(line)
    line.add(of("a"))
    serve(line)
    for _ in range(600):
        line.add(of("a"))
        line.add(of("b"))
    ahead = round(ahead_s / 0.01)
    served = "".join(serve(line) for _ in range(ahead + 20))
    assert served.count("b") == pytest.approx(ahead + 10, rel=0.06)


@pytest.mark.parametrize(("pause_s", "b_of_six"), [(1.0, 0), (0.0, 6)])
def test_who_was_alone_owes_only_what_others_would_have_waited_for(
    pause_s: float, b_of_six: int
) -> None:
    line, now_s = Line(), 100.0
    for _ in range(200):
        now_s += pause_s
        line.add(of("a", arrived_s=now_s))
        line.look(now_s, ())
        serve(line)
    for _ in range(6):
        line.add(of("b", arrived_s=now_s + pause_s))
        line.add(of("a", arrived_s=now_s + pause_s))
    assert "".join(serve(line) for _ in range(6)).count("b") == b_of_six


def test_nobody_saves_up_more_than_the_credit() -> None:
    line = Line()
    line.add(of("b"))
    serve(line)
    for _ in range(1000):
        line.add(of("a"))
        serve(line)
    for _ in range(200):
        line.add(of("a"))
        line.add(of("b"))
    ahead = round(CREDIT_S / 0.01)
    served = "".join(serve(line) for _ in range(ahead + 20))
    assert served.count("b") == pytest.approx(ahead + 10, abs=2)


def test_priorities_come_before_shares() -> None:
    line = Line()
    for _ in range(3):
        line.add(of("a", priority=1))
        line.add(of("b"))
    assert names(line, 6) == "aaabbb"


def test_once_the_oldest_are_late_the_newest_go_first_within_each_tenant() -> None:
    line = Line()
    old = [asked(0, tenant="a", slo_s=1.0).ticket for _ in range(3)]
    new = [asked(0, tenant="b", slo_s=1.0, arrived_s=0.7).ticket for _ in range(2)]
    for ticket in (*old, *new):
        line.add(ticket)
    for now_s, standing in ((0.9, ()), (0.74, {"a", "b"}), (0.9, {"b"})):
        line.look(now_s, standing)
        assert list(line) == [old[0], new[0], old[1], new[1], old[2]]
    line.look(0.8, {"a", "b"})
    assert list(line) == [old[2], new[0], old[1], new[1], old[0]]


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from([1, 50]), st.integers(1, 4)), min_size=1
    ),
    st.sampled_from("abcd"),
    st.lists(st.integers(1, 4), max_size=5),
)
def test_rows_before_a_ticket_are_those_that_come_before_it(
    tickets: list[tuple[str, int, int]], tenant: str, runs: list[int]
) -> None:
    line = Line()
    for name, priority, rows in tickets:
        line.add(of(name, priority=priority, rows=rows))
    for count in runs:
        serve(line, count)
    newcomer = of(tenant)
    predicted = line.rows_before(newcomer)
    line.add(newcomer)
    found = 0
    for ticket in line:
        if ticket is newcomer:
            break
        found += ticket.rows
    # Turns go by whole tickets: each other tenant may be one ahead.
    assert abs(predicted - found) <= 4 * 3


def test_tenants_without_end_are_not_remembered() -> None:
    line = Line()
    for number in range(3 * KNOWN_MAX):
        line.add(of(f"tenant {number}"))
        serve(line)
    assert len(line._default.known) <= KNOWN_MAX


def test_a_tenant_that_nobody_knew_goes_first_too() -> None:
    line = Line()
    for _ in range(200):
        line.add(of("a"))
        line.add(of("b"))
    for _ in range(200):
        serve(line)
    newcomers = [of("c") for _ in range(3)]
    assert line.rows_before(newcomers[0]) == 0
    for ticket in newcomers:
        line.add(ticket)
    assert names(line, 3) == "ccc"


def test_whoever_has_most_waiting_for_its_share_is_the_one_that_has_too_much() -> None:
    line = Line()
    assert not line.has_most("a")
    for _ in range(4):
        line.add(of("a", share=2.0))
    for priority in (1, 50, 90):
        line.add(of("b", priority=priority))
    assert [line.has_most(name) for name in "abc"] == [False, True, False]
    assert [line.has(name) for name in "abc"] == [True, True, False]


def test_what_is_ahead_is_counted_by_what_calls_of_each_tenant_take() -> None:
    line = Line()
    short, long = of("short"), of("long")
    for ticket, run_s in ((short, 0.02), (long, 0.2)):
        line.add(ticket)
        line.remove(ticket)
        line.charge([ticket], 0.1)
        line.learn(ticket, run_s, now_s=1.0)
    assert [line.known_s(one, 1.5)[::2] for one in (short, long)] == [(0.02, 1.0), (0.2, 1.0)]
    assert line.known_s(of("new"), 1.5) == (0.0, 0.0, 0.0)
    # Not believed for ever, while others run.
    assert line.known_s(short, 4.0)[2] == pytest.approx(0.25)
    for _ in range(3):
        line.add(of("short"))
        line.add(of("long"))
    rows, work_s, own_s = line.work_before(of("short"), 0.1, 0.0)
    assert rows == 3
    assert 3 * 0.02 <= work_s <= 1.5 * 3 * 0.02
    assert own_s == pytest.approx(2 * 3 * 0.02)  # two share the engine
    assert line.has_most("long")
    assert not line.has_most("short")


def test_news_that_is_better_replaces_what_is_not_believed_any_more() -> None:
    line = Line()
    ticket = of("a")
    line.add(ticket)
    line.learn(ticket, 0.6, now_s=1.0)
    line.learn(ticket, 0.02, now_s=1.5)
    assert line.known_s(ticket, 1.5)[0] > 0.5
    line.learn(ticket, 0.02, now_s=3.0)
    assert line.known_s(ticket, 3.0)[0] == 0.02


def test_the_first_calls_of_an_unknown_tenant_are_not_held_against_it() -> None:
    line = Line()
    for _ in range(FIRST_ROWS + 2):
        line.add(of("a"))
    assert line.work_before(of("a"), 0.1, 0.0)[:2] == (FIRST_ROWS + 2, pytest.approx(0.2))
