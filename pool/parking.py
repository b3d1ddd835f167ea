"""Gets a worker ready to wake whatever may be called: pays in advance what a process pays once.

A framework's import takes seconds and a GPU's context half a second, so that the first wake in a
process would take as long.  A parked worker has both.  Only what the versions on this node can need
is imported, and only once nobody is waiting for anything.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import structlog

from pool.engines.base import reason_of

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


async def park(
    engines: Iterable[HasFormats],
    formats: Callable[[], frozenset[str]],
    is_idle: Callable[[], bool],
) -> None:
    """Prepare the engines for what is on this node, one after the other.

    Args:
        formats: of the versions on this node; blocks.
        is_idle: whether nobody waits for anything; asked for a while before each engine.
    """
    wanted = await asyncio.to_thread(formats)
    for engine in engines:
        prepare = getattr(engine, "prepare", None)
        if prepare is None or not engine.formats & wanted:
            continue
        while True:
            await asyncio.sleep(IDLE_S)
            if is_idle():
                break
        began_s = time.monotonic()
        try:
            has_done = await asyncio.to_thread(prepare)
        except Exception as error:
            # The first load will meet it again, and say so to whoever wants the model.
            _log.warning("engine_not_prepared", engine=engine.name, reason=reason_of(error))
            continue
        if has_done:
            took_s = round(time.monotonic() - began_s, 3)
            _log.info("engine_prepared", engine=engine.name, took_s=took_s)
