"""API keys: how they are made, recognised and kept in `keys.json`, which holds hashes only.

A made key is ``tp_<id>_<secret>`` with 64 random bits of id and 256 of secret, in hexadecimal.
Any other text may be a key too (an operator's own); its id is taken from its hash.  A key that is
rotated keeps its id, and with it its quota, its arms and its place in logs; only the secret is
another.  Which scope a request needs, and what a quota means, is decided at the edge.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Mapping, Sequence

from msgspec.structs import replace

from registry_sync import documents
from registry_sync.documents import OLD_SECRETS_MAX, KeyRecord, Keys, OldSecret, Quota
from registry_sync.stores import Object, Store
from registry_sync.swap import get_or_none, swap

KEYS_KEY = "keys.json"
ALL_SCOPES = ("admin", "infer:*")
SALT_BYTES = 16
_MADE = re.compile(r"tp_([0-9a-f]{16})_([0-9a-f]{64})")
_OWN = re.compile(r"[!-~][ -~]{14,254}[!-~]")  # HTTP strips blanks at the ends

# Compared with where an id is unknown, so that this takes as long as a known one.
_NOBODY = KeyRecord("nobody", "00" * SALT_BYTES, "00" * 32, "nobody", ("infer:*",))


class KeyExists(Exception):
    """There is a record with this id already."""


class NoSuchKey(Exception):
    """There is no record with this id."""


class CannotRotate(Exception):
    """This key cannot get another secret now; the text says why, and the way out."""


def make_key(
    tenant: str,
    scopes: Sequence[str],
    quota: Quota | None = None,
    not_after: float | None = None,
    priority: int = 1,
    share: float = 1.0,
) -> tuple[str, KeyRecord]:
    """Make a new key and its record; the key itself is kept nowhere.

    Args:
        tenant: whose cache and fair share the key's requests belong to.
        scopes: at least one of ``admin``, ``infer:*``, ``infer:<endpoint>``.
        quota: what the key may use; None is no limit.
        not_after: the unix second from which on the key is refused; None is never.
        priority: the highest that its calls may have, of 1, the highest, to 100.
        share: how much of a worker's time its tenant gets beside others, by weight.

    Raises:
        BadDocument: names the value that does not fit.
    """
    key = f"tp_{secrets.token_hex(8)}_{secrets.token_hex(32)}"
    return key, record_of(key, tenant, scopes, quota, not_after, priority, share)


def record_of(
    key: str,
    tenant: str,
    scopes: Sequence[str],
    quota: Quota | None = None,
    not_after: float | None = None,
    priority: int = 1,
    share: float = 1.0,
) -> KeyRecord:
    """Return a new record of a key, with a fresh salt; arguments as for `make_key`.

    Raises:
        BadDocument: names the value that does not fit.
        ValueError: the key is not 16 to 256 printable ASCII characters, or ends in blanks.
    """
    if not _OWN.fullmatch(key):
        # Never the key itself: messages end up in logs.
        raise ValueError(
            f"a key of {len(key)} characters does not fit: use 16 to 256 printable ASCII ones, "
            "with no blank at either end"
        )
    salt = secrets.token_bytes(SALT_BYTES)
    record = KeyRecord(
        id=find_id(key),
        salt=salt.hex(),
        sha256=_hash(salt, key),
        tenant=tenant,
        scopes=tuple(scopes),
        quota=quota,
        not_after=not_after,
        priority=priority,
        share=share,
    )
    documents.check_keys(Keys((record,)))
    return record


def find_id(key: str) -> str:
    """Return the id under which a key's record is kept."""
    made = _MADE.fullmatch(key)
    return made[1] if made else "env-" + hashlib.sha256(_bytes(key)).hexdigest()[:12]


def redact(text: str) -> str:
    """Return `text` with the secret of every made key in it cut out."""
    return _MADE.sub(lambda made: f"tp_{made[1]}_…", text)


def verify(key: str, records: Mapping[str, KeyRecord], now_unix_s: float) -> KeyRecord | None:
    """Return the record of a key that is good now, else None.

    An unknown id costs the same hash and the same comparison as a known one, and the comparison
    takes the same time wherever the hashes differ.

    Args:
        key: as the caller sent it; any text.
        records: by id, see `by_id`.
        now_unix_s: of the wall clock, as `not_after` is.
    """
    found = recognise(key, records, now_unix_s)
    return None if found is None else found[0]


def recognise(
    key: str, records: Mapping[str, KeyRecord], now_unix_s: float
) -> tuple[KeyRecord, float | None] | None:
    """Return the record of a key that is good now, and the unix second until which it is.

    As `verify`, for who remembers what was recognised.  A wrong secret for an id that is being
    rotated costs one more hash for each secret that is still good.
    """
    record = records.get(find_id(key), _NOBODY)
    is_same = hmac.compare_digest(_hash(bytes.fromhex(record.salt), key), record.sha256)
    until_s = record.not_after
    if not is_same:
        for old in record.previous:
            if hmac.compare_digest(_hash(bytes.fromhex(old.salt), key), old.sha256):
                is_same = True
                until_s = old.not_after if until_s is None else min(until_s, old.not_after)
    if not is_same or record is _NOBODY:
        return None
    if until_s is not None and now_unix_s >= until_s:
        return None
    return record, until_s


