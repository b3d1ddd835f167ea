"""What the reports of many edges add up to."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from pool.rollouts import evidence
from pool.rollouts.evidence import EvidenceBook
from pool.wire.control import UNIT_HASHES, ArmEvidence, UnitSeen
from pool.wire.histogram import BUCKETS
from tests.support.rollouts import ROLLOUT, row


def book(segment: int = 1) -> EvidenceBook:
    made = EvidenceBook()
    made.follow("e", ROLLOUT, segment)
    return made


def test_incarnations_add_up_and_reports_are_cumulative() -> None:
    found = book()
    assert found.report("e1/i1", [row("canary", 5, 1)]) == {"e"}
    found.report("e1/i1", [row("canary", 9, 2)])
    found.report("e1/i1", [row("canary", 9, 2)])  # once more
    found.report("e2/i1", [row("canary", 4, requests=6, lone_calls=3), row("stable", 7)])
    counts = found.counts("e")
    assert (counts["canary"].requests, counts["canary"].lone_calls) == (15, 12)
    assert counts["canary"].seen.requests == 15
    assert (counts["canary"].seen.calls, counts["canary"].errors) == (13, 2)
    assert (counts["stable"].seen.calls, counts["stable"].units) == (7, 7.0)


def test_edge_that_restarts_counts_nothing_twice() -> None:
    found = book()
    found.report("e1/i1", [row("canary", 10, units=[1, 2])])
    found.report("e1/i2", [row("canary", 3, units=[2, 3])])
    seen = found.counts("e")["canary"].seen
    assert (seen.calls, seen.errors, seen.failed_units) == (13, 4, 3)


def test_more_errors_than_calls_say_nothing() -> None:
    found = book()
    for fields in ({"errors": 11}, {"errors": 6, "lone_calls": 4, "lone_errors": 5}):
        assert not found.report("e1/i1", [replace(row("canary", 10), **fields)])
    assert not found.counts("e")
    assert found.report("e1/i1", [replace(row("canary", 10), errors=10, lone_errors=10)]) == {"e"}


def told(*units: UnitSeen) -> ArmEvidence:
    return replace(row("canary", 10), told=units)


def test_what_edges_have_seen_of_a_unit_adds_up() -> None:
    found = book()
    found.report("e1/i1", [told(UnitSeen(1, 2, 1, 0), UnitSeen(2, 4, 4, 1))])
    found.report("e2/i1", [told(UnitSeen(1, 6, 1, 3))])
    found.report("e1/i1", [told(UnitSeen(1, 4, 2, 0), UnitSeen(2, 8, 4, 1), UnitSeen(3, 1, 1, 0))])
    counts = found.counts("e")["canary"]
    assert counts.unit_events == {
        "errors": ((10, 3), (8, 4), (1, 1)),
        "slow": ((10, 3), (8, 1)),
    }
    assert (counts.seen.failed_units, counts.seen.slow_units, counts.told_share) == (3, 2, 1.0)
    found.follow("e", ROLLOUT, 2)
    found.report("e1/i1", [row("canary", 9, 1, units=[2, 3], segment=2)])
    counts = found.counts("e")["canary"]
    assert counts.unit_events["errors"] == ((1, 1), (1, 1))
    assert (counts.errors, counts.seen.failed_units) == (1, 3)


def test_units_are_told_apart_by_the_least_sample_of_all_edges() -> None:
    found, quarter = book(), UNIT_HASHES // 4
    units = [1, quarter - 1, quarter, UNIT_HASHES - 1]
    found.report("e1/i1", [row("stable", 10, units=units), row("canary", 5, units=[2, quarter])])
    assert found.counts("e")["stable"].seen.failed_units == 4
    found.report("e2/i1", [row("canary", 1, units_below=quarter)])
    found.report("e1/i1", [row("stable", 10, units=units), row("canary", 5, units=[2, quarter])])
    counts = found.counts("e")
    assert [len(counts[arm].unit_events["errors"]) for arm in ("stable", "canary")] == [2, 1]
    assert (counts["stable"].told_share, counts["stable"].seen.failed_units) == (0.25, 8)
    found.follow("e", ROLLOUT, 2)  # begins anew
    found.report("e1/i1", [row("stable", 10, units=units, segment=2)])
    assert found.counts("e")["stable"].seen.failed_units == 4


def test_ended_segments_and_other_rollouts_count_nowhere() -> None:
    found = book(segment=2)
    rows = [
        row("canary", 5, 5, segment=1),
        row("canary", 5, 5, segment=3),
        row("canary", 5, 5, segment=2, rollout="r0"),
        row("canary", 5, 5, segment=2, endpoint="other"),
    ]
    assert found.report("e1/i1", rows) == set()
    assert found.counts("e") == {}


def test_new_rollout_begins_with_nothing() -> None:
    found = book()
    found.report("e1/i1", [row("canary", 5, units=[1])])
    found.follow("e", "r2", 1)
    assert found.counts("e") == {}
    found.report("e1/i1", [row("canary", 1, units=[1], rollout="r2")])
    assert found.counts("e")["canary"].seen.failed_units == 1
    found.forget("e")
    assert found.counts("e") == {}
    assert found.assigned("e") == []


def test_split_is_judged_by_incarnation() -> None:
    found = book()
    found.report("e1/i1", [row("canary", 5), row("stable", 95)])
    found.report("e2/i1", [row("canary", 6)])
    assert found.assigned("e") == [{"canary": 5, "stable": 95}, {"canary": 6}]
    assert found.counts("e")["canary"].assigned == 6


def test_what_people_see_goes_on_through_segments() -> None:
    found = book()
    seconds = tuple([1] * BUCKETS)
    more = {"seconds": seconds, "scores": 2, "score_sum": 1.0, "classes": {"3": 2}}
    found.report("e1/i1", [row("canary", 5, **more)])
    found.follow("e", ROLLOUT, 2)
    found.report("e1/i1", [row("canary", 5, segment=2, **more)])
    found.report("e2/i1", [row("canary", 5, segment=2, seconds=(1, 2))])  # by bounds of its own
    shown = found.shown("e", "canary")
    assert shown.seconds == tuple([2] * BUCKETS)
    assert (shown.scores, shown.score_sum, shown.classes) == (4, 2.0, {"3": 4})


def test_incarnations_are_bounded_and_their_sum_stays() -> None:
    found, count = book(), evidence.INCARNATIONS_MAX + 10
    for number in range(count):
        found.report(f"e{number}/i", [row("canary", 2, 1, units=[number])])
    assert len(found.assigned("e")) <= evidence.INCARNATIONS_MAX
    assert found.counts("e")["canary"].seen.calls == 2 * count
    assert found.counts("e")["canary"].seen.failed_units == 2 * count
    found.report("e0/i", [row("canary", 3, 1, units=[0])])  # is in the sum already
    assert found.counts("e")["canary"].seen.calls == 2 * count


def test_arms_are_bounded() -> None:
    found = book()
    found.report("e1/i1", [row("stable", 1), row("canary", 1)])
    found.report("e2/i1", [row(f"arm{number}", 1) for number in range(100)])
    assert len(found.counts("e")) == evidence.ARMS_MAX


def test_units_are_bounded_by_a_smaller_sample() -> None:
    found, step = book(), UNIT_HASHES // 10_000
    for number in range(10):
        units = [(10 * i + number) * step for i in range(1000)]
        found.report(f"e{number}/i", [row("stable", 2000, units=units)])
    counts = found.counts("e")["stable"]
    assert 2048 <= len(counts.unit_events["errors"]) <= evidence.UNITS_MAX
    assert counts.seen.failed_units == pytest.approx(10_000, rel=0.01)
    found.report("e50/i", [row("canary", 5, units=[1, 2, 3])])  # a bad candidate is still seen
    assert len(found.counts("e")["canary"].unit_events["errors"]) == 3


def test_rollout_that_has_ended_counts_nothing_more() -> None:
    found = book()
    found.report("e1/i1", [row("stable", 10, units=[1, 2])])
    found.follow("e", ROLLOUT, 2)
    found.settle("e")
    assert (
        found.report("e1/i1", [row("stable", 10, units=[1, 2]), row("canary", 5, segment=2)])
        == set()
    )
    assert found.shown("e", "stable").seen.failed_units == 2
