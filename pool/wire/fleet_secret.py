"""Where a process finds the fleet secret: the environment, else a file of the node."""

from __future__ import annotations

import os
import secrets as random_secrets
from pathlib import Path

from pool.wire.handshake import Secrets

VARIABLE = "TIDEPOOL_FLEET_SECRET"
FILE = "secrets"


def load_secrets(data: Path) -> Secrets | None:
    """Return the secrets of this node, or None if it has none (then only unix sockets are used).

    Raises:
        ValueError: there is one, and it does not fit.
    """
    text = os.environ.get(VARIABLE)
    if text is None:
        try:
            text = (data / FILE).read_text()
        except FileNotFoundError:
            return None
    return Secrets.parse(text)


def make_secrets(data: Path) -> None:
    """Make a secret for this node unless it has one."""
    data.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(data / FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(random_secrets.token_hex(32))
