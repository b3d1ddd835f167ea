"""What the edges of a node have counted, together and over their restarts."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from edge.arm_metrics import PHASES, ArmMetrics, ArmTotal, Histogram, sum_of, total_of
from edge.dispatching.calls import Answer
from edge.metrics import Counter, Metrics
from edge.snapshot import ArmOf
from edge.trace import Trace, count
from pool.wire.histogram import BOUNDS_S

KEY = ("e", 1, "a", "1")


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Read the text as Prometheus would."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def total(metrics: Metrics, name: str, **labels: str) -> float:
    """Add up the samples of a metric that have these labels."""
    return sum(
        value
        for (n, found), value in samples(metrics).items()
        if n == name and found >= labels.items()
    )


def serve(metrics: Metrics, requests: int, *, status: int = 200, revision: int = 1) -> None:
    arm = metrics.arm(("e", revision, "a", "1"))
    for _ in range(requests):
        arm.statuses[status] = arm.statuses.get(status, 0) + 1
        arm.requests += 1
        arm.request_s.observe(0.003)
        arm.batch_rows.observe(4)


def test_counters_of_all_processes_add_up(tmp_path: Path) -> None:
    one, other = Metrics(tmp_path, "e1"), Metrics(tmp_path, "e2")
    serve(one, 3)
    serve(other, 4, status=500)
    one.count("tidepool_requests", "", "", "", "401")
    other.save()
    assert total(one, "tidepool_requests_total") == 8
    assert total(one, "tidepool_requests_total", status="500", endpoint="e", variant="a") == 4
    assert total(one, "tidepool_requests_total", status="401") == 1


def test_histograms_of_all_processes_add_up(tmp_path: Path) -> None:
    one, other = Metrics(tmp_path, "e1"), Metrics(tmp_path, "e2")
    serve(one, 3)
    serve(other, 4)
    other.save()
    assert total(one, "tidepool_request_seconds_count") == 7
    assert total(one, "tidepool_request_seconds_sum") == pytest.approx(0.021)
    assert total(one, "tidepool_request_seconds_bucket", le="0.002") == 0
    assert total(one, "tidepool_request_seconds_bucket", le="0.005") == 7
    assert total(one, "tidepool_request_seconds_bucket", le="+Inf") == 7
    assert total(one, "tidepool_batch_rows_bucket", le="3") == 0
    assert total(one, "tidepool_batch_rows_bucket", le="4") == 7


def test_revisions_of_an_arm_are_one_series(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, "e1")
    serve(metrics, 3, revision=1)
    serve(metrics, 4, revision=2)
    assert total(metrics, "tidepool_requests_total") == 7
    assert total(metrics, "tidepool_request_seconds_count") == 7


def test_hits_and_misses_are_told_apart(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, "e1")
    serve(metrics, 5)
    metrics.arm(KEY).hits = 2
    assert total(metrics, "tidepool_cache_total", outcome="hit") == 2
    assert total(metrics, "tidepool_cache_total", outcome="miss") == 3


def test_cold_calls_of_all_processes_add_up(tmp_path: Path) -> None:
    one, other = Metrics(tmp_path, "e1"), Metrics(tmp_path, "e2")
    one.arm(KEY).cold_calls, other.arm(KEY).cold_calls = 2, 3
    one.save()
    assert total(other, "tidepool_cold_calls_total", endpoint="e", variant="a", version="1") == 5


def test_of_the_silences_of_a_node_the_longest_is_shown(tmp_path: Path) -> None:
    name = "tidepool_controller_silence_seconds"
    one, other = Metrics(tmp_path, "e1"), Metrics(tmp_path, "e2")
    one.extra = lambda: ([], [Counter(name, (), 70.5)])
    other.extra = lambda: ([], [Counter(name, (), 0.5)])
    one.save()
    assert total(other, name) == 70.5


def test_no_counter_falls_when_a_process_begins_anew(tmp_path: Path) -> None:
    sibling = Metrics(tmp_path, "e2")
    for restart in range(1, 4):
        metrics = Metrics(tmp_path, "e1")
        serve(metrics, 5)
        assert total(metrics, "tidepool_requests_total") == 5 * restart
        assert total(sibling, "tidepool_request_seconds_count") == 5 * restart
    assert len(list(tmp_path.glob("*.json"))) == 2, "restarts leave no files behind"


def test_saving_again_and_again_counts_once(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, "e1")
    serve(metrics, 5)
    for _ in range(3):
        metrics.save()
        assert total(metrics, "tidepool_requests_total") == 5


@pytest.mark.parametrize("content", [b"", b"{", b'{"counters": 1}', b"[]"])
def test_file_that_cannot_be_read_is_left_out(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "e1.json").write_bytes(content)
    (tmp_path / "e9.json").write_bytes(content)
    metrics = Metrics(tmp_path, "e1")
    serve(metrics, 2)
    assert total(metrics, "tidepool_requests_total") == 2


def test_disk_that_is_full_costs_the_file_and_not_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    metrics = Metrics(tmp_path, "e1")
    serve(metrics, 2)
    monkeypatch.setattr(Path, "write_bytes", full)
    assert total(metrics, "tidepool_requests_total") == 2


def test_what_others_count_is_followed(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, "e1")
    metrics.follow("tidepool_dispatch_retries", lambda: 3)
    metrics.in_flight = lambda: 7
    assert total(metrics, "tidepool_dispatch_retries_total") == 3
    assert total(metrics, "tidepool_in_flight") == 7


def test_names_that_users_choose_cannot_break_the_text(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, "e1")
    odd = 'a"b\\c\nd'
    arm = metrics.arm((odd, 1, "a", "1"))
    arm.statuses[200] = 1
    arm.request_s.observe(0.003)
    assert total(metrics, "tidepool_requests_total", endpoint=odd) == 1
    assert total(metrics, "tidepool_request_seconds_count", endpoint=odd) == 1


def test_value_on_a_bound_belongs_below_it(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, "e1")
    for bound in BOUNDS_S:
        metrics.arm(KEY).queue_s.observe(bound)
    assert metrics.arm(KEY).queue_s.counts == [1] * len(BOUNDS_S) + [0]


def test_file_counted_by_other_bounds_is_left_out(tmp_path: Path) -> None:
    old, new = Metrics(tmp_path, "e1"), Metrics(tmp_path, "e2")
    serve(old, 3)
    arm = old.arm(KEY)
    arm.request_s = Histogram(BOUNDS_S[:-1])
    arm.request_s.observe(0.003)
    old.save()
    serve(new, 4)
    assert total(new, "tidepool_request_seconds_count") == 4


def test_gauges_of_a_process_that_has_ended_are_forgotten(tmp_path: Path) -> None:
    ended, alive = Metrics(tmp_path, "e1"), Metrics(tmp_path, "e2")
    serve(ended, 3)
    ended.in_flight = lambda: 5
    ended.pending = lambda: {("e", "a", "1"): 2}
    alive.in_flight = lambda: 1
    ended.save()
    assert total(alive, "tidepool_in_flight") == 6
    long_ago = time.time() - 60
    os.utime(tmp_path / "e1.json", (long_ago, long_ago))
    assert total(alive, "tidepool_in_flight") == 1
    assert total(alive, "tidepool_requests_total") == 3
    assert triton(alive)["nv_inference_pending_request_count", "e", "1", ""] == 0


def triton(metrics: Metrics) -> dict[tuple[str, str, str, str], float]:
    """Read the view for Triton's dashboards: by name, model, version and reason."""
    return {
        (s.name, s.labels["model"], s.labels["version"], s.labels.get("reason", "")): s.value
        for family in text_string_to_metric_families(metrics.triton_text().decode())
        for s in family.samples
    }


