"""`rollout start|status|diff|pause|resume|promote|abort`: one version takes over from another.

What is wished is written to the endpoint's spec; the running stack's controller carries it out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from infra.changes import recorded
from infra.commands.carried_out import Document, carry_out
from infra.commands.options import DATA_DEFAULT, Data, Reason, Registry, said, store_of
from infra.commands.rollout_options import read_terms
from infra.commands.rollout_status import diff_command, status_command
from registry_sync import rollout_orders
from registry_sync.rollout_orders import Ordered
from registry_sync.rollout_terms import Guard, Wish

_DONE: Mapping[Wish, Callable[[Document], bool]] = {
    "pause": lambda document: document["state"] == "paused",
    "run": lambda document: document["state"] == "running",
    "promote": lambda document: True,  # once enough is warm, which may take its time
    "abort": lambda document: document["state"] == "rolled_back",
}
IfRevision = Annotated[int | None, typer.Option(min=0, help="Must be current.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    family = typer.Typer(no_args_is_help=True, help="Let a version take over, step by step.")
    family.command("start")(start_command)
    family.command("status")(status_command)
    family.command("diff")(diff_command)
    family.command("pause")(pause_command)
    family.command("resume")(resume_command)
    family.command("promote")(promote_command)
    family.command("abort")(abort_command)
    app.add_typer(family, name="rollout")


def start_command(
    name: str,
    to: Annotated[str, typer.Option("--to", help="The version that is to take over.")],
    steps: Annotated[
        str, typer.Option(help="Its shares in percent; 100 is added if it is missing.")
    ] = "1,5,25,50,100",
    hold: Annotated[str, typer.Option(help="How long each step is watched: 60s, 5m, 1h.")] = "60s",
    shadow: Annotated[
        float | None,
        typer.Option(help="Copy this share of the calls (0 to 1) to it, for nobody."),
    ] = None,
    shadow_calls_per_s_max: Annotated[
        float | None, typer.Option(help="At most so many copies at one worker; default: 50.")
    ] = None,
    errors: Annotated[
        bool, typer.Option("--errors/--no-errors", help="Watch the share of failed calls.")
    ] = Guard().errors,
    slower_than_ms: Annotated[
        float | None, typer.Option(help="Watch the share of calls that take longer.")
    ] = None,
    latency_ratio_max: Annotated[
        float | None, typer.Option(help="Its calls may take so many times as long.")
    ] = None,
    margin_points: Annotated[
        float, typer.Option(help="By which shares may be worse, in percentage points.")
    ] = Guard().margin_points,
    alpha: Annotated[
        float, typer.Option(help="Chance that a version as good is ever rolled back.")
    ] = Guard().alpha,
    outcomes_min: Annotated[
        int, typer.Option(help="Outcomes of both versions before the next step.")
    ] = Guard().outcomes_min,
    then: Annotated[
        Literal["rollback", "pause"], typer.Option(help="What happens when it is worse.")
    ] = "rollback",
    if_revision: IfRevision = None,
    reason: Reason = "",
    data: Data = DATA_DEFAULT,
    registry: Registry = "",
) -> None:
    """Let a version take over, step by step, for as long as it is no worse; prints the revision.

    Returns once the running stack has begun; without one, the next that starts does.
    """
    wanted = read_terms(
        to=to,
        steps=steps,
        hold=hold,
        shadow=shadow,
        shadow_calls_per_s_max=shadow_calls_per_s_max,
        guard=Guard(
            errors=errors,
            slower_than_ms=slower_than_ms,
            latency_ratio_max=latency_ratio_max,
            margin_points=margin_points,
            alpha=alpha,
            outcomes_min=outcomes_min,
            then=then,
        ),
    )
    with said():
        store = store_of(data, registry)
        ordered = recorded(
            *(store, reason, "rollout.start", name),
            lambda: rollout_orders.start(
                store, name, to, if_revision=if_revision, **wanted._asdict()
            ),
            _moved,
        )
        _say_fall(ordered, to)
        carry_out(data, store, ordered, lambda document: bool(document["at"]))
    typer.echo(ordered.spec.revision)


def pause_command(
    name: str,
    if_revision: IfRevision = None,
    reason: Reason = "",
    data: Data = DATA_DEFAULT,
    registry: Registry = "",
) -> None:
    """Keep the weights as they are; the version is watched all the same."""
    _wish(name, "pause", "rollout.pause", if_revision, reason, data, registry)


def resume_command(
    name: str,
    if_revision: IfRevision = None,
    reason: Reason = "",
    data: Data = DATA_DEFAULT,
    registry: Registry = "",
) -> None:
    """Go on with a paused rollout."""
    _wish(name, "run", "rollout.resume", if_revision, reason, data, registry)


def promote_command(
    name: str,
    if_revision: IfRevision = None,
    reason: Reason = "",
    data: Data = DATA_DEFAULT,
    registry: Registry = "",
) -> None:
    """Give the version all traffic as soon as enough of it is warm, whatever steps are left.

    Returns at once; `rollout status` tells how far that is.
    """
    _wish(name, "promote", "rollout.promote", if_revision, reason, data, registry)


def abort_command(
    name: str,
    if_revision: IfRevision = None,
    reason: Reason = "",
    data: Data = DATA_DEFAULT,
    registry: Registry = "",
) -> None:
    """Give the former version all traffic again, at once."""
    _wish(name, "abort", "rollout.abort", if_revision, reason, data, registry)


def _wish(
    name: str,
    wish: Wish,
    what: str,
    if_revision: int | None,
    reason: str,
    data: Path,
    registry: str,
) -> None:
    with said():
        store = store_of(data, registry)
        ordered = recorded(
            *(store, reason, what, name),
            lambda: rollout_orders.wish(store, name, wish, if_revision=if_revision),
            _moved,
        )
        carry_out(data, store, ordered, _DONE[wish])
    typer.echo(ordered.spec.revision)


def _say_fall(ordered: Ordered, version: str) -> None:
    """Tell whose version has less in the first step than it had before."""
    spec, had = ordered.spec, ordered.shares_before.get(version, 0.0)
    assert spec.rollout is not None
    first = spec.rollout.steps[0].weight
    if had > first:
        name = spec.endpoint
        typer.echo(
            f"note: version {version} had {had:g} % of {name!r} and begins with {first:g} %; "
            f"`tidepool endpoint rollback {name} --abort-rollout` gives it back, and `--steps "
            f"{had:g},100` begins with as much",
            err=True,
        )


def _moved(ordered: Ordered) -> tuple[str, str]:
    return ordered.moved
