"""How often guards are wrong about callers that keep their arm, and how fast they are right.

Measured in many rollouts: the guards and the policy are the controller's own, and only what callers
do is made up.  A guard that sees nothing is never wrong, so that both are measured here.  The
default run has a tenth of the rollouts, and fewer scenarios.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from edge.watch import RolloutWatch
from pool.rollouts.evidence import EvidenceBook
from pool.rollouts.guards import Guards
from registry_sync.rollout_terms import Guard
from tests.support.unit_runs import Crowd, End, Users, are_rolled_back, median_failed, rolled_out

RUNS, FULL_RUNS, MORE_RUNS = 200, 2000, 100
HALF = ((50.0, 40_000.0),)
RAMP = ((1.0, 10_000.0), (5.0, 10_000.0), (25.0, 10_000.0), (50.0, 10_000.0))
ZIPF = Users(2000, is_zipf=True, prone=0.05)
COLD, WARM = (0.8, 0.2), (0.2, 0.8)  # hits of the baseline's cache and of the candidate's

# Identical arms, by name: who calls, the steps, and how many rollouts.
EQUAL = {
    "5 % fail half their calls": (ZIPF, HALF, FULL_RUNS),
    "5 % fail half their calls, in steps": (ZIPF, RAMP, MORE_RUNS),
    "30 users, a fifth fail": (Users(30, prone=0.2), RAMP, MORE_RUNS),
    "all fail now and again": (Users(1000, errors=(0.05, 0.05)), HALF, MORE_RUNS),
    "cold cache": (Users(1000, errors=(0.02, 0.02), hits=COLD), HALF, MORE_RUNS),
    "warm cache": (Users(1000, errors=(0.02, 0.02), hits=WARM), HALF, MORE_RUNS),
    "cold cache, bad inputs": (
        Users(1000, errors=(0.02, 0.02), hits=COLD, fails="inputs"),
        HALF,
        MORE_RUNS,
    ),
    "warm cache, bad inputs": (
        Users(1000, errors=(0.02, 0.02), hits=WARM, fails="inputs"),
        HALF,
        MORE_RUNS,
    ),
    "warm cache, some always fail": (
        Users(200, errors=(0.003, 0.003), prone=0.3, hits=WARM),
        HALF,
        MORE_RUNS,
    ),
}


def _rate(name: str, runs: int) -> float:
    users, steps, _ = EQUAL[name]
    found = np.mean([are_rolled_back(users, steps, seed) for seed in range(runs)], axis=0)
    print(f"\n{name}: identical arms rolled back in {found[0]:.2%} of {runs} rollouts", end="")
    print(f", by a z-test in {found[1]:.2%}", end="")
    return float(found[0])


def test_identical_arms_are_rarely_rolled_back() -> None:
    assert _rate("5 % fail half their calls", RUNS) <= 0.06
    assert _rate("warm cache, bad inputs", RUNS // 20) <= 0.06


@pytest.mark.slow
@pytest.mark.parametrize("name", EQUAL)
def test_identical_arms_are_rarely_rolled_back_whoever_calls(name: str) -> None:
    assert _rate(name, EQUAL[name][2]) <= 0.06


# Worse candidates, by name: who calls; in how many rollouts at least it must be rolled back in 25
# minutes, with how many failed calls in the median at most.  In no rollout is it promoted; the
# others have one to three users at 1 %, or none, and are held there.
WORSE = {
    "30 users, 20 %": (Users(30, False, 30.0, (0.01, 0.2)), 0.0, math.inf),
    "30 users, all": (Users(30, False, 30.0, (0.01, 1.0)), 0.0, math.inf),
    "30 users, all, from 50 % on": (Users(30, False, 30.0, (0.01, 1.0), 50.0), 0.05, math.inf),
    "200 users, 20 %": (Users(200, errors=(0.01, 0.2)), 0.1, math.inf),
    "200 users, all": (Users(200, errors=(0.01, 1.0)), 0.3, math.inf),
    "200 users, 20 %, from 50 % on": (Users(200, errors=(0.01, 0.2), bad_from=50.0), 0.6, 100),
    "200 users, all, from 50 % on": (Users(200, errors=(0.01, 1.0), bad_from=50.0), 0.6, 150),
    "200 users, 20 %, at 100 %": (Users(200, errors=(0.01, 0.2), bad_from=100.0), 0.6, 1500),
    "1,000 users, 5 %": (Users(1000, errors=(0.01, 0.05)), 0.5, 150),
    "1,000 users, 20 %": (Users(1000, errors=(0.01, 0.2)), 0.9, 50),
    "1,000 users, all": (Users(1000, errors=(0.01, 1.0)), 0.9, 50),
    "1,000 users, 20 %, from 50 % on": (Users(1000, errors=(0.01, 0.2), bad_from=50.0), 0.9, 100),
    "1,000 users, 20 %, at 100 %": (Users(1000, errors=(0.01, 0.2), bad_from=100.0), 0.9, 1500),
    "Zipf, some always fail, 20 %": (
        Users(2000, is_zipf=True, prone=0.05, errors=(0.01, 0.2)),
        0.4,
        math.inf,
    ),
    "cold cache, 20 %": (Users(1000, errors=(0.01, 0.2), hits=COLD), 0.9, 150),
    "warm cache, bad inputs, 20 %": (
        Users(1000, errors=(0.01, 0.2), hits=WARM, fails="inputs"),
        0.9,
        150,
    ),
}
SHORT = (
    "30 users, all, from 50 % on",
    "200 users, all",
    "1,000 users, 20 %, from 50 % on",
    "1,000 users, 20 %, at 100 %",
    "warm cache, bad inputs, 20 %",
)


def _ends(name: str, users: Users, runs: int) -> list[End]:
    ends = [rolled_out(users, seed) for seed in range(runs)]
    states = [end.state for end in ends]
    found = states.count("rolled_back")
    print(f"\n{name}: {found} of {runs} rolled back, {states.count('promoted')} promoted;", end="")
    failed = sorted(end.failed for end in ends)
    print(f" failed calls of it: {failed[len(failed) // 2]} (median), {failed[-1]} (most)", end="")
    return ends


def _check_worse(name: str, runs: int) -> None:
    users, least, failed = WORSE[name]
    ends = _ends(name, users, runs)
    assert [end for end in ends if end.state == "promoted"] == []
    assert sum(end.state == "rolled_back" for end in ends) >= least * runs
    assert median_failed(ends) <= failed


@pytest.mark.parametrize("name", SHORT)
def test_a_worse_candidate_is_rolled_back_or_held_and_never_promoted(name: str) -> None:
    _check_worse(name, runs=6)


@pytest.mark.slow
@pytest.mark.parametrize("name", WORSE)
def test_a_worse_candidate_is_never_promoted_whoever_calls(name: str) -> None:
    _check_worse(name, runs=20)


@pytest.mark.slow
def test_an_equal_candidate_is_promoted() -> None:
    """Most of the time: a few units that fail by themselves hold it, if they are in its arm."""
    for name, users in (("200 users", Users(200)), ("Zipf, some always fail", ZIPF)):
        ends = _ends(f"equal, {name}", users, 40)
        assert not any(end.state == "rolled_back" for end in ends)
        assert sum(end.state == "promoted" for end in ends) >= 0.6 * len(ends)


def test_late_in_a_segment_a_candidate_that_fails_is_still_rolled_back() -> None:
    """It was as good as the baseline for half an hour."""
    for users in (Users(200, errors=(0.01, 1.0)), Users(1000, errors=(0.01, 0.2))):
        users_before = Users(users.count)
        assert _failed_late(users_before, users, 1800.0) <= 40_000


def _failed_late(before: Users, after: Users, at_s: float) -> int:
    crowd = Crowd(before, 1)
    crowd.begin(50.0)
    guards = Guards(Guard(), share=0.5, steps=5, sticky=True, cached=False)
    now_s = 0.0
    while now_s < at_s:
        crowd.go_on(10.0)
        now_s += 10.0
        guards.look(now_s, *crowd.arms())
        assert not guards.verdict().harms
    failed = crowd.arms()[1].seen.errors
    crowd.become(after)
    while not guards.verdict().harms and now_s < 3 * at_s:
        crowd.go_on(10.0)
        now_s += 10.0
        guards.look(now_s, *crowd.arms())
    return crowd.arms()[1].seen.errors - failed


def _observed(
    edges: Sequence[RolloutWatch], rng: np.random.Generator, bad: float, calls: int
) -> None:
    """Let 3,000 users call any edge; half of them are the candidate's."""
    users = rng.integers(0, 3000, calls)
    failed = rng.random(calls) < np.where(users % 2 == 1, bad, 0.01)
    where = rng.integers(0, len(edges), calls)
    for user, is_failed, edge in zip(users.tolist(), failed.tolist(), where.tolist(), strict=True):
        arm = edges[edge].segment(1, ("stable", "canary")).arms["canary" if user % 2 else "stable"]
        arm.requests += 1
        arm.observe(b"%d" % user, 500 if is_failed else 200, 0.01, 1.0)


