"""What is said on a sync process's socket: one JSON object a line, each request one reply.

    {"op": "fetch", "model": "m", "version": "1"}  {"ok": true}
    {"op": "fetch", …, "tells_format": true}       {"ok": true, "format": "onnx"}, which may come
                                                   while the files do, and then the reply
    {"op": "fetch_golden", "model": "m", "version": "1"}
                                                   {"ok": true}
    {"op": "leader"}                               {"ok": true, "leader": {…} or null}
    {"op": "ping"}                                 {"ok": true}
    {"op": "fetch_plan", "key": "…", "secret_ids": ["…"]}
                                                   {"ok": true, "secret_id": "…"}
    {"op": "put_plan", "key": "…", "secret_id": "…"}
                                                   {"ok": true, "is_ours": true}
    {"op": "put_gate", "key": "…", "secret_id": "…"}
    {"op": "use_plan", "key": "…"}                 {"ok": true}
                                        any of it  {"ok": false, "error": "…", "retry": true}
                                   any of a plan   {"ok": false, "error": "…", "is_bad_plan": true}

`retry` says whether the same request may succeed later with nothing changed in
the registry. Unknown fields are ignored. No secret is ever said here, only ids.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from registry_sync.leader_record import LeaderRecord

LINE_BYTES_MAX = 64 << 10  # asyncio's own default for a line


class Fetch(msgspec.Struct, frozen=True, tag="fetch", tag_field="op"):
    """Bring a version to this node; answered when it is there."""

    model: str
    version: str
    tells_format: bool = False  # the caller takes a line with the format before the reply


class FetchGolden(msgspec.Struct, frozen=True, tag="fetch_golden", tag_field="op"):
    """Bring the recorded inputs of a version that is here, if it has any."""

    model: str
    version: str


class AskLeader(msgspec.Struct, frozen=True, tag="leader", tag_field="op"):
    """Who leads the fleet?"""


_Key = Annotated[str, Meta(max_length=64)]
_SecretId = Annotated[str, Meta(max_length=64)]


class FetchPlan(msgspec.Struct, frozen=True, tag="fetch_plan", tag_field="op"):
    """Bring the plan of a key, made under one of these secrets, to this node."""

    key: _Key
    secret_ids: Annotated[tuple[_SecretId, ...], Meta(max_length=8)]  # the preferred one first


class PutPlan(msgspec.Struct, frozen=True, tag="put_plan", tag_field="op"):
    """Put this node's plan into the registry, or bring the one that was there first."""

    key: _Key
    secret_id: _SecretId


class PutGate(msgspec.Struct, frozen=True, tag="put_gate", tag_field="op"):
    """Put the verdict of this node's device into the registry."""

    key: _Key
    secret_id: _SecretId


class UsePlan(msgspec.Struct, frozen=True, tag="use_plan", tag_field="op"):
    """The plan of a key has been loaded here today."""

    key: _Key


class Ping(msgspec.Struct, frozen=True, tag="ping", tag_field="op"):
    """Are you there?"""


Request = Fetch | FetchGolden | AskLeader | Ping | FetchPlan | PutPlan | PutGate | UsePlan


class Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to any request."""

    ok: bool
    error: str = ""
    retry: bool = False
    leader: LeaderRecord | msgspec.UnsetType | None = msgspec.UNSET
    secret_id: str = ""  # of the plan that is here now; empty: there is none
    is_ours: bool = False  # the plan in the registry is the one that this node has made
    is_bad_plan: bool = False  # what is there must not be used: build
    format: str = ""  # of the version that is on its way: the reply itself follows


_request_of: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_reply_of = msgspec.json.Decoder(Reply)


def encode(message: Request | Reply) -> bytes:
    """Return the message as one line."""
    return msgspec.json.encode(message) + b"\n"


def decode_request(line: bytes) -> Request:
    """Read a request; raises `msgspec.DecodeError`, whose text names what does not fit."""
    return _request_of.decode(line)


def decode_reply(line: bytes) -> Reply:
    """Read a reply; raises `msgspec.DecodeError`."""
    return _reply_of.decode(line)
