"""Which plans of the registry nobody has used for long, and their removal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from registry_sync.names import BadName, check_digest
from registry_sync.plan_files import META_BYTES_MAX
from registry_sync.plan_store import mark_used, read_used, used_key
from registry_sync.plans import BadPlan, PlanMeta, read_meta
from registry_sync.stores import Entry, NotFound, Object, Store
from registry_sync.swap import get_or_none


@dataclass(frozen=True, slots=True)
class UnusedPlans:
    """The plans of one key, under every secret, which nobody has used for long."""

    key: str
    used: str  # the day (UTC) on which one was last loaded or put
    bytes: int
    objects: tuple[str, ...]  # keys of the registry, in the order in which they go
    metas: tuple[PlanMeta, ...]  # those that can be read: for people


def gc_plans(
    store: Store,
    today: date,
    unused_days_min: int,
    *,
    dry_run: bool = False,
) -> list[UnusedPlans]:
    """Remove the plans of keys that nobody has loaded or put for some days; wishes stay.

    What has no day yet is given today's, so that a later run may take it.  Within a key plans go
    before what vouches for them, so that what a death in the middle leaves cannot be loaded, and
    the day goes last, so that the next run takes the rest.  A key that is used meanwhile stays.

    Store calls: one list for each 1,000 objects, and a read for each key (and a write where it
    had no day).  For each key that goes: a read, one more for each pair, and a deletion for each
    object.

    Args:
        today: UTC.
        unused_days_min: whole days without a use; 1 still keeps what was used yesterday.
        dry_run: only say what would go; nothing is written.

    Returns:
        What was removed, or would be.

    Raises:
        ValueError: `unused_days_min` is less than 1.
        StoreError: see there; what was removed until then stays so.
    """
    if unused_days_min < 1:
        raise ValueError(f"{unused_days_min} days: at least 1, or plans in use would go")
    keep_from = (today - timedelta(days=unused_days_min)).isoformat()
    gone: list[UnusedPlans] = []
    for key, entries in _by_key(store.list("engines")).items():
        used = get_or_none(store, used_key(key))
        day = "" if used is None else read_used(used.data)
        if used is None or not day:
            if not dry_run:
                mark_used(store, key, today.isoformat())
        elif day < keep_from:
            unused = UnusedPlans(
                key,
                day,
                sum(entry.bytes for entry in entries),
                tuple(_in_order(key, entries)),
                tuple(_metas(store, entries)),
            )
            if dry_run or _remove(store, unused, used):
                gone.append(unused)
    return gone


def _remove(store: Store, unused: UnusedPlans, used: Object) -> bool:
    """Remove it unless it was used since it was looked at; say whether."""
    with contextlib.suppress(NotFound):
        if store.get_if_changed(used_key(unused.key), used.etag) is not None:
            return False
    for name in unused.objects:
        store.delete(name)
    return True


def _by_key(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Group what lies below `engines/` by plan; what is not ours is left out."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        with contextlib.suppress(BadName):
            found.setdefault(check_digest(entry.key.split("/")[1]), []).append(entry)
    return found


def _in_order(key: str, entries: Sequence[Entry]) -> list[str]:
    def rank(name: str) -> tuple[int, str]:
        if name == used_key(key):
            return 2, name
        return (0 if name.endswith("/plan") else 1), name

    return sorted((entry.key for entry in entries), key=rank)


def _metas(store: Store, entries: Sequence[Entry]) -> Iterable[PlanMeta]:
    for entry in entries:
        if entry.key.endswith("/meta.json"):
            with contextlib.suppress(NotFound, BadPlan):
                yield read_meta(store.read(entry.key, 0, META_BYTES_MAX))
