"""How two processes prove to each other that they belong to one fleet, before anything else.

    server → client   Challenge [1, wire, nonce]
    client → server   Proof     [2, secret_id, nonce, mac, wire]  mac over b"client", both nonces
    server → client   Accept    [3, mac]                          mac over b"server", both nonces

`wire` is what each side speaks: 1 is bare frames, 2 summed ones (see frames.py), and the lesser of
the two is spoken.  From 2 on it is part of both macs; and the nonces, which always are, say what
their side speaks.  So who changes an offer on its way, up or down, ends the handshake, and a
process of the release before, which knows nothing of this, still speaks 1.

HMAC-SHA256 under the fleet secret.  Both sides take the current and the previous secret, so that a
fleet can be moved to a new one node by node, without a pause.  An unknown id costs the same work as
a known one.  The handshake proves who speaks; it does not hide what is said (TLS does).  Over TLS
the macs are also over the `binding`, a digest of the server's certificate as each side sees it: who
sits in between with another one is found out, although nobody knew the right one before.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Annotated

import msgspec

from pool.wire.frames import Buffer, WireError
from pool.wire.tls import WireTls

BARE, SUMMED = 1, 2
WIRE = SUMMED
NONCE_BYTES = 32
_SPEAKS = b"speaks "  # then one byte, the wire, at the end of a nonce; by chance once in 2^56
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


class Secrets:
    """What this process proves itself with: secrets, and `tls` beneath where an address says so.

    The first secret is used to dial, then the second where nobody knows the first; both are taken.
    Those of a file may change while it runs (`fleet_secret.SecretsFile`): ask anew each time.
    """

    def __init__(
        self, current: Secret, previous: Secret | None = None, tls: WireTls | None = None
    ) -> None:
        self._held: tuple[Secret, ...] = (current,) if previous is None else (current, previous)
        self.tls = WireTls(None) if tls is None else tls

    @classmethod
    def parse(cls, text: str, tls: WireTls | None = None) -> Secrets:
        """Return the secrets of "current" or "current,previous"; raises `ValueError`."""
        current, _, previous = text.strip().partition(",")
        before = Secret.of(previous.strip()) if previous else None
        return Secrets(Secret.of(current.strip()), before, tls)

    @property
    def may_change(self) -> bool:
        """Tell whether it is worth to ask again."""
        return False

    @property
    def held(self) -> tuple[Secret, ...]:
        """All of them, the current one first."""
        return self._held

    @property
    def current(self) -> Secret:
        """Which is used to dial, and to sign."""
        return self.held[0]

    @property
    def keys(self) -> dict[str, bytes]:
        """All of them by id, the current one first."""
        return {secret.id: secret.key for secret in self.held}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secrets) and self.held == other.held

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(secret.id for secret in self.held)})"


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
    """Return a fresh nonce, which says what this side speaks."""
    said = _SPEAKS + bytes([WIRE])
    return secrets.token_bytes(NONCE_BYTES - len(said)) + said


def _mac(
    key: bytes, side: bytes, server_nonce: bytes, client_nonce: bytes, wire: int, binding: bytes
) -> bytes:
    spoken = b"" if wire == BARE else wire.to_bytes(8, "big")
    text = side + b"\0" + server_nonce + client_nonce + spoken + binding
    return hmac.digest(key, text, "sha256")


def prove(secret: Secret, challenge: Challenge, client_nonce: bytes, binding: bytes = b"") -> Proof:
    """Return the client's answer to `challenge`; `binding`: of the TLS beneath, if any.

    Raises:
        HandshakeFailed: the challenge's nonce is not of the one length that is signed, or its offer
            is not what the server made.
    """
    if len(challenge.nonce) != NONCE_BYTES:
        raise HandshakeFailed("the server's nonce is of a wrong length")
    if challenge.nonce[:-1].endswith(_SPEAKS) and challenge.nonce[-1] != challenge.wire:
        raise HandshakeFailed(
            f"wire {challenge.wire} arrived and {challenge.nonce[-1]} was offered: it was changed "
            "on its way"
        )
    wire = spoken(challenge)
    mac = _mac(secret.key, b"client", challenge.nonce, client_nonce, wire, binding)
    return Proof(secret.id, client_nonce, mac, wire)


def spoken(challenge: Challenge) -> int:
    """Return what a client of this release and the server that sent `challenge` both speak."""
    return min(challenge.wire, WIRE)


def accept(held: Secrets, server_nonce: bytes, proof: Proof, binding: bytes = b"") -> Accept:
    """Check a client's proof and return the server's own.

    Raises:
        HandshakeFailed: the id is unknown, or the proof is not made with that secret.
    """
    key = held.keys.get(proof.secret_id)
    wanted = _mac(key or bytes(32), b"client", server_nonce, proof.nonce, proof.wire, binding)
    fits = hmac.compare_digest(wanted, proof.mac)
    if key is None or not fits or len(proof.nonce) != NONCE_BYTES:
        raise HandshakeFailed("the peer does not hold this fleet's secret")
    if proof.wire > WIRE:
        raise HandshakeFailed(f"the peer speaks wire {proof.wire}, {WIRE} was offered")
    return Accept(_mac(key, b"server", server_nonce, proof.nonce, proof.wire, binding))


def check_accept(
    secret: Secret, challenge: Challenge, client_nonce: bytes, got: Accept, binding: bytes = b""
) -> None:
    """Check that the server holds the secret too.

    Raises:
        HandshakeFailed: it does not.
    """
    wire = spoken(challenge)
    wanted = _mac(secret.key, b"server", challenge.nonce, client_nonce, wire, binding)
    if not hmac.compare_digest(wanted, got.mac):
        raise HandshakeFailed("the server does not hold this fleet's secret")
