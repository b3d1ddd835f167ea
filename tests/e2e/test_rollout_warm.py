"""Rollouts under load on a real stack: nobody waits for a load, and nothing fails on the way."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread

import pytest

from registry_sync import endpoints
from registry_sync.documents import EndpointSpec, Variant
from tests.support import models
from tests.support import rollout_stack as rollouts
from tests.support.load import Load
from tests.support.stack import Answer, Stack, until

MODEL = "swing"
HOLD_S = 600.0  # longer than any test
IDLE_S = 0.2
FORGOTTEN_S = 1.5  # by then who idles for that long sleeps: a heartbeat and a round later
INPUTS = {"x": ("FP32", [1, 4], [1.0, -2.0, 3.5, 0.25])}
FP32 = ("FP32", (-1, 4))


@pytest.fixture(scope="module")
def swing(wide_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """Two edges and two workers, and an endpoint at version 1 of two that answer alike."""
    folder = tmp_path_factory.mktemp("swing")
    for version in ("1", "2"):
        wide_stack.publish(MODEL, models.identity(folder / f"{version}.onnx"), version=version)
    # An artifact that no engine can load, of the same signature.
    wide_stack.publish_engine(
        MODEL, "unloadable", [("x", *FP32)], [("y", *FP32)], version="3", rows_max=32
    )
    return wide_stack


@pytest.fixture
def settled(swing: Stack) -> Stack:
    """The same, whatever the tests before have done."""
    spec = EndpointSpec(MODEL, (Variant("stable", MODEL, "1", 100.0),))
    endpoints.set_spec(swing.store, spec, abort_rollout=True)
    swing.poke()
    swing.until_ready(MODEL)
    return swing


def load_on(stack: Stack) -> Load:
    return Load(stack.url, stack.key, MODEL, threads=6, pause_s=0.005)


def loads(stack: Stack, version: str) -> int:
    """How often the workers that live have loaded a version."""
    return sum(engine["loads"] for engine in stack.engine(MODEL, version))


@dataclass
class Watch:
    """What was seen of an endpoint while something went on."""

    replicas: list[int] = field(default_factory=list)  # warm, of the arm that is watched
    not_ready: list[str] = field(default_factory=list)


@contextmanager
def watching(stack: Stack, version: str = "1") -> Iterator[Watch]:
    """See how many replicas of a version are warm, and that the endpoint stays ready."""
    seen, is_over = Watch(), Event()

    def look() -> None:
        while not is_over.wait(0.05):
            warm = [engine for engine in stack.engine(MODEL, version) if engine["state"] == "warm"]
            seen.replicas.append(len(warm))
            ready = stack.request("GET", f"/v2/models/{MODEL}/ready")
            if ready.status != 200:
                seen.not_ready.append(ready.headers["x-tidepool-state"])

    thread = Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        thread.join()


@pytest.mark.parametrize(
    "cycles", [2, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(240)])]
)
def test_promotions_and_rollbacks_under_load_fail_no_request(settled: Stack, cycles: int) -> None:
    stack = settled
    stack.edit_endpoint(MODEL, scale={"idle_s": IDLE_S})  # whoever nobody calls is soon gone
    took_s: dict[str, list[float]] = {"promote": [], "abort": []}
    with load_on(stack) as load:
        load.more(30)
        with watching(stack) as seen:
            for cycle in range(cycles):
                rollouts.start(stack, MODEL, "2", hold_s=HOLD_S)
                before = loads(stack, "1")
                for wish, phase, arm, other in (
                    ("promote", "promoted", "canary", "stable"),
                    ("abort", "rolled_back", "stable", "canary"),
                ):
                    began_s = time.monotonic()
                    rollouts.wish(stack, MODEL, wish)
                    rollouts.until_held(stack, MODEL, phase)
                    confirmed_s = time.monotonic()
                    took_s[wish].append(confirmed_s - began_s)
                    load.more(60)
                    if cycle == 0 and wish == "promote":
                        time.sleep(FORGOTTEN_S)
                    assert load.last_s[arm] > confirmed_s
                    assert load.last_s.get(other, 0.0) <= confirmed_s
                # What had been warm all the time was not loaded to be given its calls back.
                assert loads(stack, "1") == before
                until(lambda: not stack.engine(MODEL, "2"), 20.0, "the candidate sleeps")
    load.assert_clean()
    assert min(seen.replicas) >= 1
    assert seen.not_ready == []
    for wish, times_s in took_s.items():
        middle_s = sorted(times_s)[len(times_s) // 2]
        print(f"{cycles} × {wish}: {middle_s:.3f} s, at most {max(times_s):.3f} s")
    print(f"{load.answered} requests, none failed; slowest {max(load.latencies_s):.3f} s")


def test_answers_of_the_old_version_come_out_of_the_cache_again(settled: Stack) -> None:
    stack = settled
    stack.edit_endpoint(MODEL, cache={"ttl_s": 3600})

    def ask() -> Counter[tuple[str, str]]:
        """Ask often enough that both edges answer; variant and whether it was a hit."""
        answers: list[Answer] = [stack.infer(MODEL, INPUTS) for _ in range(12)]
        edges = {answer.headers["x-request-id"].partition("-")[0] for answer in answers}
        assert len(edges) == 2
        return Counter(
            (a.headers["x-tidepool-variant"], a.headers["cache-status"].split(";")[1].strip())
            for a in answers
        )

    until(lambda: set(ask()) == {("stable", "hit")}, 20.0, "both edges have it")
    rollouts.start(stack, MODEL, "2", hold_s=HOLD_S)
    rollouts.wish(stack, MODEL, "promote")
    rollouts.until_held(stack, MODEL, "promoted")
    assert ask()["canary", "fwd=uri-miss"] == 2  # once at each edge
    rollouts.wish(stack, MODEL, "abort")
    rollouts.until_held(stack, MODEL, "rolled_back")
    assert set(ask()) == {("stable", "hit")}


def test_arm_without_weight_that_cannot_be_loaded_leaves_its_endpoint_ready(settled: Stack) -> None:
    stack = settled
    arms = (("stable", "1", 100), ("canary", "3", 0))
    variants = [
        {"name": name, "model": MODEL, "version": version, "weight": weight}
        for name, version, weight in arms
    ]
    stack.set_endpoint({"endpoint": MODEL, "variants": variants})
    stack.until_ready(MODEL)
    assert stack.infer(MODEL, INPUTS, version="3").status == 503
    until(lambda: [e["state"] for e in stack.engine(MODEL, "3")], what="it was tried")
    ready = stack.request("GET", f"/v2/models/{MODEL}/ready")
    assert (ready.status, ready.headers["x-tidepool-state"]) == (200, "warm")
    loaded = stack.request("POST", f"/v2/repository/models/{MODEL}/load", "{}")
    assert (loaded.status, loaded.body) == (200, b"")


@pytest.mark.slow
def test_candidate_that_cannot_be_loaded_is_rolled_back_and_was_never_asked(settled: Stack) -> None:
    stack = settled
    with load_on(stack) as load, watching(stack) as seen:
        began_s = time.monotonic()
        rollouts.start(stack, MODEL, "3", hold_s=HOLD_S)
        until(lambda: len(stack.engine(MODEL, "3")) == 2, 20.0, "both workers have tried")
        assert stack.variants(MODEL)["canary"]["weight"] == 0
        found = rollouts.until_held(stack, MODEL, "rolled_back")
        took_s = time.monotonic() - began_s
        load.more(30)
    load.assert_clean()
    assert set(load.last_s) == {"stable"}
    assert "cannot be loaded" in found.reason
    assert (found.step, seen.not_ready) == (0, [])
    assert stack.variants(MODEL)["stable"]["weight"] == 100
    print(f"rolled back {took_s:.1f} s after it was begun")
