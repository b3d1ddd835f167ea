"""A file or folder on disk → the checked list of files that become an artifact.

Reads and hashes; uploads nothing.  An artifact is a fixed list of plain files: no links, no
devices, nothing outside its folder.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from registry_sync.documents import FILES_MAX, Precision
from registry_sync.names import BadName
from registry_sync.rules import check_path

SIDECAR: Final = "tidepool.json"
GRAPH: Final = "model.onnx"  # where engines look for the graph of an onnx artifact
PT2: Final = "model.pt2"  # and for the archive of a torch-export one
BYTES_MAX: Final = 1024**4  # of all files together
# Ends of names.  A .pt2 or .npz is a zip file as well, but a format of its own.
ARCHIVES: Final = (
    *(".zip", ".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar", ".whl", ".jar", ".mar"),
    *(".gz", ".bz2", ".xz", ".zst", ".lz4"),
)
_CHUNK_BYTES: Final = 1024 * 1024


class BadArtifact(ValueError):
    """What was to be published is not an artifact; the text names the file and the way out."""


def graph_of(precision: Precision) -> str:
    """Return where the graph of an onnx artifact lies that computes so.

    >>> graph_of("fp32"), graph_of("fp16")
    ('model.onnx', 'model.fp16.onnx')
    """
    return GRAPH if precision == "fp32" else f"model.{precision}.onnx"


class Source(msgspec.Struct, frozen=True):
    """One file of an artifact-to-be."""

    path: str  # in the artifact
    at: Path  # on this disk
    stamp: tuple[int, ...]  # changes when the file does

    @property
    def bytes(self) -> int:
        """Its size when it was found."""
        return self.stamp[0]


def find_sources(path: Path) -> list[Source]:
    """List the files of an artifact by their paths in it, sorted.

    A single file must be an ONNX graph or an archive of torch.export.  A folder is an ONNX model
    unless it holds a `tidepool.json`, which is not part of the artifact; then its graph is
    ``model.onnx``, or the only ``.onnx`` file at its top, which becomes ``model.onnx``.

    Raises:
        BadArtifact: nothing there, a link, something not a plain file, an archive, a name that
            cannot be a path, too many or too large files, no graph or several.
    """
    if path.is_symlink() or not path.is_dir():
        single = find_file(path)
        _refuse_archive(path.name)
        if path.suffix == ".pt2":
            return [Source(PT2, path, single.stamp)]
        if path.suffix != ".onnx":
            raise BadArtifact(
                f"{path.name}: not an .onnx or .pt2 file; publish other formats as a folder with a "
                f"{SIDECAR} that says format, inputs and outputs"
            )
        return [Source(GRAPH, path, single.stamp)]
    sources = []
    for file in _walk(path):
        name = file.relative_to(path).as_posix()
        try:
            check_path(name)
        except (BadName, UnicodeEncodeError):
            raise BadArtifact(f"{name!r:.200}: not a name for a file of an artifact") from None
        sources.append(Source(name, file, _plain_file(file)))
        _refuse_archive(name)
        if len(sources) > FILES_MAX:
            raise BadArtifact(
                f"{path.name}: more than {FILES_MAX} files; publish only what the model needs"
            )
    if sum(source.bytes for source in sources) > BYTES_MAX:
        raise BadArtifact(f"{path.name}: more than {BYTES_MAX} bytes")
    if not any(source.path == SIDECAR for source in sources):
        sources = _with_graph(sources, path.name)
    return sorted(sources, key=lambda source: source.path)


def find_file(path: Path) -> Source:
    """Return a single plain file under its own name; raises `BadArtifact` if it is none."""
    return Source(path.name, path, _plain_file(path))


def digest(source: Source) -> str:
    """Return the sha256 (hex) of a file's bytes.

    Raises:
        BadArtifact: it changed since it was found.
    """
    sha256 = hashlib.sha256()
    # O_NOFOLLOW: a link that took the file's place since must not be read.
    with open(os.open(source.at, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            sha256.update(chunk)
    check_unchanged(source)
    return sha256.hexdigest()


def check_unchanged(source: Source) -> None:
    """Raise `BadArtifact` if a file is not as it was when it was found."""
    if _plain_file(source.at) != source.stamp:
        raise BadArtifact(f"{source.path}: changed while it was published; publish it again")


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder, onerror=_refuse):
        for name in folders:
            if Path(parent, name).is_symlink():
                _plain_file(Path(parent, name))
        yield from (Path(parent, name) for name in files)


def _refuse_archive(name: str) -> None:
    # Its files would have no digests of their own, and every engine would have to unpack it.
    if name.lower().endswith(ARCHIVES):
        raise BadArtifact(f"{name}: an archive; unpack it, and publish the folder")


def _refuse(error: OSError) -> None:
    raise BadArtifact(f"{error.filename}: {error.strerror}")


def _plain_file(path: Path) -> tuple[int, ...]:
    try:
        found = path.lstat()
    except OSError as error:
        raise BadArtifact(f"{path}: {error.strerror}") from None
    if stat.S_ISLNK(found.st_mode):
        raise BadArtifact(f"{path}: a symbolic link; publish what it points to: {path.resolve()}")
    if not stat.S_ISREG(found.st_mode):
        raise BadArtifact(f"{path}: neither a plain file nor a folder")
    return found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev


def _with_graph(sources: list[Source], folder: str) -> list[Source]:
    if any(source.path == GRAPH for source in sources):
        return sources
    graphs = [source for source in sources if source.path.endswith(".onnx")]
    graphs = [source for source in graphs if "/" not in source.path]
    if len(graphs) != 1:
        found = ", ".join(source.path for source in graphs[:5]) or "none"
        raise BadArtifact(
            f"{folder}: expected {GRAPH} or one .onnx file at the folder's top, found {found}; "
            f"other formats need a {SIDECAR}"
        )
    renamed = Source(GRAPH, graphs[0].at, graphs[0].stamp)
    return [renamed if source is graphs[0] else source for source in sources]
