"""What the edges of a running system count: each phase once, together, and over their restarts."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edge.arm_metrics import PHASES
from tests.support.stack import TEST_ENGINES, Stack, until

MODEL = "measured"


def phases(stack: Stack, model: str = MODEL) -> dict[str, float]:
    """Return how often each phase was observed."""
    return {
        phase: stack.metric(f"tidepool_{phase}_seconds_count", endpoint=model, version="1")
        for phase in ("request", *PHASES)
    }


def test_each_phase_is_observed_once_where_it_happened(stack: Stack) -> None:
    stack.publish_observed(MODEL, deterministic=True)
    assert set(phases(stack).values()) == {0}
    assert stack.infer_observed(MODEL, 1).status == 200
    assert phases(stack) == dict.fromkeys(("request", *PHASES), 1)
    assert stack.infer_observed(MODEL, 1).status == 200, "a hit: nothing is queued, nothing runs"
    assert phases(stack) == {**dict.fromkeys(("request", *PHASES), 2), "queue": 1, "infer": 1}
    assert stack.infer_observed(MODEL, 1, {"cache-control": "no-store"}).status == 200
    expected = {**dict.fromkeys(("request", *PHASES), 3), "queue": 2, "infer": 2, "cache": 2}
    assert phases(stack) == expected
    assert stack.metric("tidepool_rows_total", endpoint=MODEL) == 2
    assert stack.metric("tidepool_executions_total", endpoint=MODEL) == 2


def test_view_for_triton_is_asked_for_by_name(stack: Stack) -> None:
    answer = stack.request("GET", "/metrics?view=triton", admin=True, key=None)
    names = {f.name for f in text_string_to_metric_families(answer.body.decode())}
    assert {"nv_inference_request_success", "nv_inference_exec_count"} <= names
    assert not any(name.startswith("tidepool") for name in names)
    unknown = stack.request("GET", "/metrics?view=other", admin=True, key=None)
    assert (unknown.status, unknown.headers["content-type"]) == (400, "application/problem+json")


def test_view_of_the_pool_is_the_status_in_numbers(stack: Stack) -> None:
    model = "measured-pool"
    stack.publish_observed(model)
    for i in range(3):
        assert stack.infer_observed(model, i).status == 200
    until(lambda: stack.engine(model)[0]["runs"] == 3)
    answer = stack.request("GET", "/metrics?view=pool", admin=True, key=None)
    found = {
        (sample.name, sample.labels.get("model", "")): (sample.labels, sample.value)
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
        if sample.labels.get("model", model) == model
    }
    (worker,) = stack.status()["workers"]
    labels = {"worker": worker["id"], "model": model, "version": "1", "engine": "observed"}
    for name, value in (("runs_total", 3), ("rows_total", 3), ("loads_total", 1), ("bytes", 1024)):
        assert found[f"tidepool_engine_{name}", model] == (labels, value)
    assert found["tidepool_engine_run_seconds_total", model][1] > 0
    assert found["tidepool_engine_waiting", model][1] == 0
    state = {"worker": worker["id"], "state": "ready"}
    assert found["tidepool_worker_state", ""] == (state, 1)
    assert {("tidepool_replicas", ""), ("tidepool_plans", ""), ("tidepool_builds_total", "")} <= {
        *found
    }


def test_endpoint_is_charged_for_what_its_calls_have_run(stack: Stack) -> None:
    model = "charged"
    stack.publish_observed(model)
    with ThreadPoolExecutor(8) as pool:
        assert {
            answer.status for answer in pool.map(partial(stack.infer_observed, model), range(40))
        } == {200}
    until(lambda: stack.engine(model)[0]["rows"] == 40)
    labels = {"endpoint": model, "version": "1", "device": "cpu"}
    seconds = stack.metric("tidepool_device_seconds_total", **labels)
    assert seconds == pytest.approx(stack.engine(model)[0]["run_s"], abs=1e-9)
    assert stack.metric("tidepool_device_cost_usd_total", **labels) == pytest.approx(2 * seconds)


def test_counters_of_two_edges_add_up_and_outlive_them(
    start_stack: Callable[..., Stack],
) -> None:
    stack = start_stack(engines=TEST_ENGINES, edges=2)
    stack.publish_observed(MODEL)

    def ask(n: int) -> int:
        return stack.infer_observed(MODEL, n).status

    for round, stop in enumerate((signal.SIGTERM, signal.SIGKILL)):
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(ask, range(40))) == {200}
        # The process that is asked has written its own; its sibling does once a second.
        until_counted(stack, 40 * (round + 1))
        restart(stack, f"edge-{round}", stop)
        until_counted(stack, 40 * (round + 1))


def until_counted(stack: Stack, sent: int) -> None:
    """Wait until exactly so many requests are counted; an edge that ends may refuse to say."""

    def counted() -> tuple[float, float]:
        try:
            return (
                stack.metric("tidepool_requests_total", endpoint=MODEL, status="200"),
                stack.metric("tidepool_infer_seconds_count", endpoint=MODEL),
            )
        except OSError:
            return (0, 0)

    until(lambda: counted() == (sent, sent), what=f"{sent} requests")


def restart(stack: Stack, name: str, stop: signal.Signals) -> None:
    """End one process, and wait for the next of its name to serve."""
    before = stack.pids()[name]
    os.kill(before, stop)
    until(lambda: stack.pids().get(name, before) != before, 30, f"a new {name}")
    until(lambda: edges_of(stack) == 2, 30, f"{name} is registered")


def edges_of(stack: Stack) -> int:
    """Return how many edges have registered; one that ends may refuse to say."""
    try:
        return len(stack.status()["edges"])
    except OSError:
        return 0
