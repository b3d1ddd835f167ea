"""What the store says of who leads the fleet."""

from __future__ import annotations

import msgspec


class LeaderRecord(msgspec.Struct, frozen=True):
    """What the store says of the leader; unknown fields are ignored."""

    epoch: int
    url: str  # where the controller listens
    holder: str  # the node it runs on
    nonce: str  # new with every write, so that a renewal always changes the etag
    resigned: bool = False  # the holder acts no more: whoever sees this may take over at once
