"""What each tier does with a registry's bucket: the keys that it must be able to read and write.

infra/terraform grants the same.
"""

from __future__ import annotations

from typing import Final

import msgspec

PROBE: Final = "tidepool-doctor"


class Needs(msgspec.Struct, frozen=True):
    """Kinds of keys, relative to the registry."""

    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


_WORKER: Final = ("blobs/*", "control/leader.json", "engines/*", "models/*")
_DOCUMENTS: Final = ("audit/*", "builds/*", "endpoints/*", "keys.json")
NEEDS: Final = {
    "edge": Needs(("control/leader.json",)),
    # One whose admin port is used: it changes documents.
    "edge-admin": Needs(
        (*_DOCUMENTS, "control/leader.json", "engines/*.json", "models/*"), _DOCUMENTS
    ),
    "controller": Needs(
        (*_DOCUMENTS, "control/*", "models/*/manifest.json"),
        ("audit/*", "control/*", "endpoints/*/state.json", "endpoints/*@state"),
    ),
    "worker": Needs(_WORKER, ("engines/*/used.json",)),
    "builder": Needs(_WORKER, ("engines/*",)),
    # Who runs `publish`, `endpoint`, `rollout`, `keys`.
    "operator": Needs(
        (*_DOCUMENTS, "blobs/*", "control/leader.json", "engines/*", "models/*"),
        (*_DOCUMENTS, "blobs/*", "models/*"),
    ),
}


def probe_key(kind: str) -> str:
    """Return a key of a kind that nobody has.

    >>> probe_key("endpoints/*/state.json")
    'endpoints/tidepool-doctor/state.json'
    >>> probe_key("keys.json")
    'keys.json'
    """
    return kind.replace("*", PROBE)
