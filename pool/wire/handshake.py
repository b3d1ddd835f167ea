"""How two processes prove to each other that they belong to one fleet, before anything else.

    server → client   Challenge [1, wire, nonce]
    client → server   Proof     [2, secret_id, nonce, mac, wire]  mac over b"client", both nonces
    server → client   Accept    [3, mac]                          mac over b"server", both nonces

`wire` is what each side speaks: 1 is bare frames, 2 summed ones (see frames.py), and the lesser of
the two is spoken.  From 2 on it is part of both macs, so that no damage to it passes unnoticed.

HMAC-SHA256 under the fleet secret.  The server takes its current and its previous secret, so that
a fleet can be moved to a new one without a pause.  An unknown id costs the same work as a known
one.  The handshake proves who speaks; it does not hide what is said (TLS does).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Annotated

import msgspec

from pool.wire.frames import Buffer, WireError

BARE, SUMMED = 1, 2
WIRE = SUMMED
NONCE_BYTES = 32
FRAME_BYTES_MAX = 1024  # nothing longer is read from a stranger
_Bytes = Annotated[bytes, msgspec.Meta(max_length=64)]


class HandshakeFailed(WireError):
    """The peer does not hold the fleet secret, or does not speak this handshake."""


class Secret(msgspec.Struct, frozen=True):
    """One fleet secret and the public id by which peers name it."""

    id: str
    key: bytes

    def __repr__(self) -> str:
        return f"Secret({self.id!r})"

    @classmethod
    def of(cls, text: str) -> Secret:
        """Return the secret made of an operator's string; the id says nothing about it.

        Raises:
            ValueError: shorter than 16 characters.
        """
        if len(text) < 16:
            raise ValueError("a fleet secret needs at least 16 characters")
        key = hashlib.sha256(b"tidepool fleet key\0" + text.encode()).digest()
        return cls(hashlib.sha256(b"tidepool fleet id\0" + key).hexdigest()[:12], key)


class Secrets(msgspec.Struct, frozen=True):
    """What this process holds: `current` is used to dial, both are accepted."""

    current: Secret
    previous: Secret | None = None

    @classmethod
    def parse(cls, text: str) -> Secrets:
        """Return the secrets of "current" or "current,previous"."""
        current, _, previous = text.strip().partition(",")
        return cls(Secret.of(current.strip()), Secret.of(previous.strip()) if previous else None)


_Wire = Annotated[int, msgspec.Meta(ge=BARE, le=2**53)]


class Challenge(msgspec.Struct, array_like=True, frozen=True, tag=1):
    wire: _Wire
    nonce: _Bytes


class Proof(msgspec.Struct, array_like=True, frozen=True, tag=2):
    secret_id: Annotated[str, msgspec.Meta(max_length=64)]
    nonce: _Bytes
    mac: _Bytes
    wire: _Wire = BARE


class Accept(msgspec.Struct, array_like=True, frozen=True, tag=3):
    mac: _Bytes


Message = Challenge | Proof | Accept
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
encode = msgspec.msgpack.Encoder().encode


def decode(data: Buffer) -> Message:
    """Return the handshake message in `data`.

    Raises:
        HandshakeFailed: it is none.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HandshakeFailed(f"not a handshake message: {error}") from None


def nonce() -> bytes:
    """Return a fresh nonce."""
    return secrets.token_bytes(NONCE_BYTES)


def _mac(key: bytes, side: bytes, server_nonce: bytes, client_nonce: bytes, wire: int) -> bytes:
    spoken = b"" if wire == BARE else wire.to_bytes(8, "big")
    return hmac.digest(key, side + b"\0" + server_nonce + client_nonce + spoken, "sha256")


def prove(secret: Secret, challenge: Challenge, client_nonce: bytes) -> Proof:
    """Return the client's answer to `challenge`.

    Raises:
        HandshakeFailed: the challenge's nonce is not of the one length that is signed.
    """
    if len(challenge.nonce) != NONCE_BYTES:
        raise HandshakeFailed("the server's nonce is of a wrong length")
    wire = spoken(challenge)
    mac = _mac(secret.key, b"client", challenge.nonce, client_nonce, wire)
    return Proof(secret.id, client_nonce, mac, wire)


def spoken(challenge: Challenge) -> int:
    """Return what a client of this release and the server that sent `challenge` both speak."""
    return min(challenge.wire, WIRE)


def accept(held: Secrets, server_nonce: bytes, proof: Proof) -> Accept:
    """Check a client's proof and return the server's own.

    Raises:
        HandshakeFailed: the id is unknown, or the proof is not made with that secret.
    """
    key = None
    for secret in (held.current, held.previous):
        if secret is not None and secret.id == proof.secret_id:
            key = secret.key
    wanted = _mac(key or bytes(32), b"client", server_nonce, proof.nonce, proof.wire)
    fits = hmac.compare_digest(wanted, proof.mac)
    if key is None or not fits or len(proof.nonce) != NONCE_BYTES:
        raise HandshakeFailed("the peer does not hold this fleet's secret")
    if proof.wire > WIRE:
        raise HandshakeFailed(f"the peer speaks wire {proof.wire}, {WIRE} was offered")
    return Accept(_mac(key, b"server", server_nonce, proof.nonce, proof.wire))


def check_accept(secret: Secret, challenge: Challenge, client_nonce: bytes, got: Accept) -> None:
    """Check that the server holds the secret too.

    Raises:
        HandshakeFailed: it does not.
    """
    wanted = _mac(secret.key, b"server", challenge.nonce, client_nonce, spoken(challenge))
    if not hmac.compare_digest(wanted, got.mac):
        raise HandshakeFailed("the server does not hold this fleet's secret")
