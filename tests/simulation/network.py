"""What stands in the place of sockets: delays, cuts and pieces, under the code's own protocols.

On one connection bytes keep their order; what two connections carry overtakes each other.  While
two processes are cut off from each other, what they send waits, as TCP would send it again.
Sockets that listen are real ones: whoever holds one open, as a supervisor does, is dialled through
the kernel until a process of the simulation serves there.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import os
import random
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from tests.simulation.processes import Process, current

if TYPE_CHECKING:
    from tests.simulation.loop import SimulatedLoop

DELAY_S: Final = (0.00005, 0.0005)  # of anything on its way; drawn for each piece
PIECES_SHARE: Final = 0.2  # of what is written arrives in two pieces
HIGH_BYTES: Final = 64 << 10
EARLY_S: Final = 1e-6  # that a timer may fire early, and more than that: it is to come to an end


class Listener:
    """A process that serves on an address; stands in the place of `asyncio.Server`."""

    def __init__(
        self, network: Network, key: str, sock: socket.socket, factory: Callable[[], Any]
    ) -> None:
        self.key = key
        self.factory = factory
        self.process = current()
        self.context = contextvars.copy_context()
        self.sockets = (sock,)
        self._network = network

    def close(self) -> None:
        """Serve no more; the address stays dialled for as long as somebody holds its socket."""
        self._network.forget(self)
        self.sockets[0].close()

    async def wait_closed(self) -> None:
        """It is."""


class Network:
    """All connections of a simulation, and who cannot reach whom."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop
        # The whole mutable state: who listens, who waits in a socket's queue, who is cut off.
        self._listeners: dict[str, list[Listener]] = {}
        self._queued: dict[str, dict[socket.socket, SimulatedTransport]] = {}
        self._cuts: set[frozenset[Process | None]] = set()
        self._held: list[SimulatedTransport] = []
        self.delay_s = DELAY_S
        self.pieces_share = PIECES_SHARE
        self.dials = 0
        self.transports = 0

    # for scenarios

    def cut(self, *processes: Process) -> None:
        """Let nothing pass any more between any two of these."""
        self._cuts |= {frozenset((a, b)) for a in processes for b in processes if a is not b}

    def heal(self) -> None:
        """Let everything pass again."""
        self._cuts.clear()
        held, self._held = self._held, []
        for transport in held:
            transport.send_on()

    def reset(self, one: Process, other: Process) -> None:
        """Break every connection between two processes, as something on the way does."""
        for transport in list(one.transports):
            peer = transport.peer
            if peer is not None and peer.process is other:
                for side in (transport, peer):
                    side.call(side.break_off)

    def is_cut(self, one: Process | None, other: Process | None) -> bool:
        """Tell whether nothing passes between two processes."""
        return frozenset((one, other)) in self._cuts

    # for the loop

    def listen(self, sock: socket.socket, factory: Callable[[], Any]) -> Listener:
        """Serve on a bound socket; whoever waits in its queue is served first."""
        sock.listen()
        key = _key_of(sock)
        listener = Listener(self, key, sock, factory)
        self._listeners.setdefault(key, []).append(listener)
        if listener.process is not None:
            listener.process.listeners[listener] = None
            listener.process.takes(sock.fileno())
        self._accept_queued(key, sock, listener)
        return listener

    def forget(self, listener: Listener) -> None:
        """Take note that a process does not serve any more."""
        with contextlib.suppress(KeyError, ValueError):
            self._listeners[listener.key].remove(listener)
        if listener.process is not None:
            listener.process.listeners.pop(listener, None)

    async def dial(self, key: str, factory: Callable[[], Any]) -> tuple[Any, Any]:
        """Connect, as `create_connection` does."""
        self.dials += 1
        await asyncio.sleep(self.draw_s())
        while (found := self._serving(key)) and self.is_cut(current(), found.process):  # noqa: ASYNC110
            await asyncio.sleep(0.1)  # packets are sent again, until whoever dials gives up
        probe = None if found else _connected(key)
        mine = SimulatedTransport(self._loop, factory(), current(), contextvars.copy_context())
        if found is not None:
            self._connect(mine, found)
        elif probe is not None:
            self._queued.setdefault(key, {})[probe] = mine
            self._loop.add_reader(probe, self._refused, key, probe)
        mine.protocol.connection_made(mine)
        return mine, mine.protocol

    def _serving(self, key: str) -> Listener | None:
        listeners = self._listeners.get(key)
        return listeners[-1] if listeners else None

    def _connect(self, mine: SimulatedTransport, listener: Listener) -> None:
        theirs = SimulatedTransport(
            self._loop, listener.factory(), listener.process, listener.context
        )
        mine.peer, theirs.peer = theirs, mine
        theirs.call(theirs.protocol.connection_made, theirs)
        mine.send_on()

    def _accept_queued(self, key: str, sock: socket.socket, listener: Listener) -> None:
        for probe, mine in self._leave_queue(key):
            probe.close()
            self._connect(mine, listener)
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                sock.accept()[0].close()

    def _refused(self, key: str, probe: socket.socket) -> None:
        """The socket in whose queue somebody waited is closed."""
        for found, mine in self._leave_queue(key, probe):
            found.close()
            mine.refuse()

    def _leave_queue(
        self, key: str, only: socket.socket | None = None
    ) -> list[tuple[socket.socket, SimulatedTransport]]:
        queue = self._queued.get(key, {})
        left = [(p, mine) for p, mine in queue.items() if only is None or p is only]
        for probe, _ in left:
            self._loop.remove_reader(probe)
            del queue[probe]
        return left

    def close(self) -> None:
        """Close every socket; the scenario is over."""
        for key in list(self._queued):
            for probe, _ in self._leave_queue(key):
                probe.close()
        for listeners in list(self._listeners.values()):
            for listener in list(listeners):
                listener.close()

    def draw_s(self) -> float:
        """Return how long something is on its way."""
        return self._loop.dice.uniform(*self.delay_s)

    def hold(self, transport: SimulatedTransport) -> None:
        """Keep what a transport sends until the cut is healed."""
        if transport not in self._held:
            self._held.append(transport)


