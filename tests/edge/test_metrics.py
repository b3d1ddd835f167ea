"""What the edges of a node have counted, together and over their restarts."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edge.metrics import BOUNDS_S, Metrics

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
    one.count("tidepool_requests", "", "", "401")
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
    metrics.arm((odd, 1, "a", "1")).statuses[200] = 1
    assert total(metrics, "tidepool_requests_total", endpoint=odd) == 1


def test_value_on_a_bound_belongs_below_it(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, "e1")
    for bound in BOUNDS_S:
        metrics.arm(KEY).queue_s.observe(bound)
    assert metrics.arm(KEY).queue_s.counts == [1] * len(BOUNDS_S) + [0]
