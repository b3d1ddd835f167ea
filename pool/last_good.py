"""The controller's own copy of the last documents that held, for a start on a registry that fails.

It decides nothing: whether a document holds is `registry_watch`'s.
"""

from __future__ import annotations

import contextlib

import structlog

from pool.registry_watch import Snapshot, restore
from pool.wire import control
from pool.wire.control import Documents
from pool.wire.frames import WireError
from registry_sync.local import LocalStore

NAME = "documents.last"

_log = structlog.get_logger()


def save(local: LocalStore, documents: Documents) -> None:
    """Keep `documents`; a full disk costs the copy, not the service."""
    with contextlib.suppress(OSError):
        local.save_document(NAME, control.pack(documents))


def load(local: LocalStore) -> Snapshot | None:
    """Return what was kept; None if there is nothing, or nothing that can be read."""
    try:
        data = local.load_document(NAME)
        documents = None if data is None else control.decode(data)
    except (OSError, WireError) as error:
        _log.warning("last_good_copy_unreadable", error=str(error))
        return None
    return restore(documents) if isinstance(documents, Documents) else None
