"""HTTP byte by byte, for what no client would send."""

from __future__ import annotations

import json
import re
import socket
from contextlib import closing
from dataclasses import dataclass

from tests.support.stack import Stack

_LENGTH = re.compile(rb"(?i)content-length: (\d+)")
_STATUS = re.compile(rb"HTTP/1\.1 (\d+)")


@dataclass(frozen=True)
class Raw:
    """What came back; status 0: the connection was closed without an answer."""

    status: int
    headers: bytes
    body: bytes

    @property
    def error(self) -> str:
        """Return the text of an error answer."""
        text = json.loads(self.body)["error"]
        assert isinstance(text, str)
        return text


NOTHING = Raw(0, b"", b"")


class Connection:
    """One connection to a stack."""

    def __init__(self, stack: Stack, *, admin: bool = False, timeout_s: float = 30.0) -> None:
        port = stack.admin_port if admin else stack.port
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self._received = b""

    def close(self) -> None:
        """Leave."""
        self.socket.close()

    def send(self, *pieces: bytes) -> None:
        """Send the pieces; the other side may answer, and close, before it has read them all."""
        try:
            for piece in pieces:
                self.socket.sendall(piece)
        except OSError:
            pass

    def end(self) -> None:
        """Close our half."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def read(self) -> Raw:
        """Read the next answer; informational ones are skipped."""
        while True:
            head, blank, rest = self._received.partition(b"\r\n\r\n")
            if blank:
                status = _STATUS.match(head)
                assert status is not None, head
                length = _LENGTH.search(head)
                body_bytes = int(length[1]) if length else 0
                if int(status[1]) < 200:
                    self._received = rest
                    continue
                if len(rest) >= body_bytes:
                    self._received = rest[body_bytes:]
                    return Raw(int(status[1]), head.lower(), rest[:body_bytes])
            if not self._more():
                return NOTHING

    def is_closed(self) -> bool:
        """Wait until the other side has closed; False if it sends more, or keeps it open."""
        try:
            return not self._received and not self._more()
        except TimeoutError:
            return False

    def _more(self) -> bool:
        try:
            more = self.socket.recv(65536)
        except ConnectionResetError:
            return False
        self._received += more
        return bool(more)


def head(
    stack: Stack,
    path: str,
    *lines: str,
    method: str = "POST",
    host: str | None = "e2e",
    key: bool = True,
) -> bytes:
    """Return the head of a request."""
    found = [f"{method} {path} HTTP/1.1"]
    if host is not None:
        found.append(f"host: {host}")
    if key:
        found.append(f"x-api-key: {stack.key}")
    return ("\r\n".join([*found, *lines]) + "\r\n\r\n").encode("latin-1")


def send(stack: Stack, *pieces: bytes, ends: bool = False, admin: bool = False) -> Raw:
    """Send raw bytes on a connection of their own and read one answer.

    Args:
        stack: whom to ask.
        pieces: what to send.
        ends: close our half of the connection then.
        admin: on the admin port.
    """
    connection = Connection(stack, admin=admin)
    with closing(connection):
        connection.send(*pieces)
        if ends:
            connection.end()
        return connection.read()


def chunked(*pieces: bytes) -> bytes:
    """Return a body in chunks, with the last one."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
