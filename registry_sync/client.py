"""How the other processes of a node talk to its sync process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from registry_sync.leader import LeaderRecord
from registry_sync.messages import (
    LINE_BYTES_MAX,
    AskLeader,
    Fetch,
    Ping,
    Reply,
    decode_reply,
    encode,
)


class SyncError(Exception):
    """The sync process refused, failed or is not there.

    `retry`: whether asking again later may help with nothing changed in the registry.
    """

    def __init__(self, text: str, *, retry: bool) -> None:
        super().__init__(text)
        self.retry = retry


async def fetch_via(socket_path: str | Path, model: str, version: str) -> None:
    """Have a version brought to this node; returns when its files are in the local store.

    Set your own limit with `asyncio.timeout`: giving up does not stop the
    download, and asking again joins it.

    Raises:
        SyncError: see there.
    """
    await _ask(socket_path, Fetch(model, version))


async def leader_via(socket_path: str | Path) -> LeaderRecord | None:
    """Return what the registry says of the leader; None if it says nothing.

    Raises:
        SyncError: see there.
    """
    reply = await _ask(socket_path, AskLeader())
    return None if isinstance(reply.leader, msgspec.UnsetType) else reply.leader


async def ping_via(socket_path: str | Path) -> None:
    """Return if the sync process answers; `SyncError` otherwise."""
    await _ask(socket_path, Ping())


async def _ask(socket_path: str | Path, request: Fetch | AskLeader | Ping) -> Reply:
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket_path), limit=LINE_BYTES_MAX)
    except OSError as error:
        raise SyncError(f"no sync process at {socket_path}: {error}", retry=True) from error
    try:
        writer.write(encode(request))
        await writer.drain()
        line = await reader.readline()
        if not line.endswith(b"\n"):
            raise SyncError("the sync process ended before it answered", retry=True)
        reply = decode_reply(line)
    except (OSError, ValueError, msgspec.DecodeError) as error:
        # ValueError is what asyncio makes of a line that is too long.
        raise SyncError(f"no answer from the sync process: {error}", retry=True) from error
    finally:
        writer.close()
    if not reply.ok:
        raise SyncError(reply.error, retry=reply.retry)
    return reply
