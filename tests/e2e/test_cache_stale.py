"""Answers that are a little too old, where the endpoint's spec allows them (RFC 5861)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from registry_sync import endpoints
from tests.support.observed_engine import BROKEN, STUCK, STUCK_S, Diary
from tests.support.stack import Answer, Stack, until

FRESH = re.compile(r"tidepool; hit; ttl=\d+")
STALE = re.compile(r"tidepool; hit; ttl=-\d+; detail=stale")
ON_ERROR = re.compile(r"tidepool; hit; ttl=-\d+; detail=stale-if-error")
MISS = "tidepool; fwd=uri-miss"
DAY_S = 86_400
REVALIDATED, COVERED = "stale-revalidated", "stale-covered"


@pytest.fixture(scope="module")
def revalidated(stack: Stack) -> Diary:
    """Of an endpoint that serves an old answer while it computes a new one."""
    diary = stack.publish_observed(REVALIDATED, deterministic=True)
    stack.edit_endpoint(REVALIDATED, cache={"ttl_s": 0.2, "stale_while_revalidate_s": DAY_S})
    return diary


@pytest.fixture(scope="module")
def covered(stack: Stack) -> Diary:
    """Of an endpoint that serves an old answer where there would be none."""
    diary = stack.publish_observed(COVERED, deterministic=True)
    stack.edit_endpoint(COVERED, cache={"ttl_s": 0.2, "stale_if_error_s": DAY_S})
    return diary


def _state(answer: Answer) -> str:
    assert answer.status == 200, answer.body
    return answer.headers["cache-status"]


@contextmanager
def _told(diary: Diary, what: str) -> Iterator[None]:
    """Let the model's runs fail, or take long, meanwhile."""
    path = diary.path.with_suffix(what)
    path.touch()
    try:
        yield
    finally:
        path.unlink()


@pytest.mark.rule("F23")
def test_stale_answer_is_served_at_once_and_renewed_once(stack: Stack, revalidated: Diary) -> None:
    first = stack.infer_observed(REVALIDATED, 1, delay_ms=800)
    assert _state(first) == MISS
    runs = revalidated.count("run")
    renewals = stack.metric("tidepool_cache_renewals_total", outcome="ok")
    until(lambda: revalidated.count("run") > runs or _is_stale(stack, 1, 800), 10.0, "it is stale")
    with ThreadPoolExecutor(40) as pool:
        asked = pool.map(lambda _: stack.infer_observed(REVALIDATED, 1, delay_ms=800), range(40))
        answers = list(asked)
    assert {answer.body for answer in answers} == {first.body}
    assert all(" hit" in _state(answer) for answer in answers)  # nobody waited
    assert sum(bool(STALE.fullmatch(_state(answer))) for answer in answers) >= 1
    until(
        lambda: stack.metric("tidepool_cache_renewals_total", outcome="ok") > renewals,
        20.0,
        "it is renewed",
    )
    # One at a time: no more runs than renewals that ended, and the one that may be under way.
    ended = stack.metric("tidepool_cache_renewals_total", outcome="ok") - renewals
    assert 1 <= revalidated.count("run") - runs <= ended + 1


def _is_stale(stack: Stack, x: int, delay_ms: int = 0) -> bool:
    answer = stack.infer_observed(REVALIDATED, x, delay_ms=delay_ms)
    return bool(STALE.fullmatch(_state(answer)))


def test_renewed_answer_is_fresh_again(stack: Stack, revalidated: Diary) -> None:
    assert _state(stack.infer_observed(REVALIDATED, 2)) == MISS
    until(lambda: _is_stale(stack, 2), 10.0, "it is stale")
    until(lambda: FRESH.fullmatch(_state(stack.infer_observed(REVALIDATED, 2))), 10.0, "fresh")


def test_stale_answer_outlives_a_renewal_that_fails(stack: Stack, revalidated: Diary) -> None:
    first = stack.infer_observed(REVALIDATED, 3)
    until(lambda: _is_stale(stack, 3), 10.0, "it is stale")
    with _told(revalidated, BROKEN):
        failed = stack.metric("tidepool_cache_renewals_total", outcome="failed")

        def has_failed() -> bool:
            assert stack.infer_observed(REVALIDATED, 3).body == first.body
            return stack.metric("tidepool_cache_renewals_total", outcome="failed") >= failed + 2

        until(has_failed, 20.0, "renewals fail, one after the other")
    until(lambda: FRESH.fullmatch(_state(stack.infer_observed(REVALIDATED, 3))), 20.0, "fresh")


