"""The controller process: sockets, leadership and signals around a `Controller`."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import signal
import sys
import time
from pathlib import Path
from typing import TextIO

import msgspec
import structlog
import uvloop

from pool import last_good
from pool.config import ControllerConfig
from pool.controller import Controller
from pool.learned import Learned
from pool.registry_news import RegistryNews
from pool.registry_watch import RegistryWatch, trusted_of
from pool.wire.fleet_secret import load_secrets
from pool.wire.listening import serve
from pool.wire.peer import Address
from pool.wish_watch import WishWatch
from registry_sync.leader import Leadership, Wait, resign, step
from registry_sync.local import LocalStore
from registry_sync.logs import configure
from registry_sync.news import QueueError
from registry_sync.open import open_queue, open_store
from registry_sync.stores import Store, StoreError, StoreUnavailable
from registry_sync.supervised import leave
from registry_sync.trust import Trust

SYNC_INTERVAL_S_DIRECTORY = 1.0
SYNC_INTERVAL_S_S3 = 10.0
WISHES_PAUSE_S_DIRECTORY = 5.0
WISHES_PAUSE_S_S3 = 60.0  # whoever writes a wish pokes the controller
ANSWERS_S_MAX = 12.0  # for questions that were asked before SIGTERM; the longest takes 10 s
RESIGN_S_MAX = 5.0  # a registry that does not answer costs the successor the usual wait

_log = structlog.get_logger()


async def lead_until(stop: asyncio.Event, store: Store, leadership: Leadership) -> None:
    """Take part in the election until `stop`; then resign, so that another node need not wait."""
    while not stop.is_set():
        was = leadership.reign
        decision = await asyncio.to_thread(step, store, leadership)
        reign = leadership.reign
        if reign is not None and (was is None or was.epoch != reign.epoch):
            _log.info("leading", epoch=reign.epoch)
        wait_s = 0.5
        if isinstance(decision, Wait):
            wait_s = max(0.0, decision.until_s - time.monotonic())
        else:
            _log.warning("standing_down", reason=decision.reason)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await stop.wait()
    await asyncio.to_thread(resign, store, leadership)


def require_folder(registry: str) -> None:
    """See that a registry's folder is there, which opening would make anew, and empty.

    Raises:
        StoreUnavailable: it is not; this node has seen it with documents in it.
    """
    folder = Path(registry.removeprefix("file://"))
    if not folder.is_dir():
        raise StoreUnavailable(f"{registry}: the registry's folder is gone; is it mounted?")


def hold_lock(path: Path) -> TextIO:
    """Take this node's controller lock, which its holder's death gives back.

    Raises:
        BlockingIOError: another controller of this node lives.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a")  # noqa: SIM115  # held until the process ends
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


async def run(config: ControllerConfig) -> None:
    """Serve until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    data = Path(config.data)
    lock = hold_lock(data / "control" / "controller.lock")
    secrets = load_secrets(data)
    is_s3 = config.registry.startswith("s3://")
    local = LocalStore(data / "control")
    trust = Trust(config.require_signed)
    start = last_good.load(local)
    if start is not None:
        start = trusted_of(start, trust)
    if start is not None and not is_s3:
        require_folder(config.registry)
    store = await asyncio.to_thread(open_store, config.registry)
    queue = None
    if config.notifications:
        queue = await asyncio.to_thread(open_queue, config.notifications, config.registry)
    servers = []
    # The lock shows that no former controller of this node can act any more.
    url = config.advertise
    controller_of: list[Controller] = []
    for text in config.listen:
        server = await serve(
            Address.parse(text), secrets, lambda peer: controller_of[0].on_peer(peer)
        )
        servers.append(server)
    leadership = Leadership(config.id, url or str(servers[-1].address), predecessor_is_dead=True)
    leader_store = store if is_s3 else open_store(str(data))

    def may_act() -> bool:
        return leadership.may_act(time.monotonic())

    wishes = WishWatch(store, WISHES_PAUSE_S_S3 if is_s3 else WISHES_PAUSE_S_DIRECTORY)
    controller = Controller(
        RegistryWatch(store, start, wishes, trust),
        may_act=may_act,
        epoch=lambda: leadership.reign.epoch if leadership.reign else 0,
        workers_expected=config.workers_expected,
        local=local,
        learned=Learned(store, local),
        time_scale=config.time_scale,
    )
    controller_of.append(controller)
    interval_s = config.sync_interval_s or (
        SYNC_INTERVAL_S_S3 if is_s3 else SYNC_INTERVAL_S_DIRECTORY
    )
    ended = asyncio.Event()
    leading = loop.create_task(lead_until(ended, leader_store, leadership))
    news = RegistryNews(queue, controller.poll, may_act, controller.lapsed, interval_s)
    rounds = [
        loop.create_task(news.run_forever()),
        loop.create_task(controller.tick_forever()),
    ]
    _log.info("controller_up", addresses=[str(server.address) for server in servers])
    stopped = loop.create_task(stop.wait())
    running = [stopped, leading, *rounds]
    done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    for task in done - {stopped}:
        task.result()  # a round never ends but by a bug: better a new process than half of one
    for server in servers:
        await server.close()
    for task in rounds:
        task.cancel()
    await controller.finish(ANSWERS_S_MAX)
    ended.set()
    await asyncio.wait([leading], timeout=RESIGN_S_MAX)
    lock.close()
    _log.info("controller_down")
    leave()


def main() -> None:
    """Start from the JSON in argv[1]."""
    config = msgspec.json.decode(sys.argv[1], type=ControllerConfig)
    configure("controller", config.log_level)
    try:
        uvloop.run(run(config))
    except (ValueError, OSError, StoreError, QueueError) as error:
        _log.error("controller_cannot_start", error=str(error) or type(error).__name__)
    except Exception:
        _log.exception("bug")
    leave(1)  # `run` leaves by itself


if __name__ == "__main__":
    main()
