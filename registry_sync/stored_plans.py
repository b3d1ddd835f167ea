"""All plans of the registry: listed for people, and removed when nobody has used them for long."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from registry_sync.names import BadName, check_digest, check_name
from registry_sync.plan_files import META_BYTES_MAX, SIDE_BYTES_MAX
from registry_sync.plan_store import mark_used, read_used, used_key
from registry_sync.plans import (
    NOT_RUN,
    BadPlan,
    GateReport,
    PlanMeta,
    check_mac,
    read_gate,
    read_meta,
)
from registry_sync.stores import Entry, NotFound, Store
from registry_sync.swap import get_or_none


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """What lies in the registry under one key and secret id."""

    key: str
    secret_id: str
    meta: PlanMeta | None  # None: `problem` says why
    gate: GateReport
    bytes: int  # of all its files
    used: str  # the day on which the key was last loaded or put, ISO 8601; empty: unknown
    is_vouched: bool  # its MAC is one of the secrets that were given
    problem: str  # why nobody loads it; empty: nothing is known


@dataclass(frozen=True, slots=True)
class UnusedPlans:
    """The plans of one key, under every secret, which nobody has used for long."""

    key: str
    used: str
    bytes: int
    objects: tuple[str, ...]  # keys in the registry, in the order in which they go
    metas: tuple[PlanMeta, ...]  # those that can be read: for people


def list_plans(store: Store, secret_keys: Mapping[str, bytes] | None = None) -> list[StoredPlan]:
    """Return all plans, in the order of their keys.

    Store calls: one list for each 1,000 objects; one read for each key, one for each pair, and
    one for the gate's record where the plan was built without a device.

    Args:
        secret_keys: by secret id; with them, MACs are checked.
    """
    found: list[StoredPlan] = []
    for key, entries in _by_key(store.list("engines")).items():
        used = get_or_none(store, used_key(key))
        day = "" if used is None else read_used(used.data)
        for secret_id, files in _by_secret(key, entries).items():
            meta, gate, problem, is_vouched = _read(store, key, files, secret_id, secret_keys or {})
            total = sum(entry.bytes for entry in files.values())
            found.append(StoredPlan(key, secret_id, meta, gate, total, day, is_vouched, problem))
    return found


def gc_plans(
    store: Store, today: date, unused_days_min: int, *, dry_run: bool = False
) -> list[UnusedPlans]:
    """Remove the plans of keys that nobody has loaded or put for some days; wishes stay.

    What has no day yet is given today's, so that the next time may take it.  Within a key the
    plan goes before its metadata, so that whatever is left by a death in the middle cannot be
    loaded, and the day goes last, so that the next time takes the rest.  A key that is used
    meanwhile is left alone.

    Store calls: one list for each 1,000 objects; one read for each key; for each key that goes,
    one read, one for each pair, and one deletion for each object.

    Args:
        today: UTC.
        unused_days_min: of whole days; 1 keeps what was used today or yesterday.
        dry_run: only say what would go; nothing is written.

    Returns:
        What was removed, or would be.

    Raises:
        ValueError: `unused_days_min` is less than 1.
        StoreError: see there; what was removed until then stays so.
    """
    if unused_days_min < 1:
        raise ValueError(f"{unused_days_min} days: at least 1, or plans in use would go")
    kept_from = (today - timedelta(days=unused_days_min)).isoformat()
    gone: list[UnusedPlans] = []
    for key, entries in _by_key(store.list("engines")).items():
        used = get_or_none(store, used_key(key))
        day = "" if used is None else read_used(used.data)
        if used is None or not day:
            if not dry_run:
                mark_used(store, key, today.isoformat())
            continue
        if day >= kept_from:
            continue
        unused = UnusedPlans(
            key,
            day,
            sum(entry.bytes for entry in entries),
            tuple(_in_order(key, entries)),
            tuple(_metas(store, key, entries)),
        )
        if not dry_run:
            with contextlib.suppress(NotFound):
                # Used since: then it stays.
                if store.get_if_changed(used_key(key), used.etag) is not None:
                    continue
            for name in unused.objects:
                store.delete(name)
        gone.append(unused)
    return gone


def _by_key(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Group what lies below `engines/` by plan key; what is not ours is left out."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        with contextlib.suppress(BadName):
            found.setdefault(check_digest(entry.key.split("/")[1]), []).append(entry)
    return found


def _by_secret(key: str, entries: Sequence[Entry]) -> dict[str, dict[str, Entry]]:
    """Return a key's files by secret id and name."""
    found: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        match entry.key.split("/"):
            case ["engines", _, secret_id, name]:
                with contextlib.suppress(BadName):
                    check_name("secret id", secret_id)
                    found.setdefault(secret_id, {})[name] = entry
            case _:
                pass
    return found


def _in_order(key: str, entries: Sequence[Entry]) -> list[str]:
    """Return a key's objects: plans, then what vouches for them, and the day last of all."""

    def rank(name: str) -> tuple[int, str]:
        last = name.rpartition("/")[2]
        return (2 if name == used_key(key) else 0 if last == "plan" else 1), name

    return sorted((entry.key for entry in entries), key=rank)


def _metas(store: Store, key: str, entries: Sequence[Entry]) -> Iterable[PlanMeta]:
    for files in _by_secret(key, entries).values():
        if "meta.json" in files:
            with contextlib.suppress(NotFound, BadPlan):
                yield read_meta(store.read(files["meta.json"].key, 0, META_BYTES_MAX))


def _read(
    store: Store,
    key: str,
    files: Mapping[str, Entry],
    secret_id: str,
    secret_keys: Mapping[str, bytes],
) -> tuple[PlanMeta | None, GateReport, str, bool]:
    """Return a pair's metadata and verdict, what is wrong with it, and whether its MAC holds."""
    meta: PlanMeta | None = None
    gate = NOT_RUN
    secret_key = secret_keys.get(secret_id)
    try:
        if "plan" not in files or "meta.json" not in files:
            raise BadPlan("it is not whole: plan or metadata are missing")
        meta = read_meta(store.read(files["meta.json"].key, 0, META_BYTES_MAX))
        if meta.key != key:
            raise BadPlan(f"it is of another key, {meta.key}")
        if meta.bytes != files["plan"].bytes:
            raise BadPlan(f"it has {files['plan'].bytes} bytes, its metadata say {meta.bytes}")
        gate = _gate(store, files, meta, secret_key)
        if secret_key is not None:
            check_mac(meta, secret_key)
    except NotFound:
        return None, NOT_RUN, "it was removed while it was read", False
    except BadPlan as error:
        return meta, gate, str(error), False
    return meta, gate, "", secret_key is not None


def _gate(
    store: Store, files: Mapping[str, Entry], meta: PlanMeta, secret_key: bytes | None
) -> GateReport:
    if meta.gate.verdict != "not_run" or "gate.json" not in files:
        return meta.gate
    try:
        record = read_gate(store.read(files["gate.json"].key, 0, SIDE_BYTES_MAX))
        if secret_key is not None:
            check_mac(record, secret_key)
    except (NotFound, BadPlan):
        return meta.gate
    fits = (record.key, record.plan_sha256) == (meta.key, meta.plan_sha256)
    return record.report if fits else meta.gate
