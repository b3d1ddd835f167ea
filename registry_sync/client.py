"""How the other processes of a node talk to its sync process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from registry_sync.leader_record import LeaderRecord
from registry_sync.messages import (
    LINE_BYTES_MAX,
    AskLeader,
    Fetch,
    FetchGolden,
    FetchPlan,
    Ping,
    PutGate,
    PutPlan,
    Reply,
    Request,
    UsePlan,
    decode_reply,
    encode,
)
from registry_sync.plans import BadPlan


class SyncError(Exception):
    """The sync process refused, failed or is not there.

    `retry`: whether asking again later may help with nothing changed in the registry.
    """

    def __init__(self, text: str, *, retry: bool) -> None:
        super().__init__(text)
        self.retry = retry


class SyncAway(SyncError):
    """The sync process is not there, or ended before it answered; its successor may answer."""

    def __init__(self, text: str) -> None:
        super().__init__(text, retry=True)


async def fetch_via(
    socket_path: str | Path,
    model: str,
    version: str,
    on_format: Callable[[str], None] | None = None,
) -> None:
    """Have a version brought to this node; returns when its files are in the local store.

    Set your own limit with `asyncio.timeout`: giving up does not stop the
    download, and asking again joins it.

    Args:
        on_format: called with the version's format as soon as the manifest is read, while the
            files are on their way. Not where they are here at once, nor by a sync process that is
            older than this.

    Raises:
        SyncError: see there.
    """
    await _ask(socket_path, Fetch(model, version, on_format is not None), on_format)


async def fetch_golden_via(socket_path: str | Path, model: str, version: str) -> None:
    """Have the recorded inputs of a version that is here brought as well, if it has any.

    Raises:
        SyncError: see there.
    """
    await _ask(socket_path, FetchGolden(model, version))


async def leader_via(socket_path: str | Path) -> LeaderRecord | None:
    """Return what the registry says of the leader; None if it says nothing.

    Raises:
        SyncError: see there.
    """
    reply = await _ask(socket_path, AskLeader())
    return None if isinstance(reply.leader, msgspec.UnsetType) else reply.leader


async def fetch_plan_via(
    socket_path: str | Path, key: str, secret_ids: Sequence[str]
) -> str | None:
    """Have the plan of a key brought to the local folder, from where `LocalPlans.find` takes it.

    If it is here already, only the gate's record is looked for. Giving up does
    not stop the download, and asking again joins it.

    Args:
        key: of the plan's identity.
        secret_ids: under which it may have been made, the preferred one first.

    Returns:
        The secret id under which it is here now; None if the registry has none.

    Raises:
        BadPlan: there is one that must not be used, and no other: count it, and build.
        SyncError: see there; of a full disk, say, or a registry that does not answer.
    """
    reply = await _ask(socket_path, FetchPlan(key, tuple(secret_ids)))
    return reply.secret_id or None


async def put_plan_via(socket_path: str | Path, key: str, secret_id: str) -> bool:
    """Have this node's plan put into the registry, from the local folder.

    Usually takes as long as the upload. Where another writer seems to have died
    in the middle it takes a minute more.

    Returns:
        True: it lies there. False: another one was there first, and is now in
        the local folder in the place of this node's.

    Raises:
        BadPlan: there is no such plan in the local folder (any more).
        SyncError: see there. The plan stays in the local folder.
    """
    return (await _ask(socket_path, PutPlan(key, secret_id))).is_ours


async def put_gate_via(socket_path: str | Path, key: str, secret_id: str) -> None:
    """Have the verdict that `LocalPlans.put_gate` has kept put into the registry.

    Raises:
        BadPlan: there is none about the plan in the local folder.
        SyncError: see there.
    """
    await _ask(socket_path, PutGate(key, secret_id))


async def use_plan_via(socket_path: str | Path, key: str) -> None:
    """Have it noted that the plan of a key was loaded today, so that `gc` leaves it alone.

    Cheap to repeat: the registry hears of it once a day and node.

    Raises:
        SyncError: see there; nothing is lost but that day.
    """
    await _ask(socket_path, UsePlan(key))


async def ping_via(socket_path: str | Path) -> None:
    """Return if the sync process answers; `SyncError` otherwise."""
    await _ask(socket_path, Ping())


async def _ask(
    socket_path: str | Path, request: Request, on_format: Callable[[str], None] | None = None
) -> Reply:
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket_path), limit=LINE_BYTES_MAX)
    except OSError as error:
        raise SyncAway(f"no sync process at {socket_path}: {error}") from error
    try:
        writer.write(encode(request))
        await writer.drain()
        reply = await _reply(reader)
        if on_format is not None and reply.format:
            on_format(reply.format)
            reply = await _reply(reader)
    except (OSError, ValueError, msgspec.DecodeError) as error:
        # ValueError is what asyncio makes of a line that is too long.
        raise SyncError(f"no answer from the sync process: {error}", retry=True) from error
    finally:
        writer.close()
    if not reply.ok:
        if reply.is_bad_plan:
            raise BadPlan(reply.error)
        raise SyncError(reply.error, retry=reply.retry)
    return reply


async def _reply(reader: asyncio.StreamReader) -> Reply:
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise SyncAway("the sync process ended before it answered")
    return decode_reply(line)
