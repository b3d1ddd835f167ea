"""Endpoints over HTTP: specs with their history and state, rollback, lint and purge.

A PUT without a condition replaces whatever is there, as `tidepool endpoint set` does; `revision`
in the document counts as If-Match where there is no such header.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edge.admin.answers import (
    PAGE_DEFAULT,
    actor,
    answer,
    answer_change,
    answer_readable,
    by_method,
    document,
    joined,
    number,
    query,
    read_document,
)
from edge.admin.conditions import Condition, expected_revision, is_fresh, read_condition, tag
from edge.admin.desk import Desk
from edge.admin.problems import Problem, errors_of, invalid, not_found
from registry_sync import audit, documents, endpoints, spec_diff
from registry_sync.documents import BadDocument, EndpointSpec, EndpointState
from registry_sync.endpoint_errors import NoRevision
from registry_sync.endpoint_schema import SCHEMA
from registry_sync.endpoints import READS_AT_ONCE
from registry_sync.names import check_name
from registry_sync.scale_advice import warnings
from registry_sync.stores import NotFound, Store
from registry_sync.variant_checks import check_variants

PAGE_MAX = 1000
REVISION_MAX = 2**53 - 1


class Purge(msgspec.Struct, frozen=True):
    """Whose cached answers are to go; no version: all of them."""

    endpoint: str
    version: str | int | None = None


class Endpoints:
    """The handlers of `/admin/endpoints`."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def routes(self) -> list[Route]:
        """Return the routes."""
        one = "/admin/endpoints/{name}"
        return [
            Route("/admin/endpoints", self.list),
            by_method(one, GET=self.get, PUT=self.put),
            Route(f"{one}/state", self.state),
            Route(f"{one}/history", self.history),
            Route(f"{one}/history/{{revision}}", self.revision),
            Route(f"{one}/diff", self.diff),
            Route(f"{one}/rollback", self.rollback, methods=["POST"]),
            Route(f"{one}/lint", self.lint, methods=["POST"]),
            Route("/admin/lint", self.lint, methods=["POST"]),
            Route("/admin/schema", self.schema),
            Route("/admin/cache/purge", self.purge, methods=["POST"]),
        ]

    async def list(self, request: Request) -> Response:
        """Names, revisions and variants, by name; `?after=` a name begins the next page."""
        given = query(request, "limit", "after")
        limit = number(given, "limit", PAGE_DEFAULT, PAGE_MAX)
        return answer(await self._desk.read(lambda s: _listed(s, given.get("after", ""), limit)))

    async def get(self, request: Request) -> Response:
        """The current spec, as JSON or YAML; its ETag is its revision."""
        name = name_of(request)
        spec = await self._desk.read(lambda store: _current(store, name))
        return _shown(request, tag(spec.revision), documents.write(spec))

    async def put(self, request: Request) -> Response:
        """Create or replace a spec; see the module and `conditions` for when."""
        name = name_of(request)
        who = actor(request)
        condition = condition_of(request)
        aborts = _is_true(query(request, "abort_rollout"), "abort_rollout")
        body = await document(request)

        def act(store: Store) -> EndpointSpec:
            try:
                spec = documents.parse_spec(body)
                _check_endpoint(name, spec)
                expected = expected_revision(condition, name, lambda: revision_of(store, name))
                revision = endpoints.set_spec(store, spec, expected, abort_rollout=aborts)
            except BadDocument as error:
                raise invalid(error.problems) from None
            return msgspec.structs.replace(spec, revision=revision)

        done = await self._desk.change(
            *(who, "endpoint.set", name, act), lambda spec: audit.revisions(spec.revision)
        )
        revision = done.result.revision
        headers = {"etag": tag(revision), "location": f"/admin/endpoints/{name}"}
        status = 201 if revision == 1 else 200
        return answer_change(done, documents.write(done.result), status, headers)

    async def state(self, request: Request) -> Response:
        """What the controller made of the spec."""
        name = name_of(request)
        found = await self._desk.read(lambda store: endpoints.read_state(store, name))
        if found is None:
            raise not_found(f"state of an endpoint {name!r} yet")
        state, etag = found
        return _shown(request, f'"{etag}"', documents.write(state))

    async def history(self, request: Request) -> Response:
        """Specs that were ever current, newest first; `?before=` a revision: the next page."""
        given = query(request, "limit", "before")
        limit = number(given, "limit", PAGE_DEFAULT, PAGE_MAX)
        before = number(given, "before", 0, REVISION_MAX) or None
        name = name_of(request)

        def work(store: Store) -> tuple[list[EndpointSpec], int | None]:
            with known(name):
                return endpoints.history_page(store, name, limit=limit, before=before)

        specs, next_before = await self._desk.read(work)
        return answer({"revisions": specs, "next": next_before})

    async def revision(self, request: Request) -> Response:
        """One spec that is or was current; it never changes."""
        name, text = name_of(request), request.path_params["revision"]
        wanted = number({"revision": text}, "revision", 0, REVISION_MAX)

        spec = await self._desk.read(lambda store: _at(store, name, wanted))
        return _shown(request, tag(wanted), documents.write(spec))

    async def diff(self, request: Request) -> Response:
        """What differs between two revisions, value by value.

        `?after=` is the current one if it is not given, `?before=` the one before that.
        """
        given = query(request, "before", "after")
        before, after = (number(given, key, 0, REVISION_MAX) for key in ("before", "after"))
        name = name_of(request)

        def work(store: Store) -> dict[str, Any]:
            right = _current(store, name) if not after else _at(store, name, after)
            left = _at(store, name, before or right.revision - 1)
            changes = spec_diff.differences(left, right)
            return {"before": left.revision, "after": right.revision, "changes": changes}

        return answer(await self._desk.read(work))

    async def rollback(self, request: Request) -> Response:
        """Make the previous spec, or `?to_revision=`, current again, as a new revision."""
        name = name_of(request)
        given = query(request, "abort_rollout", "to_revision")
        condition, aborts = condition_of(request), _is_true(given, "abort_rollout")
        wanted = number(given, "to_revision", 0, REVISION_MAX) or None

        def act(store: Store) -> int:
            expected = expected_revision(condition, name, lambda: revision_of(store, name))
            with known(name):
                return endpoints.rollback(
                    *(store, name, expected), to_revision=wanted, abort_rollout=aborts
                )

        who = actor(request)
        done = await self._desk.change(who, "endpoint.rollback", name, act, audit.revisions)
        content = {"endpoint": name, "revision": done.result}
        return answer_change(done, content, headers={"etag": tag(done.result)})

    async def lint(self, request: Request) -> Response:
        """Name everything that is wrong with a spec, or may be a surprise, without writing it."""
        name = request.path_params.get("name")
        if name is not None:
            name_of(request)
        body = await document(request)
        found = await self._desk.read(lambda store: _lint(store, body, name))
        fleet = None if found else await self._desk.fleet()
        said = [] if fleet is None else warnings(documents.parse_spec(body), fleet)
        return answer({"ok": not found, "errors": errors_of(found), "warnings": said})

    async def purge(self, request: Request) -> Response:
        """Let no edge answer out of a cache what was computed before now."""
        who = actor(request)
        wanted = await read_document(request, Purge)
        name, version = wanted.endpoint, None if wanted.version is None else str(wanted.version)

        def act(store: Store) -> EndpointState:
            try:
                return endpoints.purge(store, name, version)
            except NotFound:
                of = "" if version is None else f" with a version {version}"
                raise not_found(f"endpoint {name!r:.80}{of}") from None

        done = await self._desk.change(
            *(who, "endpoint.purge", name, act), lambda state: audit.epochs(state, version)
        )
        state = done.result
        content = {"endpoint": name, "version": version, "cache_epoch": state.cache_epoch}
        return answer_change(done, {**content, "cache_epochs": state.cache_epochs})

    async def schema(self, request: Request) -> Response:
        """The JSON Schema of a spec; `lint` knows more than it can say."""
        return Response(msgspec.json.encode(SCHEMA), media_type="application/schema+json")


