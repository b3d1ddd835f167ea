"""The controller's looks at the registry: by the clock, and when a queue tells of a change.

Only the controller that leads receives, and it deletes what it received once it has looked: what a
controller had in hand when it died, or when the registry did not answer, comes again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

import structlog

from pool.look_pace import Pace
from registry_sync.news import News, QueueError

RECEIVES_APART_S: Final = 1.0  # many changes at once are one look
LEADS_S: Final = 0.02  # who does not lead yet looks so often whether it does

_log = structlog.get_logger()


class Queue(Protocol):
    """What tells of changes; see `registry_sync.notifications`.  Blocking."""

    def receive(self) -> News: ...

    def delete(self, news: News) -> None: ...


class RegistryNews:
    """Looks at one registry for one controller.

    Args:
        queue: that tells of changes; None: nothing does.
        look: looks at the registry and tells everybody what changed; returns whether anything has,
            None: the registry did not answer, or not to all.  `is_asked`: at wishes too.
        may_act: tells whether this process leads now.
        lapsed: is set when what the looks had found is forgotten, as at the end of a reign.
        interval_s: between two looks, plus or minus 20 %, where no queue can be relied on.
    """

    def __init__(
        self,
        queue: Queue | None,
        look: Callable[..., Awaitable[bool | None]],
        may_act: Callable[[], bool],
        lapsed: asyncio.Event,
        interval_s: float,
    ) -> None:
        self._queue = queue
        self._look = look
        self._may_act = may_act
        self._lapsed = lapsed
        self._interval_s = interval_s
        self._thread = ThreadPoolExecutor(1, "notifications")  # one receive may take 20 s
        # The whole mutable state.
        self._pace = Pace()

    async def run_forever(self) -> None:
        """Look when it is told to, and when it is due."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._look_forever())
            if self._queue is not None:
                group.create_task(self._listen_forever(self._queue))

    async def _look_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            is_leading = self._may_act()
            if not is_leading or self._lapsed.is_set():
                self._pace = Pace()  # a new reign begins with a look
            self._lapsed.clear()
            if not is_leading:
                await asyncio.sleep(min(LEADS_S, self._interval_s))
                continue
            began_s = loop.time()
            if self._pace.is_due(began_s):
                could_tell = self._pace.could_tell(began_s)
                changed = await self._look()
                self._pace = self._pace.looked(began_s, has_answered=changed is not None)
                if changed and could_tell:
                    _log.warning("notifications_missed", until="the next one, the plain pace")
                    self._pace = self._pace.missed()
            with contextlib.suppress(TimeoutError):
                # A reign may end and the next one begin within one pause.
                async with asyncio.timeout(self._interval_s * random.uniform(0.8, 1.2)):
                    await self._lapsed.wait()

    async def _listen_forever(self, queue: Queue) -> None:
        loop = asyncio.get_running_loop()
        is_heard = True
        while True:
            if not self._may_act():
                await asyncio.sleep(LEADS_S)
                continue
            asked_s = loop.time()
            try:
                news = await loop.run_in_executor(self._thread, queue.receive)
                began_s = loop.time()
                self._pace = self._pace.heard(began_s, is_event=news.is_event)
                if not is_heard:
                    _log.info("notifications_back")
                is_heard = True
                if await self._is_seen(news):
                    await loop.run_in_executor(self._thread, queue.delete, news)
            except QueueError as error:
                self._pace = self._pace.deaf()
                if is_heard:
                    _log.warning("notifications_unreachable", error=str(error))
                is_heard = False
                await asyncio.sleep(self._interval_s * random.uniform(0.8, 1.2))
            await asyncio.sleep(asked_s + RECEIVES_APART_S - loop.time())

    async def _is_seen(self, news: News) -> bool:
        """Look if that is worth it; tell whether the messages have done their work."""
        if not news.is_worth_a_look:
            return bool(news.receipts)
        began_s = asyncio.get_running_loop().time()
        changed = await self._look(is_asked=news.is_wish)
        self._pace = self._pace.looked(began_s, has_answered=changed is not None)
        # Of another leader's reign: it looks itself, once they come again.
        return changed is not None and self._may_act()