def test_purge_ends_a_stale_answer(stack: Stack, revalidated: Diary) -> None:
    stack.infer_observed(REVALIDATED, 4)
    until(lambda: _is_stale(stack, 4), 10.0, "it is stale")
    endpoints.purge(stack.store, REVALIDATED)
    stack.poke()
    assert _state(stack.infer_observed(REVALIDATED, 4)) == MISS


def test_no_cache_takes_no_stale_answer(stack: Stack, revalidated: Diary) -> None:
    stack.infer_observed(REVALIDATED, 5)
    until(lambda: _is_stale(stack, 5), 10.0, "it is stale")
    answer = stack.infer_observed(REVALIDATED, 5, {"cache-control": "no-cache"})
    assert _state(answer) == "tidepool; fwd=request; detail=no-cache"


def test_tenants_share_no_stale_answer(stack: Stack, revalidated: Diary) -> None:
    red, blue = (stack.make_key(tenant=tenant) for tenant in ("red", "blue"))
    stack.infer_observed(REVALIDATED, 6, key=red)

    def is_stale() -> bool:
        answer = stack.infer_observed(REVALIDATED, 6, key=red)
        return bool(STALE.fullmatch(_state(answer)))

    until(is_stale, 10.0, "it is stale")
    assert _state(stack.infer_observed(REVALIDATED, 6, key=blue)) == MISS


def _until_expired(stack: Stack, model: str, x: int) -> Answer:
    """Compute an answer and wait until it is not fresh any more; returns it."""
    first = stack.infer_observed(model, x)
    assert _state(first) == MISS
    until(lambda: not FRESH.fullmatch(_state(stack.infer_observed(model, x))), 10.0, "expired")
    return first


def test_failing_model_is_covered_and_counted(stack: Stack, covered: Diary) -> None:
    first = stack.infer_observed(COVERED, 1)
    with _told(covered, BROKEN):
        before = stack.variants(COVERED)["stable"]

        def is_covered() -> bool:
            answer = stack.infer_observed(COVERED, 1)
            assert answer.body == first.body
            return bool(ON_ERROR.fullmatch(_state(answer)))

        until(is_covered, 10.0, "a stale answer is given instead of the failure")
        # The guard of a rollout must see that the model fails, though no client does.
        until(
            lambda: stack.variants(COVERED)["stable"]["errors"] > before["errors"], 10.0, "counted"
        )
        # Nothing covers what was never answered.
        assert stack.infer_observed(COVERED, 2).status == 500
    until(lambda: _state(stack.infer_observed(COVERED, 1)) == MISS, 10.0, "it is computed again")


def test_deadline_that_passes_is_covered(stack: Stack, covered: Diary) -> None:
    first = _until_expired(stack, COVERED, 3)
    with _told(covered, STUCK):
        limit = {"x-request-timeout-seconds": "0.3"}

        def is_covered() -> bool:
            answer = stack.infer_observed(COVERED, 3, limit)
            assert answer.body == first.body
            return bool(ON_ERROR.fullmatch(_state(answer)))

        until(is_covered, 10.0, "a stale answer is given when the time is over")
        assert stack.infer_observed(COVERED, 4, limit).status == 504
    until(lambda: stack.infer_observed(COVERED, 5).status == 200, STUCK_S * 10, "it works again")


def test_window_ends(stack: Stack) -> None:
    diary = stack.publish_observed("stale-short", deterministic=True)
    cache = {"ttl_s": 0.1, "stale_while_revalidate_s": 0.1, "stale_if_error_s": 0.1}
    stack.edit_endpoint("stale-short", cache=cache)
    stack.infer_observed("stale-short", 1)
    with _told(diary, BROKEN):
        until(lambda: stack.infer_observed("stale-short", 1).status == 500, 10.0, "it is too old")


def test_without_windows_nothing_stale_is_served(stack: Stack) -> None:
    stack.publish_observed("stale-never", deterministic=True)
    stack.edit_endpoint("stale-never", cache={"ttl_s": 0.1})
    states: list[str] = []

    def has_expired_twice() -> bool:
        states.append(_state(stack.infer_observed("stale-never", 1)))
        return states.count(MISS) == 3

    until(has_expired_twice, 20.0, "it has expired twice")
    assert all(state == MISS or FRESH.fullmatch(state) for state in states)
