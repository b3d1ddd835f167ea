"""Which plans the registry has, as people want to see it: what each is, and how its gate went.

Reads only.  Whoever loads a plan goes by `local_plans`, not by this.
"""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

from registry_sync.plan_files import META_BYTES_MAX, SIDE_BYTES_MAX
from registry_sync.plan_store import place_of, read_used, used_key
from registry_sync.plans import (
    NOT_RUN,
    BadPlan,
    GateReport,
    PlanMeta,
    check_mac,
    read_gate,
    read_meta,
)
from registry_sync.stores import NotFound, Store
from registry_sync.swap import get_or_none

FOLDER: Final = "engines"
READS_AT_ONCE: Final = 8

_PLACE = re.compile(r"engines/([0-9a-f]{64})/([a-z0-9][a-z0-9._-]{0,63})/([^/]+)")
_USED = re.compile(r"engines/([0-9a-f]{64})/used\.json")


@dataclass(frozen=True, slots=True)
class Listed:
    """A plan of the registry, or what is left of one."""

    key: str
    secret_id: str
    bytes: int  # of all its objects
    used: str  # the day (UTC) on which it was last loaded, or made; empty: nobody knows
    meta: PlanMeta | None  # None: it has none that can be read
    gate: GateReport = NOT_RUN
    problem: str = ""  # why it must not be loaded; empty: nothing is known against it


def plans(
    store: Store,
    secret_keys: Mapping[str, bytes] | None = None,
    page: Callable[[list[Listed]], list[Listed]] = list,
) -> list[Listed]:
    """Return every plan, by model, version, device class and engine; what cannot be read last.

    Store calls: one list, one read for each plan, and up to two more for each that is returned.

    Args:
        page: takes those that are wanted out of all, in order; of these it is told the key, the
            secret and the metadata.
        secret_keys: by secret id; a plan under one of these whose MAC does not hold has a problem
            that says so.  Under other secrets a MAC cannot be judged here.

    Raises:
        StoreError: see there.
    """
    sizes: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    used: set[str] = set()
    for entry in store.list(FOLDER):
        if (found := _PLACE.fullmatch(entry.key)) is not None:
            sizes[found[1], found[2]][found[3]] = entry.bytes
        elif (found := _USED.fullmatch(entry.key)) is not None:
            used.add(found[1])
    known = secret_keys or {}
    with ThreadPoolExecutor(READS_AT_ONCE) as threads:
        listed = threads.map(lambda place: _listed(store, place, sizes[place]), sizes)
        wanted = page(sorted(listed, key=_order))
        used &= {one.key for one in wanted}
        days = dict(zip(used, threads.map(lambda key: _day(store, key), used), strict=True))

        def judged(one: Listed) -> Listed:
            its_sizes = sizes[one.key, one.secret_id]
            one = replace(one, used=days.get(one.key, ""))
            return _judged(store, one, its_sizes, known.get(one.secret_id))

        return list(threads.map(judged, wanted))


def rows(found: Iterable[Listed]) -> list[dict[str, Any]]:
    """Return plans as `tidepool engines list --json` and `GET /admin/engines` show them."""
    return [_row(one) for one in found]


def relative_error(report: GateReport) -> float | None:
    """Return the largest relative error that a gate found; None if it compared nothing."""
    errors = [one.relative_error for one in report.outputs if one.relative_error is not None]
    return max(errors, default=None)


def top1_agreement(report: GateReport) -> float | None:
    """Return the least share of rows whose best class agreed; None if there are no classes."""
    shares = [one.top1_agreement for one in report.outputs if one.top1_agreement is not None]
    return min(shares, default=None)


def _row(one: Listed) -> dict[str, Any]:
    meta = one.meta
    identity = None if meta is None else meta.identity
    return {
        "key": one.key,
        "model": "" if meta is None else meta.model,
        "version": "" if meta is None else meta.version,
        "engine": "" if identity is None else identity.engine,
        "runtime": "" if identity is None else identity.runtime,
        "device": "" if identity is None else identity.device,
        "precision": "" if identity is None else identity.precision,
        "bytes": one.bytes if meta is None else meta.bytes,
        "gate": one.gate.verdict,
        "reason": one.problem or one.gate.reason,
        "problem": bool(one.problem),  # whatever its gate says, it must not be loaded
        "relative_error": relative_error(one.gate),
        "top1_agreement": top1_agreement(one.gate),
        "secret_id": one.secret_id,
        "created": "" if meta is None else meta.created,
        "build_s": None if meta is None else meta.build_s,
        "used": one.used,
        "artifact": "" if identity is None else identity.artifact,
    }


def _order(one: Listed) -> tuple[Any, ...]:
    meta = one.meta
    if meta is None:
        return True, "", 0, "", "", 0, "", "", one.key, one.secret_id
    number = int(meta.version) if meta.version.isascii() and meta.version.isdecimal() else 0
    device = meta.identity.device
    family, _, sm = device.partition("_")
    return (
        *(False, meta.model, number, meta.version),
        *(family, int(sm) if sm.isascii() and sm.isdecimal() else 0, device, meta.identity.engine),
        *(one.key, one.secret_id),
    )


def _listed(
    store: Store,
    of: tuple[str, str],
    sizes: Mapping[str, int],
) -> Listed:
    key, secret_id = of
    bare = Listed(key, secret_id, sum(sizes.values()), "", None)
    try:
        return replace(bare, meta=_meta(store, place_of(key, secret_id), key, sizes))
    except BadPlan as error:
        return replace(bare, problem=str(error))


def _judged(
    store: Store, one: Listed, sizes: Mapping[str, int], secret_key: bytes | None
) -> Listed:
    meta = one.meta
    if meta is None:
        return one
    gate, problem = meta.gate, ""
    if gate.verdict == "not_run" and "gate.json" in sizes:
        gate = _later_gate(store, place_of(one.key, one.secret_id), meta, secret_key)
    if sizes["plan"] != meta.bytes:
        problem = f"it has {sizes['plan']} bytes, its metadata say {meta.bytes}"
    if secret_key is not None:
        try:
            check_mac(meta, secret_key)
        except BadPlan as error:
            gate, problem = NOT_RUN, str(error)
    return replace(one, gate=gate, problem=problem)


def _meta(store: Store, place: str, key: str, sizes: Mapping[str, int]) -> PlanMeta:
    missing = [name for name in ("plan", "meta.json") if name not in sizes]
    if missing:
        raise BadPlan(
            f"it is not whole: {' and '.join(missing)} missing; it is being written, or its "
            "writer died"
        )
    try:
        data = store.read(f"{place}/meta.json", 0, META_BYTES_MAX + 1)
    except NotFound:
        raise BadPlan("it went while it was listed") from None
    if len(data) > META_BYTES_MAX:
        raise BadPlan(f"its metadata are longer than {META_BYTES_MAX} bytes")
    meta = read_meta(data)
    if meta.key != key:
        raise BadPlan(f"it is of another key, {meta.key}")
    return meta


def _later_gate(store: Store, place: str, meta: PlanMeta, secret_key: bytes | None) -> GateReport:
    """Return what a later device found; what nobody vouches for is no verdict."""
    with contextlib.suppress(NotFound, BadPlan):
        record = read_gate(store.read(f"{place}/gate.json", 0, SIDE_BYTES_MAX))
        if secret_key is not None:
            check_mac(record, secret_key)
        if (record.key, record.plan_sha256) == (meta.key, meta.plan_sha256):
            return record.report
    return NOT_RUN


def _day(store: Store, key: str) -> str:
    used = get_or_none(store, used_key(key))
    return "" if used is None else read_used(used.data)
