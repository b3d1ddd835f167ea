"""Requests that two readers could understand differently are refused before anybody reads them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edge.errors import Refusal
from edge.guard import HEADER_BYTES_MAX, SINGLE, TARGET_CHARS_MAX, Guard, Lookup, Reply


class Headers:
    """Granian's: `len` counts names, `values` leaves out what is no ASCII text."""

    def __init__(self, *fields: tuple[str, str]) -> None:
        self._fields = fields

    def __len__(self) -> int:
        return len({name for name, _ in self._fields})

    def get(self, key: str, default: Any = None) -> Any:
        return next(iter(self.get_all(key)), default)

    def get_all(self, key: str) -> list[str]:
        return [value for name, value in self._fields if name == key]

    def values(self) -> list[str]:
        return [value for _, value in self._fields if value.isascii()]


class Proto:
    def __init__(self) -> None:
        self.statuses: list[int] = []

    def response_bytes(self, status: int, headers: Any, body: bytes) -> None:
        self.statuses.append(status)


async def ask(*fields: tuple[str, str], path: str = "/v2") -> int:
    """Return the status of a request; 200 if it was let through."""
    proto = Proto()

    async def app(scope: Any, proto: Any) -> None:
        proto.response_bytes(200, [], b"")

    def refuse(refusal: Refusal, header: Lookup) -> Reply:
        assert refusal.text
        return refusal.status, [], b""

    await Guard(app, refuse).__rsgi__(SimpleNamespace(headers=Headers(*fields), path=path), proto)
    (status,) = proto.statuses
    return status


HOST = ("host", "a")


async def test_exactly_one_host() -> None:
    assert await ask(HOST) == 200
    assert await ask() == 400
    assert await ask(("x-a", "b")) == 400
    assert await ask(HOST, ("host", "b")) == 400
    assert await ask(HOST, HOST) == 400
    assert await ask(HOST, HOST, ("x-a", "ü")) == 400  # a value that is not counted hides nothing


@pytest.mark.parametrize("name", SINGLE)
async def test_field_that_means_one_thing_comes_once(name: str) -> None:
    first = [] if name == "host" else [HOST]
    assert await ask(*first, (name, "1")) == 200
    assert await ask(*first, (name, "1"), (name, "1")) == 400


async def test_several_content_encodings_are_not_supported() -> None:
    assert await ask(HOST, ("content-encoding", "gzip"), ("content-encoding", "gzip")) == 415


async def test_other_fields_may_come_twice() -> None:
    assert await ask(HOST, ("accept", "a"), ("accept", "b"), ("x-forwarded-for", "ü")) == 200


@pytest.mark.rule("SEC-11")
async def test_headers_are_bounded_together() -> None:
    almost = [(f"x-{number}", "a" * 1024) for number in range(31)]
    rest = HEADER_BYTES_MAX - 31 * 1024 - len(HOST[1])
    assert await ask(HOST, *almost, ("x-last", "a" * rest)) == 200
    assert await ask(HOST, *almost, ("x-last", "a" * (rest + 1))) == 431


async def test_target_is_bounded() -> None:
    assert await ask(HOST, path="/" * TARGET_CHARS_MAX) == 200
    assert await ask(HOST, path="/" * (TARGET_CHARS_MAX + 1)) == 414
