"""What the admin port says of a rollout, by what the controller answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
import pytest
from starlette.requests import Request

from edge.admin.desk import Desk
from edge.admin.problems import Problem
from edge.admin.rollouts import Rollouts
from pool.wire.control import Answer
from tests.support.rollout_documents import shown_rollout, shown_shadow

Ask = Callable[[str, str], Awaitable[Answer]]


def asked(name: str = "m") -> Request:
    scope = {"type": "http", "method": "GET", "headers": [], "query_string": b""}
    return Request({**scope, "path_params": {"name": name}})


def rollouts(answer: Answer | None) -> Rollouts:
    """Return the handlers beside a controller that answers so; None: there is none."""

    async def ask(what: str, argument: str) -> Answer:
        assert (what, argument) == ("rollout", "m")
        if answer is None:
            raise ConnectionError("no controller can be reached")
        return answer

    async def poke(what: str) -> Answer:
        raise AssertionError("nothing is changed")

    return Rollouts(Desk("", poke), ask)


async def test_status_is_the_controllers_to_the_letter() -> None:
    document = msgspec.json.encode(shown_rollout())
    found = await rollouts(Answer(True, "", document)).status(asked())
    assert (found.status_code, bytes(found.body)) == (200, document)
    assert found.headers["cache-control"] == "no-store"


async def test_diff_is_the_shadow_with_its_worst_examples() -> None:
    document = msgspec.json.encode(shown_rollout(shadow=shown_shadow()))
    found = await rollouts(Answer(True, "", document)).diff(asked())
    assert msgspec.json.decode(bytes(found.body)) == {
        "endpoint": "m",
        "id": "0123",
        "shadow": shown_shadow(),
    }


@pytest.mark.parametrize(
    ("answer", "status", "code", "detail"),
    [
        (None, 503, "no-controller", "no controller can be reached"),
        (Answer(False, "endpoint 'm' has no rollout"), 404, "not-found", "has no rollout"),
    ],
)
async def test_who_cannot_tell_says_why(
    answer: Answer | None, status: int, code: str, detail: str
) -> None:
    for handler in (rollouts(answer).status, rollouts(answer).diff):
        with pytest.raises(Problem, match=detail) as caught:
            await handler(asked())
        assert (caught.value.status, caught.value.code) == (status, code)


async def test_name_that_is_none_is_not_asked_about() -> None:
    with pytest.raises(Problem, match="No Name"):
        await rollouts(None).status(asked("No Name"))
