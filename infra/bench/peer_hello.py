"""Peer: the least that the edge's HTTP server costs.

`python -m infra.bench.peer_hello PORT` answers every request with five bytes from
one embedded granian RSGI worker on uvloop, which is how an edge process runs it.
A POST has its body read and gets as many headers and bytes as an answer of ours: that
is the floor under a call, of which the server alone is the whole.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

import uvloop
from granian.server.embed import Server

from infra.bench.processes import die_with_parent

HEADERS = [("content-type", "text/plain")]
CALL_HEADERS = [
    ("content-type", "application/octet-stream"),
    ("inference-header-content-length", "141"),
    ("x-request-id", "0123456789-abcdef"),
    ("x-tidepool-variant", "stable"),
    ("cache-status", "tidepool; fwd=uri-miss"),
    ("server-timing", ", ".join(f"{phase};dur=0.123" for phase in ("auth", "cache", "queue"))),
]
CALL_BODY = bytes(181)


class Hello:
    """An RSGI application."""

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        if scope.method == "POST":
            await protocol()
            protocol.response_bytes(200, CALL_HEADERS, CALL_BODY)
        else:
            protocol.response_bytes(200, HEADERS, b"hello")


async def serve(port: int) -> None:
    """Serve until SIGTERM."""
    server = Server(
        Hello(),
        address="127.0.0.1",
        port=port,
        interface="rsgi",
        http="1",
        websockets=False,
        log_enabled=False,
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.stop)
    await server.serve()


def main() -> None:
    die_with_parent()
    uvloop.run(serve(int(sys.argv[1])))


if __name__ == "__main__":
    main()
