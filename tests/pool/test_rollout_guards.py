"""What the guards of a rollout say of given counts."""

from __future__ import annotations

import math

import pytest
from msgspec.structs import replace

from pool.rollouts.guards import Guards
from pool.rollouts.signals import ArmCounts, Verdict
from registry_sync.rollout_terms import ArmSeen, Guard, Segment


def _seen(units: int, errors: int = 0, slow: int = 0) -> ArmSeen:
    return ArmSeen(units, units, errors, errors, slow, slow)


def _arm(units: int, errors: int = 0, slow: int = 0, ms: float = 10.0) -> ArmCounts:
    """Calls without a unit; their logarithms spread by 0.1 around that of `ms`."""
    log = math.log(1000.0 * ms)
    return ArmCounts(
        seen=_seen(units, errors, slow),
        units=units,
        errors=errors,
        slow=slow,
        log_calls=units,
        log_sum=units * log,
        log_squares=units * (log * log + 0.01),
        assigned=units,
        lone_calls=units,
    )


def _verdict(
    baseline: ArmCounts,
    candidate: ArmCounts,
    guard: Guard | None = None,
    share: float = 0.5,
    past: tuple[Segment, ...] = (),
    mismatch_log_e: float = 0.0,
    sticky: bool = False,
    cached: bool = False,
) -> Verdict:
    guards = Guards(guard or Guard(), share=share, past=past, steps=5, sticky=sticky, cached=cached)
    guards.look(0.0, baseline, candidate, mismatch_log_e)
    return guards.verdict()


def test_a_candidate_that_fails_more_is_a_harm() -> None:
    verdict = _verdict(_arm(400, 4), _arm(400, 20))
    assert len(verdict.harms) == 1
    assert verdict.harms[0].startswith(
        "5.00% of the candidate's calls fail, 1.00% of the baseline's (e-value "
    )


def test_a_candidate_that_fails_as_often_is_none() -> None:
    verdict = _verdict(_arm(10_000, 100), _arm(10_000, 105))
    assert not verdict.harms
    assert not verdict.worse
    assert verdict.is_enough


def test_evidence_of_less_than_the_margin_is_no_harm() -> None:
    verdict = _verdict(_arm(1_000_000, 1000), _arm(1_000_000, 2000))
    assert verdict.log_e["errors"] > 100
    assert not verdict.harms
    assert _verdict(_arm(1_000_000, 1000), _arm(1_000_000, 7000)).harms


def test_what_looks_worse_without_evidence_is_said() -> None:
    verdict = _verdict(_arm(40, 0), _arm(40, 1))
    assert not verdict.harms
    assert verdict.worse == "2.50% of the candidate's calls fail, 0.00% of the baseline's"


def test_too_few_outcomes_of_one_arm_are_not_enough() -> None:
    verdict = _verdict(_arm(1000), _arm(19))
    assert not verdict.is_enough
    assert verdict.waits_for == "canary has 19 of the 20 outcomes that a step needs"


def test_at_full_weight_the_candidate_alone_is_enough() -> None:
    assert _verdict(_arm(0), _arm(20), share=1.0).is_enough
    assert not _verdict(_arm(0), _arm(19), share=1.0).is_enough


def _past(errors: int, log_e: float = 0.0, units: int = 5000) -> tuple[Segment, ...]:
    arms = {"stable": _seen(units, errors), "canary": _seen(units, errors)}
    return (Segment(1, {"stable": 50, "canary": 50}, arms, {"errors": log_e}),)


def test_segments_multiply() -> None:
    now = _verdict(_arm(400, 4), _arm(400, 14))
    assert not now.harms
    before = _verdict(_arm(400, 4), _arm(400, 14), past=_past(10, log_e=2.0))
    assert before.harms
    now_e = math.exp(now.log_e["errors"])
    assert math.exp(before.log_e["errors"]) == pytest.approx(
        0.8 * math.exp(2.0) * now_e / 0.8 + 0.05 * now_e / 0.8, rel=0.001
    )


def test_a_good_past_hides_no_candidate_that_begins_to_fail() -> None:
    verdict = _verdict(_arm(400, 4), _arm(400, 30), past=_past(1, log_e=-30.0, units=200))
    assert verdict.harms


