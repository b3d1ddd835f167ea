"""The process that starts and ends workers on AWS, beside a controller.

It dials that controller alone and does what it says, and nothing while it does not lead.  A process
of its own, so that whatever becomes of a call to AWS is nothing to the controller.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import structlog
import uvloop

from infra.client import NoController, ask
from infra.node_agent import NodeAgent, UpLimits
from pool.aws import client
from pool.aws.client import Cloud, CloudError
from pool.aws.config import AwsAgentConfig, PoolConfig
from pool.aws.launcher import AwsLauncher
from pool.wire import control
from pool.wire.fleet_secret import load_secrets
from registry_sync.logs import configure
from registry_sync.supervised import leave

_log = structlog.get_logger()


class AwsAgent:
    """A launcher, and for each of its pools what a node has: a connection to the controller.

    Args:
        config: what the process was told.
        cloud: makes the calls.
    """

    def __init__(self, config: AwsAgentConfig, cloud: Cloud) -> None:
        self._config = config
        self.launcher = AwsLauncher(config.pools, cloud, self.leader, self._redial)
        secrets = load_secrets(Path(config.data))
        self._agents = [
            NodeAgent(one.pool.name, one, self._finder(one.pool), secrets, _limits(one.pool))
            for one in self.launcher.pools
        ]

    def leader(self) -> int | None:
        """Return the epoch of the controller, once it leads and follows all pools."""
        epochs = {agent.leader for agent in self._agents}
        return epochs.pop() if len(epochs) == 1 else None

    def _redial(self) -> None:
        for agent in self._agents:
            agent.link.redial()

    def _finder(self, pool: PoolConfig) -> Callable[[], Awaitable[str | None]]:
        async def find() -> str | None:
            address = self._config.controller
            try:
                await ask(address, Path(self._config.data), control.HERE)
            except NoController:
                return None  # it does not lead, or starts
            # Whatever came of the look: a controller that knows of no pool tells nobody of it.
            await self.launcher.begin(pool.name)
            return address

        return find

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.launcher.run())
            for agent in self._agents:
                tasks.create_task(agent.run())


def _limits(pool: PoolConfig) -> UpLimits:
    return UpLimits(up_min=pool.workers_min, rest_s=pool.rest_s, start_s=pool.start_s)


async def run(config: AwsAgentConfig) -> None:
    """Run until SIGTERM or SIGINT; tasks and instances go on."""
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    agent = AwsAgent(config, Cloud(client.connect(), config.pools))
    work = asyncio.create_task(agent.run())
    stopped = asyncio.create_task(stop.wait())
    pools = {pool.name: pool.workers_max for pool in config.pools.pools}
    _log.info("launcher_up", fleet=config.pools.fleet, pools=pools)
    await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
    if work.done():
        work.result()  # it never ends but by a bug
    leave()


def main() -> None:
    """Start from the JSON in argv[1]."""
    config = msgspec.json.decode(sys.argv[1], type=AwsAgentConfig)
    configure("launcher", config.log_level)
    try:
        uvloop.run(run(config))
    except CloudError as error:
        _log.error("launcher_cannot_start", error=str(error))
    except Exception:
        _log.exception("bug")
    leave(1)


if __name__ == "__main__":
    main()
