"""`status` and `warm`: questions to the controller of the running stack."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import msgspec
import typer

from infra.changes import recorded
from infra.commands.asking import AdminUrl, Watch, ask_controller, get_admin
from infra.commands.options import DATA_DEFAULT, Data, Json, Reason, Registry, poke, said, store_of
from infra.live import View, show
from infra.status_view import lines, tables
from infra.until import parse as parse_until
from infra.why_view import why_lines
from registry_sync import endpoints

Why = Annotated[
    str,
    typer.Option(
        "--why", metavar="NAME", help="Show why an endpoint has the replicas that it has."
    ),
]
Until = Annotated[
    str | None,
    typer.Option("--until", help="18:00, 30m, 2h, 2026-12-01T18:00; now: no longer."),
]
VIEW = View("status", lines, tables)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("status")(status_command)
    app.command("warm")(warm_command)


def status_command(
    data: Data = DATA_DEFAULT,
    registry: Registry = "",
    url: AdminUrl = "",
    json: Json = False,
    watch: Watch = False,
    why: Why = "",
) -> None:
    """Show workers, edges and endpoints, with what the last minute brought."""
    if why:
        _show_why(why, data, registry, url, json)
        return

    def look() -> bytes:
        if url:
            return get_admin(url, "/admin/pool")
        return ask_controller(data, registry, "status").data

    show(look, VIEW, json=json, watch=watch)


def _show_why(name: str, data: Path, registry: str, url: str, json: bool) -> None:
    if url:
        found = get_admin(url, f"/admin/endpoints/{quote(name, safe='')}/why")
    else:
        found = ask_controller(data, registry, "why", name).data
    typer.echo(found.decode() if json else "\n".join(why_lines(msgspec.json.decode(found))))


def warm_command(
    name: str,
    until: Until = None,
    reason: Reason = "",
    data: Data = DATA_DEFAULT,
    registry: Registry = "",
) -> None:
    """Let every version of an endpoint be loaded somewhere now, and stay so until a time."""
    if until is None:
        ask_controller(data, registry, "warm", name)
        typer.echo(f"warming {name}")
        return
    with said():
        until_unix_s = parse_until(until, datetime.now().astimezone())
        store = store_of(data, registry)
        recorded(
            *(store, reason, "endpoint.warm", name),
            lambda: endpoints.warm_until(store, name, until_unix_s),
            lambda _: ("", ""),
        )
        if poke(data, store, says_if_nobody=True) and until_unix_s:
            ask_controller(data, registry, "warm", name)  # also if it was unloaded by request
    if until_unix_s:
        shown = datetime.fromtimestamp(until_unix_s).astimezone().isoformat(" ", "minutes")
        typer.echo(f"warming {name} until {shown}")
    else:
        typer.echo(f"{name} is warm by request no longer")
