"""What the sync process of a node is told when it starts: JSON in argv[1], checked once."""

from __future__ import annotations

import msgspec


class SyncConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of one sync process (one per node)."""

    data: str  # the folder of this node's blobs and last good copies
    registry: str  # s3://bucket/prefix, file:///path or a path
    socket: str  # unix socket on which the node's workers ask for artifacts
    log_level: str = "info"