def test_view_for_triton_adds_up_with_the_native_one(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, "e1")
    for variant, version in (("a", "1"), ("b", "2"), ("c", "2")):
        for status in (200, 200, 200, 429, 499, 500, 502, 503, 504, 422):
            trace = Trace("id", 10.0, arm=arm_of(metrics, variant, version), rows=3)
            trace.auth_s, trace.parse_s, trace.cache_s, trace.respond_s = 1e-6, 2e-5, 3e-6, 4e-5
            trace.answer, trace.dispatched = Answer([], 1000, 2000, 12), True
            trace.ended_s = 10.004
            count(trace, status)
        hit = Trace("id", 10.0, arm=arm_of(metrics, variant, version), rows=3, cache_s=5e-6)
        hit.answer, hit.ended_s = Answer([], 0, 0, 0), 10.001
        count(hit, 200)
    view = triton(metrics)

    def shown(name: str, version: str = "2", reason: str = "") -> float:
        return view[name, "e", version, reason]

    def native(name: str, **labels: str) -> float:
        return total(metrics, name, endpoint="e", version="2", **labels)

    requests = native("tidepool_requests_total")
    reasons = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
    failures = {r: shown("nv_inference_request_failure", reason=r) for r in reasons}
    assert failures == {"REJECTED": 4, "CANCELED": 2, "BACKEND": 4, "OTHER": 4}
    assert shown("nv_inference_request_success") == 8
    assert shown("nv_inference_request_success") + sum(failures.values()) == requests == 22
    assert shown("nv_inference_count") == native("tidepool_rows_total") == 18
    assert shown("nv_inference_exec_count") == round(native("tidepool_executions_total")) == 2
    for name, phase in (
        ("queue", "queue"), ("compute_input", "parse"), ("compute_infer", "infer"),
        ("compute_output", "respond"),
    ):  # fmt: skip
        of_phase = native(f"tidepool_{phase}_seconds_sum")
        assert shown(f"nv_inference_{name}_duration_us") == pytest.approx(of_phase * 1e6) != 0
    assert shown("nv_inference_request_duration_us") == pytest.approx(6 * 4000 + 2 * 1000)
    lookups = native("tidepool_cache_seconds_count")
    hits, misses = shown("nv_cache_num_hits_per_model"), shown("nv_cache_num_misses_per_model")
    assert (hits, hits + misses) == (2, lookups)
    looked = shown("nv_cache_hit_duration_per_model") + shown("nv_cache_miss_duration_per_model")
    assert looked == pytest.approx(native("tidepool_cache_seconds_sum") * 1e6, abs=1)
    assert shown("nv_inference_request_success", version="1") == 4


