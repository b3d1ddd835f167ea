"""A node's own folder of built plans: bounded in bytes, shared by its processes, checked on use.

    <key>/<secret id>/<sha256 of meta.json>/   a plan's files, there whole or not at all
        plan  meta.json  inspector.json  gate.json
        gate-<digest>.json                 the verdict on a version's recorded inputs; stays here
        stored                             the etag of this plan in the registry, once it lies there
    <key>/<secret id>/<sha256>.refused         a pair whose MAC did not hold: not brought again
    .scratch/<random>/                         where files are made before they are taken over

A folder's name is the digest of its metadata, which holds the digest of the plan: so a path that
was found names these bytes or nothing, whatever comes afterwards.  Every change is made under one
lock and becomes visible by one rename; what a dead process left is swept by the next one.
Where plans come from is `plan_store`'s business; who holds which secret is the caller's.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from registry_sync.locks import locked
from registry_sync.names import check_digest, check_name
from registry_sync.plan_eviction import Held, to_evict
from registry_sync.plan_files import (
    digest_of,
    fsync_folder,
    gate_name,
    gate_of,
    is_kept,
    read_folder,
    settle_files,
    write_durably,
)
from registry_sync.plans import BadPlan, GateRecord, GateReport, PlanMeta, check_mac, write

BYTES_MAX_DEFAULT: Final = 16 << 30
_SCRATCH = ".scratch"
_REFUSED = ".refused"
_REFUSED_MAX = 16  # remembered of one key and secret


class LocalPlan(msgspec.Struct, frozen=True):
    """A plan that may be loaded as far as its bytes go; `gate` says whether its numbers agree."""

    key: str
    secret_id: str
    meta: PlanMeta
    plan: Path  # read-only; these bytes or, once evicted, nothing
    gate: GateReport  # on the inputs asked for: of the build, else of a later device


class Pair(msgspec.Struct, frozen=True):
    """A plan's files as they lie here, vouched for by nobody: for sending them on."""

    folder: Path
    meta: PlanMeta
    meta_bytes: bytes
    digest: str  # sha256 of `meta_bytes`


