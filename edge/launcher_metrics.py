"""Instances, and what is done about them, as Prometheus text: part of the pool's view.

Out of what a launcher of instances counts, which comes with the reports of the pools that it keeps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

_STATES = {
    "desired": "instances_desired",
    "running": "instances",
    "joined": "instances_joined",
}
_CALLS, _LEAKS = "calls/", "leaks_"  # how counts of the whole launcher begin


def launcher_families(pools: Sequence[tuple[str, Mapping[str, int]]]) -> Iterator[Metric]:
    """Yield the metric families of instances.

    Args:
        pools: the name of each and its counts; none: nobody launches instances here.
    """
    instances = GaugeMetricFamily(
        "tidepool_instances",
        "Instances that are wanted (desired), that are paid for (running), that can take tasks "
        "(joined).",
        labels=("pool", "state"),
    )
    most = GaugeMetricFamily(
        "tidepool_instances_max", "Instances that a pool may have.", labels=("pool",)
    )
    whole: dict[str, int] = {}  # every pool tells the same
    for pool, counts in pools:
        for state, name in _STATES.items():
            if name in counts:
                instances.add_metric((pool, state), counts[name])
        if "instances_max" in counts:
            most.add_metric((pool,), counts["instances_max"])
        for name, count in counts.items():
            whole[name] = max(count, whole.get(name, 0))
    calls = CounterMetricFamily(
        "tidepool_launcher_calls", "Calls of the cloud's API.", labels=("call", "outcome")
    )
    leaks = CounterMetricFamily(
        "tidepool_launcher_leaks", "Tasks and instances that nobody knew, ended.", labels=("what",)
    )
    for name, count in sorted(whole.items()):
        if name.startswith(_CALLS):
            call, _, outcome = name.removeprefix(_CALLS).partition("/")
            calls.add_metric((call, outcome), count)
        elif name.startswith(_LEAKS):
            leaks.add_metric((name.removeprefix(_LEAKS),), count)
    age = GaugeMetricFamily(
        "tidepool_launcher_look_age_seconds", "Since instances and tasks were last looked at."
    )
    if "look_age_ms" in whole:
        ages = [counts["look_age_ms"] for _, counts in pools if "look_age_ms" in counts]
        age.add_metric((), min(ages) / 1e3)
    yield from (instances, most, calls, leaks, age)
