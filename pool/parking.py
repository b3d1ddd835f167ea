"""Gets a worker ready to wake whatever may be called: pays in advance what a process pays once.

A framework's import takes seconds and a GPU's context half a second, so that the first wake in a
process would take as long.  A parked worker has both.  Only what the versions on this node can need
is imported, and only once nobody is waiting for anything: or beside the download of one that can.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Protocol

import structlog

from pool.engines.base import reason_of
from pool.phases import IMPORT, enter

IDLE_S: Final = 1.0  # without a call or a load, before anything is prepared

_log = structlog.get_logger()


class HasFormats(Protocol):
    """An engine of either kind; one that has something to prepare has a method `prepare`.

    That is called once, in a thread, perhaps beside loads.  It imports what loads need, takes the
    device's context, and tells whether it had to; it may raise anything.
    """

    @property
    def name(self) -> str: ...
    @property
    def formats(self) -> frozenset[str]: ...


class Parking:
    """Prepares engines in threads, each once.

    Args:
        engines: of either kind.
    """

    def __init__(self, engines: Iterable[HasFormats]) -> None:
        self._engines = tuple(engines)
        self._threads = ThreadPoolExecutor(max(1, len(self._engines)), "prepare")
        # The whole mutable state; by identity, since an engine may be no key.
        self._begun: dict[int, Future[None]] = {}

    def begin(
        self, engine: HasFormats, within: AbstractContextManager[object] | None = None
    ) -> Future[None] | None:
        """Have an engine prepared, unless that has begun; None: it has nothing to prepare.

        What it raises is in the log only: the first load will meet it again, and say so to whoever
        wants the model.

        Args:
            within: held meanwhile, in the thread.
        """
        prepare = getattr(engine, "prepare", None)
        if prepare is None:
            return None
        begun = self._begun.get(id(engine))
        if begun is None:
            # A thread of the pool has no context: a load that asks for this counts its own phases.
            begun = self._threads.submit(
                _prepare, engine.name, prepare, nullcontext() if within is None else within
            )
            self._begun[id(engine)] = begun
        return begun

    def finish(self, engine: HasFormats) -> None:
        """Wait until an engine is prepared, if that has begun; blocks."""
        begun = self._begun.get(id(engine))
        if begun is not None and not begun.done():
            enter(IMPORT)
            wait([begun])

    async def park(
        self, formats: Callable[[], frozenset[str]], is_idle: Callable[[], bool]
    ) -> None:
        """Prepare the engines for what is on this node, one after the other.

        Args:
            formats: of the versions on this node; blocks.
            is_idle: whether nobody waits for anything; asked for a while before each engine.
        """
        wanted = await asyncio.to_thread(formats)
        for engine in self._engines:
            if not hasattr(engine, "prepare") or not engine.formats & wanted:
                continue
            while True:
                await asyncio.sleep(IDLE_S)
                if is_idle():
                    break
            begun = self.begin(engine)
            if begun is not None:
                await asyncio.wrap_future(begun)


def _prepare(
    name: str, prepare: Callable[[], bool], within: AbstractContextManager[object]
) -> None:
    began_s = time.monotonic()
    try:
        with within:
            has_done = prepare()
    except Exception as error:
        _log.warning("engine_not_prepared", engine=name, reason=reason_of(error))
        return
    if has_done:
        _log.info("engine_prepared", engine=name, took_s=round(time.monotonic() - began_s, 3))
