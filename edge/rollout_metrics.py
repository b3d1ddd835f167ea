"""Rollouts as Prometheus text: part of the pool's view.

They are gauges throughout: what is counted of a rollout begins anew with the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
from prometheus_client.core import GaugeMetricFamily, Metric

STATES = ("running", "paused", "promoted", "rolled_back")

_ARM_GAUGES = {
    "share_seen": "Share of the units whose calls were computed, in percent.",
    "calls": "Calls that the guards have watched since the rollout began.",
    "failed_calls": "Of these, those that the model failed.",
    "slow_calls": "Of these, those that took longer than the guard allows.",
    "error_rate": "Share of the watched units that failed, 0 to 1.",
    "error_low": "Lower end of the interval around it, which holds at every look.",
    "error_high": "Upper end of the interval around it, which holds at every look.",
    "score_mean": "Mean of the largest value in the rows of the first output.",
}
_SHADOW_GAUGES = {
    "offered": "Copies of calls that were sampled for the candidate.",
    "dropped": "Of these, those that were dropped: the worker was busy, or the budget spent.",
    "failed": "Copies that the candidate did not answer.",
    "compared": "Copies whose two answers were compared.",
    "unlike": "Of these, answers of another form.",
    "rows": "Rows in the others whose largest value has a place.",
    "top1_off": "Of these rows, those where it is elsewhere.",
    "error_mean": "Mean relative error of the answers that are alike.",
    "error_max": "The largest relative error.",
    "device_seconds": "For which copies held the device, since the rollout began.",
}


class _Arm(msgspec.Struct):
    name: str
    version: str
    share_seen: float | None = None
    calls: float | None = None
    failed_calls: float | None = None
    slow_calls: float | None = None
    error_rate: float | None = None
    error_low: float | None = None
    error_high: float | None = None
    score_mean: float | None = None


class _Shadow(msgspec.Struct):
    offered: float | None = None
    dropped: float | None = None
    failed: float | None = None
    compared: float | None = None
    unlike: float | None = None
    rows: float | None = None
    top1_off: float | None = None
    error_mean: float | None = None
    error_max: float | None = None
    device_seconds: float | None = msgspec.field(name="device_s", default=None)


class Rollout(msgspec.Struct):
    """What is read of a rollout in the pool's status; a null is not known yet, and not shown."""

    state: str
    step: int
    steps: list[msgspec.Raw] = []
    variants: list[_Arm] = []
    e_values: dict[str, float] = {}
    harms: list[str] = []
    mismatch: str = ""
    warm: int | None = None
    wanted: int | None = None
    shadow: _Shadow | None = None


def rollout_families(rollouts: Sequence[tuple[str, Rollout]]) -> Iterator[Metric]:
    """Yield the metric families of rollouts by endpoint."""
    yield from _progress(rollouts)
    for field, help_text in _ARM_GAUGES.items():
        gauge = _gauge(field, help_text, "endpoint", "variant", "version")
        for endpoint, rollout in rollouts:
            for arm in rollout.variants:
                _add(gauge, (endpoint, arm.name, arm.version), getattr(arm, field))
        yield gauge
    e_value = _gauge("e_value", "Evidence of harm, by guard.", "endpoint", "guard")
    for endpoint, rollout in rollouts:
        for guard, value in sorted(rollout.e_values.items()):
            e_value.add_metric((endpoint, guard), value)
    yield e_value
    for field, help_text in _SHADOW_GAUGES.items():
        gauge = _gauge(f"shadow_{field}", help_text, "endpoint")
        for endpoint, rollout in rollouts:
            if rollout.shadow is not None:
                _add(gauge, (endpoint,), getattr(rollout.shadow, field))
        yield gauge


def _progress(rollouts: Sequence[tuple[str, Rollout]]) -> Iterator[Metric]:
    state = _gauge("state", "1 for the state that a rollout is in.", "endpoint", "state")
    step = _gauge("step", "The step that holds; 0 before the first one.", "endpoint")
    steps = _gauge("steps", "How many steps there are.", "endpoint")
    harm = _gauge("harm", "1 if a guard takes the candidate for worse.", "endpoint")
    mismatch = _gauge("mismatch", "1 if units are not split as the weights say.", "endpoint")
    warm = _gauge("warm", "Warm replicas of the candidate.", "endpoint")
    wanted = _gauge("wanted", "Replicas of the candidate that the next step needs.", "endpoint")
    for endpoint, rollout in rollouts:
        for name in STATES:
            state.add_metric((endpoint, name), rollout.state == name)
        step.add_metric((endpoint,), rollout.step)
        steps.add_metric((endpoint,), len(rollout.steps))
        harm.add_metric((endpoint,), bool(rollout.harms))
        mismatch.add_metric((endpoint,), bool(rollout.mismatch))
        _add(warm, (endpoint,), rollout.warm)
        _add(wanted, (endpoint,), rollout.wanted)
    yield from (state, step, steps, harm, mismatch, warm, wanted)


def _gauge(name: str, help_text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"tidepool_rollout_{name}", help_text, labels=labels)


def _add(gauge: GaugeMetricFamily, labels: Sequence[str], value: float | None) -> None:
    if value is not None:
        gauge.add_metric(labels, value)
