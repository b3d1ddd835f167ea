"""What the edges of this node have counted, as Triton's statistics extension says it.

Made from the same counters as the metrics (`arm_metrics`); by the name that was called, all
variants of a version together.  `success` and `queue` count every answer, those out of the cache
too; `compute_…`, `inference_count` and `execution_count` only what an engine ran.  A batch is
counted once, however many calls it held: each call of r of its b rows adds r/b.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from edge.arm_metrics import ArmTotal, sum_of
from edge.metrics import ArmRow

Name = tuple[str, str]  # as it was called, version


def by_version(rows: Iterable[ArmRow]) -> dict[Name, ArmTotal]:
    """Add up what was counted of each version under each name."""
    found: dict[Name, ArmTotal] = {}
    for row in rows:
        name = (row.arm[0], row.arm[2])
        known = found.get(name)
        found[name] = row.total if known is None else sum_of(known, row.total)
    return found


def model_stats(names: Iterable[Name], totals: Mapping[Name, ArmTotal]) -> dict[str, Any]:
    """Return the body of `/v2/models/…/stats`: one entry per name, also of one never called."""
    return {"model_stats": [_entry(*name, totals.get(name)) for name in names]}


def _entry(name: str, version: str, total: ArmTotal | None) -> dict[str, Any]:
    return {
        "name": name,
        "version": version,
        "last_inference": total.last_ms if total else 0,
        "inference_count": total.rows if total else 0,
        "execution_count": round(total.executions) if total else 0,
        "inference_stats": _inference_stats(total) if total else _NEVER,
        "response_stats": {},
        "batch_stats": _batch_stats(total) if total else [],
        "memory_usage": [],
    }


def _inference_stats(total: ArmTotal) -> dict[str, dict[str, int]]:
    computed = total.count("infer")
    batches = total.batches.values()
    return {
        "success": _duration(total.ok, total.ok_s),
        "fail": _duration(total.failed, total.failed_s),
        "queue": _duration(total.ok, total.seconds("queue")),
        "compute_input": _duration(computed, sum(batch.input_s for batch in batches)),
        "compute_infer": _duration(computed, total.seconds("infer")),
        "compute_output": _duration(computed, sum(batch.output_s for batch in batches)),
        "cache_hit": _duration(total.hits, total.hit_s),
        "cache_miss": _duration(total.misses, max(0.0, total.seconds("cache") - total.hit_s)),
    }


def _batch_stats(total: ArmTotal) -> list[dict[str, Any]]:
    return [
        {
            "batch_size": size,
            "compute_input": _duration(round(batch.runs), batch.input_s),
            "compute_infer": _duration(round(batch.runs), batch.infer_s),
            "compute_output": _duration(round(batch.runs), batch.output_s),
        }
        for size, batch in sorted(total.batches.items())
    ]


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": round(seconds * 1e9)}


_NEVER = dict.fromkeys(
    (
        "success", "fail", "queue", "compute_input", "compute_infer", "compute_output",
        "cache_hit", "cache_miss",
    ),
    _duration(0, 0.0),
)  # fmt: skip
