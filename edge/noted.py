"""Lines in the access log for what Starlette answers: health, metadata, the admin port."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from starlette.routing import BaseRoute, Match, Mount, Route

from edge.access_log import QUIET, AccessLog
from edge.errors import ClientGone
from edge.trace import Trace

Rsgi = Callable[[Any, Any], Awaitable[None]]


class Noted:
    """An RSGI application around another, whose requests it notes at their end.

    Args:
        app: what answers.
        routes: of the Starlette application behind it, for the template of a path.
        request_id: of a header lookup, for answers that carry none.
        log: where requests are noted; None: nowhere.
    """

    def __init__(
        self,
        app: Rsgi,
        routes: Iterable[BaseRoute],
        request_id: Callable[[Callable[[str], str | None]], str],
        log: AccessLog | None,
    ) -> None:
        self._app = app
        self._routes = list(routes)
        self._request_id = request_id
        self._log = log

    async def __rsgi__(self, scope: Any, proto: Any) -> None:
        """Answer one request."""
        log = self._log
        route = template(self._routes, scope.method, scope.path)
        if log is None or route in QUIET:
            await self._app(scope, proto)
            return
        header = scope.headers.get
        started_s = time.monotonic()
        seen = _Seen(proto)
        try:
            await self._app(scope, seen)
        finally:
            request_id = seen.request_id or self._request_id(header)
            trace = Trace(request_id, started_s, header=header, route=route)
            trace.ended_s = time.monotonic()
            trace.bytes_in, trace.bytes_out = seen.bytes_in, seen.bytes_out
            log.note(trace, seen.status)


class _Seen:
    """Granian's side of a request, and what went through it."""

    def __init__(self, proto: Any) -> None:
        self._proto = proto
        self.status = ClientGone.status  # until there is an answer
        self.request_id = ""
        self.bytes_in = 0
        self.bytes_out = 0

    async def __call__(self) -> bytes:
        body: bytes = await self._proto()
        self.bytes_in = len(body)
        return body

    async def __aiter__(self) -> Any:
        async for part in self._proto:
            self.bytes_in += len(part)
            yield part

    def __getattr__(self, name: str) -> Any:
        return getattr(self._proto, name)

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status, self.bytes_out = status, len(body)
        self.request_id = next((value for name, value in headers if name == "x-request-id"), "")
        self._proto.response_bytes(status, headers, body)


def template(routes: Iterable[BaseRoute], method: str, path: str) -> str:
    """Return the method and the template of the route that takes `path`.

    What nobody takes has no template: a path as it was sent may hold anything.
    """
    found = _path_of(routes, {"type": "http", "method": method, "path": path, "root_path": ""})
    return f"{method} {found}" if found is not None and method in METHODS else "unmatched"


METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def _path_of(routes: Iterable[BaseRoute], scope: dict[str, Any]) -> str | None:
    for route in routes:
        match, child = route.matches(scope)
        if match is Match.NONE:
            continue
        if isinstance(route, Mount):
            below = _path_of(route.routes or (), {**scope, **child})
            return None if below is None else route.path + below
        return route.path if isinstance(route, Route) else None
    return None
