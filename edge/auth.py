"""Who is calling, and whether they may: API keys in front of everything but health.

A key is looked up by its id and compared in constant time (`registry_sync.keys.recognise`).  One
that was found good is remembered until the documents change, so that a busy client costs a
dictionary lookup; one that has an end is looked at each time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from edge.errors import Forbidden, Unauthorized
from edge.snapshot import Snapshot
from registry_sync.documents import KeyRecord
from registry_sync.keys import recognise

KEY_CHARS_MAX = 512  # a made key has 85, an operator's own at most 256
REMEMBERED_MAX = 1024

_MISSING = "an API key is needed: send it as 'Authorization: Bearer …' or 'X-API-Key: …'"
_WRONG = "this API key is not known, or no longer good"


class Auth:
    """Recognises keys by the documents of the day."""

    def __init__(self) -> None:
        # The whole mutable state: keys found good, and the documents by which they were.
        self._good: dict[str, KeyRecord] = {}
        self._snapshot: Snapshot | None = None

    def check(self, snapshot: Snapshot, header: Callable[[str], str | None]) -> KeyRecord:
        """Return the record of the request's key.

        Raises:
            Unauthorized: no key, or one that is not good now.
        """
        key = key_of(header)
        if snapshot is not self._snapshot:
            self._good.clear()
            self._snapshot = snapshot
        record = self._good.get(key)
        if record is not None:
            return record
        found = recognise(key, snapshot.keys, time.time())
        if found is None:
            raise Unauthorized(_WRONG)
        record, until_s = found
        if until_s is None:
            if len(self._good) >= REMEMBERED_MAX:
                self._good.clear()
            self._good[key] = record
        return record

    def known(self, header: Callable[[str], str | None]) -> KeyRecord | None:
        """Return the record of a key that was found good by the documents of the day, for logs."""
        try:
            return self._good.get(key_of(header))
        except Unauthorized:
            return None


def key_of(header: Callable[[str], str | None]) -> str:
    """Return the key that a request carries.

    Raises:
        Unauthorized: none, or none that could be one.
    """
    given = header("authorization")
    if given is not None:
        scheme, _, key = given.partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer":
            raise Unauthorized(_MISSING)
    else:
        key = header("x-api-key") or ""
    if not key:
        raise Unauthorized(_MISSING)
    if len(key) > KEY_CHARS_MAX:
        raise Unauthorized(_WRONG)
    return key


def allow(record: KeyRecord, endpoint: str) -> None:
    """Let a key call `endpoint`.

    Raises:
        Forbidden: none of its scopes covers it.
    """
    if not may_call(record, endpoint):
        raise Forbidden(f"this key may not call {endpoint!r}")


def may_call(record: KeyRecord, endpoint: str) -> bool:
    """Tell whether a key covers `endpoint`."""
    scopes = record.scopes
    return "infer:*" in scopes or f"infer:{endpoint}" in scopes or "admin" in scopes


def allow_admin(record: KeyRecord) -> None:
    """Let a key use the admin routes.

    Raises:
        Forbidden: it has not the scope `admin`.
    """
    if "admin" not in record.scopes:
        raise Forbidden("this key has not the scope 'admin'")
