"""Plans in the registry: put once for the fleet, brought whole, never half believed.

A plan and its `meta.json` cannot be written in one step, so:

1. Who has a plan creates `plan`, create-only, and then `meta.json`, create-only.
2. Who finds a plan there waits for its metadata, and uses that pair if its bytes fit.
3. A pair that stays as it is for `ORPHAN_S` without being whole and fitting belongs to somebody
   who died, or has been tampered with.  Whoever has a whole pair puts it in its place: the plan by
   compare-and-swap, then the metadata.  Two that do so cannot both get the plan.
4. Who created the plan but finds other metadata replaces them, by compare-and-swap, as long as the
   plan is still his.

Whatever is written by whom and when, a pair is used only if its metadata name the sha256 of its
plan; and loaded only if the MAC holds, which `LocalPlans.find` checks, since nothing here holds a
secret.  Nobody deletes on a read.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec

from registry_sync.local_plans import LocalPlans, Pair
from registry_sync.names import check_digest, check_name
from registry_sync.parts import FULL, read_in_order, require_room, write_all
from registry_sync.plan_files import META_BYTES_MAX, SIDE_BYTES_MAX
from registry_sync.plans import BadPlan, GateRecord, PlanMeta, read_gate, read_meta
from registry_sync.stores import Conflict, NotFound, Store, StoreUnavailable
from registry_sync.swap import get_or_none
from registry_sync.sync import DiskFull, Stopped

ORPHAN_S: Final = 60.0  # from a plan to its metadata are two small writes
_LOOK_S_FIRST = 0.1  # doubles up to a twelfth of the pause
_CHANGES_MAX = 20  # of a key while one waits; each is another writer's
_GATE_TRIES = 5


class Used(msgspec.Struct, frozen=True):
    """`used.json`: the day on which the plan of a key was last loaded somewhere."""

    day: Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d{2}-\d{2}$")]  # UTC


_used_of = msgspec.json.Decoder(Used)


@dataclass(frozen=True, slots=True)
class _Seen:
    """The etags of a pair; None: not there."""

    plan: str | None
    meta: str | None
    has_gate: bool


def place_of(key: str, secret_id: str) -> str:
    """Return the folder of a plan in the registry; raises `BadName`."""
    return f"engines/{check_digest(key)}/{check_name('secret id', secret_id)}"


def used_key(key: str) -> str:
    """Return the key of `used.json`; raises `BadName`."""
    return f"engines/{check_digest(key)}/used.json"


def bring_plan(
    store: Store,
    local: LocalPlans,
    key: str,
    secret_ids: Sequence[str],
    stop: threading.Event | None = None,
) -> str | None:
    """Bring the plan of a key to this node, with the gate's record if there is one.

    Store calls: a list for each secret id, a read of the metadata, then one for each 8 MiB of the
    plan unless the same pair is here already, and one for the gate's record if one is wanted.

    Args:
        secret_ids: the preferred one first.
        stop: set by another thread to have it given up between two parts.

    Returns:
        The secret id under which it was found and now is here; None if there is none.

    Raises:
        BadName: key or secret id cannot be ones.
        BadPlan: one is there that must not be used, and no other: says why.
        DiskFull: this node has no room; `Stopped`: `stop` was set.
        StoreError: see there.
    """
    stop = threading.Event() if stop is None else stop
    bad: BadPlan | None = None
    for secret_id in secret_ids:
        try:
            seen = _look(store, place_of(key, secret_id))
            if _bring(store, local, key, secret_id, stop, seen):
                return secret_id
        except BadPlan as error:
            bad = bad or error
    if bad is not None:
        raise bad
    return None


def put_plan(
    store: Store,
    local: LocalPlans,
    key: str,
    secret_id: str,
    day: str,
    *,
    pause_s: float = ORPHAN_S,
    stop: threading.Event | None = None,
) -> bool:
    """Put this node's plan into the registry, unless another is there.

    Store calls: who wins makes at most 7; with a plan of more than 8 MiB 2 more, and one for each
    8 MiB.  Who loses makes 2 and those of `bring_plan`, and no more than 4 if the registry's
    pair is here already.  Who waits for another writer looks at most 20 times a pause of up to 10
    minutes.

    Args:
        day: today (UTC), ISO 8601; from it on the plan counts as unused.
        pause_s: how long a pair that is not whole must stay as it is before it is replaced.
        stop: set by another thread to have the waiting given up.

    Returns:
        True: this node's pair lies in the registry.  False: another one was there first, and is
        now in the local folder in the place of this node's.

    Raises:
        BadPlan: this node has no plan under the key.
        BadName, DiskFull, Stopped, StoreError: as `bring_plan`.
    """
    stop = threading.Event() if stop is None else stop
    place = place_of(key, secret_id)
    pair = local.pair(key, secret_id)
    if pair is None:
        raise BadPlan("there is no plan of this key on this node")
    # First, so that even what is left by a writer who dies has a day from which it is old.
    mark_used(store, key, day)
    seen: _Seen | None = None
    changes, since_s, look_s, looks = 0, 0.0, 0.0, look_pauses(pause_s)
    while changes < _CHANGES_MAX:
        now_s = time.monotonic()
        if seen is None or seen.plan is None:
            changes += 1
            etag = store.put_file_new(f"{place}/plan", pair.folder / "plan")
            if etag is not None and _vouch(store, local, place, pair, etag):
                return True
        elif now_s - since_s >= pause_s:
            changes += 1
            if _replace(store, local, place, pair, seen.plan):
                return True
        elif stop.wait(look_s):
            raise Stopped(f"plan {key}: stopped while another writer of it was waited for")
        before, seen = seen, _look(store, place)
        if seen == before:
            look_s = next(looks)
            continue
        changes += 1
        since_s, looks = time.monotonic(), look_pauses(pause_s)
        look_s = next(looks)
        # One that does not fit may be half of a replacement; else the pause ends it.
        with contextlib.suppress(BadPlan):
            if _bring(store, local, key, secret_id, stop, seen, is_believed=False):
                found = local.pair(key, secret_id)
                return found is not None and found.digest == pair.digest
    raise StoreUnavailable(f"{place}: it changed {changes} times while it was to be written")


def look_pauses(pause_s: float) -> Iterator[float]:
    """Yield how long (seconds) who waits for another writer sleeps before each look.

    >>> [pause_s for pause_s, _ in zip(look_pauses(6.0), range(5))]
    [0.1, 0.2, 0.4, 0.5, 0.5]
    """
    look_s = _LOOK_S_FIRST
    while True:
        yield min(look_s, pause_s / 12)
        look_s = min(2 * look_s, pause_s)


def put_gate(store: Store, local: LocalPlans, key: str, secret_id: str) -> None:
    """Put the verdict of this node's device beside the plan that it is about.

    One that is there stays, unless it is about other bytes, or this node saw fail what it says
    has passed.  Store calls: 1, and 2 more for each writer that was faster.

    Raises:
        BadPlan: this node has no plan under the key, or no record that is about it.
        BadName, StoreError: see there.
    """
    pair = local.pair(key, secret_id)
    data = b"" if pair is None else _read_if_there(pair.folder / "gate.json")
    ours = None if pair is None else _gate_fitting(data, pair.meta)
    if ours is None:
        raise BadPlan("there is no verdict about the plan of this key on this node")
    gate_key = f"{place_of(key, secret_id)}/gate.json"
    assert pair is not None
    current = None
    for _ in range(_GATE_TRIES):
        try:
            if current is None:
                store.put_new(gate_key, data)
            else:
                store.put_if(gate_key, data, current.etag)
            return
        except Conflict:
            current = get_or_none(store, gate_key)
        theirs = None if current is None else _gate_fitting(current.data, pair.meta)
        if theirs is not None and not (
            ours.report.verdict == "failed" and theirs.report.verdict != "failed"
        ):
            return
    raise StoreUnavailable(f"{gate_key}: other writers were faster {_GATE_TRIES} times")


def mark_used(store: Store, key: str, day: str) -> None:
    """Note that the plan of a key was loaded on a day (UTC, ISO 8601), or that it came to be.

    Store calls: 1, and 1 more for the first of a day.  Who is overtaken leaves it at that.

    Raises:
        BadName, StoreError: see there.
    """
    current = get_or_none(store, used_key(key))
    data = msgspec.json.encode(Used(day))
    with contextlib.suppress(Conflict):
        if current is None:
            store.put_new(used_key(key), data)
        elif read_used(current.data) < day:
            store.put_if(used_key(key), data, current.etag)


def read_used(data: bytes) -> str:
    """Return the day in `used.json`; empty if it cannot be read."""
    try:
        return _used_of.decode(data).day
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def _bring(
    store: Store,
    local: LocalPlans,
    key: str,
    secret_id: str,
    stop: threading.Event,
    seen: _Seen,
    *,
    is_believed: bool = True,
) -> bool:
    """Bring the pair of one secret id; False if there is none.

    Args:
        seen: what lies there.
        is_believed: that the registry's plan fits where the same metadata are here already; else
            it is read again, unless it is the one that was put or read before.

    Raises:
        BadPlan: it must not be used.
    """
    place = place_of(key, secret_id)
    if seen.plan is None or seen.meta is None:
        return False
    try:
        data = store.read(f"{place}/meta.json", 0, META_BYTES_MAX + 1)
    except NotFound:
        return False
    if len(data) > META_BYTES_MAX:
        raise BadPlan(f"its metadata are longer than {META_BYTES_MAX} bytes")
    meta = read_meta(data)
    if meta.key != key:
        raise BadPlan(f"it is of another key, {meta.key}")
    digest = hashlib.sha256(data).hexdigest()
    if local.is_refused(key, secret_id, digest):
        raise BadPlan("its MAC is not one of this fleet; this node has refused it before")
    if meta.bytes > local.bytes_max:
        raise BadPlan(
            f"it is {meta.bytes} bytes, and this node keeps at most {local.bytes_max} bytes of "
            "plans: raise --plans-bytes-max"
        )
    pair = local.pair(key, secret_id)
    if pair is not None and pair.digest == digest:
        if not is_believed and _read_if_there(pair.folder / "stored") != seen.plan.encode():
            _read_plan(store, f"{place}/plan", meta, stop)
            _remember(local, pair, seen.plan)
        if seen.has_gate and not (pair.folder / "gate.json").exists():
            gate = _stored_gate(store, place, meta)
            if gate:
                local.save_beside(pair, "gate.json", gate)
        return True
    with local.scratch() as folder:
        try:
            require_room(folder, meta.bytes)
            with open(folder / "plan", "xb", buffering=0) as file:
                _read_plan(store, f"{place}/plan", meta, stop, file.fileno())
            (folder / "meta.json").write_bytes(data)
            (folder / "stored").write_text(seen.plan)
            gate = _stored_gate(store, place, meta) if seen.has_gate else b""
            if gate:
                (folder / "gate.json").write_bytes(gate)
            local.add(key, secret_id, folder)
        except NotFound:
            return False
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise DiskFull(f"plan {key}", meta.bytes, folder.parent.parent) from error
    return True


def _read_plan(
    store: Store, plan_key: str, meta: PlanMeta, stop: threading.Event, into: int | None = None
) -> None:
    """Read a plan, into an open file if one is given; `BadPlan` unless the metadata name it."""
    digest = hashlib.sha256()
    with contextlib.closing(read_in_order(store, plan_key, 0, meta.bytes)) as parts:
        for offset, length, data in parts:
            if stop.is_set():
                raise Stopped(f"{plan_key}: stopped at {offset} of {meta.bytes} bytes")
            if len(data) != length:
                end = offset + len(data)
                raise BadPlan(f"it ends at byte {end}, its metadata say {meta.bytes}")
            if into is not None:
                write_all(into, data, offset)
            digest.update(data)
    if digest.hexdigest() != meta.plan_sha256:
        raise BadPlan(f"its bytes have the sha256 {digest.hexdigest()}, not {meta.plan_sha256}")


def _look(store: Store, place: str) -> _Seen:
    etags = {entry.key: entry.etag for entry in store.list(place, recursive=False)}
    has_gate = f"{place}/gate.json" in etags
    return _Seen(etags.get(f"{place}/plan"), etags.get(f"{place}/meta.json"), has_gate)


def _replace(store: Store, local: LocalPlans, place: str, pair: Pair, etag: str) -> bool:
    """Put this pair in the place of an orphan; False if somebody else did something."""
    try:
        new_etag = store.put_file_if(f"{place}/plan", pair.folder / "plan", etag)
    except Conflict:
        return False
    return _vouch(store, local, place, pair, new_etag)


def _vouch(store: Store, local: LocalPlans, place: str, pair: Pair, plan_etag: str) -> bool:
    """Write what belongs to the plan that has just been put; False if another is in its place."""
    inspector = _read_if_there(pair.folder / "inspector.json")
    if inspector:
        _put_anyhow(store, f"{place}/inspector.json", inspector)
    try:
        store.put_new(f"{place}/meta.json", pair.meta_bytes)
    except Conflict:
        seen = _look(store, place)
        if seen.plan != plan_etag or seen.meta is None:
            return False
        try:
            store.put_if(f"{place}/meta.json", pair.meta_bytes, seen.meta)
        except Conflict:
            return False
    # Whoever took this writer for dead has replaced the plan by now; and some S3 servers complete
    # two multipart uploads that were both to create the key.
    if _look(store, place).plan != plan_etag:
        return False
    _remember(local, pair, plan_etag)
    return True


def _remember(local: LocalPlans, pair: Pair, plan_etag: str) -> None:
    """Note which plan of the registry is this one; all that it does is spare reading it again."""
    with contextlib.suppress(BadPlan, OSError):
        local.save_beside(pair, "stored", plan_etag.encode())


def _put_anyhow(store: Store, key: str, data: bytes) -> None:
    """Create or replace what is only for people; who is overtaken leaves it at that."""
    with contextlib.suppress(Conflict):
        store.put_new(key, data)
        return
    current = get_or_none(store, key)
    if current is not None and current.data != data:
        with contextlib.suppress(Conflict):
            store.put_if(key, data, current.etag)


def _stored_gate(store: Store, place: str, meta: PlanMeta) -> bytes:
    """Return the record of a later device; empty if there is none about this plan."""
    if meta.gate.verdict != "not_run" and not meta.gate.golden:
        return b""
    with contextlib.suppress(NotFound):
        data = store.read(f"{place}/gate.json", 0, SIDE_BYTES_MAX)
        return data if _gate_fitting(data, meta) is not None else b""
    return b""


def _gate_fitting(data: bytes, meta: PlanMeta) -> GateRecord | None:
    """Return the record if it can be read and is about this plan; its MAC is not looked at.

    What recorded inputs showed is one version's business, and stays on its nodes.
    """
    try:
        record = read_gate(data)
    except BadPlan:
        return None
    fits = (record.key, record.plan_sha256) == (meta.key, meta.plan_sha256)
    return record if fits and not record.report.golden else None


def _read_if_there(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
