"""Whose manifests a node uses: a file of public keys that is the node's own.

    # one key a line; what follows it is a name for people
    ed25519:1f0c…9a release 2026
    revoked ed25519:77ab…03 laptop that was stolen

It lies on the node and never in the registry: whoever can write the registry must not be able to
add a key.  A process reads it again when it has changed.  One that cannot be read leaves the last
good one in force; at a start, nobody is trusted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from registry_sync.documents import BadDocument, Signature
from registry_sync.locks import locked
from registry_sync.plain import BadText, parse_json
from registry_sync.signing import BadKey, PublicKey, is_signed, parse_public

FILE_BYTES_MAX: Final = 1 << 20
CHECKED_MAX: Final = 20_000  # manifests that are known to be good
_REVOKED: Final = "revoked "

_log = structlog.get_logger()


class BadTrust(ValueError):
    """A file of trusted keys cannot be used; the text names the line and the way out."""


class Untrusted(BadDocument):
    """A manifest that this node must not use."""

    def __init__(self, why: str) -> None:
        super().__init__([f"$.signature: {why}"])


@dataclass(frozen=True, slots=True)
class TrustedKeys:
    """What a file of trusted keys says, by the keys' ids."""

    trusted: dict[str, PublicKey]
    revoked: dict[str, PublicKey]


def parse_keys(text: str, name: str = "") -> TrustedKeys:
    """Read a file's text; raises `BadTrust`.  A key that is revoked anywhere is revoked."""
    trusted: dict[str, PublicKey] = {}
    revoked: dict[str, PublicKey] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.strip()
        if not words or words.startswith("#"):
            continue
        try:
            key = parse_public(words.removeprefix(_REVOKED))
        except BadKey as error:
            raise BadTrust(f"{name} line {number}: {error}") from None
        (revoked if words.startswith(_REVOKED) else trusted)[key.id] = key
    for id in revoked:
        trusted.pop(id, None)
    return TrustedKeys(trusted, revoked)


