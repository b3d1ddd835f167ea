"""What the admin handlers read out of a request, and the answers that they make."""

from __future__ import annotations

import asyncio
import urllib.parse
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import yaml
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edge.admin.desk import Changed
from edge.admin.problems import Problem, invalid
from edge.auth import key_of
from registry_sync import audit, documents
from registry_sync.documents import BadDocument, KeyRecord

Handler = Callable[[Request], Awaitable[Response]]

_T = TypeVar("_T", bound=msgspec.Struct)

BODY_BYTES_MAX = 64 << 10  # a spec with 16 variants is 2 KiB
PAGE_DEFAULT = 100
JSON_TYPES = ("application/json",)
YAML_TYPES = ("application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml")
REASON_HEADER = "x-tidepool-reason"
PENDING_CHARS_MAX = 200


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is; the guard puts it into the request's scope."""

    record: KeyRecord
    request_id: str


def caller(request: Request) -> Caller:
    """Return whose request it is."""
    found: Caller = request.scope["tidepool.caller"]
    return found


def actor(request: Request) -> audit.Actor:
    """Return who is to be recorded for a change, and why they say that they make it.

    Raises:
        Problem: 400, the reason does not fit.
    """
    who = caller(request)
    try:
        reason = reason_of(request)
    except ValueError as error:
        raise Problem(400, "bad-reason", str(error)) from None
    return audit.Actor("api", who.record.id, reason, who.request_id)


def reason_of(request: Request) -> str:
    """Return why a request is made, as it says itself.

    Raises:
        ValueError: the reason does not fit.
    """
    try:
        # Headers are ASCII; %C3%BC is a way to write more, as in a URL.
        reason = urllib.parse.unquote(request.headers.get(REASON_HEADER, ""), errors="strict")
        audit.check_reason(reason)
    except ValueError as error:
        raise ValueError(f"{REASON_HEADER}: {error}") from None
    if key_of(request.headers.get) in reason:
        raise ValueError(f"{REASON_HEADER}: a key does not belong into a reason")
    return reason


async def document(request: Request, types: Sequence[str] = (*JSON_TYPES, *YAML_TYPES)) -> bytes:
    """Return the request's body, if its type is one that is read.

    Raises:
        Problem: 415, it is another; 400, there is no body.
    """
    given = request.headers.get("content-type")
    if given is not None and given.partition(";")[0].strip().lower() not in types:
        raise Problem(
            *(415, "unsupported-type", f"content-type {given!r:.80}: use {', '.join(types)}"),
            (("accept", ", ".join(types)),),
        )
    body = await request.body()
    if len(body) > BODY_BYTES_MAX:
        raise Problem(413, "too-large", f"{len(body)} bytes; at most {BODY_BYTES_MAX} are read")
    if not body.strip():
        raise Problem(400, "no-body", "the request has no body")
    return body


async def read_document(request: Request, kind: type[_T]) -> _T:
    """Return the request's body as a document, which is read in a thread: YAML takes its time.

    Raises:
        Problem: it does not fit, with every value that does not.
    """
    body = await document(request)
    try:
        return await asyncio.to_thread(documents.parse_plain, body, kind)
    except BadDocument as error:
        raise invalid(error.problems) from None


def joined(request: Request, name: str) -> str | None:
    """Return a header that is a list, which may come in several lines; None if there is none."""
    lines = request.headers.getlist(name)
    return ", ".join(lines) if lines else None


def query(request: Request, *known: str) -> dict[str, str]:
    """Return the query's parameters.

    Raises:
        Problem: 400, one is unknown or given twice.
    """
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in known:
            way_out = f"known are {', '.join(known)}" if known else "this route takes none"
            raise Problem(400, "bad-query", f"?{name:.80}: no such parameter; {way_out}")
        if name in found:
            raise Problem(400, "bad-query", f"?{name}: given twice")
        found[name] = value
    return found


def number(given: dict[str, str], name: str, default: int, most: int) -> int:
    """Return a parameter that is a number from 1 on.

    Raises:
        Problem: 400, it is not.
    """
    text = given.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 16 and 1 <= int(text) <= most):
        raise Problem(400, "bad-query", f"?{name}={text!r:.80}: expected a number from 1 to {most}")
    return int(text)


def answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return `content` as JSON; bytes are JSON already."""
    body = content if isinstance(content, bytes) else msgspec.json.encode(content)
    headers = {"cache-control": "no-store", **(headers or {})}
    return Response(body, status, headers, "application/json")


def answer_readable(request: Request, body: bytes, headers: dict[str, str]) -> Response:
    """Return a JSON document, as YAML if the request would rather have that."""
    headers = {"cache-control": "no-cache", "vary": "accept", **headers}
    accepts = request.headers.get("accept", "").partition(",")[0].partition(";")[0].strip()
    if accepts in YAML_TYPES:
        text = yaml.safe_dump(msgspec.json.decode(body), sort_keys=False, allow_unicode=True)
        return Response(text.encode(), 200, headers, "application/yaml")
    return Response(body, 200, headers, "application/json")


def answer_change(
    changed: Changed[Any], content: Any, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Answer a change: 202 while not every live edge goes by it; None is no content."""
    headers = dict(headers or {})
    if changed.pending:
        status = 202
        # A header is one line of ASCII.
        shown = changed.pending.encode("ascii", "replace").decode()[:PENDING_CHARS_MAX]
        headers["x-tidepool-pending"] = "".join(c if c.isprintable() else " " for c in shown)
    if not changed.is_recorded:
        headers["x-tidepool-audit"] = "lost"
    if content is None and status == 204:
        return Response(None, status, headers)
    return answer({} if content is None else content, status, headers)


def by_method(path: str, **handlers: Handler) -> Route:
    """Return a route whose methods have a handler each, so that a 405 names all of them."""

    async def handle(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        return await handlers[method](request)

    return Route(path, handle, methods=list(handlers))
