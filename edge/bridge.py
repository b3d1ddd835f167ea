"""From RSGI to ASGI: lets Starlette answer what is not on the fast path.

Only what Starlette needs for small requests and answers: HTTP, a bounded body read whole and sent
as it is, an answer sent whole.  No websockets, no streams, no compressed requests; those have the
fast path.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import structlog
from starlette.types import ASGIApp

from edge.errors import BodyTooSlow, Refusal, Unsupported
from edge.guard import Lookup, Reply
from edge.receive import Room, receive

UNREADABLE = "\0"
BODY_BYTES_MAX = 1 << 20  # nothing here takes more

_log = structlog.get_logger()


class Bridge:
    """An RSGI application around an ASGI one.

    Args:
        app: what answers.
        body_bytes_max: of a request.
        refuse: makes the answer to a request that `app` does not get to see.
        room: for the bodies of all requests.
        body_read_s_max: how long a body may take.
        request_id: of a header lookup; None: answers carry no id.
    """

    def __init__(
        self,
        app: ASGIApp,
        body_bytes_max: int,
        refuse: Callable[[Refusal, Lookup], Reply],
        room: Room,
        body_read_s_max: float,
        request_id: Callable[[Lookup], str] | None = None,
    ) -> None:
        self._app = app
        self._body_bytes_max = min(body_bytes_max, BODY_BYTES_MAX)
        self._refuse = refuse
        self._room = room
        self._body_read_s_max = body_read_s_max
        self._request_id = request_id

    async def __call__(self, scope: Any, proto: Any) -> None:
        """Answer one request."""
        lookup = scope.headers.get
        holding = _Holding()
        try:
            body = await self._body(lookup, proto, holding)
            answer = await self._ask(scope, body)
        except Refusal as refusal:
            proto.response_bytes(*self._refuse(refusal, lookup))
            return
        finally:
            self._room.give_back(holding, holding.held_bytes)
        if self._request_id is not None:
            answer.headers.append(("x-request-id", self._request_id(lookup)))
        proto.response_bytes(answer.status, answer.headers, b"".join(answer.parts))

    async def _body(self, lookup: Lookup, proto: Any, holding: _Holding) -> bytes:
        encoding = lookup("content-encoding")
        if encoding is not None and encoding.lower() not in ("", "identity"):
            raise Unsupported("a compressed body is not supported on this route")
        late_s = self._body_read_s_max
        try:
            async with asyncio.timeout(late_s):
                return await receive(
                    proto, lookup, self._body_bytes_max, self._room, holding, late_s
                )
        except TimeoutError:
            raise BodyTooSlow(f"no body within {late_s} s") from None

    async def _ask(self, scope: Any, body: bytes) -> _Answer:
        headers = [(name.encode(), _latin(value)) for name, value in _items(scope)]
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
        answer = _Answer(body)
        try:
            await self._app(asgi_scope, answer.receive, answer.send)
        except Exception:
            # Starlette raises what its handler for bugs has answered already.
            _log.exception("bug", path=scope.path)
        return answer


@dataclass(slots=True)
class _Holding:
    """What a request's body holds of the room."""

    held_bytes: int = 0
    owner: str = ""
    body_due_s: float = 0.0


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


def _latin(value: str) -> bytes:
    return value.encode("latin-1", "replace")


def _items(scope: Any) -> list[tuple[str, str]]:
    items: list[tuple[str, str]] = scope.headers.items()
    # Granian leaves out values that are no ASCII text.  A condition that is not seen would be one
    # that holds, so they come as a text that no reader of any header takes.
    unread = set(scope.headers.keys()).difference(name for name, _ in items)
    return [*items, *((name, UNREADABLE) for name in sorted(unread))]
