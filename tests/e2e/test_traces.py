"""Traces: from the client's span to the run that answered it, as a collector gets them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.collector import Collector, Sent, collector
from tests.support.observed_engine import Diary
from tests.support.stack import TEST_ENGINES, Stack, running_stack, until

INTERNAL, SERVER, CLIENT = 1, 2, 3
MODEL = "traced"


@pytest.fixture(scope="module")
def traces() -> Iterator[Collector]:
    with collector() as found:
        yield found


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, traces: Collector) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("traces")
    with running_stack(folder, engines=TEST_ENGINES, env=traces.environment) as stack:
        yield stack


@pytest.fixture(scope="module")
def diary(stack: Stack) -> Diary:
    return stack.publish_observed(MODEL, rows_max=8)


class Client:
    """Somebody who traces a call of his own."""

    def __init__(self, *, sampled: bool = True) -> None:
        self.trace_id, self.span_id = secrets.token_hex(16), secrets.token_hex(8)
        flags = "01" if sampled else "00"
        self.headers = {"traceparent": f"00-{self.trace_id}-{self.span_id}-{flags}"}


def spans_of(traces: Collector, client: Client, name: str) -> list[Sent]:
    """Wait for the spans of that name; their ends are sent a moment after the answer."""
    found: list[Sent] = until(
        lambda: traces.of(client.trace_id).get(name), 20.0, f"the span {name} was sent"
    )
    return found


def test_one_call_is_one_trace_from_the_client_to_its_run(
    stack: Stack, diary: Diary, traces: Collector
) -> None:
    client = Client()
    answer = stack.infer_observed(MODEL, 4711, client.headers, delay_ms=20)
    assert answer.status == 200
    (call,), (batch,) = (spans_of(traces, client, name) for name in ("call", "batch"))
    (request,) = spans_of(traces, client, "POST /v2/models/{model}/infer")
    (dispatch,) = spans_of(traces, client, "dispatch")
    assert [request.parent_id, dispatch.parent_id, call.parent_id, batch.parent_id] == [
        client.span_id,
        request.span_id,
        dispatch.span_id,
        call.span_id,
    ]
    assert [span.kind for span in (request, dispatch, call, batch)] == [
        SERVER,
        CLIENT,
        SERVER,
        INTERNAL,
    ]
    assert [span.service for span in (request, call)] == ["tidepool-edge", "tidepool-worker"]
    assert request.started_s <= dispatch.started_s <= call.started_s <= batch.started_s
    assert batch.ended_s <= call.ended_s <= dispatch.ended_s <= request.ended_s
    assert batch.ended_s - batch.started_s >= 0.02
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["tidepool.request_id"] == answer.headers["x-request-id"]
    assert request.attributes["tidepool.endpoint"] == MODEL
    assert dispatch.attributes["tidepool.worker"]


def test_calls_that_share_a_run_are_linked_to_it(
    stack: Stack, diary: Diary, traces: Collector
) -> None:
    first, others = Client(), [Client() for _ in range(4)]

    def call(client: Client, x: int, delay_ms: int) -> int:
        return stack.infer_observed(MODEL, x, client.headers, delay_ms=delay_ms).status

    start = secrets.randbelow(1 << 30)
    with ThreadPoolExecutor(5) as threads:
        before = diary.count("run")
        blocking = threads.submit(call, first, start, 500)
        until(lambda: diary.count("run") > before, 20.0, "the first one runs")
        waiting = [
            threads.submit(call, client, start + 1 + at, 1) for at, client in enumerate(others)
        ]
        assert {one.result() for one in (blocking, *waiting)} == {200}
    calls = {spans_of(traces, client, "call")[0].span_id for client in others}

    def shared() -> list[Sent]:
        spans = [span for span in list(traces.spans) if span.name == "batch"]
        return [span for span in spans if set(span.links) & calls]

    until(lambda: calls <= {link for run in shared() for link in run.links}, 20.0, "all linked")
    assert max(len(run.links) for run in shared()) > 1, "nothing was shared"
    for run in shared():
        assert run.attributes["tidepool.batch_calls"] == len(run.links)


def test_cached_answer_has_a_span_and_no_call(stack: Stack, traces: Collector) -> None:
    name = "traced-cached"
    stack.publish_observed(name, deterministic=True)
    x = secrets.randbelow(1 << 30)
    assert stack.infer_observed(name, x).status == 200
    client = Client()
    assert stack.infer_observed(name, x, client.headers).status == 200
    (request,) = spans_of(traces, client, "POST /v2/models/{model}/infer")
    assert request.attributes["tidepool.cache_status"].startswith("tidepool; hit")
    assert set(traces.of(client.trace_id)) == {request.name}


def test_failure_says_so_on_every_span(stack: Stack, traces: Collector) -> None:
    client = Client()
    broken = stack.publish_observed("traced-broken").path.with_suffix(".broken")
    broken.touch()
    assert stack.infer_observed("traced-broken", 1, client.headers).status == 500
    for name in ("POST /v2/models/{model}/infer", "dispatch", "call"):
        assert "told to fail" in spans_of(traces, client, name)[0].error


def test_what_is_not_sampled_sends_nothing(stack: Stack, diary: Diary, traces: Collector) -> None:
    silent, heard = Client(sampled=False), Client()
    for client in (silent, heard):
        assert stack.infer_observed(MODEL, secrets.randbelow(1 << 30), client.headers).status == 200
    for name in ("POST /v2/models/{model}/infer", "call"):
        spans_of(traces, heard, name)
    assert traces.of(silent.trace_id) == {}


def test_what_is_no_traceparent_begins_a_trace(
    stack: Stack, diary: Diary, traces: Collector
) -> None:
    answer = stack.infer_observed(MODEL, 1, {"traceparent": "nonsense"})
    assert answer.status == 200
    of_request = {"tidepool.request_id": answer.headers["x-request-id"]}

    def found() -> list[Sent]:
        spans = list(traces.spans)
        return [span for span in spans if of_request.items() <= span.attributes.items()]

    (request,) = until(found, 20.0, "the request has a span")
    assert request.parent_id == ""


def test_collector_that_fails_costs_no_call(stack: Stack, diary: Diary, traces: Collector) -> None:
    refused = traces.refused
    traces.is_broken = True
    try:
        until(
            lambda: (
                stack.infer_observed(MODEL, 1, Client().headers).status == 200
                and traces.refused > refused
            ),
            20.0,
            "spans were refused",
        )
        assert stack.infer_observed(MODEL, 1, Client().headers).status == 200
    finally:
        traces.is_broken = False
