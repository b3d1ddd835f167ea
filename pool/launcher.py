"""Who starts and ends worker processes: the pool decides which, a launcher carries it out.

A launcher has places, each with room for one worker under a fixed id.  A place without a process is
cold.  `local` starts processes of its own machine (infra/local_launcher.py): its places have fixed
addresses, which it keeps open, so that to dial one is to start it, whoever dials and whether or not
a controller lives.  `aws` starts tasks on instances that come and go (pool/aws/launcher.py): its
places have no address, and only a controller's word starts anything there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
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

    def counts(self) -> Mapping[str, int]:
        """Return what else there is to show, by its name."""

    def trouble(self) -> str:
        """Return what keeps it from its work, for people; empty: nothing."""
