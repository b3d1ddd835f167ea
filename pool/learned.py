"""What the scaling policies have learned, kept over the controller's end: best effort, blocking.

One object in the registry, for whoever leads next, and a copy on this node for a registry that
does not answer.  Losing it costs a few cold starts, never an answer.
"""

from __future__ import annotations

import contextlib
from typing import Final

import structlog

from registry_sync.local import LocalStore
from registry_sync.stores import NotFound, Store, StoreError
from registry_sync.swap import swap

KEY: Final = "control/state/learned"
NAME: Final = "learned.last"
BYTES_MAX: Final = 16 << 20

_log = structlog.get_logger()


class Learned:
    """Where it is kept."""

    def __init__(self, store: Store, local: LocalStore) -> None:
        self._store = store
        self._local = local
        self._is_failing = False

    def load(self) -> bytes | None:
        """Return what was kept: the registry's, else this node's copy; None: there is nothing."""
        try:
            if self._store.size(KEY) > BYTES_MAX:
                _log.warning("learned_too_large", key=KEY, bytes_max=BYTES_MAX)
                return None
            return self._store.get(KEY).data
        except NotFound:
            return None
        except StoreError as error:
            _log.warning("learned_unreachable", error=str(error))
            return self.load_local()

    def load_local(self) -> bytes | None:
        """Return this node's copy; None: there is none that can be read."""
        with contextlib.suppress(OSError):
            return self._local.load_document(NAME)
        return None

    def save(self, data: bytes) -> bool:
        """Keep `data`; tell whether it reached the registry."""
        with contextlib.suppress(OSError):
            self._local.save_document(NAME, data)
        try:
            swap(self._store, KEY, lambda _: data)
        except StoreError as error:
            if not self._is_failing:  # said once, not every five minutes
                _log.warning("learned_not_kept", error=str(error))
            self._is_failing = True
            return False
        self._is_failing = False
        return True
