"""The proxy that stands for a bad network does what it says, and nothing else."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.toxics import DOWN, UP, ToxicProxy, Toxics, toxic_proxy

SENT = bytes(range(256)) * 2048  # 512 KiB


@pytest.fixture
def echo() -> Iterator[ToxicProxy]:
    """A proxy in front of a server that sends everything back."""

    def serve(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                client.sendall(data)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        with toxic_proxy(("127.0.0.1", server.getsockname()[1])) as proxy:
            yield proxy
        server.shutdown(socket.SHUT_RDWR)


def dial(proxy: ToxicProxy) -> socket.socket:
    return socket.create_connection((proxy.host, proxy.port), timeout=10)


def echoed(client: socket.socket, data: bytes = SENT) -> bytes:
    """Send, end, and read to the end."""

    def send() -> None:
        with contextlib.suppress(OSError):
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    got = bytearray()
    try:
        while part := client.recv(1 << 16):
            got += part
    finally:
        sender.join()
    return bytes(got)


def test_nothing_is_spoilt_until_it_is_told_so(echo: ToxicProxy) -> None:
    with dial(echo) as client:
        assert echoed(client) == SENT
    assert (echo.accepted, echo.flipped, echo.cut) == (1, 0, 0)


def test_bytes_come_late_and_in_order(echo: ToxicProxy) -> None:
    echo.toxics = Toxics(delay_s=0.05, jitter_s=0.02)
    with dial(echo) as client:
        began_s = time.monotonic()
        assert echoed(client) == SENT
        assert time.monotonic() - began_s >= 0.1  # there and back


def test_bytes_come_slowly(echo: ToxicProxy) -> None:
    echo.toxics = Toxics(only=DOWN, bytes_per_s=4 * len(SENT))
    with dial(echo) as client:
        began_s = time.monotonic()
        assert echoed(client) == SENT
        assert time.monotonic() - began_s >= 0.25


def test_connection_is_cut_after_so_many_bytes(echo: ToxicProxy) -> None:
    echo.toxics = Toxics(only=DOWN, cut_after_bytes=1000)
    with dial(echo) as client:
        got = bytearray()
        client.sendall(SENT[:5000])
        while part := client.recv(1 << 16):
            got += part
        assert bytes(got) == SENT[:1000]
    assert echo.cut == 1


def test_connection_is_reset(echo: ToxicProxy) -> None:
    echo.toxics = Toxics(only=DOWN, cut_after_bytes=0, is_reset=True)
    with dial(echo) as client:
        client.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    echo.heal()
    with dial(echo) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        echo.reset()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    echo.toxics = Toxics(refuses=True)
    with pytest.raises(ConnectionResetError), dial(echo) as client:
        client.recv(1)


def test_black_hole_says_nothing_and_lets_go_on_afterwards(echo: ToxicProxy) -> None:
    with dial(echo) as client:
        client.sendall(b"a")
        assert client.recv(1) == b"a"
        echo.toxics = Toxics(is_black_hole=True)
        client.sendall(b"b")
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(1)
        echo.heal()
        client.settimeout(10)
        assert client.recv(1) == b"b"


def test_single_bits_are_flipped_in_one_direction(echo: ToxicProxy) -> None:
    echo.toxics = Toxics(only=UP, flip_every_bytes=10_000)
    with dial(echo) as client:
        got = echoed(client)
    assert len(got) == len(SENT)
    wrong = [a ^ b for a, b in zip(got, SENT, strict=True) if a != b]
    assert 20 < len(wrong) < 100
    assert {bin(bits).count("1") for bits in wrong} == {1}
    assert len(wrong) == echo.flipped
