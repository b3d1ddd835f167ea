"""What a wish for an engine may name, given the versions that it is about.

Whether an engine is installed, and on which devices it can build, is for those who have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from registry_sync.builds import open_axes
from registry_sync.documents import EngineWish, Manifest
from registry_sync.fitting import show

# Other formats have engines of their operator's own, under names that nobody knows here.
FORMATS_OF: Final[Mapping[str, frozenset[str]]] = {
    "onnxruntime": frozenset({"onnx"}),
    "tensorrt": frozenset({"onnx"}),
    "tensorrt_rtx": frozenset({"onnx"}),
    "torch": frozenset({"torch-export"}),
}


def wish_problems(
    wish: EngineWish, manifests: Sequence[Manifest], path: str = "$.engine"
) -> list[str]:
    """Return what no version has of all that a wish names, a line each with its path.

    Args:
        wish: an endpoint's or a manifest's own.
        manifests: the versions that it is about, which have equal signatures; one that has what
            is wished for is enough.
        path: of the wish in its document.
    """
    if not manifests:
        return []
    return [
        f"{path}.{problem}"
        for problem in (
            *_name_problems(wish, manifests),
            *_precision_problems(wish, manifests),
            *_axis_problems(wish, manifests[0]),
        )
    ]


def _name_problems(wish: EngineWish, manifests: Sequence[Manifest]) -> Iterator[str]:
    built_in = {name for formats in FORMATS_OF.values() for name in formats}
    formats = {manifest.format for manifest in manifests}
    if wish.name == "auto" or not formats <= built_in:
        return
    if formats.isdisjoint(FORMATS_OF.get(wish.name, ())):
        names = sorted(name for name, runs in FORMATS_OF.items() if runs & formats)
        yield (
            f"name: {show(wish.name)} is no engine for {', '.join(sorted(formats))}; use auto, "
            f"{' or '.join(names)}"
        )


def _precision_problems(wish: EngineWish, manifests: Sequence[Manifest]) -> Iterator[str]:
    known = sorted({"fp32", *(manifest.precision for manifest in manifests)})
    if wish.precision is not None and wish.precision not in known:
        names = ", ".join(f"{m.model} version {m.version}" for m in manifests)
        yield (
            f"precision: {show(wish.precision)} is none of {names}, which computes in "
            f"{' or '.join(known)}; publish it with --precision {wish.precision}"
        )


def _axis_problems(wish: EngineWish, manifest: Manifest) -> Iterator[str]:
    may = open_axes(manifest)
    shapes = {spec.name: spec.shape for spec in manifest.inputs}
    for axis in sorted(wish.axes):
        if axis in may:
            continue
        name, _, number = axis.rpartition(":")
        if name not in shapes:
            why = f"there is no input {show(name)}, only {', '.join(sorted(shapes)) or 'none'}"
        elif int(number) >= len(shapes[name]):
            why = f"{show(name)} has {len(shapes[name])} axes, counted from 0"
        else:
            size = shapes[name][int(number)]
            why = f"its size is {size} and nothing else" if size >= 0 else "it follows the batch"
        yield f"axes.{axis}: {why}; axes that may have a range: {', '.join(sorted(may)) or 'none'}"
