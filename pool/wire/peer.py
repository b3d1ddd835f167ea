"""One framed connection, for every pair of processes: unix socket or TCP, dialled or accepted.

Owns the socket, the cutting into frames, the handshake over TCP, and the bound on what waits to be
written.  Knows no message but the handshake's.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec

from pool.wire import handshake
from pool.wire.frames import (
    BODY_BYTES_MAX,
    COALESCE_BYTES_MAX,
    HEADER_BYTES_MAX,
    Buffer,
    FrameReader,
    WireError,
    encode,
    summed,
)
from pool.wire.handshake import HandshakeFailed, Secret, Secrets
from pool.wire.tls import binding_of

HANDSHAKE_S_MAX = 5.0
TLS_CLOSE_S_MAX = 1.0  # for the other side's last word
DIAL_S_MAX = 5.0
WRITE_BYTES_MAX = 512 << 20  # a peer that lets this much wait has stopped reading
WRITTEN_S = 0.001  # so often it is looked whether everything is written, where that matters
BEHIND_BYTES = 8 << 20  # a peer for which so much waits is behind: streams pause for it
_PEERCRED = struct.Struct("iII")  # pid, uid, gid
UNIX_PATH_BYTES_MAX = 100  # sun_path holds 108 on Linux, 104 on macOS


class Address(msgspec.Struct, frozen=True):
    """Where to listen or dial: "unix:/path", "tcp://host:port" or "tls://host:port"."""

    path: str = ""
    host: str = ""
    port: int = 0
    is_tls: bool = False

    @classmethod
    def parse(cls, text: str) -> Address:
        """Return the address in `text`.

        Raises:
            ValueError: it is neither of the three.
        """
        if text.startswith("unix:") and len(text) > len("unix:"):
            return cls(path=text.removeprefix("unix:"))
        scheme, found, rest = text.partition("://")
        if found and scheme in ("tcp", "tls"):
            host, _, port = rest.rpartition(":")
            if host and port.isdigit() and int(port) < 65536:
                return cls(host=host.strip("[]"), port=int(port), is_tls=scheme == "tls")
        raise ValueError(
            f"address {text!r}: expected unix:/path, tcp://host:port or tls://host:port"
        )

    @property
    def needs_secret(self) -> bool:
        """Tell whether strangers may reach this address."""
        return not self.path

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'tls' if self.is_tls else 'tcp'}://{host}:{self.port}"


class Peer(asyncio.BufferedProtocol):
    """A connection that delivers frames and takes frames.

    Set `on_frame` and `on_lost` in `on_peer` of `serve`, or after `dial`: frames that come before
    wait, and so does the news of a loss.  Both are called on the loop and must not block.
    `on_lost` is called once.  A `WireError` out of `on_frame` closes the connection, and is what
    `on_lost` gets.
    """

    def __init__(
        self,
        header_bytes_max: int = HEADER_BYTES_MAX,
        body_bytes_max: int = BODY_BYTES_MAX,
    ) -> None:
        self.is_open = False
        self.secret_id = ""  # of the secret with which the handshake was done; "": there was none
        self.reads = 0  # how often something has come
        self._on_frame: Callable[[bytes, Buffer], None] = self._keep
        self._on_lost: Callable[[Exception | None], None] | None = None
        self._early: list[tuple[bytes, Buffer]] = []
        self._is_lost = False
        self._reader = FrameReader(self._frame, header_bytes_max, body_bytes_max)
        self._transport: asyncio.Transport | None = None
        self._error: Exception | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._unsent: list[Buffer] = []  # of this read, or this turn of the loop
        self._is_reading = False
        self._is_summed = False  # frames carry sums, both ways
        self.on_read: Callable[[], None] | None = None  # after all frames of a read
        self._behind: asyncio.Future[None] | None = None  # done once the other side has read

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._loop = asyncio.get_running_loop()
        self._transport.set_write_buffer_limits(high=BEHIND_BYTES)
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family != socket.AF_UNIX:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.is_open = True

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self._is_reading = True
        self.reads += 1
        try:
            self._reader.received(nbytes)
        except WireError as error:
            self.close(error)
        if self.on_read is not None:
            self.on_read()
        self._is_reading = False
        if self._unsent:
            self.flush()

    def pause_writing(self) -> None:
        assert self._loop is not None
        self._behind = self._loop.create_future()

    def resume_writing(self) -> None:
        behind, self._behind = self._behind, None
        if behind is not None:
            behind.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.resume_writing()
        self.is_open = False
        self._is_lost = True
        self._transport = None
        self._error = self._error or exc
        if self._on_lost is not None:
            self._on_lost(self._error)

    # our side

    @property
    def on_frame(self) -> Callable[[bytes, Buffer], None]:
        """Who takes the frames."""
        return self._on_frame

    @on_frame.setter
    def on_frame(self, on_frame: Callable[[bytes, Buffer], None]) -> None:
        self._on_frame = on_frame
        if self._early:
            asyncio.get_running_loop().call_soon(self._deliver_early)

    @property
    def on_lost(self) -> Callable[[Exception | None], None] | None:
        """Who is told that the connection is gone, and why; None while nobody is."""
        return self._on_lost

    @on_lost.setter
    def on_lost(self, on_lost: Callable[[Exception | None], None]) -> None:
        if self._is_lost and self._on_lost is None:
            asyncio.get_running_loop().call_soon(on_lost, self._error)
        self._on_lost = on_lost

    @property
    def behind(self) -> asyncio.Future[None] | None:
        """None, or while the other side is behind with reading what ends when it no longer is.

        Who sends much at its own pace waits for it; it must not be cancelled.
        """
        return self._behind

    @property
    def local_pid(self) -> int | None:
        """The other side's process, as the kernel tells it; None over TCP."""
        raw = None if self._transport is None else self._transport.get_extra_info("socket")
        if raw is None or raw.family != socket.AF_UNIX or not hasattr(socket, "SO_PEERCRED"):
            return None
        found = raw.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
        pid: int = _PEERCRED.unpack(found)[0]
        return pid

    def certificate(self) -> bytes:
        """Return the other side's certificate (DER); empty without TLS."""
        tls = None if self._transport is None else self._transport.get_extra_info("ssl_object")
        return b"" if tls is None else tls.getpeercert(binary_form=True) or b""

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Queue one frame's buffers for writing; on a closed connection do nothing.

        The buffers must not change afterwards.  A peer that stopped reading is cut off once
        `WRITE_BYTES_MAX` wait for it.
        """
        if not self.is_open or self._loop is None:
            return
        if self._is_summed:
            buffers = summed(buffers)
        if not self._unsent and not self._is_reading:
            # What is sent in one turn of the loop leaves in one system call, and wakes the other
            # side once: with many small frames that halves the cost of the hop.
            self._loop.call_soon(self.flush)
        self._unsent.extend(buffers)

    def flush(self) -> None:
        """Write what was sent now, because nothing else will follow soon."""
        buffers, self._unsent = self._unsent, []
        transport = self._transport
        if transport is None or not buffers:
            return
        if len(buffers) == 1:
            transport.write(buffers[0])
        elif sum(map(len, buffers)) <= COALESCE_BYTES_MAX:
            transport.write(b"".join(buffers))
        else:
            transport.writelines(buffers)
        if transport.get_write_buffer_size() > WRITE_BYTES_MAX:
            self.close(WireError("the peer has stopped reading"))

    def when_written(self, then: Callable[[], None]) -> None:
        """Call `then` on the loop, once the kernel has all that was sent, or the peer is lost.

        What the kernel has arrives even if this process dies next.
        """
        assert self._loop is not None
        self.flush()
        self._loop.call_later(WRITTEN_S, self._once_written, then)

    def _once_written(self, then: Callable[[], None]) -> None:
        # Looked at only in a later turn: uvloop, and TLS above it, write at the end of this one.
        if self._transport is not None and self._transport.get_write_buffer_size():
            self.when_written(then)
        else:
            then()

    def close(self, error: Exception | None = None) -> None:
        """Close the connection; what was queued is still written unless there is an error."""
        self.is_open = False
        self._error = self._error or error
        if self._transport is not None:
            if error is None:
                self.flush()
                self._transport.close()
            else:
                self._transport.abort()

    def _frame(self, header: bytes, body: Buffer) -> None:
        if self.is_open:
            self._on_frame(header, body)

    def _keep(self, header: bytes, body: Buffer) -> None:
        """Keep what came before anybody took frames, and read no further until somebody does."""
        if not self._early and self._transport is not None:
            self._transport.pause_reading()
        self._early.append((header, body))

    def _deliver_early(self) -> None:
        early, self._early = self._early, []
        try:
            for header, body in early:
                self._frame(header, body)
        except Exception as error:
            self.close(error)
            if not isinstance(error, WireError):
                raise  # to the loop, as out of any other callback
        if early and self.is_open and self._transport is not None:
            self._transport.resume_reading()

    def trust(self, limits: PeerLimits) -> None:
        """Leave the handshake: what comes next is the owner's, within the owner's bounds."""
        self._reader.header_bytes_max = limits.header_bytes_max
        self._reader.body_bytes_max = limits.body_bytes_max
        self._on_frame, self._on_lost = self._keep, None

    def speak(self, wire: int) -> None:
        """Send and expect what was agreed on from the next frame on."""
        assert self._transport is not None
        # TLS has its own.
        if wire >= handshake.SUMMED and self._transport.get_extra_info("sslcontext") is None:
            self._reader.expect_sums()
            self._is_summed = True


class PeerLimits(msgspec.Struct, frozen=True):
    """The bounds of a connection's frames."""

    header_bytes_max: int = HEADER_BYTES_MAX
    body_bytes_max: int = BODY_BYTES_MAX

    def peer(self) -> Peer:
        return Peer(self.header_bytes_max, self.body_bytes_max)


