"""Very many requests that no client would send: 4xx, quickly, and nothing is left of them."""

from __future__ import annotations

import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.support import fuzz, storm
from tests.support.models import identity
from tests.support.stack import REPOSITORY, Stack, running_stack, until

SUITE = REPOSITORY.parent / "shared" / "suites" / "JSONTestSuite" / "test_parsing"
KEPT_BYTES_MAX = 20 << 20
P99_S_MAX = 0.05
BUSY_P99_S_MAX = 0.5  # beside other tests
TIMED_BYTES_MAX = 1_000_000
# What no reply may tell: where it runs, in which process, what went wrong inside.
LEAK = re.compile(
    rb'Traceback|File "|\.py\b|site-packages|0x[0-9a-f]{6,}|\bpid\b|unix:'
    rb"|/(?:tmp|home|root|usr|var|proc|etc|work|opt|run)/"
)
# How many requests of each kind.
KINDS = {"json": 130, "mutated": 130, "msgpack": 50, "raw": 60, "chunked": 60, "bombs": 20}


pytestmark = pytest.mark.rule("F25", "SEC-2", "SEC-12")


@dataclass
class Field:
    """Where the requests go, and what came of them."""

    stack: Stack
    key: str
    pids: dict[str, int]
    rss_bytes: int
    statuses: Counter[int] = field(default_factory=Counter)
    took_s: list[float] = field(default_factory=list)

    def ask(self, request: fuzz.Request) -> None:
        """Send a whole request; it is answered, and not by our fault."""
        started_s = time.perf_counter()
        status = self.send(fuzz.rendered(request, self.key), ends=False)
        if len(request.body) <= TIMED_BYTES_MAX:
            self.took_s.append(time.perf_counter() - started_s)
        assert 200 <= status < 500, status

    def send(self, raw: bytes, *, ends: bool = True) -> int:
        """Send bytes and read until the connection ends; 0 if there is no answer."""
        with closing(socket.create_connection(("127.0.0.1", self.stack.port), 30)) as connection:
            received = b""
            try:
                connection.sendall(raw)
                if ends:
                    connection.shutdown(socket.SHUT_WR)
                while more := connection.recv(1 << 16):
                    received += more
            except OSError:
                pass  # it was closed before it was read
        statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]
        status = max(statuses, default=0) if any(s >= 500 for s in statuses) else 0
        return self.take(status or (statuses[0] if statuses else 0), received)

    def take(self, status: int, received: bytes) -> int:
        """Hold what every answer must be: not our fault, and no secret."""
        assert status < 500, received[:1000]
        if status >= 400:
            leak = LEAK.search(received)
            assert leak is None, (leak, received[:1000])
            assert self.stack.key.encode() not in received
            assert self.key.encode() not in received
        self.statuses[status] += 1
        return status


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    """A system of its own, whose memory and processes are looked at before and after."""
    folder = tmp_path_factory.mktemp("fuzz")
    with running_stack(
        folder / "stack", engines=["tests.support.observed_engine:ObservedEngine"]
    ) as stack:
        stack.publish(fuzz.INTS, identity(folder / "i.onnx", "INT64"))
        stack.publish(fuzz.FLOATS, identity(folder / "f.onnx", "FP32"))
        diary = folder / "diary"
        diary.touch()
        tensor = ("BYTES", (-1, 1))
        stack.publish_engine(
            fuzz.TEXTS,
            "observed",
            [("x", *tensor)],
            [("y", *tensor)],
            rows_max=8,
            files={"diary.txt": str(diary)},
        )
        found = Field(stack, stack.make_key("infer:*"), stack.pids(), 0)
        for request in fuzz.valid_requests() * 3:  # what a first use takes is no leak
            found.ask(request)
        assert set(found.statuses) == {200}
        found.rss_bytes = _rss_bytes(stack)
        yield found


def _rss_bytes(stack: Stack) -> int:
    text = Path(f"/proc/{stack.pids()['edge-0']}/status").read_text()
    return int(re.search(r"^VmRSS:\s+(\d+) kB", text, re.MULTILINE)[1]) << 10  # type: ignore[index]


def _fuzz(count: int, strategy: st.SearchStrategy[Any], send: Any) -> None:
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,  # the same requests in every run; change a strategy for others
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(example: Any) -> None:
        send(example)

    run()


def _all(target: Field, times: int) -> None:
    ask, key = target.ask, target.key
    _fuzz(KINDS["json"] * times, fuzz.json_requests(), ask)
    _fuzz(KINDS["mutated"] * times, fuzz.mutated_requests(), ask)
    _fuzz(KINDS["msgpack"] * times, fuzz.msgpack_requests(), ask)
    _fuzz(KINDS["raw"] * times, fuzz.raw_bytes(key), target.send)
    _fuzz(KINDS["chunked"] * times, fuzz.chunkings(key), target.send)
    _fuzz(KINDS["bombs"] * times, fuzz.bombs(), ask)


def _hold(target: Field, p99_s_max: float = BUSY_P99_S_MAX) -> None:
    """Hold what must be true afterwards."""
    stack = target.stack
    assert stack.pids() == target.pids
    for request in fuzz.valid_requests():
        before = target.statuses[200]
        target.ask(request)
        assert target.statuses[200] == before + 1
    log = stack.log_text()
    assert '"event": "bug"' not in log
    assert "Traceback" not in log
    p99_s = sorted(target.took_s)[int(len(target.took_s) * 0.99)]
    kept = until(
        lambda: (k := _rss_bytes(stack) - target.rss_bytes) < KEPT_BYTES_MAX and (k or 1),
        20.0,
        "the memory is back",
        pause_s=0.2,
    )
    print(
        f"{sum(target.statuses.values())} requests: {dict(sorted(target.statuses.items()))}; "
        f"p99 {p99_s * 1e3:.1f} ms; {kept >> 20} MiB kept"
    )
    assert p99_s <= p99_s_max


@pytest.mark.rule("F25", "SEC-2", "SEC-12")
def test_hundreds_of_fuzzed_requests_do_no_harm(target: Field) -> None:
    _all(target, 1)
    _hold(target)


def _storm(target: Field, count: int, bases: int) -> None:
    """Send so many requests that met with accidents, and tell how quickly that went."""

    def look(sent: storm.Sent, status: int, received: bytes) -> None:
        target.take(status, received)
        assert not sent.is_framed or status >= 200, (sent, received[:1000])

    sender = storm.Storm(target.stack.port, look)
    base = storm.bases(bases)
    began_s = time.perf_counter()
    storm.run(sender, count, target.key, base)
    took_s = time.perf_counter() - began_s
    target.took_s += sender.took_s
    print(f"{count} requests in {took_s:.1f} s, {count / took_s:.0f} a second")


def test_thousands_of_accidents_do_no_harm(target: Field) -> None:
    _storm(target, 1500, bases=60)
    _hold(target)


@pytest.mark.slow
def test_100_000_fuzzed_requests_do_no_harm(target: Field) -> None:
    _all(target, 2)
    _storm(target, 100_000 - sum(target.statuses.values()), bases=800)
    _hold(target, P99_S_MAX)
    assert sum(target.statuses.values()) >= 100_000


if SUITE.exists():  # where the corpus lies beside the checkout

    def test_no_document_of_the_json_test_suite_does_harm(target: Field) -> None:
        for file in sorted(SUITE.glob("*.json")):
            inside = b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":%b}]}'
            for body in (file.read_bytes(), inside % file.read_bytes()):
                target.ask(fuzz.Request(f"/v2/models/{fuzz.FLOATS}/infer", body))
        _hold(target)
