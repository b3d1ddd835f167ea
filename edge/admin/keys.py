"""API keys over HTTP.  A key is in exactly one answer, to who had it made; hashes are in none."""

from __future__ import annotations

import time
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
from registry_sync import keys
from registry_sync.documents import BadDocument, KeyRecord, Quota
from registry_sync.keys import CannotRotate
from registry_sync.stores import Store

PAGE_MAX = 10_000  # as many as there can be
GRACE_S_DEFAULT = 86_400.0


class NewKey(msgspec.Struct, frozen=True):
    """What a key is to be."""

    tenant: str = "default"
    scopes: tuple[str, ...] = ("infer:*",)
    quota: Quota | None = None
    not_after: float | None = None  # unix seconds
    priority: int = 1  # the highest that its calls may have
    share: float = 1.0  # of a worker's time beside other tenants, by weight


class Rotation(msgspec.Struct, frozen=True):
    """How a key gets another secret."""

    # The secret before is good for so long; 0: every earlier one ends now.
    grace_s: Annotated[float, Meta(ge=0, le=366 * 86_400.0)] = GRACE_S_DEFAULT


class ApiKeys:
    """The handlers of `/admin/keys`."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            by_method("/admin/keys", GET=self.list, POST=self.create),
            by_method("/admin/keys/{id}", GET=self.get, DELETE=self.revoke),
            Route("/admin/keys/{id}/rotate", self.rotate, methods=["POST"]),
        ]

    async def list(self, request: Request) -> Response:
        """Every key's record, in the order of their making; `?after=` an id: the next page."""
        given = query(request, "limit", "after")
        limit = number(given, "limit", PAGE_DEFAULT, PAGE_MAX)
        records = list(await self._desk.read(keys.list_keys))
        if "after" in given:
            at = next((n for n, record in enumerate(records) if record.id == given["after"]), None)
            if at is None:
                raise Problem(400, "bad-query", f"?after={given['after']!r:.80}: no such key")
            records = records[at + 1 :]
        page = records[:limit]
        more = len(records) > len(page)
        return answer({"keys": [_row(r) for r in page], "next": page[-1].id if more else None})

    async def get(self, request: Request) -> Response:
        """One key's record."""
        id = request.path_params["id"]
        records = await self._desk.read(keys.list_keys)
        found = next((record for record in records if record.id == id), None)
        if found is None:
            raise not_found(f"key with the id {id!r:.80}")
        return answer(_row(found))

    async def create(self, request: Request) -> Response:
        """Make a key; it is in this answer and kept nowhere."""
        who = actor(request)
        wanted = await read_document(request, NewKey)
        try:
            key, record = keys.make_key(
                *(wanted.tenant, wanted.scopes, wanted.quota, wanted.not_after),
                *(wanted.priority, wanted.share),
            )
        except BadDocument as error:
            # Of the request and not of keys.json.
            problems = [text.replace("$.keys[0]", "$", 1) for text in error.problems]
            raise invalid(problems) from None
        done = await self._desk.change(
            who, "key.create", record.id, lambda store: keys.add_key(store, record)
        )
        headers = {"location": f"/admin/keys/{record.id}"}
        return answer_change(done, {**_row(record), "key": key}, 201, headers)

    async def revoke(self, request: Request) -> Response:
        """Let a key no longer be good."""
        id = request.path_params["id"]
        done = await self._desk.change(
            *(actor(request), "key.revoke", id), lambda store: keys.revoke_key(store, id)
        )
        return answer_change(done, None, 204)

    async def rotate(self, request: Request) -> Response:
        """Give a key another secret; the new key is in this answer and kept nowhere."""
        id = request.path_params["id"]
        who = actor(request)
        has_body = bool((await request.body()).strip())
        wanted = await read_document(request, Rotation) if has_body else Rotation()
        now_s = time.time()

        def act(store: Store) -> str:
            try:
                return keys.rotate_key(store, id, wanted.grace_s, now_s)
            except CannotRotate as error:
                raise Problem(409, "cannot-rotate", str(error)) from None

        done = await self._desk.change(who, "key.rotate", id, act)
        ends = now_s + wanted.grace_s if wanted.grace_s else None
        return answer_change(done, {"id": id, "key": done.result, "previous_not_after": ends})


def _row(record: KeyRecord) -> dict[str, Any]:
    """Return what may be seen of a record: named here one by one, so that a hash never is."""
    return {
        "id": record.id,
        "tenant": record.tenant,
        "scopes": record.scopes,
        "quota": record.quota,
        "priority": record.priority,
        "share": record.share,
        "not_after": record.not_after,
        "previous_not_after": [old.not_after for old in record.previous],
    }