# Until a peer has proved itself, nothing beyond a handshake frame is buffered.
STRANGER = PeerLimits(handshake.FRAME_BYTES_MAX, 0)


async def dial(
    address: Address,
    secrets: Secrets | None,
    limits: PeerLimits | None = None,
    *,
    s_max: float = DIAL_S_MAX,
) -> Peer:
    """Connect to `address`, proving the fleet secret over TCP, within `s_max`.

    The secret before is tried where the other side does not know the current one (yet).

    Raises:
        ValueError: a unix path that is too long.
        OSError: nobody listens there, or not in time; or its certificate is not of this fleet.
        HandshakeFailed: the two do not hold the same secret, or this side would have to speak
            plainly although its fleet has a CA.
    """
    loop = asyncio.get_running_loop()
    made = limits or PeerLimits()
    try:
        async with asyncio.timeout(s_max):
            if address.path:
                check_length(address)
                _, peer = await loop.create_unix_connection(made.peer, address.path)
                return peer
            if secrets is None:
                raise HandshakeFailed(
                    f"{address} is dialled over TCP, which needs a fleet secret: "
                    "set TIDEPOOL_FLEET_SECRET or put it into DATA/secrets"
                )
            if secrets.tls.is_mutual and not address.is_tls:
                raise HandshakeFailed(
                    f"{address}: this node has a CA for the wire, so that it dials only tls://"
                )
            held = secrets.held
            for secret in held:
                try:
                    return await _dial_with(secret, address, secrets, made)
                except HandshakeFailed:
                    if secret is held[-1]:
                        raise
            raise AssertionError("no secret is held")
    except TimeoutError:
        raise ConnectionError(f"{address} did not answer within {s_max} s") from None


