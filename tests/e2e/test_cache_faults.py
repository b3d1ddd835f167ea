"""Everything that may happen to the answers on disk, under load: no failure, no wrong byte."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import pytest

from tests.support import disk_faults
from tests.support.models import identity
from tests.support.processes import is_alive
from tests.support.stack import Stack, running_stack, until

SMALL, LARGE = 4, 12_000  # floats; the frame of a large answer is a file of its own
QUESTIONS = 120
LARGE_EVERY = 6
NO_CACHE_SHARE = 0.05
THREADS = 4
ADDED_S_MAX = 0.02
BUSY_S = 0.25  # by how much a busy machine may miss it in the short run, which has few samples
BACK_S_MAX = 120.0  # the disk is left alone for 30 s, and an attempt may fail once more


class Asker:
    """Asks the same questions again and again, and holds every answer to the model's own."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        with contextlib.closing(self._connect()) as connection:
            self.right = [
                self._ask(connection, number, "no-store")[2] for number in range(QUESTIONS)
            ]
        assert len(set(self.right)) == QUESTIONS
        self.states: list[str] = []  # `Cache-Status` up to its ttl
        self.took_s: list[float] = []
        self.looked_s: list[float] = []  # what the disk added, as the edge measured it
        self.wrong: list[str] = []

    def run(self, count: int) -> None:
        """Send `count` requests on a few connections; returns when all are answered."""
        self.states, self.took_s, self.looked_s = [], [], []
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(self._run, [count // THREADS] * THREADS))
        assert not self.wrong, self.wrong[:5]
        assert len(self.states) == count // THREADS * THREADS

    def _run(self, count: int) -> None:
        chance = random.Random(threading.get_ident())
        with contextlib.closing(self._connect()) as connection:
            for _ in range(count):
                # Some are computed in any case, so that there is always something to write.
                control = "no-cache" if chance.random() < NO_CACHE_SHARE else ""
                self._ask_one(connection, chance.randrange(QUESTIONS), control)

    def _ask_one(self, connection: http.client.HTTPConnection, number: int, control: str) -> None:
        began_s = time.monotonic()
        status, headers, body = self._ask(connection, number, control)
        self.took_s.append(time.monotonic() - began_s)
        if (status, body) != (200, self.right[number]):
            self.wrong.append(f"{number}: {status} {body[:200]!r}")
        self.states.append(headers["cache-status"].partition("ttl=")[0])
        found = re.search(r"\bcache;dur=([0-9.]+)", headers["server-timing"])
        self.looked_s.append(float(found[1]) / 1000 if found else 0.0)

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.stack.port, timeout=30)

    def _ask(
        self, connection: http.client.HTTPConnection, number: int, control: str = ""
    ) -> tuple[int, dict[str, str], bytes]:
        is_large = number % LARGE_EVERY == 0
        size = LARGE if is_large else SMALL
        values = np.random.default_rng(number).random(size, np.float32)
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, size]}
        head = json.dumps(
            {
                "inputs": [{**tensor, "parameters": {"binary_data_size": 4 * size}}],
                "parameters": {"binary_data_output": True},
            }
        ).encode()
        headers = {
            **self.stack.auth(),
            "inference-header-content-length": str(len(head)),
            **({"cache-control": control} if control else {}),
        }
        model = "large" if is_large else "small"
        body = head + values.tobytes()
        connection.request("POST", f"/v2/models/{model}/infer", body, headers)
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        answer = response.read()
        return response.status, found, answer


HIT = "tidepool; hit; "


