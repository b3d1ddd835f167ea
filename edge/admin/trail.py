"""The audit trail over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edge.admin.answers import PAGE_DEFAULT, answer, number, query
from edge.admin.desk import Desk
from edge.admin.problems import Problem
from registry_sync import audit


class Trail:
    """The handler of `/admin/audit`."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def routes(self) -> list[Route]:
        """Return the route."""
        return [Route("/admin/audit", self.list)]

    async def list(self, request: Request) -> Response:
        """Changes of documents, newest first; `?before=` the former page's `next`."""
        given = query(request, "endpoint", "key", "who", "since", "until", "limit", "before")
        limit = number(given, "limit", PAGE_DEFAULT, audit.PAGE_MAX)
        before = given.get("before", "")
        now = datetime.now(UTC)
        try:
            wanted = audit.Query(
                since=audit.parse_time(given.get("since", f"{audit.DAYS_DEFAULT}d"), now),
                until=audit.parse_time(given["until"], now) if "until" in given else now,
                endpoint=given.get("endpoint", ""),
                key=given.get("key", ""),
                who=given.get("who", ""),
            )
            if before:
                audit.parse_id(before)
        except ValueError as error:
            raise Problem(400, "bad-query", str(error)) from None
        page = await self._desk.read(
            lambda store: audit.page(store, wanted, limit=limit, before=before)
        )
        records = [audit.row(found) for found in page.found]
        return answer({"records": records, "next": page.next or None})
