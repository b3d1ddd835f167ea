"""`python -m registry_sync '<config as JSON>'`: one per node, started by its supervisor."""

from __future__ import annotations

import asyncio
import os
import sys

import msgspec
import structlog

from registry_sync.config import SyncConfig
from registry_sync.daemon import serve
from registry_sync.logs import configure


def main() -> int:
    """Run until told to end; the exit status is 2 for a bad config, 1 for an unusable socket."""
    try:
        config = msgspec.json.decode(sys.argv[1] if len(sys.argv) == 2 else "", type=SyncConfig)
        configure("sync", config.log_level)
    except ValueError as error:
        sys.stderr.write(f"registry_sync: the config is wrong: {error}\n")
        return 2
    try:
        asyncio.run(serve(config))
    except OSError as error:
        structlog.get_logger().error("cannot serve", socket=config.socket, error=str(error))
        return 1
    # A thread may hang in a read of a dead store for minutes, and leaving in the ordinary way would
    # wait for it. Nothing on disk needs its goodbye.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
