"""This machine: the data folder, its file system, shared memory, open files."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Final

from infra.doctor.findings import Finding, ok, warning, wrong
from registry_sync.local_plans import BYTES_MAX_DEFAULT

FREE_BYTES_MIN: Final = 1 << 30  # below it a model of usual size does not fit
FILES_MIN: Final = 1024
FILES_GOOD: Final = 8192  # an edge holds one for each connection
_MEMORY_BYTES: Final = 1 << 20
MOUNTS: Final = Path("/proc/self/mountinfo")
_REMOTE: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "fuse.s3fs", "ceph"})


def examine(data: Path) -> list[Finding]:
    """Look at the machine, for a node with its data in `data`."""
    return [*folder(data), shared_memory(), open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))]


def folder(data: Path) -> list[Finding]:
    """Look at the data folder, or at where it will be made."""
    there = data
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        return [wrong("data", f"{there} is not a folder", "choose another --data")]
    usable = _usable(data, there)
    if usable.state == "wrong":
        return [usable]
    more = (_private(data), _free(shutil.disk_usage(there).free, there), _kind(there))
    return [usable, *(one for one in more if one is not None)]


def _usable(data: Path, there: Path) -> Finding:
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return wrong(
            "data",
            f"{there} cannot be written by user {os.getuid()}, or knows no locks: {error.strerror}",
            f"chown {os.getuid()} {there}, mount it writable, or choose another --data",
        )
    return ok("data", f"{data}" if there == data else f"{data} will be made")


def _private(data: Path) -> Finding | None:
    if not data.exists():
        return None
    found = data.stat()
    if found.st_uid != os.getuid():
        return wrong(
            "data",
            f"{data} belongs to user {found.st_uid}, and this is {os.getuid()}",
            f"chown -R {os.getuid()} {data}, or choose another --data",
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return wrong(
            "data",
            f"others may write into {data} (mode {stat.S_IMODE(found.st_mode):o}), where secrets "
            "and sockets lie",
            f"chmod 700 {data}",
        )
    return None


def _free(free_bytes: int, there: Path) -> Finding:
    text = f"{free_bytes / (1 << 30):.1f} GiB free at {there}"
    if free_bytes < FREE_BYTES_MIN:
        do = "free some, or choose a --data on a larger disk"
        return wrong("disk", f"{text}; models are brought here", do)
    if free_bytes < BYTES_MAX_DEFAULT:
        return warning(
            "disk",
            f"{text}; built plans alone may take {BYTES_MAX_DEFAULT >> 30} GiB",
            "a larger disk, or a smaller --plans-bytes-max",
        )
    return ok("disk", text)


def _kind(there: Path) -> Finding | None:
    kind = file_system(there, MOUNTS.read_text() if MOUNTS.exists() else "")
    if kind in _REMOTE:
        return warning(
            "disk",
            f"{there} is on {kind}: a node's folder is its own, with locks and sockets in it",
            "choose a --data on a disk of this machine",
        )
    if kind in ("tmpfs", "ramfs"):
        return warning(
            "disk",
            f"{there} is in memory ({kind}): models there count as memory, and are gone after a "
            "restart",
            "choose a --data on a disk, unless that is what you want",
        )
    return None


def file_system(path: Path, mounts: str) -> str:
    """Return the kind of file system on which a path lies; empty: unknown.

    Args:
        mounts: as in /proc/self/mountinfo; later lines cover earlier ones.
    """
    here = path.resolve()
    best, kind = -1, ""
    for line in mounts.splitlines():
        fields, _, more = line.partition(" - ")
        words = fields.split(" ")
        if len(words) < 5 or not more:
            continue
        point = Path(words[4].encode().decode("unicode_escape"))
        if (here == point or point in here.parents) and len(point.parts) >= best:
            best, kind = len(point.parts), more.split(" ")[0]
    return kind


def shared_memory() -> Finding:
    """See whether tensors can go between two processes without a copy."""
    try:
        descriptor = os.memfd_create("tidepool-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, _MEMORY_BYTES)
            os.pwrite(descriptor, b"\0", _MEMORY_BYTES - 1)
        finally:
            os.close(descriptor)
    except (OSError, AttributeError) as error:
        return warning(
            "memory",
            f"memory cannot be shared between processes ({error}): large tensors are copied",
            "run on Linux 3.17 or newer, and let the sandbox allow memfd_create",
        )
    return ok("memory", "can be shared between processes")


def open_files(soft: int, hard: int) -> Finding:
    """Judge the limit of open files."""
    if soft == resource.RLIM_INFINITY or soft >= FILES_GOOD:
        return ok("open files", "no limit" if soft == resource.RLIM_INFINITY else f"{soft}")
    top = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    do = f"`ulimit -n 65536` (this user may set up to {top}); on ECS `ulimits` of the container"
    text = f"{soft} at once; an edge holds one for each connection"
    if soft < FILES_MIN:
        return wrong("open files", text, do)
    return warning("open files", text, do)
