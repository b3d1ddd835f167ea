"""What is published, over HTTP: models, their versions, and what each consists of."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edge.admin.answers import PAGE_DEFAULT, answer, number, query
from edge.admin.desk import Desk
from edge.admin.problems import Problem, not_found
from registry_sync import catalog
from registry_sync.names import BadName, check_name
from registry_sync.rules import check_version
from registry_sync.stores import NotFound, Store

PAGE_MAX = 1000


class Models:
    """The handlers of `/admin/models`."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/admin/models", self.list),
            Route("/admin/models/{model}", self.model),
            Route("/admin/models/{model}/versions", self.model),
            Route("/admin/models/{model}/versions/{version}", self.version),
        ]

    async def list(self, request: Request) -> Response:
        """Every model with its versions, by name; `?after=` a name begins the next page."""
        given = query(request, "limit", "after")
        limit = number(given, "limit", PAGE_DEFAULT, PAGE_MAX)
        found = await self._desk.read(catalog.models)
        names = [name for name in found if name > given.get("after", "")]
        page = names[:limit]
        return answer(
            {
                "models": [{"model": name, "versions": found[name]} for name in page],
                "next": page[-1] if len(names) > len(page) else None,
            }
        )

    async def model(self, request: Request) -> Response:
        """One model's versions, oldest first."""
        model, _ = _names(request)
        versions = await self._desk.read(lambda store: catalog.versions(store, model))
        if not versions:
            raise not_found(f"model {model!r}")
        return answer({"model": model, "versions": versions})

    async def version(self, request: Request) -> Response:
        """A version's manifest: its signature, files and labels; it never changes."""
        model, version = _names(request)
        return answer(await self._desk.read(lambda store: _manifest(store, model, version)))


def _names(request: Request) -> tuple[str, str]:
    given = request.path_params
    try:
        return check_name("model", given["model"]), check_version(given.get("version", "1"))
    except BadName as error:
        raise Problem(400, "bad-name", str(error)) from None


def _manifest(store: Store, model: str, version: str) -> dict[str, Any]:
    try:
        manifest = catalog.load_manifest(store, model, version)
    except NotFound:
        raise not_found(f"version {version} of a model {model!r}") from None
    shown: dict[str, Any] = msgspec.to_builtins(manifest)
    return {**shown, "digest": manifest.digest, "bytes": sum(f.bytes for f in manifest.files)}