@pytest.mark.parametrize(("bad", "harms"), [(0.01, 0), (0.2, 1), (1.0, 1)])
def test_several_edges_tell_of_the_same_units(bad: float, harms: int) -> None:
    """So many fail that each edge tells of a sample: of the same units, so that they add up."""
    edges = [RolloutWatch("m", "r", "salt") for _ in range(4)]
    book, rng = EvidenceBook(), np.random.default_rng(3)
    book.follow("m", "r", 1)
    guards = Guards(Guard(), share=0.5, steps=5, sticky=True, cached=False)
    for now_s in range(1, 9):
        _observed(edges, rng, bad, 3000)
        for number, edge in enumerate(edges):
            book.report(f"e{number}", edge.evidence())
        counts = book.counts("m")
        guards.look(now_s, counts["stable"], counts["canary"])
    assert len(guards.verdict().harms) == harms
    seen = counts["canary"].seen
    assert seen.calls == counts["canary"].requests
    if bad == 1.0:  # every unit of the candidate fails, so that all of its calls are told of
        told = sum(calls for calls, _ in counts["canary"].unit_events["errors"])
        assert counts["canary"].told_share <= 0.5
        assert told / counts["canary"].told_share == pytest.approx(seen.calls, rel=0.1)
        assert seen.failed_units == pytest.approx(1500, rel=0.1)
