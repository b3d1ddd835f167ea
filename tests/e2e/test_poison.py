"""A request that kills every worker that runs it, among many that do not: it ends, they go on."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator

import pytest

from tests.support.load import FEATURES, Load
from tests.support.stack import Answer, Stack, running_stack, until

pytestmark = pytest.mark.rule("F20", "SEC-12")

MODEL = "dying"  # by itself: its engine calls os._exit on 666
DEADLY = 666.0
BACK_S_MAX = 30.0  # a worker's start on a machine that other tests keep busy


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Three workers with the model in each, two edges."""
    folder = tmp_path_factory.mktemp("poison")
    engines = ["tests.support.counting_engine:DyingEngine"]
    with running_stack(folder, engines=engines, workers=3, edges=2) as made:
        tensor = ("FP32", (-1, FEATURES))
        made.publish_engine(MODEL, "dying", [("x", *tensor)], [("y", *tensor)], rows_max=8)
        made.edit_endpoint(MODEL, scale={"replicas_min": 3})
        until(lambda: warm(made) == 3, BACK_S_MAX, "a replica in every worker")
        yield made


def warm(stack: Stack) -> int:
    return sum(engine["state"] == "warm" for engine in stack.engine(MODEL))


def workers_ever(stack: Stack) -> int:
    """Return how many worker processes the controller has seen."""
    lines = map(json.loads, stack.log_text().splitlines())
    return len({line["worker_pid"] for line in lines if line.get("event") == "worker_registered"})


def ask(stack: Stack, *values: float) -> Answer:
    """Call over a connection of its own, which either edge may take."""
    row = [*values, *[0.0] * (FEATURES - len(values))]
    return stack.infer(MODEL, {"x": ("FP32", [1, FEATURES], row)})


def is_quarantined(answer: Answer) -> bool:
    return answer.status == 422 and "two workers died while they ran" in answer.error


def poison(stack: Stack, load: Load) -> float:
    """Send what kills; hold what is promised of it; return how long it took."""
    values = (DEADLY, random.random())  # never the same again, also where a test is tried again
    before = workers_ever(stack)
    began_s = time.monotonic()
    assert is_quarantined(ask(stack, *values))
    took_s = time.monotonic() - began_s
    load.more(200)
    until(lambda: warm(stack) == 3, BACK_S_MAX, "all workers are back")
    # Whichever edge gets it, and whoever sends it: nobody runs it any more.
    assert all(is_quarantined(ask(stack, *values)) for _ in range(8))
    assert workers_ever(stack) - before == 2
    return took_s


def test_one_poison_request_then_1000_good_ones(stack: Stack) -> None:
    with Load(stack.url, stack.key, MODEL, threads=6) as load:
        load.more(300)
        took_s = poison(stack, load)
        left = 1000 - load.answered
        if left > 0:
            load.more(left)
    load.assert_clean()
    row = stack.status()["quarantined"][-1]
    assert (row["model"], row["version"]) == (MODEL, "1")
    assert 500 < row["left_s"] <= 600
    until(lambda: stack.metric("tidepool_quarantine_requests_total"), 10.0, "it is counted")
    events = [json.loads(line) for line in stack.log_text().splitlines()]
    lines = [line for line in events if line.get("event") == "request_quarantined"]
    assert lines[-1]["fingerprint"] == row["fingerprint"]
    print(f"one poison request: 2 deaths, 422 after {took_s:.2f} s; {load.answered} good, 0 failed")


@pytest.mark.slow
def test_several_poison_requests_among_many_clients(stack: Stack) -> None:
    with Load(stack.url, stack.key, MODEL, threads=32) as load:
        load.more(2000)
        took_s = [poison(stack, load) for _ in range(3)]
    load.assert_clean()
    print(
        f"{len(took_s)} poison requests among 32 clients: 2 deaths each, 422 after "
        f"{', '.join(f'{s:.2f}' for s in took_s)} s; {load.answered} good, 0 failed"
    )
