"""`estimate`: what a deployment costs in a month, before it is made."""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Final

import typer

from infra.commands.options import Json, print_json
from infra.estimate.deployment import BadDeployment, Deployment, Pool, read_deployment
from infra.estimate.hours import Use, scaled, use_by_load, use_by_trace
from infra.estimate.prices import NoPrice, load_prices
from infra.estimate.report import BY_LOAD, Month, month_of, to_json, to_lines
from infra.printable import printable
from infra.simulate.engine import Load, World
from infra.simulate.run import Job, run_jobs
from infra.simulate.study import end_s_of
from infra.simulate.traces import BadTrace, Reading, read_trace
from infra.stack import CannotStart
from pool.scaling.signals import Limits

SCALES: Final = (1, 5, 20, 100)
PICTURE: Final = "cost.png"
CALLS_MAX: Final = 20_000_000  # of a trace at its scale: about a minute
SPAN_S_MIN: Final = 60.0  # of a trace: what is shorter says nothing about a month
POLICY: Final = "tidepool"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("estimate")(estimate_command)


def estimate_command(
    config: Annotated[
        Path, typer.Option(help="YAML or JSON: what is there, and the load; see infra/estimate.")
    ],
    trace: Annotated[
        Path | None,
        typer.Option(help="CSV of calls as for `simulate`: GPU hours by playing it instead."),
    ] = None,
    scale: Annotated[
        list[str] | None,
        typer.Option(help="How many times the load: 1x, 5x, 20x, 100x; default: all of these."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help=f"Also draw {PICTURE} into this folder.")
    ] = None,
    json: Json = False,
) -> None:
    """Say what a deployment costs in a month, line by line, beside GPUs that are always on."""
    scales = tuple(dict.fromkeys(map(_scale, scale or (f"{one}x" for one in SCALES))))
    picture = None if plot is None else _load_picture()
    try:
        deployment = read_deployment(config)
        prices = load_prices(deployment.region)
        calls = None if trace is None else _calls(trace, deployment)
        if plot is not None:
            _make_folder(plot)
        months = [
            month_of(deployment, _uses(deployment, calls, one), prices, one) for one in scales
        ]
    except (BadDeployment, BadTrace) as error:
        raise CannotStart(str(error)) from None
    except NoPrice as error:
        raise CannotStart(f"{config}: {error}") from None
    hours_by = BY_LOAD if trace is None else f"the trace {printable(trace.name)}, over and over"
    if json:
        print_json(to_json(deployment, months, hours_by))
    else:
        for line in to_lines(deployment, months, hours_by):
            typer.echo(printable(line))
    if picture is not None and plot is not None:
        try:
            picture.draw(months, _title(deployment, months), plot / PICTURE)
        except OSError as error:
            raise CannotStart(f"--plot {plot}: cannot be written: {error}") from None


def _scale(text: str) -> int:
    number = text.removesuffix("x")
    if not (number.isascii() and number.isdigit() and 1 <= int(number) <= 10_000):
        raise typer.BadParameter(f"--scale {text!r}: a whole number of times, such as 1x or 20x")
    return int(number)


def _title(deployment: Deployment, months: Sequence[Month]) -> str:
    requests = months[0].requests / months[0].scale
    pools = ", ".join(dict.fromkeys(pool.instance_type for pool in deployment.pools))
    title = f"{deployment.name}: 1x is {requests / 1e6:.3g} M requests a month, {pools}"
    return str(printable(title))


def _calls(trace: Path, deployment: Deployment) -> list[Load]:
    """Return a trace's calls; how long one takes that does not say so is as of FILE's load."""
    if len(deployment.pools) > 1:
        raise CannotStart(
            f"--trace {trace}: the file has {len(deployment.pools)} pools; a trace can be priced "
            "for one, so estimate them one by one"
        )
    loads = read_trace(trace, Reading(exec_s=deployment.pools[0].load.gpu_s_per_request))
    if end_s_of(loads) < SPAN_S_MIN:
        raise CannotStart(
            f"--trace {trace}: spans {end_s_of(loads):.3g} s; a month cannot be told from less "
            f"than {SPAN_S_MIN:.0f} s"
        )
    return loads


def _uses(deployment: Deployment, calls: Sequence[Load] | None, scale: int) -> list[Use]:
    if calls is None:
        return [use_by_load(pool, scale) for pool in deployment.pools]
    return [_played(deployment.pools[0], calls, scale)]


def _played(pool: Pool, calls: Sequence[Load], scale: int) -> Use:
    """Run the production's scaling policy over the calls, with instances that start slowly."""
    count = sum(len(load.arrivals_s) for load in calls) * scale
    if count > CALLS_MAX:
        raise CannotStart(
            f"--scale {scale}x: {count} calls are more than {CALLS_MAX}: use a shorter part of the"
            " trace, or a smaller scale"
        )
    print(f"{scale}x: {count} calls", file=sys.stderr, flush=True)
    loads = scaled(calls, scale)
    span_s = end_s_of(loads)
    world = World(end_s=span_s, wake_s=pool.start_s, limits=Limits(replicas_max=1024))
    (outcome,) = run_jobs(loads, [Job(POLICY, world)])
    return use_by_trace(pool, loads, outcome, span_s)


def _make_folder(plot: Path) -> None:
    """Make the picture's folder, and see that it can be written, before anything is played."""
    try:
        plot.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=plot):
            pass
    except OSError as error:
        raise CannotStart(f"--plot {plot}: no folder that can be written: {error}") from None
    if (plot / PICTURE).is_dir():
        raise CannotStart(f"--plot {plot}: {PICTURE} is a folder there")


def _load_picture() -> ModuleType:
    try:
        return importlib.import_module("infra.estimate.picture")
    except ModuleNotFoundError as error:
        raise CannotStart(f"--plot needs {error.name}: pip install 'tidepool[plots]'") from None