def read_keys_file(path: Path) -> TrustedKeys:
    """Read a file of trusted keys.

    Raises:
        BadTrust: it cannot be read, everybody may write it, or a line is no key.
    """
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_mode & stat.S_IWOTH:
                raise BadTrust(f"{path}: everybody may write it, and so trust whom he likes")
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise BadTrust(f"{path}: longer than {FILE_BYTES_MAX} bytes")
        return parse_keys(data.decode(), str(path))
    except OSError as error:
        raise BadTrust(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadTrust(f"{path}: not UTF-8") from None


class Trust:
    """Tells which manifests a process may use; safe between threads.

    Args:
        path: the file of trusted keys; empty: every manifest may be used, signed or not.
    """

    def __init__(self, path: str | Path = "") -> None:
        self._path = Path(path) if str(path) else None
        self._lock = threading.Lock()
        # The whole mutable state: the file as it was last seen, what it said when it was good, why
        # it is not, how often it said something else, and which manifests are good by it.
        self._stamp: tuple[int, ...] | None = None
        self._keys = TrustedKeys({}, {})
        self._problem = ""
        self._changes = 0
        self._checked: set[bytes] = set()
        self.changes()

    @property
    def is_required(self) -> bool:
        """Whether manifests must be signed."""
        return self._path is not None

    def changes(self) -> int:
        """Look at the file again; return how often other keys have come to be trusted so far."""
        if self._path is None:
            return 0
        with self._lock:
            stamp = _stamp(self._path)
            if stamp != self._stamp:
                self._stamp = stamp
                self._read(self._path)
            return self._changes

    def _read(self, path: Path) -> None:
        try:
            found = read_keys_file(path)
        except BadTrust as error:
            self._problem = str(error)
            _log.error("trusted_keys_unreadable", why=str(error), kept=len(self._keys.trusted))
            return
        self._problem = ""
        if found != self._keys:
            self._keys = found
            self._changes += 1
            self._checked.clear()
            _log.info("trusted_keys", keys=[str(key) for key in found.trusted.values()])

    def check(self, data: bytes) -> None:
        """Raise `Untrusted` if a manifest, as it lies in a store, must not be used."""
        if self._path is None:
            return
        self.changes()
        digest = hashlib.sha256(data).digest()
        with self._lock:
            keys, is_known = self._keys, digest in self._checked
        if is_known:
            return
        _check(data, keys)
        with self._lock:
            if keys is self._keys:
                if len(self._checked) >= CHECKED_MAX:
                    self._checked.clear()
                self._checked.add(digest)

    def is_good(self, data: bytes) -> bool:
        """Tell whether a manifest may be used."""
        try:
            self.check(data)
        except Untrusted:
            return False
        return True

    def status(self) -> dict[str, Any]:
        """Return what is shown of it: whether signatures are required, and whose are good."""
        with self._lock:
            keys, problem = self._keys, self._problem
        return {
            "required": self.is_required,
            "trusted": [{"id": key.id, "name": key.name} for key in keys.trusted.values()],
            "problem": problem,
        }


# That makes a new version, and an endpoint stays at the one that it names until it is told.
_WAY_OUT = (
    "`tidepool publish MODEL PATH --sign KEYFILE` again, then `tidepool endpoint set NAME` with "
    "the version that this makes"
)


def _check(data: bytes, keys: TrustedKeys) -> None:
    try:
        plain = parse_json(data)
    except BadText as error:
        raise Untrusted(str(error)) from None
    found = plain.get("signature") if isinstance(plain, dict) else None
    if found is None:
        raise Untrusted(
            f"not signed, and this node uses only what is (--require-signed): {_WAY_OUT}"
        )
    try:
        signature = msgspec.convert(found, Signature)
    except msgspec.ValidationError as error:
        raise Untrusted(f"not a signature: {error}") from None
    if revoked := keys.revoked.get(signature.key):
        raise Untrusted(
            f"by the key {revoked}, which is revoked here: with another key, {_WAY_OUT}"
        )
    public = keys.trusted.get(signature.key)
    if public is None:
        raise Untrusted(
            f"by the key {signature.key[:64]!r}, which is not trusted here: see `tidepool keys "
            f"signing trust`, or with another key, {_WAY_OUT}"
        )
    if not is_signed(plain, signature, public):
        raise Untrusted(
            f"not one of this manifest by the key {public}: something was changed after it was "
            f"signed; {_WAY_OUT}"
        )


def change_keys(path: Path, change: Callable[[Sequence[str]], list[str]]) -> None:
    """Write a file of trusted keys anew, in one step; another writer waits.

    Args:
        change: from the lines of the file, none where there is no file, to the new ones.

    Raises:
        BadTrust: the file is not one, before or after.
        OSError: it cannot be written.
    """
    path = path.resolve()  # a link stays one
    with locked(path.parent):
        mode = 0o644
        lines: list[str] = []
        if path.exists():
            read_keys_file(path)
            lines, mode = path.read_text().splitlines(), stat.S_IMODE(path.stat().st_mode)
        text = "".join(f"{line}\n" for line in change(lines))
        parse_keys(text, str(path))
        building = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            with open(building, "x") as file:
                os.fchmod(file.fileno(), mode)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            building.rename(path)
        finally:
            building.unlink(missing_ok=True)


def with_trusted(lines: Sequence[str], key: PublicKey) -> list[str]:
    """Return the lines with a key trusted.

    Raises:
        BadTrust: it is revoked; that is taken back only by hand.
    """
    keys = parse_keys("\n".join(lines))
    if key.id in keys.revoked:
        raise BadTrust(f"the key {keys.revoked[key.id]} is revoked: make another one")
    return [*lines, *([] if key.id in keys.trusted else [key.line])]


def with_revoked(lines: Sequence[str], id: str) -> list[str]:
    """Return the lines with a key revoked: it stays, so that a refusal can name it.

    Raises:
        BadTrust: there is no such key.
    """
    keys = parse_keys("\n".join(lines))
    if id not in keys.trusted and id not in keys.revoked:
        known = ", ".join(keys.trusted) or "none"
        raise BadTrust(f"no key {id!r:.100} is trusted; trusted are {known}")
    return [_REVOKED + line if _is_of(line, id) else line for line in lines]


def _is_of(line: str, id: str) -> bool:
    with contextlib.suppress(BadKey):
        return parse_public(line).id == id
    return False


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return (0,)
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_ctime_ns
