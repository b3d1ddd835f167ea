"""Wishes for plans: what a user wants built, and what endpoints want to run a version with.

`builds/<model>/<version>/<device class>.json` holds a `BuildWish`.  A wish stays until somebody
withdraws it: whoever has built the plan leaves it, so that a plan which is lost is built again.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from registry_sync.documents import EngineWish, Manifest, Precision

SCHEMA: Final = 1


class BuildWish(msgspec.Struct, frozen=True, kw_only=True):
    """Build this version for this device class."""

    model: str
    version: str
    device_class: str
    engine: str = ""  # empty: any that can
    created: str = ""  # UTC, ISO 8601; for people only
    schema: Annotated[int, Meta(ge=1, le=SCHEMA)] = SCHEMA


class Wanted(msgspec.Struct, frozen=True):
    """What the endpoints that name a version want of its engine, all together."""

    engine: EngineWish = EngineWish()
    rows_max: int = 0  # of a batch; 0: the manifest's


def wish_key(model: str, version: str, device_class: str) -> str:
    """Return the key of a wish in the registry."""
    return f"builds/{model}/{version}/{device_class}.json"


def precision_of(manifest: Manifest, wish: EngineWish | None = None) -> Precision:
    """Return how exactly a version is to compute, at least.

    A version has two precisions: fp32, which is its graph as it came, and the one that it was
    published with.  A wish for another, or for none, means the latter.

    Args:
        manifest: of the version.
        wish: an endpoint's; it counts before the manifest's own.
    """
    asked = (wish and wish.precision) or (manifest.engine and manifest.engine.precision)
    return "fp32" if asked == "fp32" else manifest.precision


def open_axes(manifest: Manifest) -> frozenset[str]:
    """Return the axes that may have a range, as "input:axis": all of any size but that of rows.

    >>> from registry_sync.documents import TensorSpec
    >>> ids = TensorSpec("ids", "INT64", (-1, -1, 4))
    >>> open_axes(Manifest("m", "1", "", "onnx", (), (ids,), (), 32, True))
    frozenset({'ids:1'})
    """
    return frozenset(
        f"{spec.name}:{axis}"
        for spec in manifest.inputs
        for axis, size in enumerate(spec.shape)
        if size == -1 and (axis > 0 or not is_batched(manifest))
    )


def is_batched(manifest: Manifest) -> bool:
    """Whether the first axis of every input counts rows; else a request is one row."""
    return (
        manifest.rows_max > 1
        and bool(manifest.inputs)
        and all(spec.shape[:1] == (-1,) for spec in manifest.inputs)
    )
