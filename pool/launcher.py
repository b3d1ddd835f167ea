"""Who starts and ends worker processes: the pool decides which, a launcher carries it out.

A launcher has places, each with room for one worker under a fixed id and address.  A place without
a process is cold; its launcher keeps its address open, so that to dial it is to start it, whoever
dials and whether or not a controller lives.  `local` starts processes of its own machine
(infra/local_launcher.py); others start them where a cluster manager says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Protocol

from pool.wire.control import Place


class Launcher(Protocol):
    """What a node agent needs of whoever starts processes."""

    @property
    def changed(self) -> asyncio.Event:
        """Set whenever `places` may say something else; whoever looks clears it."""

    def places(self) -> tuple[Place, ...]:
        """Return all places as they are now, always the same and in the same order."""

    def hold_up(self, workers: Collection[str]) -> None:
        """Let these workers have a process; any other drains, and its place is cold then.

        Returns at once.  One that somebody has only just dialled may go on for some seconds.
        """
