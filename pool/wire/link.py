"""The connection that an edge or a worker keeps to the controller: dialled, and dialled again.

Owns finding the leader, reconnecting with backoff, and the rule of epochs: whatever comes from a
controller with a lower epoch than the highest seen is ignored.  The data plane never waits for it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog

from pool.wire import control
from pool.wire.frames import Buffer, WireError
from pool.wire.handshake import Secrets
from pool.wire.peer import Address, Peer, dial
from pool.wire.renewal import RENEW_S, is_outdated, takes_current

RETRY_S_MIN = 0.1
RETRY_S_MAX = 2.0  # a controller that came back is found within this
SILENCE_S_MAX = 4.0  # the controller says something at least every second
_log = structlog.get_logger()


class ControlLink:
    """Keeps one connection to whoever leads.

    Args:
        find: returns the leader's address, or None while there is none.
        register: the message that opens each connection.
        on_message: called on the loop with each message that is not from the past.
    """

    def __init__(
        self,
        find: Callable[[], Awaitable[str | None]],
        secrets: Secrets | None,
        register: Callable[[], control.Message],
        on_message: Callable[[control.Message], None],
    ) -> None:
        self._find = find
        self._secrets = secrets
        self._register = register
        self._on_message = on_message
        # The whole mutable state: the connection, when it last spoke, whether it is the last one,
        # and the highest epoch seen.
        self._peer: Peer | None = None
        self._address: Address | None = None
        self._heard_s = 0.0
        self._lost = asyncio.Event()
        self._is_last = False
        self.epoch = 0

    @property
    def is_up(self) -> bool:
        """Tell whether a controller has welcomed us on the present connection."""
        return self._peer is not None and self._peer.is_open

    def send(self, message: control.Message) -> bool:
        """Send `message` if there is a connection; tell whether there was."""
        peer = self._peer
        if peer is None or not peer.is_open:
            return False
        peer.send(control.encode(message))
        return True

    def redial(self) -> None:
        """Have the connection made anew, with what there is to register then."""
        if self._peer is not None:
            self._peer.close()

    def stay_lost(self) -> None:
        """Dial no more once the connection is lost: a successor takes our place."""
        self._is_last = True

    async def run(self) -> None:
        """Keep the connection up until cancelled."""
        retry_s = RETRY_S_MIN
        try:
            while True:
                if self._is_last:
                    await asyncio.Event().wait()
                if await self._connect():
                    retry_s = RETRY_S_MIN
                    await self._until_lost()
                else:
                    retry_s = min(retry_s * 2, RETRY_S_MAX)
                await asyncio.sleep(retry_s * random.uniform(0.5, 1.0))
        finally:
            if self._peer is not None:
                self._peer.close()

    async def _connect(self) -> bool:
        try:
            address = await self._find()
            if address is None:
                return False
            self._address = Address.parse(address)
            peer = await dial(self._address, self._secrets)
        except (OSError, ValueError, WireError) as error:
            _log.info("controller_unreachable", error=str(error))
            return False
        self._lost.clear()
        self._heard_s = asyncio.get_running_loop().time()
        peer.on_frame = self._frame
        peer.on_lost = lambda error: self._lost.set()
        self._peer = peer
        peer.send(control.encode(self._register()))
        return True

    async def _until_lost(self) -> None:
        loop = asyncio.get_running_loop()
        may_renew = self._secrets is not None and self._secrets.may_change
        while not self._lost.is_set():
            try:
                async with asyncio.timeout(RENEW_S if may_renew else SILENCE_S_MAX):
                    await self._lost.wait()
            except TimeoutError:
                if loop.time() - self._heard_s > SILENCE_S_MAX and self._peer is not None:
                    # Half-open: the other side is gone and TCP has not noticed.
                    self._peer.close(WireError("the controller has gone silent"))
                elif may_renew:
                    await self._renew()
        _log.info("controller_lost")

    async def _renew(self) -> None:
        """Have the connection made anew where it was made with a secret of yesterday."""
        peer, secrets, address = self._peer, self._secrets, self._address
        if address is None or secrets is None or not is_outdated(peer, secrets):
            return
        if await takes_current(address, secrets) and peer is not None:
            peer.close()

    def _frame(self, header: bytes, body: Buffer) -> None:
        message = control.decode(body)
        self._heard_s = asyncio.get_running_loop().time()
        epoch = getattr(message, "epoch", None)
        if epoch is not None:
            if epoch < self.epoch:
                raise WireError(f"a controller of epoch {epoch} speaks, {self.epoch} is known")
            self.epoch = epoch
        self._on_message(message)
