"""The files of one plan in a folder of this node: read with bounds, made durable.

No file that is a link is read.  Which folder holds which plan is `local_plans`' business.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from pathlib import Path
from typing import Final

from registry_sync.names import check_digest
from registry_sync.plans import (
    NOT_RUN,
    BadPlan,
    GateReport,
    PlanMeta,
    check_mac,
    read_gate,
    read_meta,
)

FILES: Final = ("plan", "meta.json", "inspector.json", "gate.json", "stored")
_GOLDEN_GATE: Final = re.compile(r"gate-[0-9a-f]{64}\.json")
META_BYTES_MAX: Final = 1 << 20  # 64 profiles of some ten inputs are 50 KB
SIDE_BYTES_MAX: Final = 16 << 20  # of inspector.json and of gate.json


def read_folder(folder: Path, key: str) -> tuple[PlanMeta, bytes]:
    """Read a folder's metadata, and hold the plan's size and the key against them.

    Returns:
        The metadata, and their bytes.

    Raises:
        BadPlan: something does not fit; the plan's own bytes are not read.
        FileNotFoundError: there is no such folder (any more).
    """
    try:
        data = read_small(folder / "meta.json", META_BYTES_MAX)
        size = _regular(folder / "plan").st_size
    except FileNotFoundError:
        if not folder.is_dir():
            raise
        raise BadPlan("it is not whole: plan or metadata are missing") from None
    meta = read_meta(data)
    if meta.key != check_digest(key):
        raise BadPlan(f"it is of another key, {meta.key}")
    if size != meta.bytes:
        raise BadPlan(f"it has {size} bytes, its metadata say {meta.bytes}")
    return meta, data


def gate_name(golden: str) -> str:
    """Return the name of the record of a trial on recorded inputs (by digest; empty: on drawn)."""
    return f"gate-{check_digest(golden)}.json" if golden else "gate.json"


def is_kept(name: str) -> bool:
    """Tell whether a file of this name belongs to a plan."""
    return name in FILES or _GOLDEN_GATE.fullmatch(name) is not None


def gate_of(
    folder: Path, meta: PlanMeta, key: str, secret_key: bytes, golden: str = ""
) -> GateReport:
    """Return the verdict about a plan: that of its build, else a later one whose MAC holds.

    Args:
        golden: digest of the recorded inputs on which it must have been tried; empty: on drawn.
    """
    if meta.gate.verdict != "not_run" and meta.gate.golden == golden:
        return meta.gate
    try:
        record = read_gate(read_small(folder / gate_name(golden), SIDE_BYTES_MAX))
        check_mac(record, secret_key)
    except (FileNotFoundError, BadPlan):
        # A verdict that nobody vouches for is none: the gate runs again.
        return NOT_RUN
    fits = (record.key, record.plan_sha256) == (key, meta.plan_sha256)
    return record.report if fits and record.report.golden == golden else NOT_RUN


def settle_files(folder: Path) -> int:
    """Make a plan's files durable and read-only, remove everything else; return their bytes."""
    total = 0
    for entry in list(os.scandir(folder)):
        if not is_kept(entry.name):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
            continue
        _regular(Path(entry.path))
        descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchmod(descriptor, 0o444)
            os.fsync(descriptor)
            total += os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
    fsync_folder(folder)
    return total


def read_small(path: Path, bytes_max: int) -> bytes:
    """Read a file whole; `BadPlan` if it is too long or a link, FileNotFoundError if not there."""
    if _regular(path).st_size > bytes_max:
        raise BadPlan(f"its {path.name} is longer than {bytes_max} bytes")
    return path.read_bytes()


def _regular(path: Path) -> os.stat_result:
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise BadPlan(f"its {path.name} is no file")
    return found


def digest_of(path: Path) -> str:
    """Return a file's sha256 in hexadecimal; raises OSError."""
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file, read-only, that outlives a loss of power once its folder does."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        os.fchmod(file.fileno(), 0o444)


def fsync_folder(folder: Path) -> None:
    """Make what was created or renamed in a folder outlive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
