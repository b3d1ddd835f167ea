"""What edges have counted, added up and bounded."""

from __future__ import annotations

import pytest

from pool import tally as tally_module
from pool.tally import Ended, Tally
from pool.wire.control import VariantCount


def count(requests: int, revision: int = 1, variant: str = "a") -> VariantCount:
    return VariantCount("e", revision, variant, "1", requests, requests // 2, requests // 3)


def test_last_report_of_an_incarnation_is_what_holds() -> None:
    tally = Tally()
    for requests in (3, 6, 6):
        tally.report("e1/i1", (count(requests),))
    assert tally.totals() == {("e", "a", "1"): (6, 3, 2)}


def test_incarnations_revisions_and_edges_add_up_by_variant() -> None:
    tally = Tally()
    tally.report("e1/i1", (count(6), count(6, revision=2), count(12, variant="b")))
    tally.report("e1/i2", (count(6),))
    tally.report("e2/i1", (count(6),))
    assert tally.totals() == {("e", "a", "1"): (24, 12, 8), ("e", "b", "1"): (12, 6, 4)}


def test_sum_stays_when_incarnations_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally_module, "INCARNATIONS_MAX", 3)
    tally = Tally()
    for n in range(50):
        tally.report(f"e1/i{n}", (count(6),))
    assert len(tally._counts) == 3
    assert tally.totals() == {("e", "a", "1"): (300, 150, 100)}


def test_incarnation_that_reports_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally_module, "INCARNATIONS_MAX", 3)
    tally = Tally()
    for n in range(50):
        tally.report("lives/i0", (count(n),))
        tally.report(f"e1/i{n}", (count(0),))
    assert tally.totals()["e", "a", "1"][0] == 49


def test_arms_of_a_sum_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally_module, "INCARNATIONS_MAX", 1)
    monkeypatch.setattr(tally_module, "FOLDED_MAX", 5)
    tally = Tally()
    for n in range(50):
        tally.report(f"e1/i{n}", (count(6, revision=n),))
    assert len(tally._folded) == 5


def test_what_was_counted_since_a_revision() -> None:
    tally = Tally()
    tally.report("e1/i1", (count(6), count(8, revision=2), count(10, revision=3)))
    tally.report("e2/i1", (count(2, revision=3), count(4, variant="b", revision=3)))
    ended = {("e", "a"): Ended(20, 10, 10), ("e", "b"): Ended(4, 2, 2)}
    assert tally.since({"e": 2}) == ended
    assert tally.since({"other": 0}) == {}


@pytest.mark.parametrize("incarnations_max", [1, 256])
def test_all_that_ended_is_counted_and_what_the_model_failed_of_it(
    monkeypatch: pytest.MonkeyPatch, incarnations_max: int
) -> None:
    """10 answered, 2 with 500; 4 with 504 and 3 with 503 are neither."""
    monkeypatch.setattr(tally_module, "INCARNATIONS_MAX", incarnations_max)
    tally = Tally()
    for n in range(3):
        told = VariantCount("e", 1, "a", "1", 12, 2, 0, 9, (9, 10), 6)
        tally.report(f"e1/i{n}", (told,))
    assert tally.since({"e": 1}) == {("e", "a"): Ended(3 * 19, 3 * 6, 3 * 9)}


def test_counts_by_other_bounds_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally_module, "INCARNATIONS_MAX", 1)
    tally = Tally()
    for n, seconds in enumerate([(1, 2), (3, 4, 5), (6,)]):
        tally.report(f"e1/i{n}", (VariantCount("e", 1, "a", "1", 0, 0, 0, 0, seconds),))
    assert tally.since({"e": 1}) == {("e", "a"): Ended(21)}


def test_what_a_former_version_did_is_not_its_successors() -> None:
    tally = Tally()
    old = VariantCount("e", 1, "canary", "3", 104, 5, 0)
    tally.report("e1/i1", (old, VariantCount("e", 2, "canary", "8", 2, 0, 0)))
    assert tally.totals()["e", "canary", "8"] == (2, 0, 0)
