"""Wishes for plans in the registry: written, listed and withdrawn by people; see `builds`.

A wish names a published version and a device class.  Nobody takes one back but a person, so a
wish is also what keeps a plan that was lost from staying lost.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import msgspec

from registry_sync import catalog
from registry_sync.builds import SCHEMA, BuildWish, wish_key
from registry_sync.documents import BadDocument
from registry_sync.names import BadName, check_name
from registry_sync.rules import check_version
from registry_sync.stores import NotFound, Object, Store
from registry_sync.swap import swap

FOLDER = "builds"
READS_AT_ONCE = 8

_DEVICE_CLASS = re.compile(r"sm_[1-9][0-9]{1,2}|cpu_[a-z0-9][a-z0-9._-]{0,59}")
_wish_of = msgspec.json.Decoder(BuildWish)


def check_device_class(value: str) -> str:
    """Return `value` if it may name a device class.

    Raises:
        BadName: it does not.
    """
    if not isinstance(value, str) or not _DEVICE_CLASS.fullmatch(value):
        raise BadName(
            f"device class {value!r:.80} is not one: use sm_<compute capability without its dot>, "
            "such as sm_86, or cpu_<architecture>"
        )
    return value


def new_wish(model: str, version: str, device_class: str, engine: str = "") -> BuildWish:
    """Make a wish of now.

    Args:
        engine: that is to build it; empty: any that can.

    Raises:
        BadName: a name cannot be one.
    """
    return BuildWish(
        model=check_name("model", model),
        version=check_version(version),
        device_class=check_device_class(device_class),
        engine=check_name("engine", engine) if engine else "",
        created=datetime.now(UTC).isoformat(timespec="microseconds"),
    )


def put(store: Store, wish: BuildWish) -> bool:
    """Write a wish in the place of one for the same version and device class.

    Returns:
        Whether there was none before.

    Raises:
        NotFound: there is no such version.
        BadDocument: its manifest cannot be read.
    """
    catalog.load_manifest(store, wish.model, wish.version)
    before: Object | None = None

    def change(current: Object | None) -> bytes:
        nonlocal before
        before = current
        return msgspec.json.encode(wish)

    swap(store, _key(wish.model, wish.version, wish.device_class), change)
    return before is None


def get(store: Store, model: str, version: str, device_class: str) -> BuildWish:
    """Read a wish.

    Raises:
        NotFound: there is none.
        BadDocument: it cannot be read.
        BadName: a name cannot be one.
    """
    key = _key(model, version, device_class)
    return read(key, store.get(key).data)


def withdraw(store: Store, model: str, version: str, device_class: str) -> None:
    """Take a wish back; plans that were built for it stay.

    Raises:
        NotFound: there is none.
        BadName: a name cannot be one.
    """
    key = _key(model, version, device_class)
    store.get(key)
    store.delete(key)


def of_version(store: Store, model: str, version: str) -> list[BuildWish]:
    """Return a version's wishes, by device class; one that cannot be read is left out."""
    folder = f"{FOLDER}/{check_name('model', model)}/{check_version(version)}"
    return _read_all(store, (entry.key for entry in store.list(folder)))


def everything(store: Store) -> list[BuildWish]:
    """Return all wishes, by their keys; one that cannot be read is left out."""
    return _read_all(store, (entry.key for entry in store.list(FOLDER)))


def read(key: str, data: bytes) -> BuildWish:
    """Read the wish under `key` by the readers' rules.

    Raises:
        BadDocument: it does not fit, is newer than this release, or is about something else than
            its key says.
    """
    try:
        wish = _wish_of.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadDocument([f"$: {key}: {error}"]) from None
    if _of_key(key) != (wish.model, wish.version, wish.device_class):
        about = f"{wish.model} {wish.version} for {wish.device_class}"
        raise BadDocument([f"$.model: {key} is about {about!r:.200}"])
    try:
        if wish.engine:
            check_name("engine", wish.engine)
    except BadName as error:
        raise BadDocument([f"$.engine: {key}: {error}"]) from None
    assert wish.schema <= SCHEMA, "else it was not decoded"
    return wish


def is_wish(key: str) -> bool:
    """Tell whether a key of the registry is a wish's."""
    return _of_key(key) is not None


def _key(model: str, version: str, device_class: str) -> str:
    check_name("model", model), check_version(version), check_device_class(device_class)
    return wish_key(model, version, device_class)


def _of_key(key: str) -> tuple[str, str, str] | None:
    match key.split("/"):
        case [folder, model, version, name] if folder == FOLDER and name.endswith(".json"):
            found = model, version, name.removesuffix(".json")
            with contextlib.suppress(BadName):
                return found if _key(*found) == key else None
    return None


def _read_all(store: Store, keys: Iterable[str]) -> list[BuildWish]:
    def one(key: str) -> Iterator[BuildWish]:
        with contextlib.suppress(NotFound, BadDocument):
            yield read(key, store.get(key).data)

    with ThreadPoolExecutor(READS_AT_ONCE) as threads:
        found = threads.map(lambda key: list(one(key)), filter(is_wish, keys))
        return [wish for wishes in found for wish in wishes]
