"""The HTTP servers of an edge process: granian, embedded, on sockets that it may be given.

What granian 2.8 does on `stop`: it accepts no more, closes connections that are idle, answers what
is under way with `connection: close`, and its task ends with the last connection.
"""

from __future__ import annotations

import resource
from typing import Any

from granian.http import HTTP1Settings
from granian.net import SocketHolder
from granian.server.embed import Server

from edge.config import EdgeConfig
from edge.guard import HEAD_BYTES_MAX

CONNECTIONS_MAX = 8192  # granian's backpressure counts connections, not requests
BACKLOG = 2048
FILES_MANY = 1 << 16  # where there is no limit
FILES_SPARE = 128  # descriptors that are no client's connection


class _Inheriting(Server):  # type: ignore[misc]  # it has no types
    """A server on a socket that somebody else keeps open: what waits there outlives this process.

    Granian makes its own sockets, and only from an address.
    """

    listen_fd = -1

    def _init_shared_socket(self) -> None:
        if self.listen_fd < 0:
            super()._init_shared_socket()
            return
        self._ssp = None
        self._shd = SocketHolder(self.listen_fd, False, BACKLOG)
        self._sfd = self.listen_fd


def listening(app: Any, host: str, port: int, config: EdgeConfig, listen_fd: int) -> Server:
    """Return a server for `app`; `listen_fd` is a socket bound to host and port, or -1."""
    server = _Inheriting(
        app,
        address=host,
        port=port,
        interface="rsgi",
        http="1",  # HTTP/2 belongs to the balancer in front
        websockets=False,
        backlog=BACKLOG,
        backpressure=min(CONNECTIONS_MAX, max(files_max() - FILES_SPARE, FILES_SPARE)),
        # The one time-out that granian has: of a head that comes slowly, and of the wait for one.
        http1_settings=HTTP1Settings(
            header_read_timeout=int(config.keep_alive_s * 1000), max_buffer_size=HEAD_BYTES_MAX
        ),
        log_enabled=False,
    )
    server.listen_fd = listen_fd
    return server


def files_max() -> int:
    """Return how many files this process may open.

    A shell's usual 1,024 would be fewer than the sockets that a few idle clients hold; granian
    raises the limit to what is allowed when it is imported.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return FILES_MANY if soft == resource.RLIM_INFINITY else soft
