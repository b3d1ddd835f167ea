"""TLS beneath the TCP wire, from the files of a folder that may change while processes run.

    tls.crt, tls.key   the certificate of this node, with what leads up to its CA, and its key
    ca.crt             of the fleet's own CA; with it both sides must show a certificate by it

These are the names of a Kubernetes TLS secret, and of what cert-manager writes.  Who only dials
needs none of them.  Without `ca.crt` nobody checks who made a certificate, and nobody needs to: the
handshake above is bound to the certificate that each side sees (`handshake`), so that only who
holds the fleet secret can have put it there.  With `ca.crt` stolen secrets alone are of no use.
Names in certificates are not looked at: addresses of workers come and go, and the CA is the
fleet's own.

What a process has once had it does not do without: where a file is gone, or does not fit, the last
good ones stay in force.  So who takes `ca.crt` away opens no fleet to those without a certificate.
"""

from __future__ import annotations

import hashlib
import os
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path

import structlog

CERTIFICATE, KEY, CA = "tls.crt", "tls.key", "ca.crt"
CHANGED_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
READ_BY_OTHERS = stat.S_IROTH  # and not a group: that of a service, as Kubernetes' fsGroup

_log = structlog.get_logger()


class BadTls(ValueError):
    """A certificate, key or CA file cannot be used; says which, and why."""


@dataclass(frozen=True, slots=True)
class ServerTls:
    """What one listener shows: its context, and the binding of the certificate in it."""

    context: ssl.SSLContext
    binding: bytes


class WireTls:
    """The TLS of one process.

    Args:
        folder: with the files; None: there are none, and what is dialled may be anybody that holds
            the fleet secret.

    Raises:
        BadTls: a file does not fit.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        # The whole mutable state: which files were read, what came of them, and which of them have
        # been there.
        self._had: frozenset[str] = frozenset()
        self._seen = self._stamps()
        self._server, self._client = self._read()

    @property
    def is_mutual(self) -> bool:
        """Whether both sides must show a certificate by the fleet's CA; then nothing goes plain."""
        return self.client().verify_mode is ssl.CERT_REQUIRED

    def server(self) -> ServerTls | None:
        """Return what a listener shows now; None without a certificate."""
        self._look()
        return self._server

    def client(self) -> ssl.SSLContext:
        """Return what a connection is dialled with now."""
        self._look()
        return self._client

    def _look(self) -> None:
        """Read the files again if they have changed; those that do not fit leave the last ones."""
        stamps = self._stamps()
        if stamps == self._seen:
            return
        self._seen = stamps
        try:
            self._server, self._client = self._read()
        except BadTls as error:
            _log.warning("wire_certificate_not_taken", error=str(error), kept="the last good ones")
        else:
            _log.info("wire_certificate_renewed")

    def _stamps(self) -> tuple[Stamp | None, ...]:
        if self._folder is None:
            return ()
        return tuple(stamp(self._folder / name) for name in (CERTIFICATE, KEY, CA))

    def _read(self) -> tuple[ServerTls | None, ssl.SSLContext]:
        folder = self._folder
        client = _context(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        client.verify_mode = ssl.CERT_NONE
        if folder is None:
            return None, client
        server = _context(ssl.PROTOCOL_TLS_SERVER)
        server.num_tickets = 0  # connections last; who comes again proves itself again
        found = frozenset(name for name in (CERTIFICATE, KEY, CA) if _is_there(folder / name))
        if gone := sorted(self._had - found):
            raise BadTls(
                f"{', '.join(gone)} of {folder}: gone; put it back (to do without it, restart)"
            )
        has_certificate = bool(found & {CERTIFICATE, KEY})
        if has_certificate:
            _check_key_mode(folder / KEY)
        for context in (server, client):
            if has_certificate:
                load_certificate(context, folder / CERTIFICATE, folder / KEY)
            if CA in found:
                context.verify_mode = ssl.CERT_REQUIRED
                try:
                    context.load_verify_locations(folder / CA)
                except (OSError, ValueError) as error:
                    raise BadTls(f"{folder / CA}: {_why(error)}") from None
        shown = None
        if has_certificate:
            shown = ServerTls(server, binding_of(first_certificate(folder / CERTIFICATE)))
        self._had = found
        return shown, client


def binding_of(certificate: bytes) -> bytes:
    """Return what the handshake is bound to: the digest of the server's certificate (DER)."""
    return hashlib.sha256(b"tidepool wire certificate\0" + certificate).digest()


def load_certificate(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Have `context` show a certificate.

    Raises:
        BadTls: a file cannot be read, or they do not belong together.
    """
    for path in (certificate, key):
        try:
            path.open("rb").close()
        except OSError as error:
            raise BadTls(f"{path}: {error.strerror}") from None
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise BadTls(f"{certificate} and {key}: {_why(error)}") from None


def first_certificate(path: Path) -> bytes:
    """Return the first certificate of a PEM file as DER; raises `BadTls`."""
    end = "-----END CERTIFICATE-----"
    try:
        text, found, _ = path.read_text().partition(end)
        return ssl.PEM_cert_to_DER_cert(text[text.index("-----BEGIN CERTIFICATE-----") :] + found)
    except (OSError, ValueError) as error:
        raise BadTls(f"{path}: no certificate in PEM: {error}") from None


Stamp = tuple[int, int, int, int]


def stamp(path: Path) -> Stamp | None:
    """Return what tells one state of a file from another; None: it is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size, found.st_mode


def used_by_others(path: Path, bits: int) -> str:
    """Return what is wrong with a secret file that others than its owner can use; "": nothing.

    Args:
        path: of the file.
        bits: of its mode that must not be set.

    Raises:
        OSError: there is no such file.
    """
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if not mode & bits:
        return ""
    what = "change" if mode & bits & CHANGED_BY_OTHERS else "read"
    return f"{path}: others can {what} it (mode {mode:03o}); run `chmod 600 {path}`"


def _check_key_mode(path: Path) -> None:
    """Refuse a key that others can change; only warn of one that they can read.

    Secrets that Kubernetes mounts are readable (0644) unless told otherwise.
    """
    try:
        wrong = used_by_others(path, CHANGED_BY_OTHERS)
        hint = used_by_others(path, READ_BY_OTHERS)
    except OSError as error:
        raise BadTls(f"{path}: {error.strerror}") from None
    if wrong:
        raise BadTls(wrong)
    if hint:
        _log.warning("wire_key_readable_by_others", why=hint)


def _is_there(path: Path) -> bool:
    """Tell whether there is a file; one that this process may not look at is one."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise BadTls(f"{path}: {error.strerror}") from None
    return True


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted; it must be readable without a password")


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or getattr(error, "reason", None) or str(error)
