"""Bodies are bounded in size, in memory and in time, on every route and on both ports."""

from __future__ import annotations

import gzip
import itertools
import json
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest

from tests.support.models import identity
from tests.support.raw_http import Connection, Raw, chunked, head, send
from tests.support.stack import Stack, tensors, until

MODEL = "bounded"
PATH = f"/v2/models/{MODEL}/infer"
ZEROS = "bounded-zeros"
CHUNKED = "transfer-encoding: chunked"


@pytest.fixture(scope="module", autouse=True)
def _published(stack: Stack) -> None:
    stack.publish_observed(MODEL)


@pytest.fixture(scope="module")
def zeros(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that takes a large tensor and gives back whether it is one."""
    path = tmp_path_factory.mktemp("models") / "z.onnx"
    stack.publish(ZEROS, identity(path, "FP32", ["N", 1 << 20]))
    return f"/v2/models/{ZEROS}/infer"


def _tensor(values: int) -> tuple[bytes, str]:
    given = {
        "name": "x",
        "shape": [values >> 20, 1 << 20],
        "datatype": "FP32",
        "parameters": {"binary_data_size": values * 4},
    }
    said = {"inputs": [given], "outputs": [{"name": "y", "parameters": {"binary_data": True}}]}
    text = json.dumps(said).encode()
    return text + bytes(values * 4), str(len(text))


def test_a_compressed_tensor_of_zeros_is_no_bomb(stack: Stack, zeros: str) -> None:
    body, length = _tensor(1 << 20)
    headers = {"content-encoding": "gzip", "inference-header-content-length": length}
    small = gzip.compress(body)
    assert len(small) * 500 < len(body)
    answer = stack.request("POST", zeros, small, headers)
    assert answer.status == 200, answer.body[:200]
    assert np.frombuffer(answer.body[-(4 << 20) :], np.float32).any() == np.False_


@pytest.mark.parametrize("size_mb", [9, 60, 300])
@pytest.mark.rule("SEC-23")
def test_a_bomb_is_refused_before_it_goes_off(stack: Stack, zeros: str, size_mb: int) -> None:
    bomb = gzip.compress(bytes(size_mb << 20))
    pid = stack.pids()["edge-0"]
    _forget_peak(pid)
    before = _peak_bytes(pid)
    started_s = time.monotonic()
    answer = stack.request("POST", zeros, bomb, {"content-encoding": "gzip"})
    assert answer.status == 413, answer.body
    assert time.monotonic() - started_s < 5.0
    assert _peak_bytes(pid) - before < 96 << 20  # never what it would become


def _peak_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no such line")


def _forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def test_a_large_json_body_takes_a_few_times_its_size_for_a_while(stack: Stack) -> None:
    """Its two million numbers as objects would be 20 times its size."""
    data = b"[" + b"1," * 1_999_999 + b"1]"
    given = b'{"name":"x","shape":[1,1],"datatype":"FP32","data":%b}'
    wrong = b'{"inputs":[%b]}' % (given % data)
    right = wrong.replace(b"[1,1]", b"[2000000]").replace(b"FP32", b"INT64")
    pid = stack.pids()["edge-0"]
    for body in (wrong, right):
        _forget_peak(pid)
        before = _peak_bytes(pid)
        answer = stack.request("POST", PATH, body)
        assert answer.status in (400, 422)
        assert _peak_bytes(pid) - before < 12 * len(body)


@pytest.mark.parametrize("admin", [False, True])
def test_the_other_routes_bound_their_bodies_too(stack: Stack, admin: bool) -> None:
    path = "/admin/pool" if admin else "/v2"
    for lines, body, status in (
        (["content-length: 1048577"], b"", 413),
        ([CHUNKED], chunked(*[bytes(1 << 18)] * 5), 413),
        ([CHUNKED], b"3\r\nabc\r\nzz\r\n", 400),
        (["content-length: 5", "content-encoding: gzip"], b"abcde", 415),
    ):
        answer = send(stack, head(stack, path, *lines, method="GET"), body, admin=admin)
        assert answer.status == status, answer


def test_bodies_have_so_much_room_together(
    start_stack: Callable[..., Stack], tmp_path: Path
) -> None:
    """What does not fit is refused with a time to come back, and fits once others are gone.

    One tenant may have half of the room; small bodies find some always.
    """
    stack = start_stack(
        arguments=["--body-bytes-max", "1000000", "--body-bytes-in-flight-max", "4000000"]
    )
    stack.publish("room", identity(tmp_path / "i.onnx"))
    path = "/v2/models/room/infer"
    body = json.dumps({"inputs": tensors({"x": ("FP32", [1, 4], [1, 2, 3, 4])})}).encode()
    body = body + b" " * (1_000_000 - len(body))
    asked = head(stack, path, "content-length: 1000000")
    with ExitStack() as held:
        slow = [held.enter_context(closing(Connection(stack))) for _ in range(2)]
        for connection in slow:
            connection.send(asked, body[:1000])
        refused = until(
            lambda: (a := send(stack, asked)).status == 503 and a, what="there is no room"
        )
        assert "room" in refused.error
        assert b"retry-after-ms: " in refused.headers
        small = stack.request("POST", path, body[:200])
        assert small.status == 200
        for connection in slow:
            connection.send(body[1000:])
            assert connection.read().status == 200
    assert stack.request("POST", path, body).status == 200
    for _ in range(3):  # refused ones hold nothing
        assert stack.request("POST", path, b"x" * 1_000_000).status == 400
        assert stack.request("POST", path, body).status == 200


# Slow bodies.


@pytest.mark.rule("F6")
def test_slow_bodies_are_refused_and_cut(stack: Stack) -> None:
    """Those that stop and those that trickle, on every route and both ports, within 15 s."""
    lines = "content-length: 100000"
    asked = [
        (head(stack, PATH, lines), False),
        (head(stack, PATH, CHUNKED), False),
        (head(stack, "/v2", lines, method="GET"), False),
        (head(stack, "/admin/pool", lines, method="GET"), True),
        (head(stack, "/livez", CHUNKED, method="GET"), True),
    ]
    found: list[tuple[Raw, bool, float]] = []

    def ask(request: bytes, admin: bool, trickles: bool) -> None:
        started_s = time.monotonic()
        with closing(Connection(stack, admin=admin)) as connection:
            connection.send(request, b"1\r\n1\r\n")
            connection.socket.settimeout(0.2)
            while trickles and time.monotonic() - started_s < 20:
                connection.send(b"1\r\n1\r\n")
                try:
                    if connection.socket.recv(1, 2):  # MSG_PEEK
                        break
                except TimeoutError:
                    pass
                except ConnectionResetError:
                    break
            connection.socket.settimeout(30)
            answer = connection.read()
            found.append((answer, connection.is_closed(), time.monotonic() - started_s))

    threads = [
        threading.Thread(target=ask, args=(*one, trickles))
        for one, trickles in itertools.product(asked, (False, True))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 10
    assert {answer.status for answer, _, _ in found} <= {408, 0}  # 0: reset as it was sent to
    assert sum(answer.status == 408 for answer, _, _ in found) >= 5
    assert all(is_closed for _, is_closed, _ in found), found
    assert all(9.0 < took_s < 15.0 for _, _, took_s in found)
