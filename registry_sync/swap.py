"""Compare-and-swap of one small object, with retries.

Owns the loop; what to write is the caller's.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from registry_sync.stores import Conflict, NotFound, Object, OutcomeUnknown, Store

TRIES_MAX = 100
PAUSE_S_MIN = 0.002
PAUSE_S_MAX = 0.5  # 50 writers on a store of 10 ms a write are through in half a second


def get_or_none(store: Store, key: str) -> Object | None:
    """Read a small object, or None if there is none."""
    try:
        return store.get(key)
    except NotFound:
        return None


def swap(
    store: Store,
    key: str,
    change: Callable[[Object | None], bytes],
    *,
    again_if_unknown: bool = True,
) -> str:
    """Replace an object by what `change` makes of it, and return the new etag.

    `change` is called again with the newer object whenever another writer was faster.  What it
    raises ends the swap.

    Args:
        store: where.
        key: of the object.
        change: from the object, None if there is none, to its new content.
        again_if_unknown: call `change` again as well when a write's answer was lost.  Then the
            write may have landed already, so applying it twice must do no harm.

    Raises:
        Conflict: other writers were faster 100 times.
        OutcomeUnknown: only if `again_if_unknown` is False.
    """
    pause_s = PAUSE_S_MIN
    for _ in range(TRIES_MAX):
        current = get_or_none(store, key)
        data = change(current)
        try:
            if current is None:
                return store.put_new(key, data)
            return store.put_if(key, data, current.etag)
        except (Conflict, OutcomeUnknown) as error:
            if isinstance(error, OutcomeUnknown) and not again_if_unknown:
                raise
            # Random, so that the losers of one round do not all meet again in the next.
            time.sleep(random.uniform(0, pause_s))
            pause_s = min(2 * pause_s, PAUSE_S_MAX)
    raise Conflict(key, f"other writers were faster {TRIES_MAX} times; try again")
