"""What processes do that compete for one key; apart, so that starting one imports little."""

from __future__ import annotations

import contextlib

from registry_sync.open import open_store
from registry_sync.stores import Conflict

INCREMENTS = 8


def create(url: str, index: int) -> str:
    """Create the key "race"; return "won" or "lost"."""
    with contextlib.closing(open_store(url)) as store:
        try:
            store.put_new("race", b"writer %d" % index)
        except Conflict:
            return "lost"
        return "won"


def increment(url: str, _index: int) -> str:
    """Increment the number under "counter" `INCREMENTS` times."""
    with contextlib.closing(open_store(url)) as store:
        left = INCREMENTS
        while left:
            found = store.get("counter")
            with contextlib.suppress(Conflict):
                store.put_if("counter", str(int(found.data) + 1).encode(), found.etag)
                left -= 1
    return "done"


def rewrite(url: str, digit: bytes) -> None:
    """Replace "record" again and again by 5000 times the digit."""
    with contextlib.closing(open_store(url)) as store:
        for _ in range(20):
            with contextlib.suppress(Conflict):
                store.put_if("record", digit * 5000, store.get("record").etag)
