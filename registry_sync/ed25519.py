"""Signatures by Ed25519 (RFC 8032), and the files of private keys; what loads `cryptography`."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)


def make() -> bytes:
    """Return a new private key as PEM (PKCS #8), as `openssl genpkey -algorithm ed25519` does."""
    return Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )


def public_of(pem: bytes) -> bytes:
    """Return the 32 bytes of the public key; raises ValueError if `pem` is no Ed25519 key."""
    return _private(pem).public_key().public_bytes_raw()


def sign(pem: bytes, message: bytes) -> bytes:
    """Return the 64 bytes of a signature; raises ValueError if `pem` is no Ed25519 key."""
    return _private(pem).sign(message)


def is_signed(public: bytes, signature: bytes, message: bytes) -> bool:
    """Tell whether `signature` is one of `message` by the private key of `public`."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _private(pem: bytes) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        # TypeError: it is under a passphrase.
        raise ValueError(f"not a private key in PEM without a passphrase: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("a private key, but not of Ed25519")
    return key
