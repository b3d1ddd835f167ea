"""What a version is to run with: its manifest and all endpoints that name it, put together.

A pure function of documents.  Which engines there are, and whether any of them can do it, is not
decided here; `pool.engines.choice` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from pool.placement import Ref
from registry_sync.builds import Wanted, open_axes, precision_of
from registry_sync.documents import AxisRange, EndpointSpec, EngineWish, Manifest, Precision

# From the most exact: fp16 keeps ten bits of a fraction, bf16 seven.
EXACTNESS: Final[tuple[Precision, ...]] = ("fp32", "fp16", "bf16")


def wanted(specs: Iterable[EndpointSpec], manifests: Mapping[Ref, Manifest]) -> dict[Ref, Wanted]:
    """Return what each version that an endpoint names is to run with.

    Each endpoint's wish is completed by the manifest's (see `wanted_of`).  Where endpoints differ,
    all of them must be served by one engine: the more exact precision, `auto` for engines of two
    names, for each axis the range that covers all given ranges (tuned for the largest size that
    any is tuned for), and the largest batch.

    Args:
        specs: the current ones.
        manifests: of the versions they name; a version without one is left out.

    Returns:
        By version; every `precision` is set and every `rows_max` is from 1 to the manifest's.
    """
    found: dict[Ref, Wanted] = {}
    for spec in specs:
        for variant in spec.variants:
            ref = (variant.model, variant.version)
            if ref in manifests:
                new = wanted_of(manifests[ref], spec.engine, spec.batch.rows_max)
                found[ref] = _both(found[ref], new) if ref in found else new
    return found


def wanted_of(
    manifest: Manifest, wish: EngineWish | None = None, rows_max: int | None = None
) -> Wanted:
    """Complete one wish by what the manifest says; alone, it is what the version runs with.

    What the version does not have is passed over, so that one endpoint can name several versions:
    an axis of no input, or one of a fixed size; a precision other than its own or fp32.

    Args:
        manifest: of the version.
        wish: an endpoint's; None: nobody says anything.
        rows_max: of a batch; None: the manifest's.
    """
    ours, wish = manifest.engine or EngineWish(), wish or EngineWish()
    axes = open_axes(manifest)
    return Wanted(
        EngineWish(
            name=ours.name if wish.name == "auto" else wish.name,
            precision=precision_of(manifest, wish),
            axes={name: size for name, size in {**ours.axes, **wish.axes}.items() if name in axes},
            ahead_of_time=ours.ahead_of_time or wish.ahead_of_time,
        ),
        min(rows_max or manifest.rows_max, manifest.rows_max),
    )


def _both(one: Wanted, other: Wanted) -> Wanted:
    a, b = one.engine, other.engine
    return Wanted(
        EngineWish(
            name=a.name if a.name == b.name else "auto",
            precision=min(a.precision or "fp32", b.precision or "fp32", key=EXACTNESS.index),
            axes={
                name: _cover([wish.axes[name] for wish in (a, b) if name in wish.axes])
                for name in sorted({*a.axes, *b.axes})
            },
            ahead_of_time=a.ahead_of_time or b.ahead_of_time,
        ),
        max(one.rows_max, other.rows_max),
    )


def _cover(ranges: Iterable[AxisRange]) -> AxisRange:
    sizes = list(ranges)
    return AxisRange(
        min(size.min for size in sizes),
        max(size.opt for size in sizes),
        max(size.max for size in sizes),
    )
