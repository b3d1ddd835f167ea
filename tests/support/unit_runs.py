"""Rollouts whose callers keep their arm: many users at once, counted as edges count them.

What users do between two looks is drawn at once; guards and policy are the controller's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pool.rollouts import policy
from pool.rollouts.guards import Guards
from pool.rollouts.signals import ArmCounts, Verdict
from pool.rollouts.unit_guard import LOOK_FACTOR, LOOK_REQUESTS
from registry_sync.rollout_terms import ArmSeen, Guard, RolloutState, Segment
from tests.support.rollouts import look_at, spec_of

Numbers = NDArray[np.int64]
STEPS = (1.0, 5.0, 25.0, 50.0, 100.0)


@dataclass(frozen=True)
class Users:
    """Who calls, and what comes of it; pairs are the baseline's and the candidate's."""

    count: int = 2000
    is_zipf: bool = False  # how often they call: by Zipf's law, or all alike
    requests_per_s: float = 100.0
    errors: tuple[float, float] = (0.01, 0.01)
    bad_from: float = 0.0  # percent: with less the candidate is as good as the baseline
    prone: float = 0.0  # of the users, whose calls fail as often as this, whatever the arm
    prone_errors: float = 0.5
    hits: tuple[float, float] | None = None  # of requests, out of the cache; None: there is none
    # What fails: any call that is dispatched, or requests by their inputs, which are never hits.
    fails: Literal["calls", "inputs"] = "calls"


class Crowd:
    """The users of one rollout."""

    def __init__(self, users: Users, seed: int) -> None:
        self._users, self._rng = users, np.random.default_rng(seed)
        popularity = 1.0 / np.arange(1, users.count + 1) if users.is_zipf else np.ones(users.count)
        self._per_s = popularity / popularity.sum() * users.requests_per_s
        self._place = self._rng.random(users.count)
        self._is_prone = self._rng.random(users.count) < users.prone
        self.begin(0.0)

    def begin(self, percent: float) -> None:
        """Begin a segment."""
        users = self._users
        self._is_given = self._place < percent / 100.0
        self._is_bad = percent >= users.bad_from
        none = np.zeros(users.count, np.int64)
        # By user, since the segment began: requests, calls, errors, calls from the first error on,
        # and in how many spans there was a call, which stand for look windows.
        self._requests, self._calls, self._errors, self._told, self._seen = (none,) * 5

    def become(self, users: Users) -> None:
        """Let the same users go on in another way."""
        self._users, self._is_bad = users, True

    def go_on(self, seconds: float) -> None:
        """Let users call for so long."""
        users, rng = self._users, self._rng
        rates = np.full(users.count, users.errors[0])
        if self._is_bad:
            rates[self._is_given] = users.errors[1]
        rates[self._is_prone] = np.maximum(rates[self._is_prone], users.prone_errors)
        hits = np.where(self._is_given, *(users.hits or (0.0, 0.0))[::-1])
        asked = rng.poisson(self._per_s * seconds)
        if users.fails == "inputs":
            failed = rng.binomial(asked, rates)
            calls = asked - rng.binomial(asked - failed, hits)
        else:
            calls = asked - rng.binomial(asked, hits) if users.hits else asked
            failed = rng.binomial(calls, rates)
        # Of those whose first error is among them: so many calls came before it.
        before = calls * (1.0 - rng.random(users.count) ** (1.0 / np.maximum(failed, 1)))
        before = np.minimum(before.astype(np.int64), calls - failed)
        is_known, is_new = self._errors > 0, failed > 0
        self._told = self._told + np.where(is_known, calls, np.where(is_new, calls - before, 0))
        self._requests, self._calls = self._requests + asked, self._calls + calls
        self._errors, self._seen = self._errors + failed, self._seen + (calls > 0)

    def arms(self) -> tuple[ArmCounts, ArmCounts]:
        """Return what the controller is told."""
        return self._arm(~self._is_given), self._arm(self._is_given)

    def _arm(self, is_in: NDArray[np.bool_]) -> ArmCounts:
        requests, calls, errors, units = (
            int(counts[is_in].sum())
            for counts in (self._requests, self._calls, self._errors, self._seen)
        )
        is_told = is_in & (self._errors > 0)
        told = zip(self._told[is_told].tolist(), self._errors[is_told].tolist(), strict=True)
        seen = ArmSeen(calls, units, errors, int(is_told.sum()), requests=requests)
        return ArmCounts(
            seen,
            units=float(units),
            assigned=int((is_in & (self._requests > 0)).sum()),
            requests=requests,
            unit_events={"errors": tuple(told)},
        )


def are_rolled_back(
    users: Users, steps: tuple[tuple[float, float], ...], seed: int
) -> tuple[bool, bool]:
    """Tell whether guards, and a naive one, ever find harm if steps of (percent, requests) follow.

    They look each time that it is time for units, which is when they may find something.  The naive
    one is a z-test of all requests of a step.
    """
    is_naive = False
    crowd = Crowd(users, seed)
    past: list[Segment] = []
    for step, (percent, requests) in enumerate(steps, 1):
        crowd.begin(percent)
        guards = _guards(users, percent, past, len(steps))
        at = 0.0
        due = LOOK_REQUESTS
        while at < requests:
            crowd.go_on((min(due, requests) - at) / users.requests_per_s)
            at, due = min(due, requests), due * LOOK_FACTOR
            arms = crowd.arms()
            is_naive |= _z_of(*(arm.seen for arm in arms)) > 1.6449
            guards.look(at / users.requests_per_s, *arms)
            if guards.verdict().harms:
                return True, is_naive
        past.append(_ended(step, percent, crowd, guards))
    return False, is_naive


def _z_of(baseline: ArmSeen, candidate: ArmSeen) -> float:
    if min(baseline.requests, candidate.requests) < 20:
        return 0.0
    rates = [arm.errors / arm.requests for arm in (baseline, candidate)]
    asked = baseline.requests + candidate.requests
    pooled = (baseline.errors + candidate.errors) / asked
    error = math.sqrt(
        pooled * (1.0 - pooled) * (1.0 / baseline.requests + 1.0 / candidate.requests)
    )
    return (rates[1] - rates[0]) / error if error else 0.0


def _guards(users: Users, percent: float, past: list[Segment], steps: int) -> Guards:
    return Guards(
        Guard(),
        share=percent / 100.0,
        past=past,
        steps=steps,
        sticky=True,
        cached=users.hits is not None,
    )


def _ended(step: int, percent: float, crowd: Crowd, guards: Guards) -> Segment:
    arms = dict(zip(("stable", "canary"), (arm.seen for arm in crowd.arms()), strict=True))
    weights = {"stable": 100.0 - percent, "canary": percent}
    return Segment(step, weights, arms, guards.verdict().segment_log_e)


@dataclass(frozen=True)
class End:
    """How a rollout ended."""

    state: str  # "rolled_back", "promoted", or "running" if it went on to the end of patience
    percent: float  # the candidate's in the end
    at_s: float
    calls: int  # the candidate's, all in all
    failed: int  # of these
    waits_for: str


def rolled_out(
    users: Users,
    seed: int,
    hold_s: float = 60.0,
    patience_s: float = 1500.0,
    span_s: Callable[[float], float] = lambda held_s: min(5.0, max(1.0, held_s / 8)),
) -> End:
    """Roll a candidate out, by the controller's guards and policy.

    Args:
        users: who calls.
        seed: of all that is random.
        hold_s: of every step.
        patience_s: for how long it goes on.
        span_s: between two looks, by the time since the segment began.
    """
    crowd = Crowd(users, seed)
    spec = spec_of(*STEPS, hold_s=hold_s)
    state: RolloutState | None = None
    guards: Guards | None = None
    verdict, counts = Verdict(), dict[str, ArmCounts]()
    now_s = begun_s = percent = 0.0
    calls = failed = 0
    while True:
        look = look_at(
            spec, state, percent, verdict, now_s=now_s, held_s=now_s - begun_s, counts=counts
        )
        move = policy.move(look)
        if move is not None:
            if counts:
                calls += counts["canary"].seen.calls
                failed += counts["canary"].seen.errors
            state, percent, begun_s, counts = move.state, move.weights["canary"], now_s, {}
            if state.state != "running":
                return End(state.state, look.weights["canary"], now_s, calls, failed, state.reason)
            crowd.begin(percent)
            guards = _guards(users, percent, list(state.segments), len(STEPS))
            verdict = Verdict()
            continue
        if now_s >= patience_s:
            seen = counts["canary"].seen
            calls, failed = calls + seen.calls, failed + seen.errors
            return End("running", percent, now_s, calls, failed, policy.waits_for(look))
        seconds = span_s(now_s - begun_s)
        crowd.go_on(seconds)
        now_s += seconds
        arms = crowd.arms()
        counts = dict(zip(("stable", "canary"), arms, strict=True))
        if guards is not None and state is not None and state.step:
            guards.look(now_s, *arms)
            verdict = guards.verdict()


def median_failed(ends: list[End]) -> float:
    """Return how many calls of the candidate failed until it was rolled back; inf: it never was."""
    return float(np.median([e.failed if e.state == "rolled_back" else math.inf for e in ends]))
