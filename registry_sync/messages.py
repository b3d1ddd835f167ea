"""What is said on a sync process's socket: one JSON object a line, each request one reply.

    {"op": "fetch", "model": "m", "version": "1"}  {"ok": true}
    {"op": "leader"}                               {"ok": true, "leader": {…} or null}
    {"op": "ping"}                                 {"ok": true}
                                        any of it  {"ok": false, "error": "…", "retry": true}

`retry` says whether the same request may succeed later with nothing changed in
the registry. Unknown fields are ignored.
"""

from __future__ import annotations

import msgspec

from registry_sync.leader import LeaderRecord

LINE_BYTES_MAX = 64 << 10  # asyncio's own default for a line


class Fetch(msgspec.Struct, frozen=True, tag="fetch", tag_field="op"):
    """Bring a version to this node; answered when it is there."""

    model: str
    version: str


class AskLeader(msgspec.Struct, frozen=True, tag="leader", tag_field="op"):
    """Who leads the fleet?"""


class Ping(msgspec.Struct, frozen=True, tag="ping", tag_field="op"):
    """Are you there?"""


Request = Fetch | AskLeader | Ping


class Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to any request."""

    ok: bool
    error: str = ""
    retry: bool = False
    leader: LeaderRecord | msgspec.UnsetType | None = msgspec.UNSET


def encode(message: Fetch | AskLeader | Ping | Reply) -> bytes:
    """Return the message as one line."""
    return msgspec.json.encode(message) + b"\n"


def decode_request(line: bytes) -> Request:
    """Read a request; raises `msgspec.DecodeError`, whose text names what does not fit."""
    request: Request = msgspec.json.decode(line, type=Request)
    return request


def decode_reply(line: bytes) -> Reply:
    """Read a reply; raises `msgspec.DecodeError`."""
    return msgspec.json.decode(line, type=Reply)
