"""Between edge, workers and controller lies a bad network: no call is lost, late or wrong."""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.support.echo_fleet import echo_fleet
from tests.support.load import Load
from tests.support.models import identity
from tests.support.nodes import Fleet
from tests.support.seaweed import S3Server
from tests.support.stack import until
from tests.support.toxics import DOWN, UP, ToxicProxy, Toxics

WORKERS = 2
WIDE = 4096  # numbers of a tensor, so that a flipped bit is likely to be one of them
DEADLINE_S = 2.0
LATE_S_MAX = 0.25  # beyond the deadline
NOISE_S = 1.0  # of a machine that other tests keep busy
BACK_S_MAX = 40.0


@dataclass
class Net:
    """The fleet, and what lies between its processes."""

    fleet: Fleet
    workers: list[ToxicProxy]
    controller: ToxicProxy
    folder: Path

    def load(self, **options: float) -> Load:
        return Load(self.fleet.url, self.fleet.key, "echo", threads=8, **options)  # type: ignore[arg-type]

    @contextmanager
    def spoilt(self, toxics: Toxics, *proxies: ToxicProxy) -> Iterator[None]:
        """Spoil what passes meanwhile, and see afterwards that all is well again."""
        proxies = proxies or tuple(self.workers)
        for proxy in proxies:
            proxy.toxics = toxics
        try:
            yield
        finally:
            for proxy in proxies:
                proxy.heal()
            until(self.is_whole, BACK_S_MAX, "both workers serve again", 0.05)

    def is_whole(self) -> bool:
        """Tell whether every worker is known and warm."""
        return [engine["state"] for engine in self.fleet.engine("echo")] == ["warm"] * WORKERS

    def descriptors(self) -> int:
        """Return how many files and sockets the edge has open, at most within a while."""

        def count() -> int:
            return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.fleet.edge.pids())

        found = []
        for _ in range(5):
            found.append(count())
            time.sleep(0.05)
        return max(found)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory, seaweed: S3Server) -> Iterator[Net]:
    """An edge, a controller and two workers that reach each other through proxies alone."""
    folder = tmp_path_factory.mktemp("net")
    with echo_fleet(folder, seaweed, workers=WORKERS, deadline_s=DEADLINE_S) as fleet:
        controller, *workers = fleet.proxies
        net = Net(fleet, workers, controller, folder)
        until(net.is_whole, BACK_S_MAX, "a replica in both workers", 0.05)
        yield net


def go_on(load: Load, count: int) -> None:
    """Wait for so many more right answers, whatever else fails meanwhile."""
    wanted = load.answered + count
    until(lambda: load.answered >= wanted, 60.0, f"{count} more answers; {load.failed[-3:]}")


def assert_in_time(load: Load) -> None:
    """See that no answer came later than its deadline allows."""
    assert max(load.latencies_s) <= DEADLINE_S + LATE_S_MAX + NOISE_S


def assert_few_failed(load: Load, share: float) -> None:
    """See that what failed says so, is little, and nothing is wrong."""
    assert not load.wrong, load.wrong[:3]
    assert len(load.failed) <= load.answered * share, (len(load.failed), load.failed[:3])
    assert all(text[:3] in ("502", "503", "504") for text in load.failed), load.failed[:3]