class SimulatedTransport(asyncio.Transport):
    """One side of a connection."""

    def __init__(
        self,
        loop: SimulatedLoop,
        protocol: Any,
        process: Process | None,
        context: contextvars.Context,
    ) -> None:
        super().__init__()
        self.protocol = protocol
        self.process = process
        self.peer: SimulatedTransport | None = None
        self._loop = loop
        self._context = context
        # Of its own, so that chance on one connection changes nothing on the others.
        network = loop.network
        network.transports += 1
        self._dice = random.Random(f"{loop.seed}/{network.transports}")
        # The whole mutable state: what is on its way to the other side with the time at which it
        # arrives (no bytes: the end, an exception: a reset), what has come and is not read, …
        self._sent: deque[tuple[float, bytes | Exception | None]] = deque()
        self._sent_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._unread: deque[bytes | Exception | None] = deque()
        self._unread_bytes = 0
        # … and how far it is closed.
        self._is_paused = False
        self._is_closing = False
        self._is_lost = False
        self._is_writing_paused = False
        self._high_bytes = HIGH_BYTES
        if process is not None:
            process.transports[self] = None

    def call(self, callback: Callable[..., object], *args: object) -> None:
        """Have `callback` called in the process of this side."""
        self._loop.call_soon(callback, *args, context=self._context)

    # the protocol's side

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def get_protocol(self) -> Any:
        return self.protocol

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def is_closing(self) -> bool:
        return self._is_closing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._is_closing or not data:
            return
        taken = bytes(data)
        at = len(taken)
        if at > 1 and self._dice.random() < self._loop.network.pieces_share:
            at = self._dice.randrange(1, at)
        for piece in (taken[:at], taken[at:]):
            if piece:
                self._send(piece)
        self._look_at_buffer()

    def writelines(self, list_of_data: Sequence[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high_bytes = HIGH_BYTES if high is None else high

    def get_write_buffer_size(self) -> int:
        peer = self.peer
        return self._sent_bytes + (0 if peer is None else peer._unread_bytes)

    def pause_reading(self) -> None:
        self._is_paused = True

    def resume_reading(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self.call(self._read)

    def is_reading(self) -> bool:
        return not self._is_paused

    def close(self) -> None:
        self._end(None)

    def abort(self) -> None:
        self._end(ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))

    def _end(self, error: Exception | None) -> None:
        """Close; after what was sent the other side gets the end, or a reset instead of it."""
        if self._is_closing:
            return
        self._is_closing = True
        if error is not None:
            self._forget_sent()
        self._send(error)
        self.call(self._lose, None)

    # the system's side

    def vanish(self) -> None:
        """The process has died: the system closes its side, and what is on its way is lost."""
        self._is_lost = True
        self._leave()
        if not self._is_closing:
            self._is_closing = True
            self._forget_sent()
            is_clean = self._dice.random() < 0.5
            self._send(None if is_clean else ConnectionResetError(errno.ECONNRESET, "reset"))

    def break_off(self) -> None:
        """What is between the two sides has reset them both."""
        if not self._is_closing:
            self._is_closing = True
            self._sent.clear()
            self._sent_bytes = 0
            self._lose(ConnectionResetError(errno.ECONNRESET, "reset"))

    def send_on(self) -> None:
        """Deliver what was held back."""
        self._arm()

    def refuse(self) -> None:
        """Nobody will ever serve this connection."""
        self._is_closing = True
        self.call(self._lose, ConnectionResetError(errno.ECONNRESET, "reset"))

    def _send(self, item: bytes | Exception | None) -> None:
        at_s = self._loop.time() + self._dice.uniform(*self._loop.network.delay_s)
        if self._sent:
            at_s = max(at_s, self._sent[-1][0])
        self._sent.append((at_s, item))
        if isinstance(item, bytes):
            self._sent_bytes += len(item)
        self._arm()

    def _forget_sent(self) -> None:
        """Lose a part of what is on its way, as a reset does."""
        keep = self._dice.randint(0, len(self._sent))
        while len(self._sent) > keep:
            self._sent.pop()
        self._sent_bytes = sum(len(item) for _, item in self._sent if isinstance(item, bytes))

    def _arm(self) -> None:
        if self._timer is None and self._sent and self.peer is not None:
            # Not a task of this process: what is sent arrives though it dies or stands still.
            self._timer = self._loop.call_at(
                max(self._sent[0][0], self._loop.time()), self._arrive, context=_nobody
            )

    def _arrive(self) -> None:
        self._timer = None
        peer = self.peer
        assert peer is not None
        if self._loop.network.is_cut(self.process, peer.process):
            self._loop.network.hold(self)
            return
        until_s = self._loop.time() + EARLY_S
        while self._sent and self._sent[0][0] <= until_s:
            _, item = self._sent.popleft()
            if isinstance(item, bytes):
                self._sent_bytes -= len(item)
                peer._unread_bytes += len(item)
            peer._unread.append(item)
        peer.call(peer._read)
        self._arm()

    def _read(self) -> None:
        """Give the protocol what has come."""
        while self._unread and not self._is_paused and not self._is_closing:
            item = self._unread.popleft()
            try:
                if isinstance(item, bytes):
                    self._unread_bytes -= len(item)
                    self._give(item)
                elif item is not None:
                    self._is_closing = True
                    self._lose(item)
                elif not self.protocol.eof_received():
                    self.close()
            except Exception as error:
                # As asyncio's own transports do.
                self._loop.call_exception_handler({"message": "protocol", "exception": error})
                self._is_closing = True
                self._send(ConnectionResetError(errno.ECONNRESET, "reset"))
                self._lose(error)
        if self.peer is not None:
            self.peer.call(self.peer._look_at_buffer)

    def _give(self, data: bytes) -> None:
        if not isinstance(self.protocol, asyncio.BufferedProtocol):
            self.protocol.data_received(data)
            return
        while data and not self._is_closing:
            buffer = self.protocol.get_buffer(len(data))
            count = min(len(buffer), len(data))
            buffer[:count] = data[:count]
            self.protocol.buffer_updated(count)
            data = data[count:]

    def _look_at_buffer(self) -> None:
        size_bytes = self.get_write_buffer_size()
        if self._is_lost:
            return
        if size_bytes > self._high_bytes and not self._is_writing_paused:
            self._is_writing_paused = True
            self.protocol.pause_writing()
        elif size_bytes <= self._high_bytes // 4 and self._is_writing_paused:
            self._is_writing_paused = False
            self.protocol.resume_writing()

    def _lose(self, error: Exception | None) -> None:
        if not self._is_lost:
            self._is_lost = True
            self._leave()
            self.protocol.connection_lost(error)

    def _leave(self) -> None:
        if self.process is not None:
            self.process.transports.pop(self, None)


_nobody = contextvars.Context()


def _key_of(sock: socket.socket) -> str:
    name = sock.getsockname()
    return f"unix:{name}" if sock.family == socket.AF_UNIX else f"tcp:{name[1]}"


def _connected(key: str) -> socket.socket:
    """Dial through the kernel; raises OSError where nobody holds a listening socket open."""
    kind, _, place = key.partition(":")
    probe = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET)
    try:
        probe.connect(place if kind == "unix" else ("127.0.0.1", int(place)))
        probe.setblocking(False)
    except OSError:
        probe.close()
        raise
    return probe