def name_of(request: Request) -> str:
    name: str = request.path_params["name"]
    try:
        return check_name("endpoint", name)
    except ValueError as error:
        raise Problem(400, "bad-name", str(error)) from None


def condition_of(request: Request) -> Condition:
    return read_condition(joined(request, "if-match"), joined(request, "if-none-match"))


def _is_true(given: Mapping[str, str], key: str) -> bool:
    text = given.get(key, "false")
    if text not in ("true", "false"):
        raise Problem(400, "bad-query", f"?{key}={text!r:.80}: expected true or false")
    return text == "true"


def _shown(request: Request, etag: str, body: bytes) -> Response:
    if is_fresh(joined(request, "if-none-match"), etag):
        return Response(None, 304, {"etag": etag, "vary": "accept"})
    return answer_readable(request, body, {"etag": etag})


@contextlib.contextmanager
def known(name: str) -> Iterator[None]:
    """Turn the absence of an endpoint, or of a revision of it, into its problem."""
    try:
        yield
    except NoRevision as error:
        raise Problem(404, "not-found", str(error)) from None
    except NotFound:
        raise not_found(f"endpoint {name!r}") from None


def _current(store: Store, name: str) -> EndpointSpec:
    with known(name):
        return endpoints.get_spec(store, name)[0]


def _at(store: Store, name: str, revision: int) -> EndpointSpec:
    with known(name):
        return endpoints.get_revision(store, name, revision)


def revision_of(store: Store, name: str) -> int:
    try:
        return endpoints.get_spec(store, name)[0].revision
    except NotFound:
        return 0


def _check_endpoint(name: str, spec: EndpointSpec) -> None:
    if spec.endpoint != name:
        raise BadDocument(
            [f"$.endpoint: the document is of {spec.endpoint!r}, the route of {name!r}"]
        )


def _listed(store: Store, after: str, limit: int) -> dict[str, Any]:
    names = [name for name in endpoints.names(store) if name > after]
    page = names[:limit]
    with ThreadPoolExecutor(READS_AT_ONCE) as threads:
        shown = threads.map(lambda name: _summary(store, name), page)
        found = [summary for summary in shown if summary is not None]
    return {"endpoints": found, "next": page[-1] if len(names) > len(page) else None}


def _summary(store: Store, name: str) -> dict[str, Any] | None:
    try:
        spec, _ = endpoints.get_spec(store, name)
    except NotFound:
        return None  # removed since it was listed
    except BadDocument as error:
        return {"name": name, "errors": errors_of(error.problems)}
    return {"name": name, "revision": spec.revision, "variants": spec.variants}


def _lint(store: Store, body: bytes, name: str | None) -> list[str]:
    try:
        spec = documents.parse_spec(body)
        if name is not None:
            _check_endpoint(name, spec)
        check_variants(store, spec)
    except BadDocument as error:
        return error.problems
    return []