async def _dial_with(
    secret: Secret, address: Address, secrets: Secrets, limits: PeerLimits
) -> Peer:
    options: dict[str, Any] = {}
    if address.is_tls:
        options["ssl"] = secrets.tls.client()
        options["ssl_handshake_timeout"] = HANDSHAKE_S_MAX
        options["ssl_shutdown_timeout"] = TLS_CLOSE_S_MAX
    loop = asyncio.get_running_loop()
    _, peer = await loop.create_connection(STRANGER.peer, address.host, address.port, **options)
    try:
        binding = b"" if not address.is_tls else binding_of(peer.certificate())
        await _prove(peer, secret, limits, binding)
    except BaseException:
        peer.close(HandshakeFailed("handshake failed"))
        raise
    peer.secret_id = secret.id
    return peer


async def _prove(peer: Peer, secret: Secret, limits: PeerLimits, binding: bytes) -> None:
    """Answer the server's challenge, and see that it holds the secret too."""
    # Each step is taken while its frame is delivered, so that a frame right behind the acceptance
    # is already read as the owner's.
    proved = asyncio.get_running_loop().create_future()
    nonce = handshake.nonce()

    def on_challenge(header: bytes, body: Buffer) -> None:
        challenge = handshake.decode(header)
        if not isinstance(challenge, handshake.Challenge):
            raise HandshakeFailed("expected a challenge")
        proof = handshake.prove(secret, challenge, nonce, binding)
        peer.on_frame = lambda header, body: on_accept(challenge, header)
        peer.send(encode(handshake.encode(proof)))

    def on_accept(challenge: handshake.Challenge, header: bytes) -> None:
        accepted = handshake.decode(header)
        if not isinstance(accepted, handshake.Accept):
            raise HandshakeFailed("expected an acceptance")
        handshake.check_accept(secret, challenge, nonce, accepted, binding)
        peer.trust(limits)
        peer.speak(handshake.spoken(challenge))
        if not proved.done():
            proved.set_result(None)

    def on_lost(error: Exception | None) -> None:
        if not isinstance(error, HandshakeFailed):
            error = HandshakeFailed(f"the handshake was not finished: {error or 'closed'}")
        if not proved.done():
            proved.set_exception(error)

    peer.on_frame, peer.on_lost = on_challenge, on_lost
    await proved


def check_length(address: Address) -> None:
    # uvloop would cut a longer one short and go on with another path.
    if len(os.fsencode(address.path)) > UNIX_PATH_BYTES_MAX:
        raise ValueError(f"unix socket path is longer than {UNIX_PATH_BYTES_MAX}: {address}")
