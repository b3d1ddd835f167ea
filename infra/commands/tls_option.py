"""`--tls-cert` and `--tls-key`: HTTPS on the edge's ports."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Annotated

import typer

from infra.stack import CannotStart, TlsFiles
from pool.wire.tls import BadTls, load_certificate

TlsCert = Annotated[
    Path | None,
    typer.Option(
        "--tls-cert",
        help="HTTPS on both ports with this certificate (PEM, with what leads up to its CA). "
        "Renewed files are taken without a restart.",
    ),
]
TlsKey = Annotated[
    Path | None, typer.Option("--tls-key", help="The certificate's key (PEM, no password).")
]


def tls_files(cert: Path | None, key: Path | None) -> TlsFiles | None:
    """Return what was given; None: HTTP.

    Raises:
        CannotStart: one without the other, or files that cannot be used.
    """
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise CannotStart("--tls-cert and --tls-key belong together: give both")
    files = TlsFiles(cert.absolute(), key.absolute())
    try:
        load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), files.cert, files.key)
    except BadTls as error:
        raise CannotStart(f"--tls-cert, --tls-key: {error}") from None
    return files
