"""Units that keep their arm: what is evidence that they do worse in the candidate's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from msgspec.structs import replace

from pool.rollouts.guards import Guards
from pool.rollouts.signals import ArmCounts, Unit, Verdict
from pool.rollouts.unit_guard import UNITS_PART, UnitTest, units_log_e
from registry_sync.rollout_terms import ArmSeen, Guard, Segment

BAD = ((30.0, 24.0),) * 20  # calls, and how many of them failed


def _arm(
    units: Sequence[Unit] = (), calls: int = 3000, assigned: int = 100, requests: int = 0
) -> ArmCounts:
    errors = round(sum(events for _, events in units))
    seen = ArmSeen(calls, calls, errors, len(units), requests=requests)
    return ArmCounts(
        seen,
        units=calls,
        assigned=assigned,
        requests=requests,
        unit_events={"errors": tuple(units)},
    )


def _verdict(
    baseline: ArmCounts,
    candidate: ArmCounts,
    share: float = 0.5,
    past: Sequence[Segment] = (),
    cached: bool = False,
) -> Verdict:
    guards = Guards(Guard(), share=share, past=past, steps=5, sticky=True, cached=cached)
    guards.look(0.0, baseline, candidate)
    return guards.verdict()


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5])
def test_evidence_is_one_on_average_whatever_units_do(share: float) -> None:
    """Exactly so: over all the ways in which units may be in the arms."""
    units = [(1.0, 1.0), (9.0, 9.0), (40.0, 3.0), (7.0, 1.0), (300.0, 2.0), (12.0, 11.0)]
    mean = 0.0
    for labels in np.ndindex(*(2,) * len(units)):
        arms = [[u for u, arm in zip(units, labels, strict=True) if arm == i] for i in (0, 1)]
        chance = math.prod(share if arm else 1.0 - share for arm in labels)
        mean += chance * math.exp(units_log_e(share, arms[0], arms[1]))
    assert mean == pytest.approx(1.0)


def test_units_that_fail_alike_are_no_evidence_however_many_they_are() -> None:
    for unit in ((1.0, 1.0), (100.0, 1.0), (100.0, 60.0)):
        assert units_log_e(0.5, [unit] * 500, [unit] * 500) < 0.0


def test_no_units_are_no_evidence() -> None:
    assert units_log_e(0.5, (), ()) == 0.0


@pytest.mark.parametrize(
    ("share", "baseline", "candidate"),
    [
        (0.01, [], [(5.0, 5.0)] * 3),
        (0.01, [(100.0, 2.0)] * 150, [(100.0, 100.0)] * 3),  # everybody fails now and again
        (0.5, [(30.0, 1.0)] * 60, [(30.0, 6.0)] * 100),
        (0.5, [(30.0, 1.0)] * 100, [(30.0, 5.0)] * 100),
        # Most of what fails fails always, whatever the arm.
        (0.5, [(40.0, 40.0)] * 25 + [(40.0, 1.0)] * 100, [(40.0, 40.0)] * 25 + [(40.0, 3.0)] * 200),
    ],
)
def test_candidates_that_are_worse_are_seen_in_many_ways(
    share: float, baseline: list[Unit], candidate: list[Unit]
) -> None:
    assert units_log_e(share, baseline, candidate) > 10.0


def test_units_that_fail_again_and_again_in_the_candidates_arm_are_a_harm() -> None:
    verdict = _verdict(_arm([(30.0, 1.0)] * 30), _arm(BAD))
    assert [harm.split(" (")[0] for harm in verdict.harms] == [
        "16.00% of the candidate's calls fail, 1.00% of the baseline's"
    ]
    assert verdict.log_e["errors_units"] > math.log(1 / (0.05 * UNITS_PART))
    assert not _verdict(_arm(BAD), _arm(BAD)).harms
    assert not _verdict(_arm(BAD), _arm([(30.0, 1.0)] * 30)).worse


def test_evidence_without_a_harm_beyond_the_margin_rolls_nothing_back() -> None:
    verdict = _verdict(_arm((), 10**6, 10**5), _arm([(20.0, 18.0)] * 40, 10**6, 10**5))
    assert verdict.log_e["errors_units"] > 5.0
    assert not verdict.harms
    assert not verdict.worse


def test_evidence_is_looked_at_at_fixed_numbers_of_requests_and_each_look_has_its_price() -> None:
    test = UnitTest("errors", 0.5, steps=5, cached=False)
    found = []
    for requests in (49, 50, 60, 74, 75, 112, 113):
        arms = [replace(_arm(units, 20), requests=requests // 2) for units in ((), BAD)]
        arms[1] = replace(arms[1], requests=requests - requests // 2)
        test.look(*arms)
        found.append(test.log_e)
    once = units_log_e(0.5, (), BAD)
    assert found[0] == -math.log(10)
    assert found[1] == pytest.approx(once - math.log(5 * 2))
    assert set(found[1:]) == {found[1]}  # what was found stays
    late = UnitTest("errors", 0.5, steps=5, cached=False)
    late.look(_arm((), 0), _arm(BAD, 10_000))
    assert late.log_e == pytest.approx(once - math.log(5 * 14 * 15))


def test_the_most_of_all_segments_counts_and_they_do_not_multiply() -> None:
    arms = {"stable": ArmSeen(100, 100), "canary": ArmSeen(100, 100)}
    past = [
        Segment(step, {"stable": 50, "canary": 50}, arms, {"errors_units": log_e})
        for step, log_e in enumerate((2.5, 3.0), 1)
    ]
    now = [(30.0, 6.0)] * 4
    alone = _verdict(_arm(), _arm(now)).log_e["errors_units"]
    assert alone < 3.0
    assert _verdict(_arm(), _arm(now), past=past).log_e["errors_units"] == 3.0
    overruled = [replace(segment, log_e={}) for segment in past]
    assert _verdict(_arm(), _arm(now), past=overruled).log_e["errors_units"] == alone


def test_a_few_units_hold_a_rollout_only_if_a_lot_of_its_calls_fail() -> None:
    """One unit of two in the candidate's arm says nothing, but nobody else should get it."""
    verdict = _verdict(_arm([(100.0, 1.0)] * 5), _arm([(30.0, 27.0)], 60, 2), share=0.5)
    assert not verdict.harms
    assert verdict.worse == "45.00% of the candidate's calls fail, 0.17% of the baseline's"
    against = _arm([(1.0, 1.0)] * 9), _arm([(30.0, 27.0)], 60, 2)  # units lean the other way
    assert units_log_e(0.5, *(arm.unit_events["errors"] for arm in against)) < 0.0
    assert _verdict(*against).worse
    mild = _verdict(_arm([(100.0, 3.0)] * 20), _arm([(90.0, 3.0)] * 18, 1800, 100))
    assert not mild.worse  # 3 % against 2 %, and as many units as of the baseline


