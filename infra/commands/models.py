"""`models`: what is published."""

from __future__ import annotations

import msgspec
import typer

from infra.commands.options import DATA_DEFAULT, Data, Json, Registry, said, store_of
from infra.printable import printable
from registry_sync import catalog


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("models")(models_command)


def models_command(data: Data = DATA_DEFAULT, registry: Registry = "", json: Json = False) -> None:
    """List the published models and their versions."""
    with said():
        found = catalog.models(store_of(data, registry, writes=False))
    if json:
        rows = [{"model": model, "versions": versions} for model, versions in found.items()]
        typer.echo(msgspec.json.encode(rows).decode())
        return
    for model, versions in found.items():
        typer.echo(printable(f"{model}  {' '.join(versions)}"))
