"""From RSGI to ASGI: lets Starlette answer what is not on the fast path.

Only what Starlette needs for small requests and answers: HTTP, a bounded body read whole, an answer
sent whole.  No websockets, no streams; those have the fast path.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from typing import Any

import structlog
from starlette.types import ASGIApp

BODY_S_MAX = 10.0

_log = structlog.get_logger()


class Bridge:
    """An RSGI application around an ASGI one."""

    def __init__(
        self,
        app: ASGIApp,
        body_bytes_max: int,
        request_id: Callable[[Callable[[str], str | None]], str] | None = None,
    ) -> None:
        self._app = app
        self._request_id = request_id  # from a header lookup; None: answers carry no id
        self._body_bytes_max = min(body_bytes_max, 1 << 20)  # nothing here takes more

    async def __call__(self, scope: Any, proto: Any) -> None:
        """Answer one request."""
        headers = [(name.encode(), _latin(value)) for name, value in _items(scope)]
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_S_MAX):
                async for part in proto:
                    body += part
                    if len(body) > self._body_bytes_max:
                        _refuse(proto, 413, b'{"error":"the body is too large"}')
                        return
        except TimeoutError:
            _refuse(proto, 408, b'{"error":"the body did not arrive in time"}')
            return
        except RuntimeError:  # granian: the client left
            return
        asgi_scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": scope.http_version,
            "method": scope.method,
            "scheme": scope.scheme,
            "path": scope.path,
            "raw_path": scope.path.encode(),
            "query_string": scope.query_string.encode(),
            "root_path": "",
            "headers": headers,
            "client": None,
            "server": None,
        }
        answer = _Answer(bytes(body))
        try:
            await self._app(asgi_scope, answer.receive, answer.send)
        except Exception:
            # Starlette raises what its handler for bugs has answered already.
            _log.exception("bug", path=scope.path)
        if self._request_id is not None:
            answer.headers.append(("x-request-id", self._request_id(scope.headers.get)))
        proto.response_bytes(answer.status, answer.headers, b"".join(answer.parts))


class _Answer:
    """The two callables of ASGI, and what came through them."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self.status = 500
        self.headers: list[tuple[str, str]] = []
        self.parts: list[bytes] = []

    async def receive(self) -> dict[str, Any]:
        body, self._body = self._body, None
        if body is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = [
                (name.decode("latin-1"), value.decode("latin-1"))
                for name, value in message["headers"]
                if name != b"content-length"
            ]
        elif message["type"] == "http.response.body":
            self.parts.append(bytes(message.get("body", b"")))


def _refuse(proto: Any, status: int, body: bytes) -> None:
    proto.response_bytes(status, [("content-type", "application/json")], body)


def _latin(value: str) -> bytes:
    return value.encode("latin-1", "replace")


def _items(scope: Any) -> list[tuple[str, str]]:
    items: list[tuple[str, str]] = scope.headers.items()
    return items
