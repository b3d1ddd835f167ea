"""Memory that an edge and a worker of one host share, for tensors too large for a socket.

    edge     owns the arena: an anonymous file in memory, sealed so that its size stands.  It puts a
             call's tensors there and says where in the call (`data.Call.arena_at`)
    worker   maps it read-only and looks at the tensors where they lie.  A place is given back
             (`data.Release`) when nobody in the worker refers to it any more: not with the reply,
             since a run may outlive its call, and an output may be a view of an input

A payload through a socket is copied twice and its pages are made anew each time; here it is copied
once, into pages that are used again.  What does not fit, or has no arena, takes the socket.
The file has no name, so that nothing is left behind by whatever dies; the worker opens it through
the edge's process id, as the socket's other end tells it, never one that a message names.
"""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import stat
import weakref
from collections import deque
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from pool.wire.frames import Buffer, WireError, padded

ARENA_BYTES = 32 << 20  # address space; a page is memory only once it was used
PLACE_BYTES_MIN = 64 << 10  # below, the socket is as cheap
REST_S = 5.0  # an arena unused for so long gives its memory back

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class Places:
    """Which parts of an arena are taken.  Pure.

    A place is a power of two, and the one that was given back last is taken first: its pages are
    there, and in the caches.  Whenever nothing is taken all sizes begin anew.  Nothing lies at 0,
    which is how the wire says that there is no place.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        # The whole mutable state: up to where places were cut, sizes of those taken, and those
        # given back by their size.
        self._cut_bytes = PLACE_BYTES_MIN
        self._taken: dict[int, int] = {}
        self._free: dict[int, list[int]] = {}

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing is taken."""
        return not self._taken

    def take(self, size_bytes: int) -> int | None:
        """Return where `size_bytes` fit, or None where they do not."""
        place_bytes = max(PLACE_BYTES_MIN, 1 << (size_bytes - 1).bit_length())
        free = self._free.get(place_bytes)
        if free:
            at = free.pop()
        elif self._cut_bytes + place_bytes <= self._bytes_max:
            at = self._cut_bytes
            self._cut_bytes += place_bytes
        else:
            return None
        self._taken[at] = place_bytes
        return at

    def give_back(self, at: int) -> None:
        """Take note that nobody uses the place at `at` any more.

        Raises:
            KeyError: it is not taken.
        """
        place_bytes = self._taken.pop(at)
        if self._taken:
            self._free.setdefault(place_bytes, []).append(at)
        else:
            self._free.clear()
            self._cut_bytes = PLACE_BYTES_MIN


class Arena:
    """The edge's end: puts tensors into the arena of one connection."""

    def __init__(self, bytes_max: int = ARENA_BYTES) -> None:
        """Make an empty arena.

        Raises:
            OSError: this system has no such memory to give.
        """
        self.bytes_max = bytes_max
        self.fd = os.memfd_create("tidepool-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, bytes_max)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
            self._map = mmap.mmap(self.fd, bytes_max)
        except BaseException:
            os.close(self.fd)
            raise
        # The whole mutable state.
        self._places = Places(bytes_max)
        self._is_used = False  # since the last look
        self._rest: asyncio.TimerHandle | None = None

    def put(self, parts: Iterable[Buffer], size_bytes: int) -> int | None:
        """Copy `parts` in, each padded to 8 bytes; return where they begin.

        Args:
            parts: the tensors' bytes.
            size_bytes: of all of them, padding included.

        Returns:
            None where there is no room.
        """
        start = at = self._places.take(size_bytes)
        if start is None or at is None:
            return None
        for part in parts:
            end = at + len(part)
            self._map[at:end] = part
            at += padded(len(part))
        self._is_used = True
        if self._rest is None:
            self._rest = asyncio.get_running_loop().call_later(REST_S, self._look)
        return start

    def released(self, places: Iterable[int]) -> None:
        """Take back what the worker does not use any more.

        Raises:
            WireError: it had not got such a place.
        """
        for at in places:
            try:
                self._places.give_back(at)
            except KeyError:
                raise WireError(f"the worker gives back place {at}, which it has not got") from None

    def _look(self) -> None:
        """Give the memory back once nothing of it was used for a while."""
        self._rest = None
        if self._is_used or not self._places.is_empty:
            self._is_used = False
            self._rest = asyncio.get_running_loop().call_later(REST_S, self._look)
        else:
            self._map.madvise(mmap.MADV_REMOVE)

    def close(self) -> None:
        """Let go of it; what the worker still looks at stays there for it."""
        if self._rest is not None:
            self._rest.cancel()
        self._map.close()
        os.close(self.fd)


class ArenaView:
    """The worker's end: looks at what an edge has put into its arena."""

    def __init__(self, pid: int, fd: int, size_bytes: int) -> None:
        """Map the arena of the process `pid`.

        Raises:
            OSError: it cannot be opened: another user's, or seen under another id.
            WireError: it is no such memory: the size could change under us, or is another.
        """
        opened = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = os.fstat(opened)
            if not stat.S_ISREG(found.st_mode) or found.st_size != size_bytes or size_bytes == 0:
                raise WireError(f"no arena of {size_bytes} bytes")
            try:
                seals = fcntl.fcntl(opened, fcntl.F_GET_SEALS)
            except OSError:  # an ordinary file
                seals = 0
            if seals & _SEALS != _SEALS:
                raise WireError("the arena's size is not sealed")
            self._map = mmap.mmap(opened, size_bytes, prot=mmap.PROT_READ)
        finally:
            os.close(opened)
        self.size_bytes = size_bytes
        # The whole mutable state: who looks at which place, and the places nobody looks at any
        # more, which any thread may add to.
        self._lookers: dict[int, weakref.ref[NDArray[np.uint8]]] = {}
        self._released: deque[int] = deque()

    def look(self, at: int, size_bytes: int, on_release: Callable[[], object]) -> memoryview:
        """Return the bytes at `at`; every view made of them counts as somebody who looks.

        Args:
            at: where they begin, as the edge has said.
            size_bytes: how many there are.
            on_release: called when the last view is gone, in whatever thread that happens;
                `take_released` then names the place.

        Raises:
            WireError: they are not inside the arena, or the place is in use.
        """
        if not 0 < size_bytes <= self.size_bytes - at:
            raise WireError(f"{size_bytes} bytes at {at} are not inside the arena")
        if at in self._lookers:
            raise WireError(f"place {at} is in use")
        # An array, because views of it keep it alive, and its end can be observed.
        whole = np.frombuffer(self._map, np.uint8, size_bytes, at)

        def gone(_: object) -> None:
            self._released.append(at)
            on_release()

        self._lookers[at] = weakref.ref(whole, gone)
        return whole.data

    def take_released(self) -> tuple[int, ...]:
        """Return the places that nobody looks at since the last time."""
        found = []
        while self._released:
            at = self._released.popleft()
            del self._lookers[at]
            found.append(at)
        return tuple(found)
