"""A client that does not take its answer is hung up on, by the sockets that edges are given."""

from __future__ import annotations

import contextlib
import errno
import functools
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from infra import stack

UNREAD_S_MAX = 0.5
ANSWER = bytes(16 << 20)


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    monkeypatch.setattr(stack, "UNREAD_S_MAX", UNREAD_S_MAX)
    (one,) = stack._edge_sockets(("127.0.0.1", 0))
    with one:
        one.listen()
        yield one


def answer(listening: socket.socket, ended: list[OSError | None]) -> None:
    """Send the answer to whoever comes; take note of how that ends."""
    connection, _ = listening.accept()
    with connection:
        try:
            connection.sendall(ANSWER)
            ended.append(None)
        except OSError as error:
            ended.append(error)


@contextlib.contextmanager
def asked(listening: socket.socket) -> Iterator[tuple[socket.socket, list[OSError | None]]]:
    ended: list[OSError | None] = []
    server = threading.Thread(target=functools.partial(answer, listening, ended))
    server.start()
    try:
        with socket.create_connection(listening.getsockname(), timeout=20) as client:
            yield client, ended
    finally:
        server.join()


@pytest.mark.rule("F5")
def test_client_that_reads_nothing_is_hung_up_on(listening: socket.socket) -> None:
    began_s = time.monotonic()
    with asked(listening) as (_, ended):
        while not ended:
            assert time.monotonic() < began_s + 20
            time.sleep(0.01)
    assert isinstance(ended[0], OSError)
    assert ended[0].errno == errno.ETIMEDOUT
    assert time.monotonic() - began_s >= UNREAD_S_MAX


def test_client_that_reads_slowly_gets_all_of_it(listening: socket.socket) -> None:
    with asked(listening) as (client, ended):
        got = 0
        while got < len(ANSWER):
            got += len(client.recv(1 << 20))
            time.sleep(0.05)  # 0.8 s in all, longer than nothing may be taken
    assert ended == [None]
