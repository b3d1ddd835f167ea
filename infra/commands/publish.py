"""`publish`: a file or folder becomes a version of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infra import wishing
from infra.changes import recorded
from infra.commands.options import (
    DATA_DEFAULT,
    Data,
    Reason,
    Registry,
    node_of,
    poke,
    said,
    store_of,
)
from infra.exporting import artifact_of
from infra.signer import signer_of
from infra.terms import converting, terms_of
from pool.wanted import wanted_of
from registry_sync.documents import Precision
from registry_sync.publish import VersionExists, publish


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("publish")(publish_command)


def publish_command(
    model: str,
    path: Annotated[Path | None, typer.Argument(help="An .onnx or .pt2 file, or a folder.")] = None,
    onnx_from: Annotated[
        Path | None, typer.Option(help="A .pt2 file that is to be published as ONNX.")
    ] = None,
    version: Annotated[str | None, typer.Option(help="Default: the next one.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="k=v, for people.")] = None,
    golden: Annotated[
        Path | None, typer.Option(help="An .npz of recorded inputs and outputs.")
    ] = None,
    rows_max: Annotated[
        int | None, typer.Option(min=1, help="Of a batch; 1: its rows depend on one another.")
    ] = None,
    nondeterministic: Annotated[bool, typer.Option(help="Its answers may not be cached.")] = False,
    precision: Annotated[
        Precision, typer.Option(help="At least; fp16, bf16: with a converted graph besides.")
    ] = "fp32",
    engine: Annotated[str, typer.Option(help="Such as tensorrt; default: the best.")] = "",
    axis: Annotated[
        list[str] | None,
        typer.Option(help="Sizes of an open axis in plans: input_ids:1=1,128,256."),
    ] = None,
    gate_relative_error: Annotated[
        float | None, typer.Option(help="Of a plan's outputs, at most; default: by precision.")
    ] = None,
    gate_top1: Annotated[
        float | None, typer.Option(help="Rows of 1 that must choose the same as the artifact.")
    ] = None,
    build_for: Annotated[
        str | None, typer.Option(help="Device classes to build plans for, such as sm_86,sm_120.")
    ] = None,
    sign: Annotated[
        Path | None, typer.Option(help="Private key of who publishes; see `keys signing`.")
    ] = None,
    reason: Reason = "",
    data: Data = DATA_DEFAULT,
    registry: Registry = "",
) -> None:
    """Publish a version of a model; the last line of stdout is the version."""
    labels = _labels(label or [])
    if build_for is not None and not build_for.strip():
        raise typer.BadParameter("--build-for: no device class is named, such as sm_86")
    terms = terms_of(
        precision=precision,
        engine=engine,
        axes=axis or [],
        relative_error_max=gate_relative_error,
        top1_agreement_min=gate_top1,
    )
    with said(), artifact_of(path, onnx_from) as artifact, converting() as convert:
        signer = signer_of(sign, node_of(data).read_stack())
        store = store_of(data, registry)
        targets = wishing.parse_targets(build_for) if build_for else []
        try:
            made = recorded(
                *(store, reason, "model.publish", model),
                lambda: publish(
                    store,
                    model,
                    artifact,
                    version=version,
                    labels=labels,
                    nondeterministic=nondeterministic,
                    golden=golden,
                    rows_max=rows_max,
                    check=lambda draft: wishing.check(
                        data, store, draft, wanted_of(draft), targets
                    ),
                    terms=terms,
                    convert=convert,
                    sign=signer,
                ),
                lambda made: ("", made),
            )
        except VersionExists as error:
            raise ValueError(str(error)) from None
        wishing.write(store, reason, model, made, targets)
        poke(data, store)
    if targets:
        typer.echo(
            f"wished for: plans for {', '.join(targets)}; whether the engine has all of the "
            "model's operators, the build will tell (`tidepool status`)",
            err=True,
        )
    typer.echo(made)


def _labels(pairs: list[str]) -> dict[str, str]:
    labels = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"--label {pair!r}: expected k=v")
        labels[name] = value
    return labels
