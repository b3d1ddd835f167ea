"""What hung and unreachable workers cost at full length: seen in time, few errors, no storm."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.echo_fleet import echo_fleet
from tests.support.load import Load
from tests.support.nodes import Fleet
from tests.support.open_loop import Stream, begin
from tests.support.seaweed import S3Server
from tests.support.stack import until
from tests.support.toxics import Toxics

pytestmark = pytest.mark.slow

WORKERS = 3
SECONDS = 30.0
STORM_S = 15.0
PER_S = 100.0
SEEN_S_MAX = 1.5
LOOKS_S = 0.1  # of the metrics, which this test asks for again and again
RETRY_SHARE = 0.1
RETRIES_FREE = 3


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, seaweed: S3Server) -> Iterator[Fleet]:
    """One edge and three workers with the model `echo`, each dialled through a proxy."""
    folder = tmp_path_factory.mktemp("lost")
    with echo_fleet(folder, seaweed, workers=WORKERS, deadline_s=2.0) as fleet:
        until(lambda: is_whole(fleet), 40.0, "a replica in every worker", 0.05)
        yield fleet


def is_whole(fleet: Fleet) -> bool:
    return [engine["state"] for engine in fleet.engine("echo")] == ["warm"] * WORKERS


def silences(fleet: Fleet) -> float:
    return fleet.metric("tidepool_dispatch_ejections_total", why="silent")


def seen_after_s(fleet: Fleet, before: float) -> float:
    began_s = time.monotonic()
    until(lambda: silences(fleet) > before, 10.0, "the edge has found it", 0.01)
    return time.monotonic() - began_s


@pytest.mark.rule("F2")
def test_stopped_worker_is_seen_within_1500_ms_and_costs_less_than_one_call_in_a_hundred(
    fleet: Fleet,
) -> None:
    body = '{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]}'
    path = "/v2/models/echo/infer"
    stream = Stream(
        name="s", key=fleet.key, path=path, body=body, deadline_s=2.0, per_s=PER_S, seconds=SECONDS
    )
    worker = fleet.status()["workers"][0]["pid"]
    before = silences(fleet)
    load = begin(fleet.port, [stream])
    time.sleep(3.0)
    os.kill(worker, signal.SIGSTOP)
    try:
        seen_s = seen_after_s(fleet, before)
        told = load.end()["s"]
    finally:
        os.kill(worker, signal.SIGCONT)
    failed = [one for one in told if one.status != 200]
    longest_s = max(one.took_s for one in told)
    print(
        f"seen after {seen_s:.2f} s; {len(failed)} of {len(told)} failed; longest {longest_s:.2f} s"
    )
    assert seen_s <= SEEN_S_MAX + LOOKS_S
    assert len(failed) <= 0.01 * len(told)
    assert longest_s <= 2.25
    until(lambda: is_whole(fleet), 40.0, "all workers are back", 0.05)


@pytest.mark.rule("F3")
def test_clients_that_try_three_times_more_make_no_storm_of_a_black_hole(fleet: Fleet) -> None:
    def counts() -> tuple[float, float]:
        return (
            fleet.metric("tidepool_dispatch_calls_total"),
            fleet.metric("tidepool_dispatch_attempts_total"),
        )

    fleet.edit_endpoint("echo", deadline_ms=500)  # shorter than it takes to find the hole
    before = counts()
    with Load(fleet.url, fleet.key, "echo", threads=16, pause_s=0.02, tries=4) as load:
        load.more(200)
        for proxy in fleet.proxies[1:]:
            proxy.toxics = Toxics(is_black_hole=True)
            time.sleep(STORM_S / WORKERS)
            proxy.heal()
    calls, attempts = (now - then for now, then in zip(counts(), before, strict=True))
    print(
        f"{load.asked} asked, {calls:.0f} calls, {attempts:.0f} attempts "
        f"({attempts / calls:.3f} a call, {attempts / load.asked:.3f} asked), "
        f"{len(load.failed)} failed"
    )
    assert not load.wrong
    assert attempts <= (1 + RETRY_SHARE) * calls + RETRIES_FREE
    assert attempts <= (1 + RETRY_SHARE) * load.asked + RETRIES_FREE
    assert len(load.failed) <= 0.01 * load.asked
    until(lambda: is_whole(fleet), 40.0, "all workers are back", 0.05)


@pytest.mark.rule("F30")
def test_worker_that_is_ten_times_as_slow_is_left_alone(fleet: Fleet) -> None:
    def slow() -> float:
        return fleet.metric("tidepool_dispatch_ejections_total", why="slow")

    over = threading.Event()
    worker = fleet.status()["workers"][0]["pid"]

    def hold_up() -> None:
        while not over.is_set():
            os.kill(worker, signal.SIGSTOP)
            over.wait(0.09)
            os.kill(worker, signal.SIGCONT)
            over.wait(0.01)

    before, gray = slow(), threading.Thread(target=hold_up)
    with Load(fleet.url, fleet.key, "echo", threads=4, pause_s=0.01) as load:
        load.more(100)
        gray.start()
        try:
            until(lambda: slow() > before, 20.0, "it is left alone", 0.05)
            first = load.answered
            load.more(100)
        finally:
            over.set()
            gray.join()
    load.assert_clean()
    times_s = sorted(load.latencies_s[first:])
    print(f"p50 {times_s[len(times_s) // 2]:.3f} s, slowest {times_s[-1]:.3f} s")
    assert times_s[len(times_s) // 2] < 0.05
