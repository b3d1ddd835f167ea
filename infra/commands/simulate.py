"""`simulate`: what the scaling policies would have done with recorded or made-up calls."""

from __future__ import annotations

import importlib
import math
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Final

import typer

from infra.commands.options import Json
from infra.printable import printable
from infra.simulate.engine import Load, World
from infra.simulate.generators import GENERATORS
from infra.simulate.report import to_json, to_lines
from infra.simulate.study import POLICIES, Study, curves_of, end_s_of, report_of
from infra.simulate.traces import EXEC_S_MAX, SPAN_S_MAX, BadTrace, Reading, read_trace
from infra.stack import CannotStart
from pool.scaling.signals import Limits

WAKE_S_MAX: Final = 3600.0
WORK_S_MAX: Final = SPAN_S_MAX  # of one model's calls, on as many replicas as it may have

PICTURES: Final = ("pareto.png", "attainment.png")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("simulate")(simulate_command)


def simulate_command(
    trace: Annotated[
        Path | None, typer.Option(help="CSV of calls: t_s, and model, exec_s, output_tokens.")
    ] = None,
    generator: Annotated[
        str, typer.Option(help=f"Made-up calls instead: {', '.join(GENERATORS)}.")
    ] = "",
    time_scale: Annotated[float, typer.Option(help="Play the trace so many times as fast.")] = 1.0,
    wake_s: Annotated[float, typer.Option(help="From the wish for a replica to a warm one.")] = 3.0,
    exec_s: Annotated[
        float, typer.Option(help="Of calls of which the trace does not say how long they take.")
    ] = 0.1,
    token_s: Annotated[float, typer.Option(help="Of one output token of the trace.")] = 0.02,
    policy: Annotated[
        list[str] | None, typer.Option(help=f"Rows; default: all: {', '.join(POLICIES)}.")
    ] = None,
    cold_start_cost_s: Annotated[
        float, typer.Option(help="tidepool's knob: as scale.cold_start_cost_s of an endpoint.")
    ] = Limits().cold_start_cost_s,
    replicas_max: Annotated[int, typer.Option(min=1, max=1024, help="Per model.")] = 1024,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw pareto.png and attainment.png into this folder.")
    ] = None,
    json: Json = False,
) -> None:
    """Run the scaling policies over calls in simulated time, beside others and the clairvoyant."""
    _check("--time-scale", time_scale, is_more_than_zero=True)
    _check("--cold-start-cost-s", cold_start_cost_s, is_more_than_zero=True)
    _check("--wake-s", wake_s, most=WAKE_S_MAX)
    _check("--exec-s", exec_s, most=EXEC_S_MAX)
    _check("--token-s", token_s, most=EXEC_S_MAX)
    names = tuple(dict.fromkeys(policy or POLICIES))
    for name in names:
        _known("policy", name, POLICIES)
    plots = None if plot is None else _load_plots()
    reading = Reading(exec_s=exec_s, token_s=token_s, time_scale=time_scale)
    loads, name = _calls(trace, generator, reading)
    title = printable(f"{name}, wake {wake_s:g} s")
    _check_work(loads, replicas_max)
    if plot is not None:
        _make_folder(plot)
    limits = Limits(replicas_max=replicas_max, cold_start_cost_s=cold_start_cost_s)
    world = World(end_s=end_s_of(loads), wake_s=wake_s, limits=limits)
    study = Study(loads, world, names)
    calls = sum(len(load.arrivals_s) for load in loads)
    _progress(f"{name}: {calls} calls, {len(loads)} models, {world.end_s / 3600:.1f} h")
    report = report_of(study, lambda name: _progress(f"{name} done"))
    for line in [to_json(report).decode()] if json else to_lines(report):
        typer.echo(line)
    if plots is not None and plot is not None:
        curves = curves_of(study, lambda name: _progress(f"{name}: one point of its curve done"))
        pareto, attainment = (plot / picture for picture in PICTURES)
        try:
            plots.draw_pareto(report, curves, title, pareto)
            plots.draw_attainment(report, title, attainment)
        except OSError as error:
            raise CannotStart(f"--plot {plot}: cannot be written: {error}") from None


def _check(
    name: str, value: float, *, is_more_than_zero: bool = False, most: float = math.inf
) -> None:
    """Refuse what is no length of time or factor; the message names option and value."""
    if not math.isfinite(value) or value < 0 or (is_more_than_zero and value == 0):
        least = "more than 0" if is_more_than_zero else "0 or more"
        raise typer.BadParameter(f"{name} {value}: must be a number, {least}")
    if value > most:
        raise typer.BadParameter(f"{name} {value}: must be {most:.0f} at most")


def _check_work(loads: Sequence[Load], replicas_max: int) -> None:
    """Refuse calls that would take years: no policy could answer them in time."""
    for load in loads:
        work_s = float(load.exec_s.sum()) / replicas_max
        if work_s > WORK_S_MAX:
            raise CannotStart(
                f"the calls of {printable(load.model)} take {work_s / 86_400:.4g} days on"
                f" {replicas_max} replicas, more than {WORK_S_MAX / 86_400:.0f}: are exec_s in"
                " seconds, or are more --replicas-max needed?"
            )


def _make_folder(plot: Path) -> None:
    """Make the folder of the pictures, and see that they can be written, before anything runs."""
    try:
        plot.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=plot):
            pass
    except OSError as error:
        raise CannotStart(f"--plot {plot}: no folder that can be written: {error}") from None
    for picture in PICTURES:
        if (plot / picture).is_dir():
            raise CannotStart(f"--plot {plot}: {picture} is a folder there")


def _known(what: str, name: str, names: Iterable[str]) -> None:
    if name not in names:
        raise typer.BadParameter(f"there is no {what} {name!r}; there are: {', '.join(names)}")


def _calls(trace: Path | None, generator: str, reading: Reading) -> tuple[Sequence[Load], str]:
    """Return the calls, and what they are called."""
    if (trace is None) == (not generator):
        raise typer.BadParameter("either --trace FILE or --generator NAME is needed")
    if trace is None:
        _known("generator", generator, GENERATORS)
        return GENERATORS[generator](), generator
    try:
        return read_trace(trace, reading), trace.name
    except BadTrace as error:
        raise CannotStart(str(error)) from None


def _load_plots() -> ModuleType:
    try:
        return importlib.import_module("infra.simulate.plots")
    except ModuleNotFoundError as error:
        raise CannotStart(f"--plot needs {error.name}: pip install 'tidepool[plots]'") from None


def _progress(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)
