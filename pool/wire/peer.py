"""One framed connection, for every pair of processes: unix socket or TCP, dialled or accepted.

Owns the socket, the cutting into frames, the handshake over TCP, and the bound on what waits to be
written.  Knows no message but the handshake's.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
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
from pool.wire.handshake import HandshakeFailed, Secrets

HANDSHAKE_S_MAX = 5.0
DIAL_S_MAX = 5.0
BACKLOG = 1024
WRITE_BYTES_MAX = 512 << 20  # a peer that lets this much wait has stopped reading
WRITTEN_S = 0.001  # so often it is looked whether everything is written, where that matters
BEHIND_BYTES = 8 << 20  # a peer for which so much waits is behind: streams pause for it
_PEERCRED = struct.Struct("iII")  # pid, uid, gid
UNIX_PATH_BYTES_MAX = 100  # sun_path holds 108 on Linux, 104 on macOS


class Address(msgspec.Struct, frozen=True):
    """Where to listen or dial: "unix:/path" or "tcp://host:port"."""

    path: str = ""
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Address:
        """Return the address in `text`.

        Raises:
            ValueError: neither "unix:/path" nor "tcp://host:port".
        """
        if text.startswith("unix:") and len(text) > len("unix:"):
            return cls(path=text.removeprefix("unix:"))
        if text.startswith("tcp://"):
            host, _, port = text.removeprefix("tcp://").rpartition(":")
            if host and port.isdigit() and int(port) < 65536:
                return cls(host=host.strip("[]"), port=int(port))
        raise ValueError(f"address {text!r}: expected unix:/path or tcp://host:port")

    @property
    def needs_secret(self) -> bool:
        """Tell whether strangers may reach this address."""
        return not self.path

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else f"tcp://{self.host}:{self.port}"


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

    def _trust(self, limits: PeerLimits) -> None:
        """Leave the handshake: what comes next is the owner's, within the owner's bounds."""
        self._reader.header_bytes_max = limits.header_bytes_max
        self._reader.body_bytes_max = limits.body_bytes_max
        self._on_frame, self._on_lost = self._keep, None

    def _speak(self, wire: int) -> None:
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
_STRANGER = PeerLimits(handshake.FRAME_BYTES_MAX, 0)


async def dial(
    address: Address,
    secrets: Secrets | None,
    limits: PeerLimits | None = None,
    *,
    s_max: float = DIAL_S_MAX,
) -> Peer:
    """Connect to `address`, proving the fleet secret over TCP, within `s_max`.

    Raises:
        ValueError: a unix path that is too long.
        OSError: nobody listens there, or not in time.
        HandshakeFailed: the two do not hold the same secret.
    """
    loop = asyncio.get_running_loop()
    made = limits or PeerLimits()
    try:
        async with asyncio.timeout(s_max):
            if address.path:
                _check_length(address)
                _, peer = await loop.create_unix_connection(made.peer, address.path)
                return peer
            if secrets is None:
                raise HandshakeFailed(
                    f"{address} is dialled over TCP, which needs a fleet secret: "
                    "set TIDEPOOL_FLEET_SECRET or put it into DATA/secrets"
                )
            _, peer = await loop.create_connection(_STRANGER.peer, address.host, address.port)
            try:
                await _prove(peer, secrets, made)
            except BaseException:
                peer.close(HandshakeFailed("handshake failed"))
                raise
            return peer
    except TimeoutError:
        raise ConnectionError(f"{address} did not answer within {s_max} s") from None


async def _prove(peer: Peer, secrets: Secrets, limits: PeerLimits) -> None:
    """Answer the server's challenge, and see that it holds the secret too."""
    # Each step is taken while its frame is delivered, so that a frame right behind the acceptance
    # is already read as the owner's.
    proved = asyncio.get_running_loop().create_future()
    nonce = handshake.nonce()

    def on_challenge(header: bytes, body: Buffer) -> None:
        challenge = handshake.decode(header)
        if not isinstance(challenge, handshake.Challenge):
            raise HandshakeFailed("expected a challenge")
        proof = handshake.prove(secrets.current, challenge, nonce)
        peer.on_frame = lambda header, body: on_accept(challenge, header)
        peer.send(encode(handshake.encode(proof)))

    def on_accept(challenge: handshake.Challenge, header: bytes) -> None:
        accepted = handshake.decode(header)
        if not isinstance(accepted, handshake.Accept):
            raise HandshakeFailed("expected an acceptance")
        handshake.check_accept(secrets.current, challenge, nonce, accepted)
        peer._trust(limits)
        peer._speak(handshake.spoken(challenge))
        if not proved.done():
            proved.set_result(None)

    def on_lost(error: Exception | None) -> None:
        if not isinstance(error, HandshakeFailed):
            error = HandshakeFailed(f"the handshake was not finished: {error or 'closed'}")
        if not proved.done():
            proved.set_exception(error)

    peer.on_frame, peer.on_lost = on_challenge, on_lost
    await proved


