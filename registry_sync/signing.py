"""Who published a manifest: signatures over everything that it says, and the keys behind them.

A signature is over the manifest's values without `signature`, as JSON in one form: sorted names, no
spaces, ASCII.  Values of fields that this release does not know are part of it.  It is checked on
what was parsed, so that what was checked is what is used.  The manifest names its files by their
sha256, its model and its version: so neither a file nor the place of a version can be changed.

A private key is a PEM file of its owner's; beside it lies `<file>.pub`, one line as in a file of
trusted keys (see `trust`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from msgspec.structs import replace

from registry_sync.documents import Manifest, Signature, write
from registry_sync.plain import parse_json

ALGORITHM: Final = "ed25519"
_CONTEXT: Final = b"tidepool manifest 1\n"  # no signature of anything else is one of a manifest
_KEY_BYTES_MAX: Final = 64 << 10
_LINE = re.compile(rf"{ALGORITHM}:([0-9a-f]{{64}})(?:\s+(\S.*))?")
NAME_CHARS_MAX: Final = 100

Sign = Callable[[Manifest], Manifest]


class BadKey(ValueError):
    """A file of a signing key, or a public key's line, cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key by which signatures are checked."""

    raw: bytes  # 32 bytes
    name: str = ""  # for people

    @property
    def id(self) -> str:
        """By which manifests name it: 16 hexadecimal digits."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    @property
    def line(self) -> str:
        """As it stands in files."""
        return f"{ALGORITHM}:{self.raw.hex()} {self.name}".rstrip()

    def __str__(self) -> str:
        return f"{self.id} ({self.name})" if self.name else self.id


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key; never shown."""

    public: PublicKey
    sign: Sign  # returns the manifest with its signature


def parse_public(line: str) -> PublicKey:
    """Read a public key as it stands in files; raises `BadKey`."""
    match = _LINE.fullmatch(line.strip())
    if match is None:
        raise BadKey(f"{line.strip()!r:.100} is no public key: expected {ALGORITHM}:<64 hex> NAME")
    return PublicKey(bytes.fromhex(match[1]), (match[2] or "").strip())


def check_key_name(name: str) -> str:
    """Return `name` if a key may be called so; raises `BadKey`."""
    if len(name) > NAME_CHARS_MAX or not name.isprintable():
        raise BadKey(f"--name {name!r:.100}: at most {NAME_CHARS_MAX} printable characters")
    return name.strip()


def make_key(path: Path, name: str) -> PublicKey:
    """Make a key: `path`, which only its owner can read, and `path`.pub.

    Raises:
        BadKey: there is a file already, or none can be made.
    """
    beside = path.with_name(f"{path.name}.pub")
    pem = _crypto().make()
    public = PublicKey(_crypto().public_of(pem), check_key_name(name))
    if beside.exists():
        raise BadKey(f"{beside}: is there already; choose another file")
    try:
        _write_new(path, pem, 0o600)
        _write_new(beside, f"{public.line}\n".encode(), 0o644)
    except FileExistsError as error:
        raise BadKey(f"{error.filename}: is there already; choose another file") from None
    except OSError as error:
        raise BadKey(f"{path}: {error.strerror}") from None
    return public


def load_key(path: Path) -> SigningKey:
    """Read a private key.

    Raises:
        BadKey: it cannot be read, is none, or others than its owner can read it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise BadKey(f"signing key {path}: not a plain file")
            pem = file.read(_KEY_BYTES_MAX)
            if _LINE.fullmatch(pem.decode("ascii", "replace").strip()):
                raise BadKey(
                    f"signing key {path}: is the public half; sign with the private one, "
                    f"{path.with_suffix('') if path.suffix == '.pub' else 'the file beside it'}"
                )
            if found.st_mode & 0o077:
                raise BadKey(
                    f"signing key {path}: others can use it (mode {found.st_mode & 0o777:03o}); "
                    f"have it yours alone with `chmod 600 {path}`"
                )
    except OSError as error:
        raise BadKey(f"signing key {path}: {error.strerror}") from None
    try:
        raw = _crypto().public_of(pem)
    except ValueError as error:
        raise BadKey(f"signing key {path}: {error}") from None
    public = PublicKey(raw)

    def sign(manifest: Manifest) -> Manifest:
        message = message_of(parse_json(write(manifest)))
        value = _crypto().sign(pem, message).hex()
        return replace(manifest, signature=Signature(ALGORITHM, public.id, value))

    return SigningKey(public, sign)


def message_of(plain: Mapping[str, Any]) -> bytes:
    """Return what of a parsed manifest is signed."""
    signed = {name: value for name, value in plain.items() if name != "signature"}
    return _CONTEXT + json.dumps(signed, sort_keys=True, separators=(",", ":")).encode()


def is_signed(plain: Mapping[str, Any], signature: Signature, public: PublicKey) -> bool:
    """Tell whether a parsed manifest's signature is one by `public`."""
    if signature.algorithm != ALGORITHM:
        return False
    try:
        value, message = bytes.fromhex(signature.value), message_of(plain)
    except (ValueError, RecursionError):
        return False
    found: bool = _crypto().is_signed(public.raw, value, message)
    return found


def _write_new(path: Path, data: bytes, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _crypto() -> ModuleType:
    # Here and not above: `cryptography` takes some 30 ms to import, and most processes of most
    # fleets neither sign nor check anything.
    from registry_sync import ed25519  # noqa: PLC0415

    return ed25519
