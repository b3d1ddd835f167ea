"""`/v2/repository/…`: what can be called, and loading and unloading it by hand.

Loading warms every version that an endpoint names, and answers once they are; unloading lets the
workers drop them, until a call or a load wakes them.  Both are the controller's doing.  What is
served is changed by publishing and by the endpoint's document, never here: a `config` or a `file:`
in a load is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edge.admin.answers import reason_of
from edge.auth import may_call
from edge.dispatching.reach import FAR
from edge.errors import BadRequest, NotFound, Unavailable, jittered, quote
from edge.infer import Service
from edge.readiness import is_ready, state_of
from edge.snapshot import Endpoint, Ref
from edge.web_answers import admin_of_request, answer, key_of_request, read_object
from pool.wire.control import EngineRoute
from registry_sync.audit import Actor

LOAD_S_MAX = 120.0
UNLOAD_S_MAX = 30.0  # an engine is not dropped under its calls
ASK_AGAIN_S = 2.0  # a worker that came, or an engine that failed, may do better the next time
FAILED_S = 1.0  # an engine that has failed is asked to load again; this long to begin
LOOK_S = 0.02
ASLEEP = ("asleep", *FAR)

_refs = msgspec.json.Decoder(list[Ref])


class Repository:
    """The handlers, over the service that calls use too."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/v2/repository/index", self.index, methods=["POST"]),
            Route("/v2/repository/models/{model}/load", self.load, methods=["POST"]),
            Route("/v2/repository/models/{model}/unload", self.unload, methods=["POST"]),
        ]

    async def index(self, request: Request) -> Response:
        """Every version of every endpoint that the key may call."""
        service = self._service
        record = key_of_request(service, request)
        given = await read_object(request)
        only_ready = given.get("ready", False)
        if type(only_ready) is not bool or given.keys() - {"ready"}:
            raise BadRequest('the body must be empty or {"ready": true or false}')
        entries = (
            entry
            for name, endpoint in sorted(service.world.snapshot.endpoints.items())
            if may_call(record, name)
            for entry in self._entries(endpoint)
        )
        return answer([e for e in entries if not only_ready or e["state"] == "READY"])

    def _entries(self, endpoint: Endpoint) -> Iterator[dict[str, str]]:
        pool = self._service.pool
        for ref in refs_of(endpoint):
            route = pool.route_in_reach(ref)
            state = state_of(route)
            said = "LOADING" if state == "loading" else "UNAVAILABLE"
            reason = "" if state == "warm" else (route.detail if route else "") or state
            yield {
                "name": endpoint.name,
                "version": ref[1],
                "state": "READY" if is_ready(route, endpoint.deadline_s) else said,
                "reason": reason,
            }

    async def load(self, request: Request) -> Response:
        """Warm an endpoint; answer once it is warm, or with why it does not get so."""
        endpoint, actor = await self._begin(request, "load", {})
        self._note(actor, "endpoint.load", endpoint)
        try:
            async with asyncio.timeout(LOAD_S_MAX):
                while not await self._is_warm_soon(endpoint):
                    pass
        except TimeoutError:
            raise Unavailable(
                f"failed to load {endpoint.name!r}: not within {LOAD_S_MAX:.0f} s",
                retry_after_s=ASK_AGAIN_S,
            ) from None
        return Response(status_code=200)

    async def _is_warm_soon(self, endpoint: Endpoint) -> bool:
        """Ask for it, and look for a while; raises `Unavailable` when it has failed."""
        await self._ask("warm", endpoint.name)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        tried = False
        # What has no weight is not loaded for being asked for.
        refs = dict.fromkeys(arm.version.ref for arm in endpoint.running)
        while loop.time() - began_s < ASK_AGAIN_S:
            routes = self._routes(refs)
            if all(route.state in ("warm", "fallback") for route in routes):
                return True
            far = [route for route in routes if route.state in FAR]
            if far and loop.time() - began_s >= FAILED_S:
                left_s = max(route.wake_ms for route in far) / 1000
                raise Unavailable(
                    f"{endpoint.name!r} is not loaded yet: no instance of the pool is up, and one "
                    f"that is being started takes about {left_s:.0f} s",
                    retry_after_s=jittered(left_s or ASK_AGAIN_S),
                )
            failed = [route for route in routes if route.state == "failed"]
            tried |= any(route.state == "loading" for route in routes)
            if failed and (tried or loop.time() - began_s >= FAILED_S):
                raise Unavailable(
                    f"failed to load {endpoint.name!r}: {failed[0].detail}",
                    retry_after_s=ASK_AGAIN_S,
                )
            await asyncio.sleep(LOOK_S)
        return False

    async def unload(self, request: Request) -> Response:
        """Let an endpoint's engines go; answer once no worker has them."""
        endpoint, actor = await self._begin(request, "unload", {"unload_dependents": bool})
        self._note(actor, "endpoint.unload", endpoint)
        refs = _refs.decode(await self._ask("unload", endpoint.name))
        try:
            async with asyncio.timeout(UNLOAD_S_MAX):
                while any(route.state not in ASLEEP for route in self._routes(refs)):  # noqa: ASYNC110
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            raise Unavailable(
                f"{endpoint.name!r} still has calls; it is unloaded as soon as it has none",
                retry_after_s=UNLOAD_S_MAX,
            ) from None
        return Response(status_code=200)

    def _note(self, actor: Actor, what: str, endpoint: Endpoint) -> None:
        if self._service.desk is not None:
            self._service.desk.note(actor, what, endpoint.name)

    async def _begin(
        self, request: Request, what: str, known: dict[str, type]
    ) -> tuple[Endpoint, Actor]:
        """Check key, body and name of a request to load or unload."""
        service = self._service
        record = admin_of_request(service, request)
        given = await read_object(request)
        parameters = given.get("parameters")
        if given.keys() - {"parameters"} or not isinstance(parameters, dict | None):
            raise BadRequest('the body must be empty or {"parameters": {…}}')
        _check_parameters(parameters or {}, known)
        name = request.path_params["model"]
        endpoint = service.world.snapshot.endpoints.get(name)
        if endpoint is None:
            raise NotFound(f"failed to {what} {quote(name)}: there is no such endpoint")
        try:
            reason = reason_of(request)
        except ValueError as error:
            raise BadRequest(str(error)) from None
        request_id = request.headers.get("x-request-id", "")
        return endpoint, Actor("api", record.id, reason, request_id)

    async def _ask(self, what: str, name: str) -> bytes:
        try:
            found = await self._service.world.ask(what, name)
        except ConnectionError as error:
            raise Unavailable(str(error), retry_after_s=1.0) from None
        if not found.ok:
            raise Unavailable(f"{name!r}: {found.detail}", retry_after_s=1.0)
        return found.data

    def _routes(self, refs: Iterable[Ref]) -> list[EngineRoute]:
        pool = self._service.pool
        return [pool.route(ref) or EngineRoute(*ref, (), (), "unknown") for ref in refs]


def refs_of(endpoint: Endpoint) -> list[Ref]:
    """Return the versions behind an endpoint, each once."""
    return list(dict.fromkeys(arm.version.ref for arm in endpoint.arms))


def _check_parameters(given: dict[str, Any], known: dict[str, type]) -> None:
    for name, value in given.items():
        if name == "config" or name.startswith("file:"):
            raise BadRequest(
                f"parameter {quote(name)}: what is served is not changed by loading it; publish "
                "a version, or set the endpoint's document"
            )
        if name not in known:
            raise BadRequest(f"parameter {quote(name)} is not known here")
        if type(value) is not known[name]:
            raise BadRequest(f"parameter {quote(name)} must be a {known[name].__name__}")
