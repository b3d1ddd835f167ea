"""For which devices the installed engines can ever build plans.

What a package can do is a table here, so that a target is judged without loading a framework and
on a machine without a GPU.  Whether a device is there now is another question, for a `Probe`.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

# The first of a row that is installed is the engine's; the names differ by CUDA and by where the
# package comes from.
_PACKAGES: Final = {
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_rtx": ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"),
    "torch": ("torch",),
}
_HOW: Final = {
    "tensorrt": "pip install tensorrt",
    "tensorrt_rtx": (
        "pip install tensorrt-rtx-cu13 tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs"
    ),
    "torch": "pip install torch",
}

# By the first release that has them.  A later release is taken to have no less.
_RTX_CLASSES: Final = (
    ((1, 7), ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")),
    ((1, 0), ("sm_75", "sm_86", "sm_89", "sm_120")),
)
_SM_MIN: Final = 75  # of TensorRT since 10.5 and of torch for CUDA 13

_SM: Final = re.compile(r"sm_([1-9][0-9]{1,2})")
_CPU: Final = re.compile(r"cpu_[a-z0-9_.-]+")


class BadTarget(ValueError):
    """A device class for which nothing can ever build; the text says what can, and for what."""


class Toolkit(msgspec.Struct, frozen=True):
    """What an installed package can build.

    >>> Toolkit("tensorrt", "11.4", frozenset({"onnx"}), sm_min=75).covers("sm_90")
    True
    """

    engine: str
    version: str
    formats: frozenset[str]
    device_classes: tuple[str, ...] = ()  # on any machine
    sm_min: int = 0  # GPUs from here on, each on such a GPU only; 0: none
    cpu: bool = False  # for the CPU on which it runs

    def covers(self, device_class: str) -> bool:
        """Tell whether there is a machine on which it builds for a device class."""
        if device_class in self.device_classes:
            return True
        gpu = _SM.fullmatch(device_class)
        if gpu is not None:
            return bool(self.sm_min) and int(gpu[1]) >= self.sm_min
        return self.cpu and _CPU.fullmatch(device_class) is not None

    @property
    def targets(self) -> str:
        """What it covers, in words."""
        words = list(self.device_classes)
        if self.sm_min:
            words.append(f"sm_{self.sm_min} and newer, each on a worker with such a GPU")
        if self.cpu:
            words.append("cpu_…, each on a worker with such a CPU")
        return ", ".join(words)


def installed(version_of: Callable[[str], str | None] | None = None) -> tuple[Toolkit, ...]:
    """Return what is installed here, in the order in which engines are chosen.

    Args:
        version_of: from a distribution's name to its version, None if there is none; by default
            what this interpreter's packages say.
    """
    asked = version_of or _version_of
    found = []
    for engine, names in _PACKAGES.items():
        version = next(filter(None, map(asked, names)), None)
        if version is not None:
            found.append(_toolkit(engine, version))
    return tuple(found)


def check_targets(
    device_classes: Sequence[str],
    format: str,
    toolkits: Sequence[Toolkit],
    announced: Iterable[str] = (),
    engine: str = "",
) -> None:
    """Refuse device classes for which nothing can ever build a plan.

    Args:
        device_classes: as plans name them: "sm_86", …
        format: of the artifact.
        toolkits: what is installed here.
        announced: what live workers say that they can build: "engine/device class".
        engine: the only one that may build; empty: any.

    Raises:
        BadTarget: with every one of them, and what each installed engine builds for.
    """
    there = {pair.partition("/")[::2] for pair in announced}
    bad = [
        device_class
        for device_class in device_classes
        if not any(
            toolkit.covers(device_class) and format in toolkit.formats
            for toolkit in toolkits
            if engine in ("", toolkit.engine)
        )
        # A worker's word is about devices; what formats its engine reads is in the table.
        and not any(
            where == device_class and engine in ("", name) and _reads(name, format)
            for name, where in there
        )
    ]
    if bad:
        raise BadTarget(f"{', '.join(bad)}: {_why(format, toolkits, engine)}")


def _why(format: str, toolkits: Sequence[Toolkit], engine: str) -> str:
    nothing = f"no {engine}" if engine else "nothing"
    of_format = [toolkit for toolkit in toolkits if format in toolkit.formats]
    can = "; ".join(
        f"{toolkit.engine} {toolkit.version} builds for {toolkit.targets}" for toolkit in of_format
    )
    if not can:
        names = [name for name in _PACKAGES if _reads(name, format)]
        ways = " or ".join(f"`{_HOW[name]}`" for name in names)
        can = (
            f"no engine that builds from {format} is installed: {ways}"
            if names
            else f"no engine builds from {format}"
        )
    return (
        f"{nothing} that is installed here or that a live worker has can ever build a plan for "
        f"this from {format}; {can}"
    )


def _reads(engine: str, format: str) -> bool:
    return engine not in _PACKAGES or format in _toolkit(engine, "0").formats


def _toolkit(engine: str, version: str) -> Toolkit:
    match engine:
        case "tensorrt":
            return Toolkit(engine, version, frozenset({"onnx"}), sm_min=_SM_MIN)
        case "tensorrt_rtx":
            release = tuple(int(part) for part in re.findall(r"[0-9]+", version)[:2])
            classes = next((names for since, names in _RTX_CLASSES if release >= since), ())
            return Toolkit(engine, version, frozenset({"onnx"}), classes)
        case _:
            has_cuda = not version.endswith("+cpu")
            formats = frozenset({"torch-export"})
            return Toolkit(engine, version, formats, sm_min=_SM_MIN * has_cuda, cpu=True)


def _version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
