"""`keys fleet list|rotate|retire`: the secret by which the processes of a fleet know each other."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from infra.commands.options import DATA_DEFAULT, Data, Json, node_of, print_json, said
from infra.stack import CannotStart
from pool.wire.fleet_secret import FILE, VARIABLE, load_secrets, retire, rotate
from pool.wire.handshake import Secrets
from registry_sync.local_plans import BYTES_MAX_DEFAULT, LocalPlans
from registry_sync.plan_renewal import vouch_anew

NONE_HERE = f"this node has no fleet secret: set {VARIABLE}, or put one into DATA/{FILE}"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    family = typer.Typer(no_args_is_help=True, help="Show, rotate and retire the fleet secret.")
    family.command("list")(list_command)
    family.command("rotate")(rotate_command)
    family.command("retire")(retire_command)
    app.add_typer(family, name="fleet")


def list_command(data: Data = DATA_DEFAULT, json: Json = False) -> None:
    """Show the ids of the secrets that this node takes; they say nothing about the secrets."""
    with said():
        secrets = load_secrets(node_of(data).data)
    if secrets is None:
        raise CannotStart(NONE_HERE)
    _show(secrets, json)


def rotate_command(
    source: Annotated[
        str,
        typer.Option("--from", help="The file of a node that has rotated, or - for stdin."),
    ] = "",
    data: Data = DATA_DEFAULT,
    json: Json = False,
) -> None:
    """Make a new fleet secret the current one of this node; the one before is good as well.

    Running processes take it within a second.  Do so on one node, then on every other with
    `--from` and what the first has in DATA/secrets, in any order; then `retire` on each.
    """
    node = node_of(data)
    with said():
        given = _read(source) if source else ""
        before = load_secrets(node.data)
        secrets = rotate(node.data, given)
        if before is not None and len(secrets.held) > 1:
            stack = node.read_stack()
            bytes_max = BYTES_MAX_DEFAULT if stack is None else stack.plans_bytes_max
            plans = LocalPlans(node.data / "store" / "engines", bytes_max)
            signed = vouch_anew(plans, secrets.keys)
            if signed:
                typer.echo(f"{signed} plans of this node are signed with it now", err=True)
    _show(secrets, json)
    if not source:
        typer.echo(
            f"next: carry {node.data / FILE} to every other node, and there run `tidepool keys "
            "fleet rotate --from FILE`; then `tidepool keys fleet retire` on each",
            err=True,
        )


def retire_command(data: Data = DATA_DEFAULT, json: Json = False) -> None:
    """Take the current secret only; who is still connected with the one before is cut off.

    Do so once every node has rotated.
    """
    with said():
        secrets = retire(node_of(data).data)
    _show(secrets, json)


def _read(source: str) -> str:
    text = sys.stdin.read() if source == "-" else Path(source).read_text()
    if not text.strip():
        raise ValueError(f"--from {source}: it is empty")
    return text


def _show(secrets: Secrets, json: bool) -> None:
    current, *previous = [secret.id for secret in secrets.held]
    if json:
        print_json({"current": current, "previous": previous[0] if previous else None})
        return
    typer.echo(f"{current}  current")
    for one in previous:
        typer.echo(f"{one}  previous, still taken")
