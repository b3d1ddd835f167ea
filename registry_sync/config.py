"""What the sync process of a node is told when it starts: JSON in argv[1], checked once."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from registry_sync.local_plans import BYTES_MAX_DEFAULT


class SyncConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of one sync process (one per node)."""

    data: str  # the folder of this node's blobs and last good copies
    registry: str  # s3://bucket/prefix, file:///path or a path
    socket: str  # unix socket on which the node's workers ask for artifacts
    plans_bytes_max: Annotated[int, Meta(ge=1)] = BYTES_MAX_DEFAULT  # of this node's built plans
    require_signed: str = ""  # file of trusted keys; empty: manifests need no signature
    log_level: str = "info"
