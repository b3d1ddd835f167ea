"""What the routes outside of calls share: JSON answers, JSON bodies, and what a path names."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from edge.auth import allow, allow_admin
from edge.body_json import check_depth
from edge.errors import BadRequest
from edge.infer import Service, Target
from edge.snapshot import Endpoint
from registry_sync.documents import KeyRecord

_object = msgspec.json.Decoder(dict[str, Any])


def answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return `content` as JSON."""
    return Response(msgspec.json.encode(content), status, headers, "application/json")


async def read_object(request: Request) -> dict[str, Any]:
    """Read the JSON object of a request; an empty body is an empty one, as tritonclient sends it.

    Raises:
        BadRequest: it is no JSON object.
    """
    body = await request.body()
    if not body.strip():
        return {}
    check_depth(body)
    try:
        return _object.decode(body)
    except (ValueError, RecursionError):
        raise BadRequest("the body must be empty or a JSON object") from None


def key_of_request(service: Service, request: Request) -> KeyRecord:
    """Return the record of the request's key; raises `Unauthorized`."""
    return service.auth.check(service.world.snapshot, request.headers.get)


def admin_of_request(service: Service, request: Request) -> KeyRecord:
    """Return the record of an admin's key; raises `Unauthorized` or `Forbidden`."""
    record = key_of_request(service, request)
    allow_admin(record)
    return record


async def find_endpoint(service: Service, request: Request) -> Endpoint:
    """Return what the path names, if the key may call it.

    Raises:
        Unauthorized, Forbidden, NotFound, Unavailable: as for a call.
    """
    target = Target(request.path_params["model"], request.path_params.get("version"))
    allow(key_of_request(service, request), target.name)
    return await service.find(service.world.snapshot, target)