class Place:
    """The system, its folder of answers on a small disk of its own, and who asks."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.disk = stack.data / "edge"
        self.folder = self.disk / "answers"
        self.asker = Asker(stack)

    def warm(self, share: float, timeout_s: float = 60.0) -> None:
        """Ask until such a share of the answers comes from the disk."""

        def is_warm() -> bool:
            self.asker.run(THREADS * 30)
            return self.asker.states.count(HIT) >= THREADS * 30 * share

        until(is_warm, timeout_s, f"hits of the disk; {Counter(self.asker.states)}")

    def run(self, count: int, what: str) -> list[float]:
        """Send `count` requests; returns what they took, in seconds."""
        self.asker.run(count)
        took_s, looked_s = (np.percentile(s, 99) for s in (self.asker.took_s, self.asker.looked_s))
        states = dict(Counter(self.asker.states))
        print(f"{what}: p99 {took_s * 1e3:.1f} ms, of the look {looked_s * 1e3:.1f} ms, {states}")
        return self.asker.took_s

    def renew_edges(self) -> None:
        """Let other edges begin, which have seen no failure."""
        old = [pid for name, pid in self.stack.pids().items() if name.startswith("edge")]
        for pid in old:
            os.kill(pid, signal.SIGTERM)
        until(lambda: not any(map(is_alive, old)), 60.0, "the old edges have ended")
        until(self._is_ready, 60.0, "they serve")

    def _is_ready(self) -> bool:
        try:
            return all(
                self.stack.request("GET", f"/v2/models/{model}/ready").status == 200
                for model in ("small", "large")
                for _ in range(4)
            )
        except OSError:
            return False


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    data = tmp_path_factory.mktemp("faults")
    folder = tmp_path_factory.mktemp("models")
    with disk_faults.small_disk(data / "edge", "size=24m"):
        arguments = ("--cache-memory-bytes", "0", "--cache-disk-bytes", str(8 << 20))
        with running_stack(data, edges=2, arguments=arguments) as stack:
            for model, size in (("small", SMALL), ("large", LARGE)):
                stack.publish(model, identity(folder / f"{model}.onnx", shape=(1, size)))
                stack.edit_endpoint(model, cache={"ttl_s": 3600, "disk": True})
            yield Place(stack)


@contextmanager
def flipped(place: Place) -> Iterator[None]:
    """Every answer has a bit that is another one."""
    disk_faults.flip_rows(place.folder)
    for path in disk_faults.values(place.folder):
        with contextlib.suppress(FileNotFoundError):
            disk_faults.flip(path)
    yield


@contextmanager
def cut_short(place: Place) -> Iterator[None]:
    """Files of answers, and the database, end in the middle."""
    for path in disk_faults.values(place.folder):
        with contextlib.suppress(FileNotFoundError):
            os.truncate(path, path.stat().st_size // 2)
    os.truncate(place.folder / "cache.db", 10_000)
    yield


@contextmanager
def garbage(place: Place) -> Iterator[None]:
    """The database is none."""
    (place.folder / "cache.db").write_bytes(os.urandom(1 << 16))
    yield


@contextmanager
def removed(place: Place) -> Iterator[None]:
    """The folder is gone, while it is used."""
    shutil.rmtree(place.folder, ignore_errors=True)
    yield


@contextmanager
def open_to_others(place: Place) -> Iterator[None]:
    """A folder in its place that is not the edges' alone."""
    place.folder.rename(place.folder.with_name("away"))
    shutil.rmtree(place.folder.with_name("away"))
    with contextlib.suppress(FileExistsError):
        place.folder.mkdir()
    place.folder.chmod(0o777)
    yield
    place.folder.chmod(0o700)


def stuck(place: Place) -> AbstractContextManager[None]:
    """A writer stopped in the middle of its transaction."""
    return disk_faults.held_transaction(place.folder)


def full(place: Place) -> AbstractContextManager[None]:
    """No room on the disk."""
    return disk_faults.filled(place.disk)


def read_only(place: Place) -> AbstractContextManager[None]:
    """A disk in its place that cannot be written."""
    return disk_faults.small_disk(place.folder, "ro")


FAULTS: list[Callable[[Place], AbstractContextManager[None]]] = [
    flipped, cut_short, garbage, stuck, removed, open_to_others, full, read_only,
]  # fmt: skip


@pytest.mark.rule("F8", "F10")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_fault_of_the_disk_fails_no_request(place: Place, fault: Callable[..., object]) -> None:
    place.renew_edges()
    place.warm(0.5)
    with fault(place):  # type: ignore[attr-defined]
        place.run(160, fault.__name__)
    assert np.percentile(place.asker.looked_s, 99) <= ADDED_S_MAX + BUSY_S
    assert place.stack.request("GET", "/v2/health/ready").status == 200


@pytest.mark.rule("F8", "F10")
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_requests_over_all_faults(place: Place) -> None:
    place.renew_edges()
    count = 10_000 // len(FAULTS)
    base_s: list[float] = []
    faulty_s: list[float] = []
    for fault in FAULTS:
        place.warm(0.85, BACK_S_MAX)  # after a fault: it heals by itself
        base_s += place.run(count, "no fault")
        with fault(place):
            faulty_s += place.run(count, fault.__name__)
    place.warm(0.85, BACK_S_MAX)
    added_s = np.percentile(faulty_s, 99) - np.percentile(base_s, 99)
    print(f"p99 without faults {np.percentile(base_s, 99) * 1e3:.1f} ms, +{added_s * 1e3:.1f} ms")
    assert added_s <= ADDED_S_MAX
