"""Instances as numbers of the pool's view."""

from __future__ import annotations

from typing import Any

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from edge.pool_metrics import pool_text

WHOLE = {
    "leaks_task": 2,
    "leaks_instance": 0,
    "calls/RunTask/ok": 5,
    "calls/RunTask/throttled": 1,
}
GPU = {"instances_desired": 2, "instances": 2, "instances_joined": 1, "instances_max": 4}


def shown(*nodes: dict[str, Any]) -> dict[tuple[str, ...], float]:
    """Return the samples about instances: name and labels' values → value."""
    status = {"workers": [], "edges": [], "endpoints": [], "nodes": nodes}
    text = pool_text(msgspec.json.encode(status)).decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith(("tidepool_instances", "tidepool_launcher"))
    }


def test_pools_are_told_apart_and_what_is_of_the_launcher_is_there_once() -> None:
    small = {"instances_desired": 0, "instances": 0, "instances_joined": 0, "instances_max": 1}
    gpu = {"id": "gpu", "places": [], "counts": {**GPU, **WHOLE, "look_age_ms": 1500}}
    other = {"id": "small", "places": [], "counts": {**small, **WHOLE, "look_age_ms": 1700}}
    assert shown(gpu, other) == {
        ("tidepool_instances", "gpu", "desired"): 2,
        ("tidepool_instances", "gpu", "running"): 2,
        ("tidepool_instances", "gpu", "joined"): 1,
        ("tidepool_instances", "small", "desired"): 0,
        ("tidepool_instances", "small", "running"): 0,
        ("tidepool_instances", "small", "joined"): 0,
        ("tidepool_instances_max", "gpu"): 4,
        ("tidepool_instances_max", "small"): 1,
        ("tidepool_launcher_calls_total", "RunTask", "ok"): 5,
        ("tidepool_launcher_calls_total", "RunTask", "throttled"): 1,
        ("tidepool_launcher_leaks_total", "instance"): 0,
        ("tidepool_launcher_leaks_total", "task"): 2,
        ("tidepool_launcher_look_age_seconds",): 1.5,
    }


def test_nodes_that_launch_no_instances_have_nothing_to_tell() -> None:
    assert shown({"id": "n", "places": [], "counts": {}}, {"id": "old", "places": []}) == {}
