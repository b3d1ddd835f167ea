"""The options of `publish` that say how exactly a version computes, and on what."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import typer

from pool.engines.conversion import convert_artifact
from registry_sync.artifact import Source
from registry_sync.documents import AxisRange, EngineWish, GateLimits, Manifest, Precision
from registry_sync.publish import Convert, Terms


def terms_of(
    *,
    precision: Precision,
    engine: str,
    axes: Sequence[str],
    relative_error_max: float | None,
    top1_agreement_min: float | None,
) -> Terms:
    """Return what the options say; whether it fits is found out with the manifest.

    Args:
        precision: at least.
        engine: its name; empty: any.
        axes: each "input:axis=min,opt,max".
        relative_error_max: of a built engine's outputs; None: by precision.
        top1_agreement_min: the part of rows that choose the same; None: by precision.

    Raises:
        BadParameter: a range is none.
    """
    ranges: dict[str, AxisRange] = {}
    for text in axes:
        name, extents = _axis(text)
        if name in ranges:
            raise typer.BadParameter(f"--axis {text!r}: {name} has a range already")
        ranges[name] = extents
    gate = GateLimits(relative_error_max, top1_agreement_min)
    return Terms(
        precision,
        EngineWish(engine or "auto", axes=ranges) if engine or ranges else None,
        None if gate == GateLimits() else gate,
    )


@contextmanager
def converting() -> Iterator[Convert]:
    """Provide the conversion that `publish` needs; what it has to say goes to stderr."""
    with TemporaryDirectory(prefix="tidepool-") as scratch:

        def convert(
            draft: Manifest, sources: Sequence[Source], golden: Source | None
        ) -> Sequence[Source]:
            typer.echo(f"{draft.precision}: converting, and comparing the answers", err=True)
            proof = convert_artifact(draft, sources, Path(scratch), golden)
            for line in proof.said:
                typer.echo(f"{draft.precision}: {line}", err=True)
            return proof.sources

        yield convert


def _axis(text: str) -> tuple[str, AxisRange]:
    found = re.fullmatch(r"(.+:[0-9]+)=([0-9]{1,10}),([0-9]{1,10}),([0-9]{1,10})", text)
    if found is None:
        raise typer.BadParameter(
            f"--axis {text!r}: expected input:axis=min,opt,max, e.g. input_ids:1=1,128,256"
        )
    return found[1], AxisRange(*(int(extent) for extent in found.groups()[1:]))
