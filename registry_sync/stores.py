"""What a store of the registry does, and the ways in which it can fail.

A store maps keys to immutable bytes and offers two atomic writes: create-only
and compare-and-swap. Nothing here knows documents, manifests or blobs, and
nothing here does I/O: the two stores are `directory` and `s3`.

Keys are relative, `/`-separated and checked by `check_key`. An etag names the
*content* of a small object: equal bytes have equal etags. Compare-and-swap is
safe under that rule because an equal content is an equal state; a record that
must be told apart from an equal one written later (a lease, a revision) carries
its own nonce or revision number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec

KEY_BYTES_MAX = 1024  # S3's limit on a key, prefix included
SEGMENT_BYTES_MAX = 255  # NAME_MAX of Linux file systems


class StoreError(Exception):
    """A store could not do what it was asked; the subclass says why."""


class NotFound(StoreError):
    """There is no object under this key."""

    def __init__(self, key: str, url: str) -> None:
        super().__init__(f"{key}: not found in {url}")
        self.key = key


class Conflict(StoreError):
    """A conditional write found another content than it was told; nothing was written."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key = key


class AccessDenied(StoreError):
    """The credentials or the file permissions do not allow it; trying again does not help."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: access denied: {reason}")
        self.key = key


class StoreUnavailable(StoreError):
    """The store did not answer, or not sensibly, after all tries; later it may.

    A write that ends so may or may not have landed.
    """


class OutcomeUnknown(StoreUnavailable):
    """A write's answer was lost, and somebody has written the key since.

    Neither success nor `Conflict` would be honest: read the key again and
    decide by its content.
    """

    def __init__(self, key: str) -> None:
        super().__init__(
            f"{key}: the answer to this write was lost and the key has changed since; read it again"
        )
        self.key = key


class BadStore(StoreError):
    """The store itself is wrong: a malformed URL, no such bucket, no credentials."""


class Object(msgspec.Struct, frozen=True):
    """An object's whole content."""

    data: bytes
    etag: str


class Entry(msgspec.Struct, frozen=True):
    """An object as a listing shows it."""

    key: str
    etag: str
    bytes: int


class Store(Protocol):
    """A blocking key-value store; safe to use from several threads at once.

    Every method raises `StoreUnavailable` (worth trying later), `AccessDenied`
    or `BadStore` besides what it names itself, and `ValueError` for a key that
    `check_key` refuses.
    """

    @property
    def url(self) -> str:
        """Where it is, for people: without credentials."""

    def get(self, key: str) -> Object:
        """Read a small object whole; `NotFound` if there is none."""

    def get_if_changed(self, key: str, etag: str | None) -> Object | None:
        """Read an object unless its etag is `etag`; then None. `NotFound` if there is none."""

    def put_new(self, key: str, data: bytes) -> str:
        """Create an object, durably, and return its etag; `Conflict` if the key is taken."""

    def put_if(self, key: str, data: bytes, etag: str) -> str:
        """Replace the object whose etag is `etag` and return the new one's etag.

        `Conflict` if the object is another one by now, or none.
        """

    def put_file_new(self, key: str, path: Path) -> str | None:
        """Create an object from a file without holding it in memory, and return its etag.

        None: an object was already under the key, and is left alone. That is
        no error where keys are named by content.
        """

    def put_file_if(self, key: str, path: Path, etag: str) -> str:
        """Replace an object by a file, as `put_if` does, without holding it in memory."""

    def read(self, key: str, offset: int, length: int) -> bytes:
        """Read up to `length` (> 0) bytes from `offset`; fewer or none past the end."""

    def size(self, key: str) -> int:
        """Return an object's size in bytes; `NotFound` if there is none."""

    def list(self, prefix: str, recursive: bool = True) -> list[Entry]:
        """List the objects below a folder, in the order of their keys' UTF-8 bytes.

        `prefix` is a folder, with or without the trailing slash; "" is
        everything. Not recursive: only the objects directly in it. A folder
        that does not exist is empty.
        """

    def delete(self, key: str) -> None:
        """Remove an object; none there is no error."""

    def close(self) -> None:
        """Let go of connections; the store is not used afterwards."""


@runtime_checkable
class Distant(Protocol):
    """A store that may hang, and can tell."""

    def silent_s(self) -> float:
        """Return for how long whoever asks it now has heard nothing; 0: it answers."""


def check_key(key: str) -> str:
    """Return `key` if both stores can hold it.

    Raises:
        ValueError: it is empty, too long, absolute, has an empty, `.` or `..`
            segment, or a control character.
    """
    segments = key.split("/")
    if (
        any(segment in ("", ".", "..") for segment in segments)
        or any(ord(char) < 0x20 or ord(char) == 0x7F for char in key)
        or len(_utf8(key)) > KEY_BYTES_MAX
        or any(len(_utf8(segment)) > SEGMENT_BYTES_MAX for segment in segments)
    ):
        raise ValueError(f"{key!r:.80} is not a key of a store")
    return key


def check_folder(prefix: str) -> str:
    """Return a listing's `prefix` as "" or with exactly one trailing slash.

    Raises:
        ValueError: it is not a folder that a key could be in.
    """
    folder = prefix.removesuffix("/")
    return f"{check_key(folder)}/" if folder else ""


def _utf8(text: str) -> bytes:
    # Lone surrogates have no UTF-8 form; "replace" would change the length only upwards of safe.
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{text!r:.80} is not a key of a store") from None
