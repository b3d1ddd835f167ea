"""What every request must be before anything of it is looked at, on both ports.

    Host             exactly one                                         400
    fields that      one each (`SINGLE`), because two readers of one     400, 415
    mean one thing   request must not go by different values
    header values    32 KiB in all                                       431
    path             8 KiB; the query is not counted                     414

Beneath, hyper refuses by itself: heads of more than 64 KiB or 100 fields (431), lengths that are no
number or differ, folded lines, NUL, a space before the colon (400), and frames a request with both
Content-Length and Transfer-Encoding by the latter, after which it closes the connection.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from edge.errors import BadRequest, HeadersTooLarge, Refusal, TargetTooLong, Unsupported, quote

CLOSE = ("connection", "close")
HEADER_BYTES_MAX = 32 << 10
HEAD_BYTES_MAX = 64 << 10  # of the whole head; hyper also reads bodies in pieces of this size
TARGET_CHARS_MAX = 8 << 10  # RFC 9110 asks for at least 8,000
SINGLE = (
    "host",
    "content-length",
    "content-type",
    "transfer-encoding",
    "inference-header-content-length",
    "authorization",
    "x-api-key",
    "x-request-timeout-seconds",
    "x-request-id",
)

Lookup = Callable[[str], str | None]
Reply = tuple[int, list[tuple[str, str]], bytes]


class Headers(Protocol):
    """Granian's; `len` counts names, `values` leaves out what is no ASCII text."""

    def __len__(self) -> int: ...
    def get(self, key: str, default: Any = None) -> Any: ...
    def get_all(self, key: str) -> list[str]: ...
    def values(self) -> list[str]: ...


class Guard:
    """An RSGI application around another, which gets only requests that may be looked at."""

    def __init__(
        self,
        app: Callable[[Any, Any], Awaitable[None]],
        refuse: Callable[[Refusal, Lookup], Reply],
    ) -> None:
        self._app = app
        self._refuse = refuse
        self.is_closing = False  # every answer is the last one on its connection
        self.closings = 0  # how many requests have come since

    def __rsgi__(self, scope: Any, proto: Any) -> Awaitable[None]:
        # No coroutine of its own: this is on every request's way.
        headers = scope.headers
        if self.is_closing:
            proto = Closing(proto)
            self.closings += 1
        values = headers.values()
        if (
            len(values) != len(headers)
            or len(headers.get_all("host")) != 1
            or len("".join(values)) > HEADER_BYTES_MAX
            or len(scope.path) > TARGET_CHARS_MAX
        ):
            refusal = look_closer(headers, scope.path)
            if refusal is not None:
                return self._answer(proto, self._refuse(refusal, headers.get))
        return self._app(scope, proto)

    async def _answer(self, proto: Any, reply: Reply) -> None:
        proto.response_bytes(*reply)


class Closing:
    """Granian's protocol, but for answers that close their connection."""

    def __init__(self, proto: Any) -> None:
        self._proto = proto

    def __getattr__(self, name: str) -> Any:
        return getattr(self._proto, name)

    def __call__(self) -> Any:
        return self._proto()

    def __aiter__(self) -> Any:
        return aiter(self._proto)

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self._proto.response_bytes(status, [*headers, CLOSE], body)

    def response_stream(self, status: int, headers: list[tuple[str, str]]) -> Any:
        return self._proto.response_stream(status, [*headers, CLOSE])


def look_closer(headers: Headers, path: str) -> Refusal | None:
    """Say what is wrong with a request that is unusual, if anything is."""
    if len(path) > TARGET_CHARS_MAX:
        return TargetTooLong(f"the target is longer than {TARGET_CHARS_MAX} characters")
    if sum(map(len, headers.values())) > HEADER_BYTES_MAX:
        return HeadersTooLarge(f"the headers are over {HEADER_BYTES_MAX} bytes")
    hosts = len(headers.get_all("host"))
    if hosts != 1:
        return BadRequest(f"a request needs exactly one Host header, this one has {hosts}")
    if len(headers.get_all("content-encoding")) > 1:
        return Unsupported("a body of several Content-Encodings is not supported; use one")
    for name in SINGLE:
        if len(headers.get_all(name)) > 1:
            return BadRequest(f"the header {quote(name)} is given twice")
    return None
