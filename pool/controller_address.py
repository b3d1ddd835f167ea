"""How a worker finds the controller: as configured, else by the leader record through sync."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from registry_sync.client import SyncError, leader_via


def finder(configured: str, sync_socket: str) -> Callable[[], Awaitable[str | None]]:
    """Return the way to the leader's address; it gives None while there is no leader."""

    async def find() -> str | None:
        if configured:
            return configured
        try:
            record = await leader_via(sync_socket)
        except SyncError as error:
            raise ConnectionError(f"sync cannot say who leads: {error}") from None
        return None if record is None else record.url

    return find
