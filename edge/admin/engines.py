"""Plans over HTTP: which there are, and the wishes for which devices a version is to have one.

A wish is one document for each version and device class; a PUT replaces whatever is there.  It is
taken for any device class that can be one: a worker that can build may yet come.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edge.admin.answers import (
    PAGE_DEFAULT,
    actor,
    answer,
    answer_change,
    by_method,
    number,
    query,
    read_document,
)
from edge.admin.desk import Desk
from edge.admin.problems import Problem, invalid, not_found
from pool.wire.handshake import Secrets
from registry_sync import catalog, plan_catalog, wishes
from registry_sync.builds import BuildWish
from registry_sync.names import BadName, check_name
from registry_sync.plan_catalog import Listed
from registry_sync.rules import check_version
from registry_sync.stores import NotFound, Store
from registry_sync.wishes import check_device_class, new_wish

PAGE_MAX = 1000


class Wish(msgspec.Struct, frozen=True):
    """What may be said of a wish besides what its path says."""

    engine: Annotated[str, Meta(max_length=64)] = ""  # that is to build; empty: any that can


class Engines:
    """The handlers of `/admin/engines` and of a version's builds.

    Args:
        desk: of the registry.
        secrets: of the fleet; with them a plan that nobody of it built is told from the others.
    """

    def __init__(self, desk: Desk, secrets: Secrets | None) -> None:
        self._desk = desk
        self._secrets = secrets

    def routes(self) -> list[Route]:
        """Return the routes."""
        builds = "/admin/models/{model}/versions/{version}/builds"
        return [
            Route("/admin/engines", self.plans),
            Route(builds, self.builds),
            by_method(
                f"{builds}/{{device_class}}", GET=self.get, PUT=self.put, DELETE=self.withdraw
            ),
        ]

    async def plans(self, request: Request) -> Response:
        """Every plan, by model and version; `?after=` the former page's `next`: the next page."""
        given = query(request, "model", "version", "limit", "after")
        limit = number(given, "limit", PAGE_DEFAULT, PAGE_MAX)
        wanted = {name: given[name] for name in ("model", "version") if name in given}

        def is_wanted(one: Listed) -> bool:
            return all(getattr(one.meta, name, "") == wanted[name] for name in wanted)

        def choose(found: list[Listed]) -> list[Listed]:
            ids = [f"{one.key}/{one.secret_id}" for one in found]
            if "after" in given:
                if given["after"] not in ids:
                    raise Problem(400, "bad-query", f"?after={given['after']!r:.80}: no such plan")
                found = found[ids.index(given["after"]) + 1 :]
            return [one for one in found if is_wanted(one)][: limit + 1]

        rows = await self._rows(choose)
        page = rows[:limit]
        more = len(rows) > len(page)
        last = f"{page[-1]['key']}/{page[-1]['secret_id']}" if more else None
        return answer({"engines": page, "next": last})

    async def builds(self, request: Request) -> Response:
        """What is wished for a version, and the plans of its artifact."""
        query(request)
        model, version, _ = _names(request)

        def work(store: Store) -> tuple[str, list[BuildWish]]:
            return _digest(store, model, version), wishes.of_version(store, model, version)

        digest, wished = await self._desk.read(work)
        # Of other versions too, if they are the same artifact: their plans are this one's.
        rows = [row for row in await self._rows() if row["artifact"] == digest]
        of_version = {"model": model, "version": version}
        return answer({**of_version, "builds": [_shown(wish) for wish in wished], "engines": rows})

    async def get(self, request: Request) -> Response:
        """One wish."""
        names = _names(request)

        def work(store: Store) -> BuildWish:
            try:
                return wishes.get(store, *names)
            except NotFound:
                raise _no_wish(*names) from None

        return answer(_shown(await self._desk.read(work)))

    async def put(self, request: Request) -> Response:
        """Let workers build a plan of the version for the device class."""
        model, version, device_class = _names(request)
        who = actor(request)
        has_body = bool((await request.body()).strip())
        wanted = await read_document(request, Wish) if has_body else Wish()
        try:
            wish = new_wish(model, version, device_class, wanted.engine)
        except BadName as error:
            raise invalid([f"$.engine: {error}"]) from None

        def act(store: Store) -> bool:
            _digest(store, model, version)
            return wishes.put(store, wish)

        done = await self._desk.change(
            *(who, "engine.wish", model, act), lambda _: ("", f"version {version} {device_class}")
        )
        headers = {"location": f"/admin/models/{model}/versions/{version}/builds/{device_class}"}
        return answer_change(done, _shown(wish), 201 if done.result else 200, headers)

    async def withdraw(self, request: Request) -> Response:
        """Take a wish back; what was built for it stays."""
        names = model, version, device_class = _names(request)

        def act(store: Store) -> None:
            try:
                wishes.withdraw(store, *names)
            except NotFound:
                raise _no_wish(*names) from None

        done = await self._desk.change(
            *(actor(request), "engine.withdraw", model, act),
            lambda _: (f"version {version} {device_class}", ""),
        )
        return answer_change(done, None, 204)

    async def _rows(
        self, choose: Callable[[list[Listed]], list[Listed]] = list
    ) -> list[dict[str, Any]]:
        keys = {} if self._secrets is None else self._secrets.keys
        return plan_catalog.rows(
            await self._desk.read(lambda store: plan_catalog.plans(store, keys, choose))
        )


def _names(request: Request) -> tuple[str, str, str]:
    given = request.path_params
    try:
        return (
            check_name("model", given["model"]),
            check_version(given["version"]),
            check_device_class(given.get("device_class", "sm_75")),
        )
    except BadName as error:
        raise Problem(400, "bad-name", str(error)) from None


def _digest(store: Store, model: str, version: str) -> str:
    try:
        return catalog.load_manifest(store, model, version).digest
    except NotFound:
        raise not_found(f"version {version} of a model {model!r}") from None


def _no_wish(model: str, version: str, device_class: str) -> Problem:
    return not_found(f"wish for a plan of {model} version {version} for {device_class}")


def _shown(wish: BuildWish) -> dict[str, Any]:
    return {
        "model": wish.model,
        "version": wish.version,
        "device_class": wish.device_class,
        "engine": wish.engine,
        "created": wish.created,
    }
