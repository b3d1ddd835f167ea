"""`engines list|wish`: which plans there are, and what is to be built for which devices."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from infra import engines_view, wishing
from infra.commands.options import (
    DATA_DEFAULT,
    Data,
    Json,
    Reason,
    Registry,
    node_of,
    poke,
    said,
    store_of,
)
from pool.wire.fleet_secret import load_secrets
from registry_sync import catalog, plan_catalog
from registry_sync.names import check_name
from registry_sync.stores import NotFound

For = Annotated[str, typer.Option("--for", help="Device classes, such as sm_86,sm_120.")]
EngineName = Annotated[
    str, typer.Option("--engine", help="That is to build; default: any that can.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    family = typer.Typer(no_args_is_help=True, help="Plans that are built for devices.")
    family.command("list")(list_command)
    family.command("wish")(wish_command)
    app.add_typer(family, name="engines")


def list_command(data: Data = DATA_DEFAULT, registry: Registry = "", json: Json = False) -> None:
    """List the plans of the registry, with how their outputs agreed with the artifact's."""
    with said():
        store = store_of(data, registry, writes=False)
        rows = plan_catalog.rows(plan_catalog.plans(store, secret_keys(data)))
    if json:
        typer.echo(msgspec.json.encode(rows).decode())
    elif sys.stdout.isatty():
        Console().print(engines_view.table(rows))
    else:
        for line in engines_view.lines(rows):
            typer.echo(line)


def secret_keys(data: Path) -> dict[str, bytes]:
    """Return the fleet's secrets of this node, by id; none if it has none.

    Raises:
        ValueError: there is one, and it does not fit.
    """
    secrets = load_secrets(node_of(data).data)
    held = () if secrets is None else (secrets.current, secrets.previous)
    return {secret.id: secret.key for secret in held if secret is not None}


def wish_command(
    model: str,
    version: str,
    build_for: For,
    engine: EngineName = "",
    withdraw: Annotated[
        bool, typer.Option("--withdraw", help="Take the wish back; what is built stays.")
    ] = False,
    reason: Reason = "",
    data: Data = DATA_DEFAULT,
    registry: Registry = "",
) -> None:
    """Let workers build plans of a version for device classes, as soon as one can."""
    with said():
        targets = wishing.parse_targets(build_for)
        if not targets:
            raise ValueError("--for: names no device class, such as sm_86")
        if engine:
            check_name("engine", engine)
        store = store_of(data, registry)
        if withdraw:
            wishing.withdraw(store, reason, model, version, targets)
        else:
            try:
                manifest = catalog.load_manifest(store, model, version)
            except NotFound:
                raise ValueError(f"{model} version {version} is not published") from None
            wishing.check(data, store, manifest, targets, engine)
            wishing.write(store, reason, model, version, targets, engine)
        poke(data, store, says_if_nobody=True)
    verb = "withdrawn" if withdraw else "wished for"
    typer.echo(f"{verb}: {model} version {version} for {', '.join(targets)}")
