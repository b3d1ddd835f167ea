"""The demo's inputs: real files of this machine, and what magika says about them.

Owns which files are taken and the right answers to them.  The package `magika` is
loaded by `expected` and `samples` only: it brings onnxruntime with it.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra import demo_model
from infra.demo_model import Answer

FILES_DEFAULT = 40
FILE_BYTES_MIN = 256
FILE_BYTES_MAX = 1 << 20
SCANNED_MAX = 20_000  # files looked at per root; enough to meet every kind, and under a second
PER_KIND_MAX = 4

KINDS = (
    ".py .pyc .so .dylib .json .txt .md .rst .toml .cfg .ini .html .css .js .xml .svg .png .gif"
    " .jpg .webp .tiff .bmp .wav .zip .whl .gz .xz .tar .pem .c .h .cpp .hpp .pyi .pyx .pxd .f90"
    " .proto .csv .npy .onnx .pb .sh .bat .exe .pickle METADATA RECORD LICENSE"
)
"""Suffixes, and whole names of files that have none, in the order they are taken."""

FIXED = ("/etc/passwd", "/etc/services", "/etc/hosts", "/etc/protocols", "/etc/profile")
COMMANDS = ("ls", "sh", "gzip", "ldd")


@dataclass(frozen=True)
class Sample:
    """A file and the answer that is right for it."""

    path: Path
    answer: Answer


def choose(count: int = FILES_DEFAULT) -> list[Path]:
    """Choose up to `count` readable files of as many kinds as this machine has.

    They come from the standard library, the installed packages, a few commands and
    /etc; the same machine always gives the same list.  Every file has 256 bytes to
    1 MiB and is one that the model answers, not a rule in front of it.
    """
    commands = [Path(found) for name in COMMANDS if (found := shutil.which(name))]
    kinds: dict[str, list[Path]] = {
        "fixed": [path for path in map(Path, FIXED) if _fits(path)],
        "commands": [path for path in commands if _fits(path)],
        **{kind: [] for kind in KINDS.split()},
    }
    for root in ("stdlib", "purelib"):
        for path in _walk(Path(sysconfig.get_path(root))):
            group = kinds.get(path.suffix or path.name)
            if group is not None and len(group) < PER_KIND_MAX and _fits(path):
                group.append(path)
    rounds = (
        group[turn] for turn in range(PER_KIND_MAX) for group in kinds.values() if turn < len(group)
    )
    return [path for path, _ in zip(rounds, range(count), strict=False)]


def _walk(root: Path) -> Iterator[Path]:
    seen = 0
    for folder, folders, names in os.walk(root):
        # A virtual environment's packages lie below its library: they are a root of their own.
        folders[:] = sorted(name for name in folders if name != "site-packages")
        for name in sorted(names):
            seen += 1
            if seen > SCANNED_MAX:
                return
            yield Path(folder, name)


def _fits(path: Path) -> bool:
    try:
        if not path.is_file() or not FILE_BYTES_MIN <= path.stat().st_size <= FILE_BYTES_MAX:
            return False
        demo_model.features(path)
    except (OSError, demo_model.NotForTheModel):
        return False
    return True


def expected(paths: Sequence[Path]) -> list[Answer]:
    """Ask the `magika` package itself, one file after the other.

    Raises:
        DemoUnavailable: the package is not installed.
    """
    return [Answer(str(said.output.label), float(said.score)) for said in _ask(paths)]


def samples(count: int = FILES_DEFAULT) -> list[Sample]:
    """Choose files and pair each with the package's own answer.

    A file whose score lies so close to its threshold that rounding decides on the
    label is left out: neither label would be wrong.

    Raises:
        DemoUnavailable: the package is not installed.
    """
    paths = choose(count)
    chosen = []
    for path, said in zip(paths, _ask(paths), strict=True):
        margin = abs(said.score - demo_model.threshold(str(said.dl.label)))
        if margin > demo_model.SCORE_DIFFERENCE_MAX:
            chosen.append(Sample(path, Answer(str(said.output.label), float(said.score))))
    return chosen


def _ask(paths: Sequence[Path]) -> list[Any]:
    demo_model.package_folder()  # says what to install where the package is missing
    magika = importlib.import_module("magika").Magika()
    return [magika.identify_path(path).prediction for path in paths]
