"""The HTTP servers of an edge process: granian, embedded, on sockets that it may be given.

What granian 2.8 does on `stop`: it accepts no more, closes connections that are idle, answers what
is under way with `connection: close`, and its task ends with the last connection.
It reads a certificate once, when a server starts.  So a renewed one is shown by a new server on the
same socket, beside which the one before fades: it closes each connection with its next answer.
"""

from __future__ import annotations

import asyncio
import os
import resource
import ssl
from pathlib import Path
from typing import Any

import structlog
from granian.constants import SSLProtocols
from granian.http import HTTP1Settings
from granian.net import SocketHolder
from granian.server.embed import Server

from edge.config import EdgeConfig
from edge.guard import HEAD_BYTES_MAX, Closing

CONNECTIONS_MAX = 8192  # granian's backpressure counts connections, not requests
BACKLOG = 2048
FILES_MANY = 1 << 16  # where there is no limit
FILES_SPARE = 128  # descriptors that are no client's connection
RENEW_S = 1.0  # so often it is looked whether the certificate has changed
FADE_S_SPARE = 1.0  # on top of the time for which a connection may be idle

_log = structlog.get_logger()


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


class Port:
    """One port, whose certificate may be renewed while it serves.

    Args:
        app: an RSGI application.
        host: where it listens.
        port: as well.
        config: of the edge.
        listen_fd: a socket bound to host and port; -1: granian makes one, and no certificate is
            renewed.

    Raises:
        ValueError: certificate and key do not fit.
    """

    def __init__(self, app: Any, host: str, port: int, config: EdgeConfig, listen_fd: int) -> None:
        self._app = app
        self._address = host, port
        self._config = config
        self._listen_fd = listen_fd
        # The whole mutable state: the servers that have not ended, the latest last; what its
        # certificate was read from; and those that fade.
        self._serving: dict[asyncio.Task[None], tuple[Server, _Fading]] = {}
        self._seen = self._stamps()
        self._first = self._make()
        self._fading: set[asyncio.Task[None]] = set()
        self._is_stopped = False

    async def serve(self) -> None:
        """Serve until `stop`, and until the last connection has ended."""
        self._start(self._first)
        renews = self._config.tls_cert and self._listen_fd >= 0
        while self._serving:
            await asyncio.wait(
                self._serving,
                timeout=RENEW_S if renews and not self._is_stopped else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in [task for task in self._serving if task.done()]:
                del self._serving[task]
                task.result()
                if task not in self._fading and not self._is_stopped:
                    # Files that were changed between two looks at them; or what was there is gone.
                    _log.warning("certificate_not_taken", error="the server did not start")
                    self._seen = []
                self._fading.discard(task)
            if renews and not self._is_stopped:
                self._fade()
                if self._stamps() != self._seen:
                    self._renew()

    def stop(self) -> None:
        """Accept no more, and end with the last connection."""
        self._is_stopped = True
        for server, _ in self._serving.values():
            server.stop()

    def _make(self) -> tuple[Server, _Fading]:
        config = self._config
        certificate = Path(config.tls_cert) if config.tls_cert else None
        key = Path(config.tls_key) if config.tls_key else None
        app = _Fading(self._app)
        try:
            server = _Inheriting(
                app if certificate else self._app,
                address=self._address[0],
                port=self._address[1],
                interface="rsgi",
                http="1",  # HTTP/2 belongs to the balancer in front
                websockets=False,
                backlog=BACKLOG,
                backpressure=min(CONNECTIONS_MAX, max(files_max() - FILES_SPARE, FILES_SPARE)),
                # The one time-out that granian has: of a head that comes slowly, and of the wait
                # for one.
                http1_settings=HTTP1Settings(
                    header_read_timeout=int(config.keep_alive_s * 1000),
                    max_buffer_size=HEAD_BYTES_MAX,
                ),
                log_enabled=False,
                ssl_cert=certificate,
                ssl_key=key,
                ssl_protocol_min=SSLProtocols.tls12,
            )
        except (OSError, ssl.SSLError) as error:
            raise ValueError(f"--tls-cert {certificate}, --tls-key {key}: {error}") from None
        # Granian closes the socket that it is given.
        renews = certificate is not None and self._listen_fd >= 0
        server.listen_fd = os.dup(self._listen_fd) if renews else self._listen_fd
        return server, app

    def _start(self, made: tuple[Server, _Fading]) -> None:
        self._serving[asyncio.get_running_loop().create_task(made[0].serve())] = made

    def _renew(self) -> None:
        self._seen = self._stamps()
        try:
            self._start(self._make())
        except ValueError as error:
            _log.warning("certificate_not_taken", error=str(error))

    def _fade(self) -> None:
        """Let all servers fade but the latest, if that has got over its start."""
        alive = list(self._serving)
        for task in alive[:-1]:
            if task in self._fading:
                continue
            server, app = self._serving[task]
            self._fading.add(task)
            app.is_closing = True
            wait_s = self._config.keep_alive_s + FADE_S_SPARE
            asyncio.get_running_loop().call_later(wait_s, server.stop)
            _log.info("certificate_renewed", port=self._address[1])

    def _stamps(self) -> list[tuple[int, int, int]]:
        found = []
        for name in (self._config.tls_cert, self._config.tls_key):
            try:
                seen = os.stat(name)
                found.append((seen.st_mtime_ns, seen.st_ino, seen.st_size))
            except OSError:
                found.append((0, 0, 0))
        return found


class _Fading:
    """An application whose answers, from some time on, are the last on their connections."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.is_closing = False

    def __rsgi__(self, scope: Any, proto: Any) -> Any:
        return self._app.__rsgi__(scope, Closing(proto) if self.is_closing else proto)


def files_max() -> int:
    """Return how many files this process may open.

    A shell's usual 1,024 would be fewer than the sockets that a few idle clients hold; granian
    raises the limit to what is allowed when it is imported.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return FILES_MANY if soft == resource.RLIM_INFINITY else soft
