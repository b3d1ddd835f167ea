"""`engines list|build|wish|gc`: which plans there are, and which there are to be."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from infra import engines_view, wishing
from infra.changes import recorded
from infra.commands.engines_build import build_command
from infra.commands.options import (
    DATA_DEFAULT,
    Data,
    EngineName,
    For,
    Json,
    Reason,
    Registry,
    node_of,
    poke,
    print_json,
    said,
    store_of,
)
from infra.plan_builds import wanted_here
from infra.printable import printable
from infra.status_view import UNKNOWN, shown_bytes
from pool.wire.fleet_secret import load_secrets
from registry_sync import catalog, plan_catalog
from registry_sync.names import check_name
from registry_sync.plan_gc import UnusedPlans, gc_plans
from registry_sync.stores import NotFound

DAYS_DEFAULT = 30
_KEPT = (
    "a bucket with versioning keeps what was removed as noncurrent versions, which cost as much: "
    "a lifecycle rule with NoncurrentVersionExpiration on engines/ ends them"
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    family = typer.Typer(no_args_is_help=True, help="Plans that are built for devices.")
    family.command("list")(list_command)
    family.command("build")(build_command)
    family.command("wish")(wish_command)
    family.command("gc")(gc_command)
    app.add_typer(family, name="engines")


def list_command(data: Data = DATA_DEFAULT, registry: Registry = "", json: Json = False) -> None:
    """List the plans of the registry, with how their outputs agreed with the artifact's."""
    with said():
        store = store_of(data, registry, writes=False)
        rows = plan_catalog.rows(plan_catalog.plans(store, _secret_keys(data)))
    if json:
        print_json(rows)
    elif sys.stdout.isatty():
        Console().print(engines_view.table(rows))
    else:
        for line in engines_view.lines(rows):
            typer.echo(line)


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
            wishing.check(data, store, manifest, wanted_here(store, manifest), targets, engine)
            wishing.write(store, reason, model, version, targets, engine)
        poke(data, store, says_if_nobody=True)
    verb = "withdrawn" if withdraw else "wished for"
    typer.echo(f"{verb}: {model} version {version} for {', '.join(targets)}")


def gc_command(
    days: Annotated[
        int, typer.Option("--days", min=1, help="Plans that nobody has loaded for longer go.")
    ] = DAYS_DEFAULT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    reason: Reason = "",
    data: Data = DATA_DEFAULT,
    registry: Registry = "",
    json: Json = False,
) -> None:
    """Remove the plans that nobody has used for long from the registry.

    One that is wished for or wanted again is built again.  A bucket with versioning keeps, and is
    paid for, what was removed until a rule of its own for noncurrent versions takes it.
    """
    with said():
        store = store_of(data, registry, writes=False)
        today = datetime.now(UTC).date()
        if dry_run:
            gone = gc_plans(store, today, days, dry_run=True)
        else:
            gone = recorded(
                *(store, reason, "engine.gc", "engines"),
                lambda: gc_plans(store, today, days),
                lambda gone: (f"{len(gone)} plans unused for {days} days", ""),
            )
    if gone and not dry_run and store.url.startswith("s3://"):
        typer.echo(_KEPT, err=True)
    if json:
        print_json([_gone_row(one) for one in gone])
        return
    for one in gone:
        line = f"{one.key}  {_of(one)}  {shown_bytes(one.bytes)}  used {one.used}"
        typer.echo(printable(line))
    verb = "would go" if dry_run else "removed"
    typer.echo(f"{len(gone)} {verb}, {shown_bytes(sum(one.bytes for one in gone))}", err=True)


def _secret_keys(data: Path) -> dict[str, bytes]:
    """Return the fleet's secrets of this node, by id; none if it has none.

    Raises:
        ValueError: there is one, and it does not fit.
    """
    secrets = load_secrets(node_of(data).data)
    return {} if secrets is None else secrets.keys


def _gone_row(one: UnusedPlans) -> dict[str, Any]:
    versions = [{"model": meta.model, "version": meta.version} for meta in one.metas]
    return {"key": one.key, "used": one.used, "bytes": one.bytes, "of": versions}


def _of(one: UnusedPlans) -> str:
    found = sorted({f"{meta.model}/{meta.version} {meta.identity.device}" for meta in one.metas})
    return ", ".join(found) or UNKNOWN
