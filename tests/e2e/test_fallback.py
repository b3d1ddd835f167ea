"""A pool that is not there yet, and fallback workers that answer meanwhile: real processes."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from registry_sync.publish import publish
from tests.support.models import identity
from tests.support.nodes import Fleet, running_fleet
from tests.support.seaweed import BUCKET, S3Server
from tests.support.stack import until

INPUT = {"x": ("FP32", [1, 4], [1.0, -2.0, 3.5, 0.25])}
HEADERS = {"cache-control": "no-store"}
PATIENCE_S = 60.0  # interpreters start, on a machine that other tests keep busy


@pytest.fixture
def fleet(tmp_path: Path, seaweed: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """A controller, an edge, and a node of fallback workers; no other worker."""
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    with running_fleet(
        *(tmp_path, f"s3://{BUCKET}/{tmp_path.name}", seaweed.environment),
        edges=1,
        pool_arguments=("--fallback",),
    ) as made:
        publish(made.store, "m", identity(tmp_path / "m.onnx", shape=("N", 4)), None)
        yield made


def state(fleet: Fleet) -> tuple[int, str]:
    """Return whether the model is ready, and where it is."""
    found = fleet.request("GET", "/v2/models/m/ready")
    return found.status, found.headers.get("x-tidepool-state", "")


@contextmanager
def traffic(fleet: Fleet) -> Iterator[Counter[int]]:
    """Call the model again and again, and count how that ended."""
    found: Counter[int] = Counter()
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.wait(0.01):
            found[fleet.infer("m", INPUT, HEADERS).status] += 1

    caller = threading.Thread(target=ask)
    caller.start()
    try:
        yield found
    finally:
        is_over.set()
        caller.join()


@pytest.mark.slow
def test_answers_move_to_the_pool_when_it_comes_and_back_when_it_goes_and_none_fails(
    fleet: Fleet, tmp_path: Path
) -> None:
    fleet.poke()
    until(lambda: state(fleet) == (503, "no_worker"), PATIENCE_S, "nobody may answer")
    fleet.edit_endpoint("m", scale={"fallback": "cpu"})
    until(lambda: state(fleet)[0] == 200, PATIENCE_S, "the fallback worker may")
    with traffic(fleet) as ended:
        until(lambda: state(fleet) == (200, "fallback"), PATIENCE_S, "it does")
        pool = fleet.tier(
            *("pool", "--data", str(tmp_path / "c"), "--registry", fleet.options.registry),
            *("--listen-host", "127.0.0.1", "--lame-duck-s", "0", "--device", "cpu"),
        )
        fleet.tiers.append(pool)
        pool.start()
        until(lambda: state(fleet) == (200, "warm"), PATIENCE_S, "the pool has it")
        status = fleet.status()
        by = {worker["fallback"]: worker for worker in status["workers"]}
        (variant,) = status["endpoints"][0]["variants"]
        assert (variant["replicas"], variant["state"]) == (1, "warm")
        until(lambda: not fallbacks(fleet), PATIENCE_S, "the fallback's copy has gone")
        answered = helped(fleet)
        assert answered > 0
        before = sum(ended.values())
        until(lambda: sum(ended.values()) >= before + 20, PATIENCE_S, "calls go on")
        assert helped(fleet) <= answered + 1, "all of them at the pool"
        pool.stop(signal.SIGTERM)
        until(lambda: state(fleet) == (200, "fallback"), PATIENCE_S, "back again")
        before = sum(ended.values())
        until(lambda: sum(ended.values()) >= before + 20, PATIENCE_S, "calls go on")
        assert helped(fleet) > answered
    assert by.keys() == {True, False}
    assert ended.keys() == {200}, ended


def fallbacks(fleet: Fleet) -> int:
    """Return on how many fallback workers the model is warm."""
    (variant,) = fleet.status()["endpoints"][0]["variants"]
    return int(variant["fallbacks"])


def helped(fleet: Fleet) -> int:
    """Return how many calls fallback workers have answered."""
    text = fleet.request("GET", "/metrics", admin=True).body.decode()
    name = "tidepool_fallback_answers_total{"
    return int(sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name)))