class LocalPlans:
    """The folder below `root`, made if it does not exist; safe between threads and processes.

    Args:
        root: `DATA/store/engines`.
        bytes_max: of all plans together; what is being made in a scratch folder comes on top.
    """

    def __init__(self, root: Path, bytes_max: int = BYTES_MAX_DEFAULT) -> None:
        # A plan is code: nobody else may put one here.
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._root = root.resolve()
        self._bytes_max = bytes_max
        (self._root / _SCRATCH).mkdir(mode=0o700, exist_ok=True)

    @property
    def bytes_max(self) -> int:
        return self._bytes_max

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Lend a new folder on the same file system; whatever is left in it goes with it.

        It may be used by a child process.  What a process that was killed left there is removed
        when the next one asks for a folder.
        """
        folder = self._root / _SCRATCH / uuid.uuid4().hex
        with locked(self._root):
            self._sweep()
            folder.mkdir(mode=0o700)
            # Held for as long as its user lives: that is how a sweep tells.
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)

    def add(self, key: str, secret_id: str, folder: Path) -> None:
        """Take over a folder of `scratch`, in the place of what was under the key before.

        What was least recently used leaves, until all is within the bound; never this one.

        Args:
            folder: with `plan` and `meta.json`, perhaps `inspector.json` and `gate.json`;
                anything else in it is removed.

        Raises:
            BadName: key or secret id cannot be ones.
            BadPlan: the files do not fit each other or the key, or are more than the bound.
                The plan's bytes are not read: whoever finds it checks them.
            OSError: the disk is full or broken; nothing was changed.
        """
        _, data = read_folder(folder, key)
        held_bytes = settle_files(folder)
        if held_bytes > self._bytes_max:
            raise BadPlan(
                f"it is {held_bytes} bytes, and this node keeps at most {self._bytes_max} bytes "
                "of plans: raise --plans-bytes-max"
            )
        place = self._place(key, secret_id)
        target = place / hashlib.sha256(data).hexdigest()
        with locked(self._root):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not target.is_dir():
                os.rename(folder, target)
            elif (folder / "gate.json").exists():
                os.rename(folder / "gate.json", target / "gate.json")
            _touch(target)
            fsync_folder(place)
            fsync_folder(self._root)
            gone = [other for other in _pairs_in(place) if other != target]
            held = self._held(without=gone)
            evicted = to_evict(held, self._bytes_max, keep=str(target.relative_to(self._root)))
            gone += [self._root / one.name for one in evicted]
            trash = self._throw_away(gone)
        _remove(trash)

    def find(
        self, key: str, secret_keys: Mapping[str, bytes], golden: str | None = None
    ) -> LocalPlan | None:
        """Return the plan of a key whose MAC, bytes and key hold; this counts as a use of it.

        Reads the whole plan once.  One that must not be loaded has left the folder when this
        returns or raises; if it was its MAC, the same pair is not brought here again.

        Args:
            secret_keys: by secret id, the preferred one first; others are not looked at.
            golden: of the version; a verdict on other inputs is none for it.

        Raises:
            BadName: the key cannot be one.
            BadPlan: none holds, and at least one was there; says why.
            OSError: the disk is broken.
        """
        bad: BadPlan | None = None
        for secret_id, secret_key in secret_keys.items():
            for folder in _pairs_in(self._place(key, secret_id)):
                try:
                    return self._checked(key, secret_id, secret_key, folder, golden or "")
                except FileNotFoundError:
                    continue  # evicted or replaced meanwhile
                except BadPlan as error:
                    bad = error
        if bad is not None:
            raise bad
        return None

    def keys(self, secret_id: str) -> list[str]:
        """Return the keys of which plans of a secret id are here; raises `BadName`."""
        check_name("secret id", secret_id)
        named = [path.name for path in _folders_in(self._root) if path.name != _SCRATCH]
        return [key for key in named if _pairs_in(self._place(key, secret_id))]

    def drop(self, key: str, secret_id: str) -> None:
        """Remove a plan from this node; none there is no error."""
        with locked(self._root):
            trash = self._throw_away(_pairs_in(self._place(key, secret_id)))
        _remove(trash)

    def put_gate(self, key: str, secret_id: str, record: GateRecord) -> None:
        """Keep the verdict of this node's device beside the plan, one for each golden.

        Raises:
            BadPlan: that plan is not here (any more).
            OSError: the disk is full or broken.
        """
        pair = self.pair(key, secret_id)
        if pair is None or (record.key, record.plan_sha256) != (key, pair.meta.plan_sha256):
            raise BadPlan("the plan that the gate's record is about is not here")
        self.save_beside(pair, gate_name(record.report.golden), write(record))

    def pair(self, key: str, secret_id: str) -> Pair | None:
        """Return the files under a key, unchecked but for what they say of themselves."""
        for folder in _pairs_in(self._place(key, secret_id)):
            with contextlib.suppress(BadPlan, OSError):
                meta, data = read_folder(folder, key)
                return Pair(folder, meta, data, hashlib.sha256(data).hexdigest())
        return None

    def save_beside(self, pair: Pair, name: str, data: bytes) -> None:
        """Keep one of the small files of a pair.

        Raises:
            BadPlan: the plan has left meanwhile.
            OSError: the disk is full or broken.
        """
        assert is_kept(name)
        with self.scratch() as scratch:
            made = scratch / name
            write_durably(made, data)
            try:
                os.rename(made, pair.folder / name)
                fsync_folder(pair.folder)
            except FileNotFoundError:
                raise BadPlan(f"the plan to which a {name} belongs is not here") from None

    def is_refused(self, key: str, secret_id: str, digest: str) -> bool:
        """Say whether a pair with this metadata (by sha256) was refused here for its MAC."""
        return (self._place(key, secret_id) / f"{check_digest(digest)}{_REFUSED}").exists()

    def bytes_held(self) -> int:
        """Return the bytes of all plans together."""
        return sum(one.bytes for one in self._held())

    def _checked(
        self, key: str, secret_id: str, secret_key: bytes, folder: Path, golden: str
    ) -> LocalPlan:
        """Return what the folder holds.

        Raises:
            BadPlan: it must not be loaded, and has been removed.
            FileNotFoundError: somebody else removed it meanwhile.
        """
        _touch(folder)
        try:
            meta, data = read_folder(folder, key)
            digest = digest_of(folder / "plan")
            if digest != meta.plan_sha256:
                raise BadPlan(f"its bytes have the sha256 {digest}, not {meta.plan_sha256}")
            if hashlib.sha256(data).hexdigest() != folder.name:
                raise BadPlan("its metadata are not those that came here")
        except BadPlan:
            self._refuse(folder, "")
            raise
        try:
            check_mac(meta, secret_key)
        except BadPlan:
            # Not damaged here: it came so, and would come so again.
            self._refuse(folder, folder.name)
            raise
        report = gate_of(folder, meta, key, secret_key, golden)
        return LocalPlan(key, secret_id, meta, folder / "plan", report)

    def _refuse(self, folder: Path, digest: str) -> None:
        with locked(self._root):
            if digest:
                (folder.parent / f"{digest}{_REFUSED}").touch(mode=0o600)
                marks = sorted(folder.parent.glob(f"*{_REFUSED}"), key=_mtime_ns)
                for old in marks[:-_REFUSED_MAX]:
                    old.unlink(missing_ok=True)
            trash = self._throw_away([folder])
        _remove(trash)

    def _place(self, key: str, secret_id: str) -> Path:
        return self._root / check_digest(key) / check_name("secret id", secret_id)

    def _held(self, without: list[Path] | None = None) -> list[Held]:
        found = []
        for key in os.scandir(self._root):
            if key.name == _SCRATCH or not key.is_dir(follow_symlinks=False):
                continue
            for secret in _folders_in(Path(key.path)):
                for pair in _pairs_in(secret):
                    if without and pair in without:
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        found.append(
                            Held(
                                str(pair.relative_to(self._root)),
                                sum(entry.stat().st_size for entry in os.scandir(pair)),
                                _mtime_ns(pair),
                            )
                        )
        return found

    def _throw_away(self, folders: list[Path]) -> list[Path]:
        """Take folders out of sight, under the lock; return where they await removal."""
        trash = []
        for folder in folders:
            away = self._root / _SCRATCH / uuid.uuid4().hex
            with contextlib.suppress(FileNotFoundError):
                os.rename(folder, away)
                trash.append(away)
                # The folders above hold nothing else, unless something was refused there.
                for above in (folder.parent, folder.parent.parent):
                    with contextlib.suppress(OSError):
                        above.rmdir()
        return trash

    def _sweep(self) -> None:
        """Remove scratch folders that no living process holds."""
        for entry in os.scandir(self._root / _SCRATCH):
            try:
                descriptor = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except OSError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(entry.path, ignore_errors=True)
            except BlockingIOError:
                pass
            finally:
                os.close(descriptor)


def _pairs_in(place: Path) -> list[Path]:
    """Return the folders of pairs, the latest used first."""
    return sorted(_folders_in(place), key=_mtime_ns, reverse=True)


def _folders_in(place: Path) -> list[Path]:
    try:
        entries = list(os.scandir(place))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]


def _mtime_ns(path: Path) -> int:
    try:
        return path.lstat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _touch(folder: Path) -> None:
    """Note a use; by the wall clock, since the order has to outlive every process."""
    now_ns = time.time_ns()
    os.utime(folder, ns=(now_ns, now_ns))


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