def _at_full_weight(
    errors: int, past: tuple[Segment, ...] = (), each_s: int = 10, calls: int = 5000
) -> Verdict:
    """Let a minute pass at 100 %, with so many errors in every stretch of it."""
    guards = Guards(Guard(), share=1.0, past=past, steps=5, cached=False)
    windows = 60 // each_s
    for index in range(windows + 1):
        seen = _arm(calls * index // windows, errors * index // windows)
        guards.look(float(each_s * index), _arm(0), seen)
    return guards.verdict()


def test_at_full_weight_the_past_of_the_baseline_is_the_measure() -> None:
    assert not _at_full_weight(60, _past(50)).harms
    assert not _at_full_weight(80, _past(50)).harms  # it may be 2 %
    verdict = _at_full_weight(300, _past(50))
    assert verdict.harms
    assert verdict.log_e["errors_full"] > math.log(400)


def test_at_full_weight_what_was_seen_before_the_first_step_is_the_measure_too() -> None:
    before = (Segment(0, {"stable": 100, "canary": 0}, {"stable": _seen(5000, 500)}),)
    assert not _at_full_weight(500, before).harms
    assert _at_full_weight(1000, before).harms


def test_at_full_weight_evidence_of_three_windows_is_not_enough() -> None:
    assert not _at_full_weight(5000, _past(50), each_s=20).harms
    assert _at_full_weight(5000, _past(50), each_s=15).harms


def test_at_full_weight_errors_of_few_units_are_few() -> None:
    """Other callers have come, of whom one more always fails."""
    for units, is_harm in ((1, False), (5000, True)):
        guards = Guards(Guard(), share=1.0, past=_past(50), steps=5, cached=False)
        for window in range(7):
            calls, errors = 800 * window, 40 * window
            seen = ArmSeen(calls, calls, errors, min(units, errors))
            guards.look(10.0 * window, ArmCounts(), ArmCounts(seen, units=calls))
        verdict = guards.verdict()
        assert bool(verdict.harms) is is_harm
        assert verdict.worse


def test_at_full_weight_a_candidate_that_most_often_fails_is_a_harm_whatever_was_seen() -> None:
    assert not _at_full_weight(2500).harms
    assert (
        _at_full_weight(5000)
        .harms[0]
        .startswith(
            "100.00% of the candidate's calls fail, more than 50% are too many for a baseline that"
        )
    )
    assert _verdict(_arm(0), _arm(100, 60), share=1.0).worse
    assert not _verdict(_arm(0), _arm(100, 40), share=1.0).worse


def test_alpha_is_divided_over_the_guards() -> None:
    arms = _arm(400, 4), _arm(400, 17)
    assert _verdict(*arms, Guard(alpha=0.05)).harms
    assert not _verdict(*arms, Guard(alpha=0.05, slower_than_ms=1000, latency_ratio_max=9)).harms


def test_a_mismatch_is_told_apart_from_a_harm() -> None:
    verdict = _verdict(_arm(400), _arm(600), mismatch_log_e=20.0)
    assert not verdict.harms
    assert verdict.mismatch.startswith("canary was given 60.00% of the units")
    assert not _verdict(_arm(400), _arm(600), mismatch_log_e=7.0).mismatch


def test_intervals_are_of_all_segments() -> None:
    low, rate, high = _verdict(_arm(100, 1), _arm(100), past=_past(50)).intervals["stable"]
    assert rate == pytest.approx(51 / 5100)
    assert 0.004 < low < rate < high < 0.02


def test_an_interval_is_of_units_that_may_fail_again_and_again() -> None:
    seen = ArmSeen(calls=1000, units=1000, errors=100, failed_units=5)
    low, rate, high = _verdict(ArmCounts(seen), _arm(0)).intervals["stable"]
    assert rate == 0.1
    assert low < 0.05
    assert high > 0.2


def test_what_looked_worse_in_an_earlier_segment_still_does() -> None:
    arms = {"stable": _seen(400, 4), "canary": _seen(400, 12)}
    past = (Segment(1, {"stable": 50, "canary": 50}, arms, {"errors": 0.5}),)
    assert not _verdict(_arm(400, 4), _arm(400, 4)).worse
    assert _verdict(_arm(400, 4), _arm(400, 4), past=past).worse


def test_calls_that_were_never_answered_in_time_are_errors_and_slow() -> None:
    verdict = _verdict(_arm(9900), _arm(100, 100, 100), Guard(slower_than_ms=100), share=0.01)
    assert ["fail" in harm for harm in verdict.harms] == [True]
    assert "100.00% of the candidate's calls are slow" in verdict.worse


def _with_hits(calls: int, errors: int, requests: int = 10_000) -> ArmCounts:
    seen = ArmSeen(calls, calls, errors, errors, requests=requests)
    return ArmCounts(seen, units=calls, errors=errors, requests=requests, lone_calls=calls)


def _behind_a_cache(baseline: ArmCounts, candidate: ArmCounts, sticky: bool = False) -> Verdict:
    guards = Guards(Guard(), share=0.5, steps=5, sticky=sticky, cached=True)
    guards.look(0.0, ArmCounts(), ArmCounts())
    guards.look(10.0, baseline, candidate)
    return guards.verdict()


def test_behind_a_cache_errors_may_be_a_share_of_the_calls() -> None:
    """The candidate's cache is cold, so that it has more calls that can fail."""
    arms = _with_hits(2000, 40), _with_hits(8000, 160)
    assert _verdict(_arm(2000, 40), _arm(2000, 160)).harms
    verdict = _behind_a_cache(*arms)
    assert not verdict.harms
    assert not verdict.worse


def test_behind_a_cache_errors_may_be_a_share_of_the_requests() -> None:
    """Inputs that fail are never in the cache: of the arm with more hits a larger share fails."""
    arms = _with_hits(8020, 100), _with_hits(2080, 100)
    assert _verdict(*arms).harms
    verdict = _behind_a_cache(*arms)
    assert not verdict.harms
    assert not verdict.worse


def test_behind_a_cache_a_candidate_that_is_worse_by_both_is_a_harm() -> None:
    assert _behind_a_cache(_with_hits(5000, 50), _with_hits(5000, 250)).harms


def test_behind_a_cache_a_first_look_is_no_evidence() -> None:
    """Another controller begins in the middle of a segment, whose split it has not seen."""
    arms = _with_hits(5000, 50), _with_hits(5000, 250)
    assert _verdict(*arms).harms
    verdict = _verdict(*arms, cached=True)
    assert not verdict.harms
    assert verdict.worse


def test_what_was_overruled_is_no_measure_any_more() -> None:
    arms = {"stable": _seen(1000, 10), "canary": _seen(1000, 800)}
    overruled = (Segment(1, {"stable": 50, "canary": 50}, arms),)
    counted = (replace(overruled[0], log_e={"errors": 0.0}),)
    assert _verdict(_arm(4000, 40), _arm(4000, 40), past=counted).worse
    assert not _verdict(_arm(4000, 40), _arm(4000, 40), past=overruled).worse
    assert not _at_full_weight(1500, counted).harms
    assert _at_full_weight(4000, overruled).harms
