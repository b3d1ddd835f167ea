"""The admin port: its routes, and the key in front of everything below `/admin`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.admin import problems
from edge.admin.answers import Caller
from edge.admin.build import Build
from edge.admin.desk import Desk
from edge.admin.endpoints import Endpoints
from edge.admin.engines import Engines
from edge.admin.keys import ApiKeys
from edge.admin.models import Models
from edge.admin.problems import Problem, not_found
from edge.admin.rollouts import Rollouts
from edge.admin.trail import Trail
from edge.auth import allow_admin
from edge.errors import BadRequest, Refusal
from edge.exposition import native_text, triton_text
from edge.guard import Lookup, Reply
from edge.infer import Service
from edge.pool_metrics import pool_text
from pool.wire.control import Answer
from pool.wire.handshake import Secrets

POOL_S_MAX = 3.0  # for the controller to say how the pool is; a scrape waits no longer


class Admin:
    """The handlers of port 8002.

    Args:
        service: of the public port.
        is_draining: tells whether this edge is about to end.
        desk: of the registry.
        secrets: of the fleet, to tell its plans from others.
    """

    def __init__(
        self,
        service: Service,
        is_draining: Callable[[], bool],
        desk: Desk,
        secrets: Secrets | None = None,
    ) -> None:
        self._service = service
        self._is_draining = is_draining
        self._desk = desk
        self._secrets = secrets

    def app(self) -> Starlette:
        """Return the ASGI application."""
        routes = [
            Route("/livez", self.livez),
            Route("/readyz", self.readyz),
            Route("/metrics", self.metrics),
            Route("/admin/pool", self.pool),
            Route("/admin/endpoints/{name}/why", self.why),
            *Endpoints(self._desk).routes(),
            *ApiKeys(self._desk).routes(),
            *Rollouts(self._desk, self._ask).routes(),
            *Models(self._desk).routes(),
            *Engines(self._desk, self._secrets).routes(),
            *Trail(self._desk).routes(),
            *Build().routes(),
        ]
        handlers: dict[Any, Any] = {
            Problem: problems.on_problem,
            Refusal: problems.on_refusal,
            HTTPException: problems.on_http_error,
            Exception: problems.on_bug,
        }
        app = Starlette(
            routes=routes,
            exception_handlers=handlers,
            middleware=[Middleware(_Guard, service=self._service)],
        )
        app.router.redirect_slashes = False  # it would send clients to whatever Host says
        return app

    def refuse(self, refusal: Refusal, header: Lookup) -> Reply:
        """Answer a request that is refused before a route gets to see it."""
        problem = problems.of_refusal(refusal)
        request_id = self._service.request_id(header)
        headers = [("content-type", problems.MEDIA_TYPE), ("x-request-id", request_id)]
        return problem.status, [*headers, *problem.headers], problems.to_json(problem)

    async def livez(self, request: Request) -> Response:
        """The loop turns."""
        return Response("ok\n", media_type="text/plain")

    async def readyz(self, request: Request) -> Response:
        """The edge has routes and documents, can reach a worker, and is not draining."""
        world = self._service.world
        is_told = world.has_routes and world.has_documents
        is_served = self._service.pool.reach.has_anybody()
        is_ready = is_told and is_served and not self._is_draining()
        return Response("ok\n" if is_ready else "not ready\n", 200 if is_ready else 503)

    async def _pool_text(self) -> bytes:
        try:
            async with asyncio.timeout(POOL_S_MAX):
                return pool_text((await self._service.world.ask("status")).data)
        except (ConnectionError, TimeoutError):
            raise Problem(503, "no-controller", "no controller answers") from None

    async def metrics(self, request: Request) -> Response:
        """Prometheus text, summed over this node's edge processes.

        `?view=triton` shows the same counters as `nv_inference_…`, `?view=pool` the workers and
        engines of the whole pool, as the controller knows them.
        """
        metrics = self._service.metrics
        match request.query_params.get("view"):
            case None:
                text = await asyncio.to_thread(native_text, metrics.node())
            case "triton":
                text = await asyncio.to_thread(triton_text, metrics.node())
            case "pool":
                text = await self._pool_text()
            case _:
                raise BadRequest("view: there is no such view of the metrics; use triton or pool")
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    async def _ask(self, what: str, argument: str) -> Answer:
        return await self._service.world.ask(what, argument)

    async def pool(self, request: Request) -> Response:
        """What `tidepool status --json` prints."""
        try:
            found = await self._service.world.ask("status")
        except ConnectionError as error:
            raise Problem(503, "no-controller", str(error)) from None
        return Response(found.data, media_type="application/json")

    async def why(self, request: Request) -> Response:
        """What `tidepool status --why NAME --json` prints."""
        name = request.path_params["name"]
        if name not in self._service.world.snapshot.endpoints:
            raise not_found(f"endpoint {name!r:.80}")
        try:
            found = await self._service.world.ask("why", name)
        except ConnectionError as error:
            raise Problem(503, "no-controller", str(error)) from None
        if not found.ok:
            raise not_found(f"endpoint {name!r:.80}")
        return Response(found.data, media_type="application/json")


class _Guard:
    """Names every request, and lets nobody below `/admin` without an admin key.

    It stands in front of the routes, so that no route can forget it and a stranger does not learn
    which there are.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        header = Headers(scope=scope).get
        request_id = self._service.request_id(header)

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        path = scope["path"]
        if path == "/admin" or path.startswith("/admin/"):
            try:
                record = self._service.auth.check(self._service.world.snapshot, header)
                allow_admin(record)
            except Refusal as refusal:
                answer = problems.render(problems.of_refusal(refusal))
                await answer(scope, receive, named)
                return
            scope["tidepool.caller"] = Caller(record, request_id)
        await self._app(scope, receive, named)
