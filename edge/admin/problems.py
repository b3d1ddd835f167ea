"""What the admin port answers instead of a result: RFC 9457 problem documents.

Every failure of the registry has its name here: whose fault it is, and whether it helps to try
again.  Admins see the store's own words; callers of the public port never do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from edge.errors import Headers, Refusal, retry_headers
from registry_sync.documents import BadDocument
from registry_sync.endpoints import NoHistory, RevisionConflict
from registry_sync.keys import KeyExists, NoSuchKey
from registry_sync.names import BadName
from registry_sync.rollouts import NoRollout, RolloutLive, RolloutOver, RolloutUnfit
from registry_sync.stores import (
    AccessDenied,
    BadStore,
    Conflict,
    OutcomeUnknown,
    StoreError,
    StoreUnavailable,
)

TYPE_PREFIX = "urn:tidepool:problem:"
DETAIL_CHARS_MAX = 2000
RETRY_S = 5.0
MEDIA_TYPE = "application/problem+json"

NO_ACCESS = (
    "send this to an edge whose node can use the registry, or use the command line; calls for "
    "models are not concerned"
)

# $.variants[1]["a b"].weight: the rest
_PATH = re.compile(r'(\$(?:\.[\w-]+|\[[0-9]+\]|\["(?:[^"\\]|\\.)*"?\])*): (.*)', re.DOTALL)


class Problem(Exception):
    """A request that is not carried out.

    Args:
        status: of HTTP.
        code: the end of the problem's type.
        detail: what is wrong with which value, and the way out.
        headers: response headers in lower case.
        more: further members of the document.
    """

    def __init__(
        self, status: int, code: str, detail: str, headers: Headers = (), **more: Any
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = headers
        self.more = more


def render(problem: Problem) -> Response:
    """Return the answer that shows a problem."""
    headers = {**dict(problem.headers), "cache-control": "no-store"}
    return Response(to_json(problem), problem.status, headers, MEDIA_TYPE)


def to_json(problem: Problem) -> bytes:
    """Return the document."""
    detail = problem.detail
    if len(detail) > DETAIL_CHARS_MAX:
        detail = detail[: DETAIL_CHARS_MAX - 1] + "…"
    body = {
        "type": TYPE_PREFIX + problem.code,
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": detail,
    }
    return msgspec.json.encode({**body, **problem.more})


def not_found(what: str) -> Problem:
    """Return the problem that `what` does not exist."""
    return Problem(404, "not-found", f"there is no {what}")


def errors_of(problems: Sequence[str]) -> list[dict[str, str]]:
    """Return a document's problems as path and message; those without a path are of the whole."""
    found = []
    for problem in problems:
        match = _PATH.fullmatch(problem)
        path, message = (match[1], match[2]) if match else ("$", problem)
        found.append({"path": path, "message": message})
    return found


def invalid(problems: Sequence[str]) -> Problem:
    """Return the problem of a document that a caller sent, with every value that does not fit."""
    count = len(problems)
    what = "a value does not fit" if count == 1 else f"{count} values do not fit"
    detail = f"{what}: {problems[0]}"
    return Problem(422, "invalid-document", detail, errors=errors_of(problems))


def of_error(error: Exception) -> Problem | None:
    """Return the problem that a registry function's exception means; None for a bug."""
    match error:
        case BadDocument(problems=problems):  # not the caller's: that one is `invalid`
            detail = f"a stored document does not fit: {problems[0]}"
            return Problem(502, "stored-document", detail, errors=errors_of(problems))
        case BadName():
            return Problem(400, "bad-name", str(error))
        case RevisionConflict(current=current, yours=yours):
            return Problem(
                *(412, "revision-conflict", str(error)),
                current_revision=current,
                your_revision=yours,
            )
        case NoRollout():
            return Problem(404, "not-found", str(error))
        case RolloutLive():
            return Problem(409, "rollout-live", error.told(_parameter))
        case RolloutOver():
            return Problem(409, "rollout-over", str(error))
        case RolloutUnfit():
            return Problem(409, "rollout-unfit", error.told(_parameter))
        case NoHistory():
            return Problem(409, "no-history", str(error))
        case KeyExists():
            return Problem(409, "key-exists", str(error))
        case NoSuchKey():
            return not_found("such key")
        case StoreError():
            return _of_store(error)
        case _:
            return None


def _parameter(name: str, value: str) -> str:
    return f"?{name}={value}"


def _of_store(error: StoreError) -> Problem:
    later = retry_headers(RETRY_S)
    match error:
        case OutcomeUnknown():
            return Problem(503, "outcome-unknown", str(error), later)
        case StoreUnavailable():
            detail = f"the registry cannot be reached: {error}; a write may have landed: read again"
            return Problem(503, "registry-unavailable", detail, later)
        case AccessDenied():
            detail = f"this edge may not do this in the registry: {error}; {NO_ACCESS}"
            return Problem(503, "registry-denied", detail)
        case BadStore():
            detail = f"this edge cannot use the registry: {error}; {NO_ACCESS}"
            return Problem(503, "registry-unusable", detail)
        case Conflict():
            return Problem(409, "busy", str(error), later)
        case _:
            return Problem(502, "registry-failed", f"the registry failed: {error}")


async def on_problem(request: Request, error: Exception) -> Response:
    """Answer a `Problem`."""
    assert isinstance(error, Problem)
    return render(error)


async def on_refusal(request: Request, error: Exception) -> Response:
    """Answer a `Refusal` of the parts that both ports share."""
    assert isinstance(error, Refusal)
    return render(of_refusal(error))


def of_refusal(refusal: Refusal) -> Problem:
    """Return the problem that a refusal of the parts that both ports share means."""
    return Problem(
        refusal.status, refusal.code.replace("_", "-"), refusal.text, tuple(refusal.headers)
    )


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer what Starlette's router refuses."""
    assert isinstance(error, HTTPException)
    headers = tuple((error.headers or {}).items())
    path = request.scope["path"]  # never of `request.url`, in which a Host can play a part
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        detail = f"{request.method} is not for {path}; allowed are {allowed}"
        return render(Problem(405, "method-not-allowed", detail, headers))
    if error.status_code == 404:
        return render(Problem(404, "no-route", f"there is no route {path!r:.200}"))
    return render(Problem(error.status_code, "refused", error.detail, headers))


async def on_bug(request: Request, error: Exception) -> Response:
    """Answer what nobody foresaw; the log has it."""
    return render(Problem(500, "internal-error", "internal error"))