class Server:
    """Listens on one address and hands over each peer that may speak."""

    def __init__(self, server: asyncio.Server, address: Address, *, is_ours: bool = True) -> None:
        self._server = server
        self._is_ours = is_ours
        self.address = address

    async def close(self) -> None:
        """Stop listening; open connections stay."""
        self._server.close()
        if self.address.path and self._is_ours:
            Path(self.address.path).unlink(missing_ok=True)


def listen(address: Address) -> socket.socket:
    """Return a socket that listens on `address`; it may be handed down to whoever serves.

    Raises:
        ValueError: a unix path that is too long.
        OSError: the address is taken; a unix socket on which somebody listens is.
    """
    if address.path:
        _check_length(address)
        bound = _bind_unix(address.path)
    else:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        bound = socket.create_server((address.host, address.port), family=family)
    bound.listen(BACKLOG)
    return bound


async def serve(
    address: Address,
    secrets: Secrets | None,
    on_peer: Callable[[Peer], None],
    limits: PeerLimits | None = None,
    fds: Sequence[int] = (),
) -> Server:
    """Listen on `address`; `on_peer` gets each connection that has proved itself.

    Args:
        address: on which to listen.
        secrets: of the fleet; None only for unix sockets.
        on_peer: is called on the loop, and must not block.
        limits: of the connections' frames.
        fds: of one socket that listens there already and is somebody else's too; or none.

    Raises:
        ValueError: TCP without a fleet secret, or a unix path that is too long.
        OSError: the address is taken; a unix socket on which somebody listens is.
    """
    loop = asyncio.get_running_loop()
    made = limits or PeerLimits()
    if not address.path and secrets is None:
        raise ValueError(
            f"{address}: TCP needs a fleet secret: set TIDEPOOL_FLEET_SECRET or DATA/secrets"
        )
    bound = socket.socket(fileno=fds[0]) if fds else listen(address)
    bound.setblocking(False)
    if address.path:
        # Newer Pythons would remove the path on closing, also of a socket that others hold.
        options: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
        server = await loop.create_unix_server(
            lambda: _Accepted(made, None, on_peer), sock=bound, backlog=BACKLOG, **options
        )
        return Server(server, address, is_ours=not fds)
    port = bound.getsockname()[1]
    server = await loop.create_server(
        lambda: _Accepted(made, secrets, on_peer), sock=bound, backlog=BACKLOG
    )
    return Server(server, Address(host=address.host, port=port))


def _check_length(address: Address) -> None:
    # uvloop would cut a longer one short and go on with another path.
    if len(os.fsencode(address.path)) > UNIX_PATH_BYTES_MAX:
        raise ValueError(f"unix socket path is longer than {UNIX_PATH_BYTES_MAX}: {address}")


def _bind_unix(path: str) -> socket.socket:
    """Bind a socket that only this user may dial; asyncio itself would unlink a live one."""
    _remove_stale(path)
    bound = socket.socket(socket.AF_UNIX)
    try:
        bound.bind(path)
        os.chmod(path, 0o600)  # before it listens
    except BaseException:
        bound.close()
        raise
    return bound


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody listens on any more; never one that somebody does."""
    if not Path(path).is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            Path(path).unlink(missing_ok=True)
            return
        except (BlockingIOError, TimeoutError):
            pass  # its queue is full, so somebody listens
    raise OSError(
        errno.EADDRINUSE,
        f"another process already listens on unix:{path}; stop it, or use another data folder",
    )


class _Accepted(Peer):
    """A peer that dialled us: over TCP it must prove itself first."""

    def __init__(
        self, limits: PeerLimits, secrets: Secrets | None, on_peer: Callable[[Peer], None]
    ) -> None:
        first = limits if secrets is None else _STRANGER
        super().__init__(first.header_bytes_max, first.body_bytes_max)
        self._secrets = secrets
        self._on_peer = on_peer
        self._limits = limits
        self._nonce = b""
        self._silence: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._secrets is None:
            self._on_peer(self)
            return
        self._silence = asyncio.get_running_loop().call_later(
            HANDSHAKE_S_MAX, self.close, HandshakeFailed("no proof came in time")
        )
        self._nonce = handshake.nonce()
        self.on_frame = self._on_proof
        self.send(encode(handshake.encode(handshake.Challenge(handshake.WIRE, self._nonce))))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._silence is not None:
            self._silence.cancel()
        super().connection_lost(exc)

    def _on_proof(self, header: bytes, body: Buffer) -> None:
        proof = handshake.decode(header)
        if not isinstance(proof, handshake.Proof) or not (self._secrets and self._silence):
            raise HandshakeFailed("expected a proof")
        accepted = handshake.accept(self._secrets, self._nonce, proof)
        self._silence.cancel()
        self._trust(self._limits)
        # Before the owner can say anything, which the peer would take for the acceptance.
        self.send(encode(handshake.encode(accepted)))
        self._speak(proof.wire)
        self._on_peer(self)