def by_id(keys: Keys) -> dict[str, KeyRecord]:
    """Return the records in the form that `verify` wants."""
    return {record.id: record for record in keys.keys}


def list_keys(store: Store) -> tuple[KeyRecord, ...]:
    """Return all records, in the order they were added; raises `BadDocument`."""
    return _records(get_or_none(store, KEYS_KEY))


def add_key(store: Store, record: KeyRecord, *, replace: bool = False) -> None:
    """Add a record to the registry's keys.

    Raises:
        KeyExists: its id is taken and `replace` is False.
        BadDocument: the record, or what is stored, does not fit.
    """

    def added(current: Object | None) -> bytes:
        records = _records(current)
        others = tuple(other for other in records if other.id != record.id)
        # The record itself is no stranger: an earlier try may have landed unseen.
        if not replace and record not in records and len(others) < len(records):
            raise KeyExists(f"there is a key with the id {record.id} already")
        keys = Keys((*others, record))
        documents.check_keys(keys)
        return documents.write(keys)

    swap(store, KEYS_KEY, added)


def revoke_key(store: Store, key_id: str) -> None:
    """Remove a record from the registry's keys, and with it every secret of the key.

    Raises:
        NoSuchKey: there is none with this id.
        BadDocument: what is stored does not fit.
    """
    _swap_record(store, key_id, lambda record: None)


def rotate_key(store: Store, key_id: str, grace_s: float, now_unix_s: float) -> str:
    """Give a key another secret and return the key; the id and all that hangs on it stay.

    Args:
        store: of the registry.
        key_id: of a made key.
        grace_s: for so long the secret before is good as well.  0: every earlier secret ends now.
        now_unix_s: of the wall clock.

    Raises:
        NoSuchKey: there is none with this id.
        CannotRotate: an operator's own key, one that has expired, or one that was rotated too
            often within its time of grace.
        BadDocument: what is stored does not fit.
    """
    key = f"tp_{key_id}_{secrets.token_hex(32)}"
    salt = secrets.token_bytes(SALT_BYTES)
    digest = _hash(salt, key)

    def rotated(record: KeyRecord) -> KeyRecord:
        if record.sha256 == digest:  # an earlier try landed unseen
            return record
        if find_id(key) != key_id:
            raise CannotRotate(
                f"{key_id} is an operator's own key: start with another TIDEPOOL_API_KEY, "
                "then revoke this one"
            )
        if record.not_after is not None and record.not_after <= now_unix_s:
            raise CannotRotate(f"{key_id} has expired: make a new key")
        previous: list[OldSecret] = []
        if grace_s > 0:
            previous = [old for old in record.previous if old.not_after > now_unix_s]
            previous.append(OldSecret(record.salt, record.sha256, now_unix_s + grace_s))
        if len(previous) > OLD_SECRETS_MAX:
            raise CannotRotate(
                f"{key_id} has {OLD_SECRETS_MAX} earlier secrets that are still good: wait until "
                "one ends, or end them all with a grace of 0"
            )
        return replace(record, salt=salt.hex(), sha256=digest, previous=tuple(previous))

    _swap_record(store, key_id, rotated)
    return key


def _swap_record(
    store: Store, key_id: str, change: Callable[[KeyRecord], KeyRecord | None]
) -> None:
    """Replace one record by what `change` makes of it; None removes it."""
    seen = False

    def changed(current: Object | None) -> bytes:
        nonlocal seen
        records = _records(current)
        kept: list[KeyRecord] = []
        is_there = False
        for record in records:
            if record.id != key_id:
                kept.append(record)
                continue
            is_there = True
            new = change(record)
            if new is not None:
                kept.append(new)
        # Seen before and gone now: an earlier try landed unseen.
        seen = seen or is_there
        if not seen:
            ids = ", ".join(record.id for record in records) or "none"
            raise NoSuchKey(f"there is no key with the id {key_id!r:.80}; there are {ids}")
        keys = Keys(tuple(kept))
        documents.check_keys(keys)
        return documents.write(keys)

    swap(store, KEYS_KEY, changed)


def _records(stored: Object | None) -> tuple[KeyRecord, ...]:
    return () if stored is None else documents.read_keys(stored.data).keys


def _hash(salt: bytes, key: str) -> str:
    made = _MADE.fullmatch(key)
    return hashlib.sha256(salt + _bytes(made[2] if made else key)).hexdigest()


def _bytes(key: str) -> bytes:
    # "surrogatepass": what a caller sends may be any text, and no two may become the same bytes.
    return key.encode("utf-8", "surrogatepass")