def test_units_that_lean_beyond_the_margin_hold_a_rollout() -> None:
    verdict = _verdict(_arm([(30.0, 1.0)] * 3), _arm([(30.0, 3.0)] * 9))
    assert not verdict.harms
    assert verdict.worse == "0.90% of the candidate's calls fail, 0.10% of the baseline's"


def test_many_units_with_few_calls_count_alike() -> None:
    """The candidate's largest unit calls all the time, and does not fail."""
    verdict = _verdict(_arm((), 50_000), _arm([(10.0, 5.0)] * 40, 50_000))
    assert [harm.split(" (")[0] for harm in verdict.harms] == [
        "20.00% of the candidate's calls fail, each unit's alike, 0.00% of the baseline's"
    ]


def test_behind_a_cache_more_calls_are_more_chances_to_fail() -> None:
    """Units of the arm with the colder cache make four times as many calls."""
    arms = _arm([(8.0, 1.0)] * 20, 2000), _arm([(8.0, 1.0)] * 80, 8000)
    assert _verdict(*arms).harms
    assert not _verdict(*arms, cached=True).harms


def test_behind_a_cache_errors_of_inputs_are_a_larger_part_of_fewer_calls() -> None:
    """As many requests of each arm fail, but of the candidate's the others are hits."""
    units = [(40.0, 8.0)] * 50, [(10.0, 8.0)] * 50
    arms = _arm(units[0], 8000, requests=10_000), _arm(units[1], 2000, requests=10_000)
    assert _verdict(*arms).harms
    verdict = _verdict(*arms, cached=True)
    assert not verdict.harms
    assert not verdict.worse


def test_at_full_weight_units_have_nothing_to_be_compared_with() -> None:
    verdict = _verdict(_arm((), 0), _arm(BAD), share=1.0)
    assert "errors_units" not in verdict.log_e
