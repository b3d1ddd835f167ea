"""The second level: answers on disk, shared by the edges of a node, that nobody has to wait for.

Threads of its own do all of the work, begun by the first endpoint that asks for it.  A read is
waited for at most `READ_S_MAX`, a write never; what does not fit into their short queues is dropped
and counted.  Whatever goes wrong is a miss.  Reads and writes have a breaker each, so that a disk
that is full or locked goes on answering.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from edge import breaker, disk_frame
from edge.breaker import PAUSE_S, Breaker
from edge.disk_frame import BOOT_BYTES, BadFrame, Found, Stamp
from edge.disk_store import DiskFault, DiskStore
from pool.wire.data import TensorLike

READ_S_MAX = 0.02
OPEN_S_MAX = 1.0
READERS = 2
READS_MAX = 256  # waiting; no disk does more in 20 ms
WRITES_MAX = 1024
WRITE_BYTES_MAX = 32 << 20  # waiting: a disk that stands still must not cost memory
HELD_S = 1.0  # how often the folder is weighed
FLUSH_S_MAX = 1.0
DAMAGE_S = 10.0  # one line in so long: damage comes in hundreds
BOOT_PATH = Path("/proc/sys/kernel/random/boot_id")

Job = Callable[[DiskStore], object]

_log = structlog.get_logger()


@dataclass(slots=True)
class DiskCounters:
    """What this process has done with the disk since it began."""

    hits: int = 0
    misses: int = 0  # damaged frames among them, late and failed reads not
    late: int = 0  # reads that were not waited for any longer
    damaged: int = 0  # frames that did not fit, and were deleted
    dropped_reads: int = 0  # not tried: the queue was full
    dropped_writes: int = 0
    stored: int = 0
    too_large: int = 0
    paused_writes: int = 0  # not tried: the breaker was open
    errors: dict[str, int] = field(default_factory=dict)  # by kind


class Disk:
    """The disk as the loop sees it; every method returns at once."""

    def __init__(self, folder: Path, bytes_max: int) -> None:
        """Touch nothing yet.

        Args:
            folder: shared by the node's edges; must be theirs alone.
            bytes_max: of the folder.
        """
        self.counters = DiskCounters()
        self.held_bytes = 0
        self._folder = folder
        self._bytes_max = bytes_max
        self._loop = asyncio.get_running_loop()
        self._to_read: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._to_write: queue.SimpleQueue[Job] = queue.SimpleQueue()
        # The whole mutable state: the loop's, and then what only the writer's thread changes.
        self._reads = Breaker()
        self._has_started = False
        self._patient_until_s = 0.0  # until it is open, at first, a late read says nothing of it
        self._why_off = ""
        self._damage_told_s = -math.inf
        self._asked_bytes = 0
        self._writes = Breaker()
        self._written_bytes = 0
        self._weighed_s = 0.0

    @property
    def is_off(self) -> bool:
        """Whether reads or writes are left alone for now."""
        return self._reads.is_open or self._writes.is_open

    def start(self) -> None:
        """Begin to open the folder, so that the first read finds it open."""
        if self._has_started:
            return
        self._has_started = True
        self._patient_until_s = time.monotonic() + OPEN_S_MAX
        for jobs, count in ((self._to_read, READERS), (self._to_write, 1)):
            for _ in range(count):
                work = functools.partial(self._work, jobs)
                threading.Thread(target=work, name="disk", daemon=True).start()
        self._to_write.put(DiskStore.sweep)

    def look(self, key: bytes, tenant: str) -> asyncio.Future[Found | None] | None:
        """Look for an answer.

        Returns:
            What ends within 20 ms, with None for a miss of any kind.  None at once where nobody
            looks: the queue is full, or the disk has failed lately.
        """
        self.start()
        allowed, self._reads = breaker.ask(self._reads, time.monotonic())
        if not allowed:
            return None
        if self._to_read.qsize() >= READS_MAX:
            self.counters.dropped_reads += 1
            return None
        future: asyncio.Future[Found | None] = self._loop.create_future()
        timer = self._loop.call_later(READ_S_MAX, self._late, future)
        future.add_done_callback(lambda _: timer.cancel())
        self._to_read.put(functools.partial(self._read, future, key, tenant))
        return future

    def keep(
        self,
        key: bytes,
        tenant: str,
        outputs: Sequence[TensorLike],
        size_bytes: int,
        *,
        ttl_s: float,
        keep_s: float,
    ) -> None:
        """Keep an answer for `keep_s` seconds, of which it is fresh for `ttl_s`, if that works.

        Args:
            key: from `cache.cache_key`.
            tenant: whose answer it is.
            outputs: must not be changed by anybody afterwards.
            size_bytes: what they weigh.
            ttl_s: in seconds from now.
            keep_s: the same.
        """
        self.start()
        waiting_bytes = self._asked_bytes - self._written_bytes
        if self._to_write.qsize() >= WRITES_MAX or waiting_bytes + size_bytes > WRITE_BYTES_MAX:
            self.counters.dropped_writes += 1
            return
        self._asked_bytes += size_bytes
        stored = stamp()

        def write(store: DiskStore) -> None:
            try:
                self._write(store, key, tenant, outputs, stored, ttl_s, keep_s)
            finally:
                self._written_bytes += size_bytes

        self._to_write.put(write)

    async def flush(self) -> None:
        """Wait for the writes under way, for a second at most."""
        if not self._has_started:
            return
        done = asyncio.Event()
        self._to_write.put(lambda store: self._tell(done.set))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_S_MAX):
                await done.wait()

    # in the threads

    def _work(self, jobs: queue.SimpleQueue[Job]) -> None:
        store = DiskStore(self._folder, self._bytes_max)
        with contextlib.suppress(DiskFault):  # the first job will meet it again
            store.open()
        self._tell(self._opened)
        while True:
            job = jobs.get()
            try:
                job(store)
            except DiskFault as fault:
                self._tell(self._failed, fault)
            except Exception:
                # A bug must not end the thread: its queue would fill up without a word.
                _log.exception("bug")

    def _read(
        self, future: asyncio.Future[Found | None], key: bytes, tenant: str, store: DiskStore
    ) -> None:
        if future.done():
            return
        found = None
        try:
            frame = store.get(key)
            if frame is not None:
                found = disk_frame.decode(frame, key, tenant)
        except BadFrame as error:
            self._to_write.put(lambda store: store.delete(key))
            self._tell(self._damaged, str(error))
        except DiskFault as fault:
            self._tell(self._unreadable, future, fault)
            return
        self._tell(self._have_read, future, found)

    def _write(
        self,
        store: DiskStore,
        key: bytes,
        tenant: str,
        outputs: Sequence[TensorLike],
        stored: Stamp,
        ttl_s: float,
        keep_s: float,
    ) -> None:
        allowed, self._writes = breaker.ask(self._writes, time.monotonic())
        if not allowed:
            self.counters.paused_writes += 1
            return
        try:
            frame = disk_frame.encode(key, tenant, outputs, stored, ttl_s)
            if store.put(key, frame, keep_s):
                self.counters.stored += 1
            else:
                self.counters.too_large += 1
            now_s = time.monotonic()
            if now_s - self._weighed_s >= HELD_S:
                self._weighed_s = now_s
                self.held_bytes = store.held_bytes()
            self._writes = breaker.tell(self._writes, True, now_s)
        except DiskFault as fault:
            self._writes = _after(self._writes, fault)
            self._tell(self._failed, fault)

    def _tell(self, what: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody listens
            self._loop.call_soon_threadsafe(what, *arguments)

    # on the loop

    def _opened(self) -> None:
        self._patient_until_s = 0.0

    def _late(self, future: asyncio.Future[Found | None]) -> None:
        if future.done():
            return
        self.counters.late += 1
        now_s = time.monotonic()
        if now_s >= self._patient_until_s:
            self._reads = breaker.tell(self._reads, False, now_s)
            self._notice(f"reads took over {READ_S_MAX} s")
        future.set_result(None)

    def _have_read(self, future: asyncio.Future[Found | None], found: Found | None) -> None:
        if future.done():
            return
        self._reads = breaker.tell(self._reads, True, time.monotonic())
        self._notice("")
        if found is None:
            self.counters.misses += 1
        else:
            self.counters.hits += 1
        future.set_result(found)

    def _unreadable(self, future: asyncio.Future[Found | None], fault: DiskFault) -> None:
        self._reads = _after(self._reads, fault)
        self._failed(fault)
        if not future.done():
            future.set_result(None)

    def _damaged(self, why: str) -> None:
        self.counters.damaged += 1
        now_s = time.monotonic()
        if now_s - self._damage_told_s >= DAMAGE_S:
            self._damage_told_s = now_s
            _log.warning("disk_cache_damaged", why=why, so_far=self.counters.damaged)

    def _failed(self, fault: DiskFault) -> None:
        errors = self.counters.errors
        errors[fault.kind] = errors.get(fault.kind, 0) + 1
        self._notice(str(fault))

    def _notice(self, why: str) -> None:
        """Log when the disk is left alone, and when it is used again; not each failure."""
        if self.is_off and not self._why_off:
            self._why_off = why or "it failed"
            _log.warning("disk_cache_off", why=why, folder=str(self._folder))
        elif self._why_off and not self.is_off:
            self._why_off = ""
            _log.info("disk_cache_on", folder=str(self._folder))


def stamp() -> Stamp:
    """Return the present moment."""
    return Stamp(_boot(), time.clock_gettime(time.CLOCK_BOOTTIME), time.time())


@functools.cache
def _boot() -> bytes:
    try:
        return bytes.fromhex(BOOT_PATH.read_text().strip().replace("-", ""))[:BOOT_BYTES]
    except (OSError, ValueError):
        # A boot without a name is taken for one of this process, so that ages go by the calendar.
        return os.urandom(BOOT_BYTES)


def _after(state: Breaker, fault: DiskFault) -> Breaker:
    now_s = time.monotonic()
    if fault.kind == "insecure":  # trying again at once would find the same
        return Breaker(0.0, now_s + PAUSE_S)
    return breaker.tell(state, False, now_s)
