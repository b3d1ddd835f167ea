"""The admin port: health and metrics for machines on this host, and the pool's status by key.

Errors are RFC 9457 problem documents.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edge.auth import allow_admin
from edge.errors import BadRequest, Refusal
from edge.guard import Lookup, Reply
from edge.infer import Service


class Admin:
    """The handlers of port 8002."""

    def __init__(self, service: Service, is_draining: Callable[[], bool]) -> None:
        self._service = service
        self._is_draining = is_draining

    def app(self) -> Starlette:
        """Return the ASGI application."""
        routes = [
            Route("/livez", self.livez),
            Route("/readyz", self.readyz),
            Route("/metrics", self.metrics),
            Route("/admin/pool", self.pool),
        ]
        handlers: dict[Any, Any] = {Refusal: _refused, HTTPException: _http_error, Exception: _bug}
        return Starlette(routes=routes, exception_handlers=handlers)

    async def livez(self, request: Request) -> Response:
        """The loop turns."""
        return Response("ok\n", media_type="text/plain")

    async def readyz(self, request: Request) -> Response:
        """The edge has routes and documents and is not draining."""
        world = self._service.world
        is_ready = world.has_routes and world.has_documents and not self._is_draining()
        return Response("ok\n" if is_ready else "not ready\n", 200 if is_ready else 503)

    async def metrics(self, request: Request) -> Response:
        """Prometheus text, summed over this node's edge processes.

        `?view=triton` shows the same counters as `nv_inference_…`.
        """
        metrics = self._service.metrics
        match request.query_params.get("view"):
            case None:
                text = metrics.text()
            case "triton":
                text = metrics.triton_text()
            case _:
                raise BadRequest("view: there is no such view of the metrics; use triton")
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    async def pool(self, request: Request) -> Response:
        """What `tidepool status --json` prints."""
        service = self._service
        allow_admin(service.auth.check(service.world.snapshot, request.headers.get))
        try:
            found = await service.world.ask("status")
        except ConnectionError as error:
            return _problem(503, str(error))
        return Response(found.data, media_type="application/json")


def refuse_as_problem(refusal: Refusal, header: Lookup) -> Reply:
    """Answer a request that is refused before a route gets to see it."""
    body = {"title": HTTPStatus(refusal.status).phrase, "status": refusal.status}
    headers = [("content-type", "application/problem+json"), *refusal.headers]
    return refusal.status, headers, msgspec.json.encode({**body, "detail": refusal.text})


def _problem(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    body = {"title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return Response(msgspec.json.encode(body), status, headers, "application/problem+json")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _problem(error.status, error.text, dict(error.headers))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _problem(error.status_code, error.detail)


async def _bug(request: Request, error: Exception) -> Response:
    return _problem(500, "internal error")
