"""`keys create|list|revoke`: who may call."""

from __future__ import annotations

import time
from typing import Annotated

import msgspec
import typer

from infra.changes import recorded
from infra.commands.options import DATA_DEFAULT, Data, Json, Reason, Registry, poke, said, store_of
from registry_sync import keys


def register(app: typer.Typer) -> None:
    """Add the commands."""
    family = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")
    family.command("create")(create_command)
    family.command("list")(list_command)
    family.command("revoke")(revoke_command)
    app.add_typer(family, name="keys")


def create_command(
    tenant: Annotated[str, typer.Option(help="Whose cache and share it is.")] = "default",
    scope: Annotated[
        list[str] | None, typer.Option(help="infer:NAME, infer:* or admin; default infer:*.")
    ] = None,
    days: Annotated[float | None, typer.Option(min=0, help="Refused after so many.")] = None,
    reason: Reason = "",
    data: Data = DATA_DEFAULT,
    registry: Registry = "",
    json: Json = False,
) -> None:
    """Make a key; it is printed once and kept nowhere."""
    not_after = None if days is None else time.time() + days * 86400
    with said():
        store = store_of(data, registry)
        key, record = keys.make_key(tenant, scope or ["infer:*"], not_after=not_after)
        recorded(store, reason, "key.create", record.id, lambda: keys.add_key(store, record))
        poke(data, store)
    typer.echo(msgspec.json.encode({"id": record.id, "key": key}).decode() if json else key)


def list_command(data: Data = DATA_DEFAULT, registry: Registry = "", json: Json = False) -> None:
    """List the keys' records; the keys themselves are known to nobody."""
    with said():
        records = keys.list_keys(store_of(data, registry))
    rows = [
        {"id": r.id, "tenant": r.tenant, "scopes": list(r.scopes), "not_after": r.not_after}
        for r in records
    ]
    if json:
        typer.echo(msgspec.json.encode(rows).decode())
        return
    for record in records:
        typer.echo(f"{record.id}  {record.tenant}  {' '.join(record.scopes)}")


def revoke_command(
    id: str, reason: Reason = "", data: Data = DATA_DEFAULT, registry: Registry = ""
) -> None:
    """Let a key no longer be good, on every live edge when this returns."""
    with said():
        store = store_of(data, registry)
        recorded(store, reason, "key.revoke", id, lambda: keys.revoke_key(store, id))
        poke(data, store)
    typer.echo(f"revoked {id}")