class Echoes:
    """Clients that send tensors of many bytes, and hold each answer against its own."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.statuses: Counter[int] = Counter()
        self.wrong = 0

    def ask(self, count: int, seed: int) -> None:
        """Call so often, over one connection."""
        chance = random.Random(seed)
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, WIDE]}
        head = json.dumps(
            {
                "inputs": [{**tensor, "parameters": {"binary_data_size": 4 * WIDE}}],
                "parameters": {"binary_data_output": True},
            }
        ).encode()
        headers = {**self.fleet.auth(), "inference-header-content-length": str(len(head))}
        with closing(HTTPConnection("127.0.0.1", self.fleet.port, timeout=30)) as connection:
            for _ in range(count):
                sent = chance.randbytes(4 * WIDE)
                connection.request("POST", "/v2/models/wide/infer", head + sent, headers)
                response = connection.getresponse()
                body = response.read()
                self.statuses[response.status] += 1
                self.wrong += response.status == 200 and not body.endswith(sent)


@pytest.mark.rule("F4")
def test_flipped_bits_never_become_an_answer(net: Net) -> None:
    net.fleet.publish("wide", identity(net.folder / "wide.onnx", shape=("N", WIDE)))
    net.fleet.edit_endpoint("wide", cache=None, scale={"replicas_min": WORKERS})
    echoes = Echoes(net.fleet)
    flips = Toxics(flip_every_bytes=2_500_000)
    with net.spoilt(flips, *net.workers, net.controller), ThreadPoolExecutor(4) as threads:
        for asked in [threads.submit(echoes.ask, 300, seed) for seed in range(4)]:
            asked.result()
    flipped = sum(proxy.flipped for proxy in net.fleet.proxies)
    print(f"{flipped} bits flipped, {dict(echoes.statuses)}, {echoes.wrong} wrong")
    assert flipped > 3
    assert echoes.wrong == 0
    assert echoes.statuses[200] >= 1200 * 0.99  # but for calls that met two of them
    assert set(echoes.statuses) <= {200, 502}


@pytest.mark.rule("F4")
def test_connections_that_are_reset_or_end_in_the_middle_of_a_frame_lose_no_call(net: Net) -> None:
    with net.load() as load:
        load.more(100)
        for number in range(4):
            net.workers[number % WORKERS].reset()
            load.more(100)
        with net.spoilt(Toxics(only=DOWN, cut_after_bytes=20_000), net.workers[0]):
            load.more(500)
        load.more(20)
    assert net.workers[0].cut > 0
    load.assert_clean()


@pytest.mark.rule("F3")
@pytest.mark.parametrize(
    "only",
    ["", pytest.param(UP, marks=pytest.mark.slow), pytest.param(DOWN, marks=pytest.mark.slow)],
)
def test_half_open_connection_is_found_and_leaves_nothing_behind(net: Net, only: str) -> None:
    before = net.descriptors()
    with net.load() as load:
        load.more(50)
        with net.spoilt(Toxics(only=only, is_black_hole=True), net.workers[0]):
            time.sleep(2.0)
            go_on(load, 200)
        go_on(load, 50)
    print(f"longest {max(load.latencies_s):.2f} s, {len(load.failed)} failed")
    # In one direction only, nothing but their deadlines tells of the calls that went that way.
    assert_few_failed(load, 0.02)
    assert_in_time(load)
    until(lambda: net.descriptors() <= before, 10.0, "no descriptor is left")


@pytest.mark.slow
@pytest.mark.rule("F27")
def test_controller_behind_a_broken_network_is_not_missed(net: Net) -> None:
    with net.load() as load:
        load.more(50)
        for toxics in (Toxics(is_black_hole=True), Toxics(only=UP, is_black_hole=True)):
            with net.spoilt(toxics, net.controller):
                time.sleep(4.5)  # longer than a silent controller is believed in
                load.more(50)
        with net.spoilt(Toxics(refuses=True), net.controller):
            net.controller.reset()
            time.sleep(2.5)  # longer than a worker that hung up is waited for
            load.more(50)
        load.more(50)
    load.assert_clean()
    assert max(engine["loads"] for engine in net.fleet.engine("echo")) == 1


def test_slow_network_costs_time_and_nothing_else(net: Net) -> None:
    slow = Toxics(delay_s=0.01, jitter_s=0.01, bytes_per_s=1e6)
    with net.load() as load:
        with net.spoilt(slow, *net.workers, net.controller):
            load.more(100)
        load.more(20)
    load.assert_clean()
