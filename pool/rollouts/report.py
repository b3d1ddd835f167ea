"""What `tidepool rollout status --json` prints: a pure view of one look at a rollout."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from pool.rollouts.evidence import Shown
from pool.rollouts.policy import e_of, finite, hold_s, waits_for
from pool.rollouts.signals import ArmCounts, Look, Verdict, added_seen
from pool.wire.histogram import quantile_s
from registry_sync.documents import Variant
from registry_sync.rollout_terms import ArmSeen, Rollout, RolloutState

CLASSES_SHOWN: Final = 10  # the most frequent ones; the others together are "other"


class ArmFigures(msgspec.Struct, frozen=True):
    """What is known of an arm from elsewhere than the evidence."""

    requests: int = 0  # ended since the rollout began, however
    errors: int = 0  # of these, failed by the model: 500, 502 and 504
    failed: int = 0  # of these, with 500 or more, also where no worker was asked
    hit_share: float | None = None  # over the last minute
    replicas: int = 0  # warm ones
    shown: Shown = Shown()


def report(
    look: Look,
    *,
    is_held: bool,
    mismatch_log_e: float,
    fires_at: Mapping[str, float],
    figures: Mapping[str, ArmFigures],
    shadow: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the document.

    Args:
        look: the last one.
        is_held: whether every live edge goes by the current weights.
        mismatch_log_e: of the split of units in this segment.
        fires_at: the e-values that are evidence, by guard.
        figures: by arm.
        shadow: how the candidate's answers to copies compare.
    """
    spec = look.spec
    rollout = spec.rollout
    assert rollout is not None
    state = look.state or RolloutState(rollout.id)
    is_live = state.state in ("running", "paused")
    verdict, more_log_e = look.verdict, {"mismatch": mismatch_log_e}
    if not is_live and state.evidence is not None:
        verdict, more_log_e = _decided_on(verdict, state.evidence), {}
    left_s = round(max(0.0, hold_s(look) - look.held_s), 3)
    units = sum(counts.units for counts in look.counts.values())
    return {
        "endpoint": spec.endpoint,
        "revision": spec.revision,
        "id": rollout.id,
        "state": state.state,
        "live": is_live,
        "step": state.step,
        "segment": state.segment,
        "wish": rollout.wish,
        "reason": state.reason,
        "at": state.at,
        "steps": [{"weight": step.weight, "hold_s": step.hold_s} for step in rollout.steps],
        "hold_left_s": left_s if is_live and is_held else None,
        "waits_for": waits_for(look),
        "warm": look.warm,
        "wanted": look.wanted,
        "guard": msgspec.to_builtins(rollout.guard),
        "harms": list(verdict.harms),
        "worse": verdict.worse,
        "mismatch": verdict.mismatch,
        "verdict": verdict_line(look),
        "e_values": {name: e_of(log_e) for name, log_e in {**verdict.log_e, **more_log_e}.items()},
        "fires_at": dict(fires_at),
        "variants": [
            _arm(look, rollout, variant, state, units, figures.get(variant.name, ArmFigures()))
            for variant in _in_order(spec.variants, rollout)
        ],
        "segments": [msgspec.to_builtins(segment) for segment in state.segments],
        "evidence": state.evidence,
        "shadow": None if shadow is None else dict(shadow),
    }


def _decided_on(verdict: Verdict, evidence: Mapping[str, Any]) -> Verdict:
    """Return the verdict at the end of a rollout: what comes in later decides nothing."""
    return msgspec.structs.replace(
        verdict,
        harms=tuple(evidence.get("harms", ())),
        worse=evidence.get("worse", ""),
        mismatch=evidence.get("mismatch", ""),
        log_e=evidence.get("log_e", {}),
    )


def verdict_line(look: Look) -> str:
    """Say in one line how the candidate does."""
    verdict, state = look.verdict, look.state
    if state is None or not state.step:
        return "nothing is compared yet"
    if state.state in ("promoted", "rolled_back"):
        return state.reason
    if verdict.harms:
        return "; ".join(verdict.harms)
    found = verdict.mismatch or verdict.worse or ("" if verdict.is_enough else verdict.waits_for)
    return f"no evidence of harm; {found}" if found else "no evidence of harm"


def _in_order(variants: tuple[Variant, ...], rollout: Rollout) -> list[Variant]:
    first = (rollout.baseline, rollout.candidate)
    return sorted(variants, key=lambda v: first.index(v.name) if v.name in first else 2)


def _arm(
    look: Look,
    rollout: Rollout,
    variant: Variant,
    state: RolloutState,
    units: float,
    figures: ArmFigures,
) -> dict[str, Any]:
    name = variant.name
    roles = {rollout.baseline: "baseline", rollout.candidate: "candidate"}
    counts = look.counts.get(name, ArmCounts())
    shown = figures.shown
    seen = added_seen(counts.seen, _more(_written(state, name), shown.seen))
    return {
        "name": name,
        "role": roles.get(name, "other"),
        "model": variant.model,
        "version": variant.version,
        "weight": look.weights.get(name, variant.weight),
        "share_seen": round(100.0 * counts.units / units, 4) if units else None,
        # Edges that have ended since took their counts of all requests with them.
        "requests": max(figures.requests, seen.calls),
        "errors": max(figures.errors, seen.errors),
        "failed": max(figures.failed, figures.errors, seen.errors),
        "hit_share": figures.hit_share,
        "calls": seen.calls,
        "units": seen.units,
        "failed_calls": seen.errors,
        "failed_units": seen.failed_units,
        "slow_calls": seen.slow,
        **_interval(look.verdict, name),
        "p50_ms": _ms(shown, 0.5),
        "p99_ms": _ms(shown, 0.99),
        "replicas": figures.replicas,
        **_scores(shown),
        "classes": _classes(shown.classes),
    }


def _written(state: RolloutState, name: str) -> ArmSeen:
    arms = (segment.arms.get(name, ArmSeen()) for segment in state.segments)
    return functools.reduce(added_seen, arms, ArmSeen())


def _more(one: ArmSeen, other: ArmSeen) -> ArmSeen:
    """Return the larger counts of the same segments.

    What comes in while a decision is written is not in the state; a new controller has heard of
    nothing that came before it.
    """
    return ArmSeen(*(max(getattr(one, f), getattr(other, f)) for f in ArmSeen.__struct_fields__))


def _interval(verdict: Verdict, name: str) -> dict[str, float | None]:
    found = verdict.intervals.get(name)
    low, rate, high = (None, None, None) if found is None else map(finite, found)
    return {"error_rate": rate, "error_low": low, "error_high": high}


def _ms(shown: Shown, q: float) -> float | None:
    found_s = quantile_s(shown.seconds, q)
    return None if found_s is None else round(found_s * 1e3, 3)


def _scores(shown: Shown) -> dict[str, float | None]:
    if not shown.scores:
        return {"score_mean": None, "score_std": None}
    mean = shown.score_sum / shown.scores
    variance = max(0.0, shown.score_squares / shown.scores - mean * mean)
    return {"score_mean": mean, "score_std": math.sqrt(variance)}


def _classes(classes: Mapping[str, int]) -> dict[str, int]:
    ranked = sorted(classes.items(), key=lambda item: (-item[1], item[0]))
    found = dict(ranked[:CLASSES_SHOWN])
    if rest := sum(count for _, count in ranked[CLASSES_SHOWN:]):
        found["other"] = found.get("other", 0) + rest
    return found
