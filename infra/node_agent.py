"""A node's agent: tells the controller what places there are, and obeys which are to be up.

While there is no controller the last word holds, and whoever dials a cold place has it started.
"""

from __future__ import annotations

import asyncio
import os
import secrets as random_secrets
from collections.abc import Awaitable, Callable

import structlog

from pool.launcher import Launcher
from pool.wire import control
from pool.wire.frames import WireError
from pool.wire.handshake import Secrets
from pool.wire.link import ControlLink

REPORT_S = 1.0

_log = structlog.get_logger()


class NodeAgent:
    """One node's launcher, and its connection to the controller.

    Args:
        node: the node's id.
        launcher: of its worker processes.
        find: returns the controller's address.
        secrets: of the fleet.
        up_min: of its places, up whatever the demand.
        parked: on each device so many are up beyond those that serve.
        rest_s: one that nobody needs is up so long after it was of use.
    """

    def __init__(
        self,
        node: str,
        launcher: Launcher,
        find: Callable[[], Awaitable[str | None]],
        secrets: Secrets | None,
        *,
        up_min: int,
        parked: int,
        rest_s: float,
    ) -> None:
        self._node = node
        self._launcher = launcher
        self._up_min = up_min
        self._parked = parked
        self._rest_s = rest_s
        self._incarnation = random_secrets.token_hex(8)
        self.link = ControlLink(find, secrets, self._register, self._on_message)

    def _register(self) -> control.Message:
        return control.RegisterNode(
            control.WIRE,
            self._node,
            self._incarnation,
            os.getpid(),
            self._launcher.places(),
            self._up_min,
            self._parked,
            self._rest_s,
        )

    def _on_message(self, message: control.Message) -> None:
        match message:
            case control.Places():
                _log.info("places", up=message.up, epoch=message.epoch, seq=message.seq)
                self._launcher.hold_up(self._at_least(message.up))
            case control.Welcome():
                pass
            case _:
                raise WireError(f"a controller does not send a node {type(message).__name__}")

    def _at_least(self, up: tuple[str, ...]) -> set[str]:
        """Return `up`, and the first others of this node while these are fewer than its minimum."""
        mine = [place.worker for place in self._launcher.places()]
        found = set(up) & set(mine)
        spare = (worker for worker in mine if worker not in found)
        while len(found) < min(self._up_min, len(mine)):
            found.add(next(spare))
        return found

    async def run(self) -> None:
        """Follow the controller and report to it until cancelled."""
        link = asyncio.get_running_loop().create_task(self.link.run())
        changed = self._launcher.changed
        try:
            while True:
                news = asyncio.get_running_loop().create_task(changed.wait())
                await asyncio.wait(
                    [link, news], timeout=REPORT_S, return_when=asyncio.FIRST_COMPLETED
                )
                news.cancel()
                changed.clear()
                if link.done():
                    link.result()  # it never ends but by a bug
                self.link.send(control.NodeReport(self._launcher.places()))
        finally:
            link.cancel()
