"""From RSGI to Starlette and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edge.bridge import Bridge
from edge.errors import Refusal
from edge.guard import Lookup, Reply
from edge.receive import Room


class Proto:
    """Granian's side of one request."""

    def __init__(self, *parts: bytes, pause_s: float = 0.0, gone: bool = False) -> None:
        self._parts, self._pause_s, self._gone = parts, pause_s, gone
        self.answers: list[tuple[int, dict[str, str], bytes]] = []

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            await asyncio.sleep(self._pause_s)
            yield part
        yield b""
        if self._gone:  # so granian tells
            yield b""

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.answers.append((status, dict(headers), body))


UNSEEN = "a value that granian leaves out"


def scope(path: str = "/echo", method: str = "POST", **headers: str) -> Any:
    headers = {"transfer-encoding": "chunked", **headers}
    return SimpleNamespace(
        http_version="1.1",
        method=method,
        scheme="http",
        path=path,
        query_string="q=1",
        headers=SimpleNamespace(
            items=lambda: [(name, value) for name, value in headers.items() if value != UNSEEN],
            keys=lambda: list(headers),
            get=headers.get,
        ),
    )


async def echo(request: Request) -> Response:
    body = (await request.body()).decode()
    seen = {"query": request.url.query, "head": request.headers.get("x-head"), "body": body}
    return JSONResponse(seen, 201, {"x-back": "ü"})


async def bug(request: Request) -> Response:
    raise KeyError("bug")


async def bug_answer(request: Request, error: Exception) -> Response:
    return Response("internal error", 500)


APP = Starlette(
    routes=[Route("/echo", echo, methods=["POST"]), Route("/bug", bug)],
    exception_handlers={Exception: bug_answer},
)


def refuse(refusal: Refusal, header: Lookup) -> Reply:
    return refusal.status, [], refusal.text.encode()


async def ask(proto: Proto, asked: Any, body_s_max: float = 10.0) -> Any:
    room = Room(1 << 20)
    await Bridge(APP, 1000, refuse, room, body_s_max)(asked, proto)
    assert room.held_bytes == 0
    return proto.answers


async def test_request_and_answer_go_through_whole() -> None:
    (answer,) = await ask(Proto(b"he", b"llo"), scope(**{"x-head": "ä"}))
    assert answer[0] == 201
    assert answer[1]["x-back"] == "ü"
    assert b'"query":"q=1","head":"\xc3\xa4","body":"hello"' in answer[2]


async def test_header_that_cannot_be_read_is_not_as_if_it_were_absent() -> None:
    (answer,) = await ask(Proto(), scope(**{"x-head": UNSEEN}))
    assert b'"head":"\\u0000"' in answer[2]


async def test_header_that_http_does_not_have_harms_nobody() -> None:
    (answer,) = await ask(Proto(), scope(**{"x-head": "日本"}))
    assert answer[0] == 201


async def test_route_that_does_not_exist_is_404() -> None:
    assert (await ask(Proto(), scope("/nowhere")))[0][0] == 404


async def test_bug_is_answered_once_and_does_not_reach_the_server() -> None:
    (answer,) = await ask(Proto(), scope("/bug", "GET"))
    assert answer[::2] == (500, b"internal error")


async def test_body_beyond_the_bound_is_413() -> None:
    assert (await ask(Proto(b"x" * 600, b"x" * 600), scope()))[0][0] == 413


async def test_body_on_the_bound_is_taken() -> None:
    assert (await ask(Proto(b"x" * 1000), scope()))[0][0] == 201


async def test_body_that_does_not_come_is_408() -> None:
    assert (await ask(Proto(b"x", pause_s=60), scope(), 0.05))[0][0] == 408


async def test_body_of_a_client_that_left_is_not_looked_at() -> None:
    assert (await ask(Proto(b"x", gone=True), scope()))[0][0] == 400


async def test_compressed_body_is_not_taken() -> None:
    assert (await ask(Proto(b"x"), scope(**{"content-encoding": "gzip"})))[0][0] == 415
