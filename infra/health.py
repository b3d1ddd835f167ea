"""`python -m infra.health TIER`: whether the tier of this container answers; for health checks.

A balancer and the edges find out who can be called by themselves; this tells whoever runs the
container when to start it anew.  It is asked every few seconds on small machines, so it imports
next to nothing, and asks nobody that it would wake: a worker at rest starts when it is dialled.
"""

from __future__ import annotations

import argparse
import http.client
import os
import socket
import ssl
import sys
from pathlib import Path

S_MAX = 3.0
# What a tier always has open below DATA; an edge is asked over HTTP instead.
SOCKETS = {"controller": "run/control.sock", "pool": "run/sync.sock"}


def main() -> int:
    """Return 0 if the tier answers; else 1, and say why on stderr."""
    parser = argparse.ArgumentParser(prog="python -m infra.health", description=__doc__)
    parser.add_argument("tier", choices=["edge", *SOCKETS])
    parser.add_argument("--data", type=Path, default=os.environ.get("TIDEPOOL_DATA", ".tidepool"))
    parser.add_argument("--port", type=int, default=8000, help="of the edge, on loopback")
    parser.add_argument("--https", action="store_true", help="the edge has --tls-cert")
    told = parser.parse_args()
    try:
        if told.tier == "edge":
            _ask_edge(told.port, told.https)
        else:
            _dial(told.data / SOCKETS[told.tier])
    except (OSError, http.client.HTTPException) as error:
        print(f"{told.tier}: {error}", file=sys.stderr)
        return 1
    return 0


def _ask_edge(port: int, is_https: bool) -> None:
    """Ask an edge whether it lives.

    Raises:
        OSError, http.client.HTTPException: it does not answer, or not with 200.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=S_MAX)
    if is_https:
        # Its certificate is for the name that clients call.
        anyone = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=S_MAX, context=anyone)
    try:
        connection.request("GET", "/v2/health/live")
        status = connection.getresponse().status
    finally:
        connection.close()
    if status != 200:
        raise http.client.HTTPException(f"/v2/health/live answers {status}")


def _dial(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(S_MAX)
        try:
            probe.connect(str(path))
        except OSError as error:
            raise OSError(f"{path}: {error.strerror or error}") from None


if __name__ == "__main__":
    sys.exit(main())
