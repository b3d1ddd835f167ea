"""Where a process finds what it proves itself with: the environment, else files of the node.

`DATA/secrets` holds the fleet secret, `DATA/wire-tls` the certificates of the wire (see `tls`).
Both may change while processes run.  So a fleet is moved to a new secret node by node, in any
order, without a restart:

1. `rotate` on each node: "new,old".  New connections are made with the new one where the other side
   knows it, with the old one where it does not yet; both are accepted.
2. `retire` on each node, after the last has rotated: "new".  What was connected with the old one
   and did not dial anew is cut off.
"""

from __future__ import annotations

import os
import secrets as random_secrets
from pathlib import Path

import structlog

from pool.wire.handshake import Secret, Secrets
from pool.wire.tls import CHANGED_BY_OTHERS, READ_BY_OTHERS, BadTls, WireTls, stamp, used_by_others

VARIABLE = "TIDEPOOL_FLEET_SECRET"
FILE = "secrets"
TLS_VARIABLE = "TIDEPOOL_WIRE_TLS"
TLS_FOLDER = "wire-tls"

_log = structlog.get_logger()


class CannotRotateSecret(ValueError):
    """Why the fleet secret of this node cannot be changed so, and the way out."""


class SecretsFile(Secrets):
    """The secrets in a file, as they are now.

    A file that is gone or does not fit leaves the last good ones in use; that is logged once.
    """

    def __init__(self, path: Path, tls: WireTls | None = None) -> None:
        """Read them.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it does not fit, or others than its owner can use it.
        """
        self._path = path
        self._seen = stamp(path)
        read = _read(path)
        super().__init__(read.current, tls=tls)
        self._held = read.held

    @property
    def may_change(self) -> bool:
        """Tell whether it is worth to ask again."""
        return True

    @property
    def held(self) -> tuple[Secret, ...]:
        """All of them, the current one first."""
        try:
            seen = stamp(self._path)
            if seen is not None and seen != self._seen:
                self._seen = seen
                self._held = _read(self._path).held
                _log.info("fleet_secret_changed", ids=[secret.id for secret in self._held])
        except (OSError, ValueError) as error:
            _log.warning("fleet_secret_unreadable", path=str(self._path), error=str(error))
        return self._held


def load_secrets(data: Path) -> Secrets | None:
    """Return the secrets of this node, or None if it has none (then only unix sockets are used).

    Raises:
        ValueError: there is one, and it does not fit.
    """
    text = os.environ.get(VARIABLE)
    if text is not None:
        return Secrets.parse(text, wire_tls(data))
    if not (data / FILE).exists():
        return None
    return SecretsFile(data / FILE, wire_tls(data))


def wire_tls(data: Path) -> WireTls:
    """Return the TLS of this node: of the folder that the environment names, else of its own.

    Raises:
        BadTls: a file does not fit, or the folder that is named is not there.
    """
    named = os.environ.get(TLS_VARIABLE)
    folder = Path(named) if named else data / TLS_FOLDER
    if folder.is_dir():
        return WireTls(folder)
    if named:
        raise BadTls(f"{TLS_VARIABLE}: there is no folder {named}")
    return WireTls(None)


def has_certificate(data: Path) -> bool:
    """Tell whether this node has a certificate to listen with; raises `BadTls`."""
    return wire_tls(data).server() is not None


def make_secrets(data: Path) -> None:
    """Make a secret for this node unless it has one."""
    data.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(data / FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(random_secrets.token_hex(32))


def rotate(data: Path, new: str = "") -> Secrets:
    """Make a new secret the current one of this node; the one before is accepted as well.

    Args:
        data: the node's folder.
        new: the secret that other nodes have already; empty: a new one is made.  With a comma
            in it, as in a file of another node, what is before that.

    Returns:
        What the node holds now; that is as before where it had `new` already.

    Raises:
        CannotRotateSecret: the environment rules, or an earlier rotation is not finished.
        ValueError: `new` does not fit.
    """
    made = new.strip().partition(",")[0].strip() or random_secrets.token_hex(32)
    secret = Secret.of(made)
    path = _changeable(data)
    make_secrets(data)
    text = path.read_text().strip()
    held = Secrets.parse(text)
    if held.current == secret:
        return held
    if len(held.held) > 1:
        raise CannotRotateSecret(
            f"{held.held[1].id} is still accepted here beside {held.current.id}: finish that "
            "rotation with `tidepool keys fleet retire` first"
        )
    _write(path, f"{made},{text}")
    return Secrets(secret, held.current)


def retire(data: Path) -> Secrets:
    """Accept the current secret only; what is connected with the one before is cut off.

    Raises:
        CannotRotateSecret: the environment rules, or there is none to retire.
        ValueError: the file does not fit.
    """
    path = _changeable(data)
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        raise CannotRotateSecret(f"{path}: this node has no fleet secret") from None
    held = Secrets.parse(text)
    if len(held.held) == 1:
        raise CannotRotateSecret(f"only {held.current.id} is accepted here already")
    _write(path, text.partition(",")[0].strip())
    return Secrets(held.current)


def _read(path: Path) -> Secrets:
    if wrong := used_by_others(path, CHANGED_BY_OTHERS | READ_BY_OTHERS):
        raise ValueError(wrong)
    return Secrets.parse(path.read_text())


def _changeable(data: Path) -> Path:
    if VARIABLE in os.environ:
        raise CannotRotateSecret(
            f"{VARIABLE} is set, and rules over {data / FILE}: set it to NEW,OLD and restart the "
            "tiers one after the other, then to NEW and restart them again"
        )
    return data / FILE


def _write(path: Path, text: str) -> None:
    """Replace the file at once: who reads it finds the one or the other."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    partial.replace(path)
