"""Peer: the least that the edge's HTTP server costs.

`python -m infra.bench.peer_hello PORT` answers every request with five bytes from
one embedded granian RSGI worker on uvloop, which is how an edge process runs it.
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


class Hello:
    """An RSGI application."""

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
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
