"""`bench`: the figures of the README, measured against their peers on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from infra.bench import report, suite
from infra.bench.calls import BadTarget
from infra.bench.hop import hop_us
from infra.bench.local_stack import open_stack
from infra.bench.processes import StartFailed
from infra.bench.tally import LoadFailed
from infra.commands.options import Json
from infra.demo_model import DemoUnavailable
from infra.stack import CannotStart


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("bench")(bench_command)


def bench_command(
    only: Annotated[list[str] | None, typer.Option("--only", help="Rows; default: all.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 5,
    duration_s: Annotated[float, typer.Option(min=0.1, help="Of one sample.")] = 2.0,
    peers: Annotated[
        bool, typer.Option("--peers", help="Also FastAPI with pydantic, and pytriton.")
    ] = False,
    pytriton: Annotated[
        str, typer.Option(help="An interpreter that has nvidia-pytriton 0.7.0 and onnxruntime.")
    ] = "",
    json: Json = False,
    out: Annotated[Path | None, typer.Option(help="Write the whole report here, as JSON.")] = None,
) -> None:
    """Measure Tidepool beside its peers; needs the extra `dev`."""
    try:
        config = suite.BenchConfig(
            rounds=rounds,
            duration_s=duration_s,
            only=tuple(only or ()),
            open_stack=open_stack,
            hop=hop_us,
            more_peers=peers,
            pytriton=pytriton,
            progress=lambda text: print(text, file=sys.stderr, flush=True),
        )
        found = suite.run(config)
    except (
        ValueError,
        BadTarget,
        StartFailed,
        LoadFailed,
        DemoUnavailable,
        suite.Unsupported,
    ) as error:
        raise CannotStart(str(error)) from None
    if out is not None:
        out.write_bytes(report.to_json(found))
    if json:
        typer.echo(report.to_json(found).decode())
    elif sys.stdout.isatty():
        Console().print(report.table(found))
    else:
        for line in report.lines(found):
            typer.echo(line)
