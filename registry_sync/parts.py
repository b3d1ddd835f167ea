"""Reading a large object in parts, side by side, and writing it down in order."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from registry_sync.stores import Store

PART_BYTES = 8 << 20  # below this, S3's time to the first byte dominates
PARTS_AHEAD_MAX = 8  # bounds memory to 64 MiB an object
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def read_in_order(
    store: Store, key: str, begun: int, size: int
) -> Generator[tuple[int, int, bytes], None, None]:
    """Yield an object's parts from byte `begun` on: offset, length asked for, bytes.

    Up to `PARTS_AHEAD_MAX` parts are read ahead; one call of the store for each.  Close the
    iterator when leaving early: what is being read then is not waited for.

    Args:
        size: of the object; where it turns out to be shorter, so are the bytes.

    Raises:
        StoreError: of the part whose turn it is.
    """
    offsets = deque(range(begun, size, PART_BYTES))
    if not offsets:
        return
    threads = ThreadPoolExecutor(min(PARTS_AHEAD_MAX, len(offsets)), "part")
    parts: deque[tuple[int, int, Future[bytes]]] = deque()
    try:
        while offsets or parts:
            while offsets and len(parts) < PARTS_AHEAD_MAX:
                offset = offsets.popleft()
                length = min(PART_BYTES, size - offset)
                parts.append((offset, length, threads.submit(store.read, key, offset, length)))
            offset, length, part = parts.popleft()
            yield offset, length, part.result()
    finally:
        # Not waited for: a read that hangs must not keep its caller from hearing of the failure.
        threads.shutdown(wait=False, cancel_futures=True)


def write_all(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`; raises OSError."""
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def require_room(folder: Path, missing: int) -> None:
    """Fail before filling a disk that others use as well: OSError with ENOSPC."""
    disk = os.statvfs(folder)
    if disk.f_bavail * disk.f_frsize < missing:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
