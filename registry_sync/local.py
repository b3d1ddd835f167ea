"""A node's own folder of artifacts: verified blobs, last good manifests and documents.

    blobs/sha256/<hex>               verified, read-only; only ever there whole
    blobs/sha256/<hex>.partial       a download under way: a prefix of the blob
    models/<model>/<version>/manifest.json
    trees/<artifact digest>/…        a model's files under their own names, for engines
    documents/…                      last good copies, kept by whoever uses them

Everything becomes visible by one rename after an fsync. Where blobs come from,
and their verification, is `sync`'s business.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import uuid
from itertools import islice
from pathlib import Path

from registry_sync.documents import BadDocument, Manifest, read_manifest, write
from registry_sync.locks import locked
from registry_sync.names import check_digest, check_name, check_version
from registry_sync.stores import check_key
from registry_sync.trust import Trust

# A blob may sit on another device (EXDEV), on a file system without links (EPERM), or already
# have as many as it may (EMLINK).
_COPY_INSTEAD = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP)


class BadLayout(ValueError):
    """A manifest names files that cannot be laid out in a folder."""


class LocalStore:
    """The folder below `root`, made if it does not exist; safe between processes.

    Args:
        trust: whose manifests are used, also of those that are here already.
    """

    def __init__(self, root: Path, trust: Trust | None = None) -> None:
        self.trust = trust or Trust()
        self._root = root.resolve()
        for name in ("blobs/sha256", "models", "trees", "documents"):
            (self._root / name).mkdir(parents=True, exist_ok=True)

    def blob_path(self, sha256: str) -> Path:
        """Return where the blob is, or would be."""
        return self._root / "blobs" / "sha256" / check_digest(sha256)

    def has_blob(self, sha256: str, size: int) -> bool:
        """Say whether the blob is here; it was verified before it came to be."""
        try:
            found = self.blob_path(sha256).lstat()
        except FileNotFoundError:
            return False
        return stat.S_ISREG(found.st_mode) and found.st_size == size

    def has(self, manifest: Manifest) -> bool:
        """Say whether all files of the manifest are here."""
        return all(self.has_blob(file.sha256, file.bytes) for file in manifest.files)

    def save_manifest(self, manifest: Manifest, data: bytes | None = None) -> None:
        """Keep a manifest; `data` is its text as it was read, with what this release ignores."""
        path = self._manifest_path(manifest.model, manifest.version)
        _replace(path, write(manifest) if data is None else data)

    def load_manifest(self, model: str, version: str) -> Manifest | None:
        """Return the kept manifest; None if there is none, or none that can be read and used."""
        try:
            data = self._manifest_path(model, version).read_bytes()
            self.trust.check(data)
            manifest = read_manifest(data)
        except (FileNotFoundError, BadDocument):
            return None
        return manifest if (manifest.model, manifest.version) == (model, version) else None

    def formats(self) -> frozenset[str]:
        """Return the formats of the versions that are, or were, here; of the first thousand."""
        found: set[str] = set()
        for path in islice(self._root.glob("models/*/*/manifest.json"), 1000):
            with contextlib.suppress(OSError, BadDocument):
                found.add(read_manifest(path.read_bytes()).format)
        return frozenset(found)

    def save_document(self, name: str, data: bytes) -> None:
        """Keep the last good copy of a document under a name such as `endpoints/a.json`."""
        _replace(self._root / "documents" / check_key(name), data)

    def load_document(self, name: str) -> bytes | None:
        """Return the last good copy, None if there never was one."""
        try:
            return (self._root / "documents" / check_key(name)).read_bytes()
        except FileNotFoundError:
            return None

    def folder_of(self, manifest: Manifest) -> Path:
        """Return a folder with the manifest's files under their own names, making it if need be.

        The files are hard links to the blobs (copies where links cannot be);
        nobody writes to them. The folder appears whole or not at all.

        Raises:
            BadLayout: a path would leave the folder, or two paths are in
                each other's way.
            FileNotFoundError: a blob is not here; fetch it first.
        """
        folder = self._root / "trees" / check_digest(manifest.digest)
        for file in manifest.files:
            _check_path(file.path)
        if self._is_whole(folder, manifest):
            return folder
        building = self._root / "trees" / f".{uuid.uuid4().hex}"
        building.mkdir()
        try:
            for file in manifest.files:
                _put(self.blob_path(file.sha256), building, file.path)
            _fsync(building)
            with locked(folder.parent):
                # Meanwhile another process may have been quicker with the same files.
                if not self._is_whole(folder, manifest):
                    # A folder that lost a part is moved aside, since it cannot be replaced.
                    with contextlib.suppress(FileNotFoundError):
                        os.rename(folder, building.with_suffix(".old"))
                    os.rename(building, folder)
                    _fsync(folder.parent)
        finally:
            shutil.rmtree(building, ignore_errors=True)
            shutil.rmtree(building.with_suffix(".old"), ignore_errors=True)
        return folder

    def _manifest_path(self, model: str, version: str) -> Path:
        folder = self._root / "models" / check_name("model", model) / check_version(version)
        return folder / "manifest.json"

    def _is_whole(self, folder: Path, manifest: Manifest) -> bool:
        for file in manifest.files:
            try:
                found = (folder / file.path).lstat()
            except (FileNotFoundError, NotADirectoryError):
                return False
            if not stat.S_ISREG(found.st_mode) or found.st_size != file.bytes:
                return False
        return True


def _check_path(path: str) -> None:
    """Refuse a file's path that is not plainly inside its artifact's folder."""
    try:
        check_key(path)
    except ValueError:
        raise BadLayout(f"file {path!r:.100} does not stay in its artifact's folder") from None


def _put(blob: Path, folder: Path, path: str) -> None:
    """Let `folder/path` be the blob's content."""
    target = folder / path
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # The folder is new and ours, so no link can be in the way; this is the second lock.
        if not target.parent.resolve().is_relative_to(folder):
            raise BadLayout(f"file {path!r:.100} does not stay in its artifact's folder")
        os.link(blob, target, follow_symlinks=False)
    except (FileExistsError, NotADirectoryError):
        raise BadLayout(f"file {path!r:.100} is in the way of another file") from None
    except OSError as error:
        if error.errno not in _COPY_INSTEAD:
            raise
        _copy(blob, target)


def _copy(blob: Path, target: Path) -> None:
    descriptor = os.open(blob, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as source, open(target, "xb") as copy:
        shutil.copyfileobj(source, copy, 1 << 20)
        copy.flush()
        os.fsync(copy.fileno())
        os.fchmod(copy.fileno(), 0o444)


def _replace(path: Path, data: bytes) -> None:
    """Let `path` hold `data`, durably and in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_name(f".{uuid.uuid4().hex}")
    try:
        with open(building, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(building, path)
        _fsync(path.parent)
    finally:
        building.unlink(missing_ok=True)


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
