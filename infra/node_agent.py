"""A node's agent: tells the controller what places there are, and obeys which are to be up.

While there is no controller the last word holds, and whoever dials a cold place has it started.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets as random_secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from infra.child import ProcessSpec
from infra.local_launcher import LocalLauncher
from infra.stack import Node
from infra.supervisor import Supervisor
from pool.controller_address import finder
from pool.launcher import Launcher
from pool.wire import control
from pool.wire.fleet_secret import load_secrets
from pool.wire.frames import WireError
from pool.wire.handshake import Secrets
from pool.wire.link import ControlLink

REPORT_S = 1.0
_TROUBLE_MAX = 1000  # characters

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class UpLimits:
    """How many of a node's workers are up.

    Of `parked`, so many are up on each device beyond those that serve; and one that nobody needs
    is up for `rest_s` after it was of use.
    """

    up_min: int  # whatever the demand
    parked: int = 0
    rest_s: float = 60.0
    start_s: float = 0.0  # see `control.RegisterNode`


class NodeAgent:
    """One node's launcher, and its connection to the controller.

    Args:
        node: the node's id.
        launcher: of its worker processes.
        find: returns the controller's address.
        secrets: of the fleet.
        limits: how many are up.
    """

    def __init__(
        self,
        node: str,
        launcher: Launcher,
        find: Callable[[], Awaitable[str | None]],
        secrets: Secrets | None,
        limits: UpLimits,
    ) -> None:
        self._node = node
        self._launcher = launcher
        self._limits = limits
        self._incarnation = random_secrets.token_hex(8)
        self._up: tuple[str, ...] | None = None  # the last word
        self._epoch: int | None = None  # of who welcomed us on the present connection
        self.link = ControlLink(find, secrets, self._register, self._on_message)

    @property
    def leader(self) -> int | None:
        """The epoch of the controller that follows us now; None: none does."""
        return self._epoch if self.link.is_up else None

    def _register(self) -> control.Message:
        self._epoch = None
        return control.RegisterNode(
            control.WIRE,
            self._node,
            self._incarnation,
            os.getpid(),
            self._launcher.places(),
            self._limits.up_min,
            self._limits.parked,
            self._limits.rest_s,
            self._limits.start_s,
        )

    def _on_message(self, message: control.Message) -> None:
        match message:
            case control.Places():
                if message.up != self._up:  # it is repeated until it is done
                    _log.info("places", up=message.up, epoch=message.epoch, seq=message.seq)
                self._up = message.up
                self._launcher.hold_up(self._at_least(message.up, message.silent))
            case control.Welcome():
                self._epoch = message.epoch
            case _:
                raise WireError(f"a controller does not send a node {type(message).__name__}")

    def _at_least(self, up: tuple[str, ...], silent: tuple[str, ...]) -> set[str]:
        """Return `up`, and the first others of this node while these are fewer than its minimum.

        Those that are silent are not among the others: they end, and may be up again after that.
        """
        mine = [
            p.worker for p in self._launcher.places() if p.worker in up or p.worker not in silent
        ]
        found = set(up) & set(mine)
        spare = (worker for worker in mine if worker not in found)
        while len(found) < min(self._limits.up_min, len(mine)):
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
                launcher = self._launcher
                counts, trouble = dict(launcher.counts()), launcher.trouble()[:_TROUBLE_MAX]
                self.link.send(control.NodeReport(launcher.places(), counts, trouble))
        finally:
            link.cancel()


@contextlib.asynccontextmanager
async def following(
    node: Node,
    supervisor: Supervisor,
    processes: Sequence[ProcessSpec],
    controller: str,
    limits: UpLimits,
) -> AsyncIterator[None]:
    """Start `processes`, and let the controller say meanwhile which workers are up.

    Args:
        node: this machine.
        supervisor: of the processes; who stops it is the caller.
        processes: not started yet; those that may rest are workers.
        controller: its address; empty: by the leader record, through the node's sync process.
        limits: how many workers are up.
    """
    workers = [spec for spec in processes if spec.may_rest]
    supervisor.start(processes, [spec.name for spec in workers[limits.up_min :]])
    agent = NodeAgent(
        node.id(),
        LocalLauncher(supervisor, workers),
        finder(controller, node.sync_socket),
        load_secrets(node.data),
        limits,
    )

    async def follow() -> None:
        try:
            await agent.run()
        except Exception:
            # A bug here must not end what runs; the last word of the controller holds.
            _log.exception("bug")

    task = asyncio.get_running_loop().create_task(follow())
    try:
        yield
    finally:
        task.cancel()
