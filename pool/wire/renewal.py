"""Moves open connections to the fleet secret of today, once the other side knows it too.

Who was dialled before a rotation stays connected with the secret before, and would be cut off when
that is retired.  So who dials looks now and then, and dials anew.
"""

from __future__ import annotations

from pool.wire.frames import WireError
from pool.wire.handshake import Secrets
from pool.wire.peer import Address, Peer, dial

RENEW_S = 1.0  # so often it is looked


def is_outdated(peer: Peer | None, secrets: Secrets | None) -> bool:
    """Tell whether a connection was made with another secret than is current."""
    if peer is None or secrets is None or not peer.secret_id:
        return False
    return peer.secret_id != secrets.current.id


async def takes_current(address: Address, secrets: Secrets) -> bool:
    """Tell whether who listens there takes the current secret by itself."""
    try:
        peer = await dial(address, Secrets(secrets.current, tls=secrets.tls))
    except (OSError, WireError):
        return False
    peer.close()
    return True