def arm_of(metrics: Metrics, variant: str, version: str) -> ArmOf:
    """Return an arm as a snapshot has it; nothing here looks at its version."""
    nothing: Any = None
    return ArmOf(variant, nothing, metrics.arm(("e", 1, variant, version)), "fp32")


def test_phase_that_did_not_happen_is_not_observed(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, "e1")
    refused = Trace("id", 10.0, arm=arm_of(metrics, "a", "1"), auth_s=1e-6, ended_s=10.001)
    count(refused, 400)
    counts = {
        phase: total(metrics, f"tidepool_{phase}_seconds_count") for phase in ("request", *PHASES)
    }
    assert counts == {**dict.fromkeys(PHASES, 0), "request": 1, "auth": 1}


ends = st.tuples(
    st.sampled_from([200, 200, 200, 499, 500, 503]),
    st.booleans(),
    st.floats(0.0, 40.0),
    st.integers(1, 32),
)


def counted(given: list[tuple[int, bool, float, int]]) -> ArmTotal:
    """Count requests as one process does: status, whether computed, seconds, rows."""
    arm = ArmMetrics()
    nothing: Any = None
    for status, dispatched, took_s, rows in given:
        trace = Trace("id", 0.0, arm=ArmOf("a", nothing, arm, "fp32"), rows=rows)
        trace.ended_s = took_s
        trace.auth_s, trace.parse_s, trace.cache_s, trace.respond_s = 1e-6, took_s / 9, 3e-6, 4e-5
        trace.answer = Answer([], int(took_s * 1e5), int(took_s * 1e6), 32)
        trace.dispatched = dispatched
        count(trace, status)
    return total_of(arm, 1000.0, 500.0)


@settings(max_examples=50, deadline=None)
@given(st.lists(ends, max_size=12), st.lists(ends, max_size=12))
def test_sum_over_processes_is_what_one_would_have_counted(
    one: list[tuple[int, bool, float, int]], other: list[tuple[int, bool, float, int]]
) -> None:
    apart, together = sum_of(counted(one), counted(other)), counted(one + other)
    for field in ("statuses", "requests", "errors", "hits", "rows"):
        assert getattr(apart, field) == getattr(together, field), field
    for field in ("executions", "ok_s", "hit_s"):
        assert getattr(apart, field) == pytest.approx(getattr(together, field)), field
    for name, buckets in together.histograms.items():
        assert apart.histograms[name].counts == buckets.counts
        assert apart.histograms[name].sum == pytest.approx(buckets.sum)


def test_last_answer_is_the_later_one_of_both() -> None:
    early, late = counted([(200, True, 1.0, 1)]), counted([(200, True, 9.0, 1)])
    assert sum_of(early, late).last_ms == sum_of(late, early).last_ms == late.last_ms
    assert late.last_ms == early.last_ms + 8000


def spend(metrics: Metrics, device: str, hours: float, *, revision: int = 1) -> None:
    spent_us = metrics.arm(("e", revision, "a", "1")).device_us
    spent_us[device] = spent_us.get(device, 0) + round(hours * 3.6e9)


def test_device_time_and_its_cost_are_counted_by_endpoint_and_device(tmp_path: Path) -> None:
    prices = {"gpu": 0.8, "h100": 4.0}
    one, other = Metrics(tmp_path, "e1", prices), Metrics(tmp_path, "e2", prices)
    spend(one, "nvidia-l4", 1)
    spend(one, "cpu", 5)
    spend(other, "nvidia-l4", 2, revision=2)
    spend(other, "nvidia-h100", 0.5)
    other.save()
    seconds = [total(one, "tidepool_device_seconds_total", device=d) for d in ("nvidia-l4", "cpu")]
    assert seconds == [3 * 3600, 5 * 3600]
    costs = {
        device: total(one, "tidepool_device_cost_usd_total", endpoint="e", device=device)
        for device in ("nvidia-l4", "nvidia-h100", "cpu")
    }
    assert costs == pytest.approx({"nvidia-l4": 2.4, "nvidia-h100": 2.0, "cpu": 0.0})


def test_what_was_spent_keeps_the_price_of_its_day(tmp_path: Path) -> None:
    before = Metrics(tmp_path, "e1", {"gpu": 2.0})
    spend(before, "nvidia-l4", 1)
    before.save()
    after = Metrics(tmp_path, "e1", {"gpu": 1.0})
    spend(after, "nvidia-l4", 1)
    assert total(after, "tidepool_device_cost_usd_total") == pytest.approx(3.0)
