"""The side that waits to be dialled: sockets, who may speak there, and certificates of the day."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import structlog

from pool.wire import handshake
from pool.wire.frames import Buffer, encode
from pool.wire.handshake import HandshakeFailed, Secrets
from pool.wire.peer import (
    HANDSHAKE_S_MAX,
    STRANGER,
    TLS_CLOSE_S_MAX,
    Address,
    Peer,
    PeerLimits,
    check_length,
)
from pool.wire.tls import ServerTls

BACKLOG = 1024
CHANGED_S = 1.0  # so often a listener looks whether secrets or certificates have changed

_log = structlog.get_logger()


class Server:
    """Listens on one address and hands over each peer that may speak.

    Over TCP it goes with the secrets and certificates of the day: a renewed certificate is shown to
    whoever dials from then on, and who is connected with a secret that was retired is cut off.
    """

    def __init__(
        self,
        server: asyncio.Server,
        address: Address,
        *,
        is_ours: bool = True,
        doorman: _Doorman | None = None,
    ) -> None:
        self._server = server
        self._is_ours = is_ours
        self.address = address
        self._doorman = doorman
        self._look_after: asyncio.Task[None] | None = None
        if doorman is not None and doorman.may_change:
            self._look_after = asyncio.get_running_loop().create_task(self._follow(doorman))

    async def close(self) -> None:
        """Stop listening; open connections stay."""
        if self._look_after is not None:
            self._look_after.cancel()
        self._server.close()
        if self._doorman is not None:
            self._doorman.close()
        if self.address.path and self._is_ours:
            Path(self.address.path).unlink(missing_ok=True)

    async def _follow(self, doorman: _Doorman) -> None:
        """Go with what files say, for ever: whatever is wrong with them, it is tried again."""
        said = ""
        while True:
            await asyncio.sleep(CHANGED_S)
            try:
                doorman.cut_off()
                if doorman.is_outdated:
                    before, self._server = self._server, await doorman.open()
                    before.close()
            except Exception as error:
                if str(error) != said:
                    _log.warning("listener_not_renewed", at=str(self.address), error=str(error))
                said = str(error)
            else:
                said = ""


class _Doorman:
    """Who stands at a TCP address: lets in who proves itself, with what is held by then."""

    def __init__(
        self,
        bound: socket.socket,
        secrets: Secrets,
        on_peer: Callable[[Peer], None],
        limits: PeerLimits,
        *,
        is_tls: bool,
    ) -> None:
        self._bound = bound
        self._secrets = secrets
        self._on_peer = on_peer
        self._limits = limits
        self._is_tls = is_tls
        # The whole mutable state: the certificate that is shown, and who has come in.
        self._shown: ServerTls | None = None
        self._peers: weakref.WeakSet[Peer] = weakref.WeakSet()

    @property
    def may_change(self) -> bool:
        """Tell whether there is anything to look after."""
        return self._is_tls or self._secrets.may_change

    @property
    def is_outdated(self) -> bool:
        """Tell whether another certificate is to be shown than is."""
        return self._is_tls and self._secrets.tls.server() is not self._shown

    async def open(self) -> asyncio.Server:
        """Listen, on a copy of the socket: a former server may still do so until it is closed.

        Raises:
            ValueError: TLS without a certificate.
        """
        options: dict[str, Any] = {}
        shown = self._secrets.tls.server() if self._is_tls else None
        if self._is_tls:
            if shown is None:
                raise ValueError(
                    "tls:// needs a certificate: put tls.crt and tls.key into DATA/wire-tls, or "
                    "name their folder with TIDEPOOL_WIRE_TLS"
                )
            options["ssl"] = shown.context
            options["ssl_handshake_timeout"] = HANDSHAKE_S_MAX
            options["ssl_shutdown_timeout"] = TLS_CLOSE_S_MAX
        binding = b"" if shown is None else shown.binding
        server = await self._listen(binding, options)
        self._shown = shown
        return server

    async def _listen(self, binding: bytes, options: dict[str, Any]) -> asyncio.Server:
        bound = self._bound.dup() if self.may_change else self._bound
        try:
            return await asyncio.get_running_loop().create_server(
                lambda: _Accepted(self._limits, self._secrets, self._come_in, binding),
                sock=bound,
                backlog=BACKLOG,
                **options,
            )
        except BaseException:
            bound.close()
            raise

    def close(self) -> None:
        """Give up the socket of which servers have copies."""
        if self.may_change:
            self._bound.close()

    def cut_off(self) -> None:
        """Close the connections of those whose secret was retired."""
        known = self._secrets.keys
        for peer in [peer for peer in self._peers if peer.secret_id not in known]:
            peer.close(HandshakeFailed("the fleet secret with which it came was retired"))
            self._peers.discard(peer)

    def _come_in(self, peer: Peer) -> None:
        if self.may_change:
            self._peers.add(peer)
        self._on_peer(peer)


def listen(address: Address) -> socket.socket:
    """Return a socket that listens on `address`; it may be handed down to whoever serves.

    Raises:
        ValueError: a unix path that is too long.
        OSError: the address is taken; a unix socket on which somebody listens is.
    """
    if address.path:
        check_length(address)
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
        ValueError: TCP without a fleet secret, TLS without a certificate, plain TCP in a fleet
            that has a CA, or a unix path that is too long.
        OSError: the address is taken; a unix socket on which somebody listens is.
    """
    made = limits or PeerLimits()
    if not address.path:
        if secrets is None:
            raise ValueError(
                f"{address}: TCP needs a fleet secret: set TIDEPOOL_FLEET_SECRET or DATA/secrets"
            )
        if secrets.tls.is_mutual and not address.is_tls:
            raise ValueError(f"{address}: this node has a CA for the wire: listen on tls://")
    bound = socket.socket(fileno=fds[0]) if fds else listen(address)
    bound.setblocking(False)
    if address.path:
        # Newer Pythons would remove the path on closing, also of a socket that others hold.
        options: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
        server = await asyncio.get_running_loop().create_unix_server(
            lambda: _Accepted(made, None, on_peer), sock=bound, backlog=BACKLOG, **options
        )
        return Server(server, address, is_ours=not fds)
    port = bound.getsockname()[1]
    assert secrets is not None
    doorman = _Doorman(bound, secrets, on_peer, made, is_tls=address.is_tls)
    try:
        server = await doorman.open()
    except BaseException:
        bound.close()
        raise
    here = Address(host=address.host, port=port, is_tls=address.is_tls)
    return Server(server, here, doorman=doorman)


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
        self,
        limits: PeerLimits,
        secrets: Secrets | None,
        on_peer: Callable[[Peer], None],
        binding: bytes = b"",
    ) -> None:
        first = limits if secrets is None else STRANGER
        super().__init__(first.header_bytes_max, first.body_bytes_max)
        self._secrets = secrets
        self._on_peer = on_peer
        self._limits = limits
        self._binding = binding
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
        accepted = handshake.accept(self._secrets, self._nonce, proof, self._binding)
        self.secret_id = proof.secret_id
        self._silence.cancel()
        self.trust(self._limits)
        # Before the owner can say anything, which the peer would take for the acceptance.
        self.send(encode(handshake.encode(accepted)))
        self.speak(proof.wire)
        self._on_peer(self)
