"""What a node proves itself with: the fleet secret, and certificates with their last days."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from cryptography import x509

from infra.doctor.findings import Finding, ok, warning, wrong
from pool.wire.fleet_secret import FILE, TLS_FOLDER, TLS_VARIABLE, VARIABLE, load_secrets, wire_tls
from pool.wire.tls import CA, CERTIFICATE, BadTls

SOON: Final = datetime.timedelta(days=14)  # ACME renews 30 days before the end


def examine(data: Path, certificates: Iterable[Path], now: datetime.datetime) -> list[Finding]:
    """Look at the secret and the certificates of a node.

    Args:
        certificates: those of the edge's ports, besides the wire's.
        now: with a time zone.
    """
    folder = Path(os.environ.get(TLS_VARIABLE) or data / TLS_FOLDER)
    wire = [folder / name for name in (CERTIFICATE, CA) if (folder / name).is_file()]
    findings = [secret(data)]
    try:
        wire_tls(data)
    except BadTls as error:
        findings.append(wrong("certificate", str(error), f"put whole files into {folder}"))
    for path in (*wire, *certificates):
        findings += certificate(path, now)
    return findings


def secret(data: Path) -> Finding:
    """Look at the fleet secret."""
    where = VARIABLE if VARIABLE in os.environ else str(data / FILE)
    try:
        held = load_secrets(data)
    except (OSError, ValueError) as error:
        return wrong("secret", f"{where}: {error}", "set it to the fleet's own, as on other nodes")
    if held is None:
        return ok("secret", f"none: this node speaks with itself only (or set {VARIABLE})")
    ids = ", ".join(one.id for one in held.held)
    return ok("secret", f"{ids} from {where}; every node of the fleet must show the same id")


def certificate(path: Path, now: datetime.datetime) -> list[Finding]:
    """Look at the dates of all certificates of a PEM file."""
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        do = "give a certificate in PEM, with what leads up to its CA"
        return [wrong("certificate", f"{path}: {error}", do)]
    return [_dates(path, one, now) for one in found]


def _dates(path: Path, found: x509.Certificate, now: datetime.datetime) -> Finding:
    first, last = found.not_valid_before_utc, found.not_valid_after_utc
    text = f"{path} ({found.subject.rfc4514_string()})"
    if now > last:
        return wrong("certificate", f"{text} ended on {last:%Y-%m-%d}", "renew it")
    if now < first:
        do = "look at this machine's clock, or wait"
        return wrong("certificate", f"{text} begins on {first:%Y-%m-%d}", do)
    if last - now < SOON:
        do = "renew it; new files are taken without a restart"
        return warning("certificate", f"{text} ends on {last:%Y-%m-%d}", do)
    return ok("certificate", f"{text} until {last:%Y-%m-%d}")
