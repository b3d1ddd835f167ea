"""Triton's statistics out of the edge's own counters."""

from __future__ import annotations

from typing import Any

from edge.arm_metrics import ArmMetrics, sum_of, total_of
from edge.dispatching.calls import Answer
from edge.metrics import ArmRow
from edge.snapshot import ArmOf
from edge.statistics import by_version, model_stats
from edge.trace import Trace, count


def counted(*calls: tuple[int, int, int]) -> ArmMetrics:
    """An arm that answered calls of (rows, rows of their batch, infer_us); 0 rows: a hit."""
    arm = ArmMetrics()
    for rows, batch_rows, infer_us in calls:
        trace = Trace("id", started_s=1.0, ended_s=1.5, parse_s=0.1, respond_s=0.2, rows=rows)
        trace.arm = ArmOf("stable", None, arm, "fp32")  # type: ignore[arg-type]  # no version is looked at
        trace.cache_s = 0.01
        trace.dispatched = rows > 0
        trace.answer = Answer([], 1000, infer_us, batch_rows)
        count(trace, 200)
    return arm


def entry(*arms: ArmMetrics) -> dict[str, Any]:
    rows = [ArmRow(("m", f"v{i}", "1"), total_of(arm, 100.0, 2.0)) for i, arm in enumerate(arms)]
    (found,) = model_stats([("m", "1")], by_version(rows))["model_stats"]
    assert isinstance(found, dict)
    return found


def test_calls_of_one_batch_are_one_execution() -> None:
    found = entry(counted((3, 4, 8000), (1, 4, 8000)))
    assert (found["inference_count"], found["execution_count"]) == (4, 1)
    (batch,) = found["batch_stats"]
    assert batch["batch_size"] == 4
    assert batch["compute_infer"] == {"count": 1, "ns": 8_000_000}
    assert batch["compute_input"] == {"count": 1, "ns": 200_000_000}


def test_batches_are_told_apart_by_their_real_size() -> None:
    found = entry(counted((1, 1, 10), (9, 9, 10), (11, 11, 10), (11, 11, 10)))
    sizes = [(batch["batch_size"], batch["compute_infer"]["count"]) for batch in
             found["batch_stats"]]  # fmt: skip
    assert sizes == [(1, 1), (9, 1), (11, 2)]


def test_hits_are_answers_and_no_inferences() -> None:
    stats = entry(counted((2, 2, 10), (0, 0, 0), (0, 0, 0)))
    times = stats["inference_stats"]
    assert stats["inference_count"] == 2
    assert times["success"]["count"] == times["queue"]["count"] == 3
    assert times["compute_infer"]["count"] == times["compute_input"]["count"] == 1
    assert times["cache_hit"] == {"count": 2, "ns": 20_000_000}
    assert times["cache_miss"] == {"count": 1, "ns": 10_000_000}


def test_variants_and_processes_of_a_version_add_up() -> None:
    one, other = counted((1, 2, 10), (1, 2, 10)), counted((1, 2, 10), (5, 5, 10))
    found = entry(one, other)
    assert found["inference_count"] == 8
    assert [b["batch_size"] for b in found["batch_stats"]] == [2, 5]
    both = sum_of(total_of(one, 100.0, 2.0), total_of(other, 100.0, 2.0))
    assert {rows: batch.runs for rows, batch in both.batches.items()} == {2: 1.5, 5: 1.0}


def test_the_last_inference_is_the_latest_of_all() -> None:
    assert entry(counted((1, 1, 10)))["last_inference"] == 99_500


def test_failures_are_counted_apart() -> None:
    arm = counted((1, 1, 10))
    trace = Trace("id", started_s=1.0, ended_s=1.25)
    trace.arm = ArmOf("stable", None, arm, "fp32")  # type: ignore[arg-type]
    count(trace, 422)
    times = entry(arm)["inference_stats"]
    assert times["fail"] == {"count": 1, "ns": 250_000_000}
    assert times["success"] == {"count": 1, "ns": 500_000_000}


def test_what_was_never_called_has_an_entry_of_zeros() -> None:
    (found,) = model_stats([("m", "1")], {})["model_stats"]
    assert found["inference_stats"]["success"] == {"count": 0, "ns": 0}
    assert (found["last_inference"], found["batch_stats"]) == (0, [])
