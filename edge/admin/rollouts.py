"""Rollouts over HTTP: start one, say how it is to go on, and see how far it is.

What is wished is a new revision of the endpoint's spec, so If-Match is about that revision, as with
a PUT of the endpoint; how far a rollout is, the controller is asked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edge.admin.answers import actor, answer, answer_change, by_method, query, read_document
from edge.admin.conditions import Condition, expected_revision, tag
from edge.admin.desk import Desk
from edge.admin.endpoints import condition_of, known, name_of, revision_of
from edge.admin.problems import Problem, invalid
from pool.wire.control import Answer
from registry_sync import rollout_orders
from registry_sync.documents import BadDocument
from registry_sync.rollout_orders import Ordered
from registry_sync.rollout_terms import Guard, Shadow, Watching, Wish
from registry_sync.rollouts import HOLD_S_DEFAULT, STEPS_DEFAULT
from registry_sync.stores import Store

WISHES: dict[str, Wish] = {
    "pause": "pause",
    "resume": "run",
    "promote": "promote",
    "abort": "abort",
}


class Start(msgspec.Struct, frozen=True):
    """What a rollout is begun with; see `rollouts.started`."""

    version: str | int
    steps: tuple[float, ...] = STEPS_DEFAULT  # percent
    hold_s: float = HOLD_S_DEFAULT
    shadow: Shadow | None = None
    guard: Watching = Guard()


class Rollouts:
    """The handlers of `/admin/endpoints/{name}/rollout`.

    Args:
        desk: of the registry.
        ask: asks the controller about an endpoint; raises ConnectionError if there is none.
    """

    def __init__(self, desk: Desk, ask: Callable[[str, str], Awaitable[Answer]]) -> None:
        self._desk = desk
        self._ask = ask

    def routes(self) -> list[Route]:
        """Return the routes."""
        one = "/admin/endpoints/{name}/rollout"
        return [
            by_method(one, GET=self.status, POST=self.start),
            Route(f"{one}/diff", self.diff),
            *(
                Route(f"{one}/{word}", self._wish_of(word, wish), methods=["POST"])
                for word, wish in WISHES.items()
            ),
        ]

    async def status(self, request: Request) -> Response:
        """What `tidepool rollout status NAME --json` prints."""
        query(request)
        return answer(await self._shown(name_of(request)))

    async def diff(self, request: Request) -> Response:
        """How the candidate answered copies of the baseline's calls, with the worst examples.

        Null while nothing is compared.
        """
        query(request)
        name = name_of(request)
        found = msgspec.json.decode(await self._shown(name))
        return answer({"endpoint": name, "id": found["id"], "shadow": found.get("shadow")})

    async def start(self, request: Request) -> Response:
        """Let another version take over, step by step."""
        query(request)
        name, condition = name_of(request), condition_of(request)
        wanted = await read_document(request, Start)

        def act(store: Store) -> Ordered:
            expected = _expected(store, name, condition)
            try:
                with known(name):
                    return rollout_orders.start(
                        *(store, name, str(wanted.version)),
                        steps=wanted.steps,
                        hold_s=wanted.hold_s,
                        shadow=wanted.shadow,
                        guard=wanted.guard,
                        if_revision=expected,
                    )
            except BadDocument as error:
                raise invalid(error.problems) from None

        location = {"location": f"/admin/endpoints/{name}/rollout"}
        return await self._changed(request, name, "rollout.start", act, 201, location)

    def _wish_of(self, word: str, wish: Wish) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            query(request)
            name, condition = name_of(request), condition_of(request)

            def act(store: Store) -> Ordered:
                expected = _expected(store, name, condition)
                with known(name):
                    return rollout_orders.wish(store, name, wish, if_revision=expected)

            return await self._changed(request, name, f"rollout.{word}", act)

        return handle

    async def _changed(
        self,
        request: Request,
        name: str,
        what: str,
        act: Callable[[Store], Ordered],
        status: int = 200,
        headers: dict[str, str] | None = None,
    ) -> Response:
        who = actor(request)
        done = await self._desk.change(who, what, name, act, lambda ordered: ordered.moved)
        spec = done.result.spec
        content: dict[str, Any] = {
            **{"endpoint": name, "revision": spec.revision, "rollout": spec.rollout},
            "variants": spec.variants,
        }
        etag = {"etag": tag(spec.revision)}
        return answer_change(done, content, status, {**etag, **(headers or {})})

    async def _shown(self, name: str) -> bytes:
        try:
            found = await self._ask("rollout", name)
        except ConnectionError as error:
            raise Problem(503, "no-controller", str(error)) from None
        if not found.ok:
            raise Problem(404, "not-found", found.detail)
        return found.data


def _expected(store: Store, name: str, condition: Condition) -> int | None:
    return expected_revision(condition, name, lambda: revision_of(store, name))
