"""`status` and `warm`: questions to the controller of the running stack."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import msgspec
import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from infra.changes import recorded
from infra.client import ask, get
from infra.commands.options import (
    DATA_DEFAULT,
    Data,
    Json,
    Reason,
    Registry,
    controller_address,
    node_of,
    poke,
    said,
    store_of,
)
from infra.stack import CannotStart
from infra.status_view import Document, lines, tables
from infra.until import parse as parse_until
from infra.why_view import why_lines
from pool.wire.control import Answer
from registry_sync import endpoints

WATCH_S = 1.0
AdminUrl = Annotated[
    str,
    typer.Option("--url", help="An edge's admin URL, asked with TIDEPOOL_API_KEY; else --data."),
]
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
Watch = Annotated[bool, typer.Option("--watch", "-w", help="Show it anew every second.")]


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
        return _by_http(url) if url else _ask(data, registry, "status", "").data

    if not watch:
        _print(look(), json)
    elif json or not sys.stdout.isatty():
        _every_second(lambda: _print(look(), json))
    else:
        _watch(look)


def _show_why(name: str, data: Path, registry: str, url: str, json: bool) -> None:
    if url:
        found = _by_http(url, f"/admin/endpoints/{quote(name, safe='')}/why")
    else:
        found = _ask(data, registry, "why", name).data
    typer.echo(found.decode() if json else "\n".join(why_lines(msgspec.json.decode(found))))


def _print(document: bytes, json: bool) -> None:
    if json:
        typer.echo(document.decode())
        return
    status: Document = msgspec.json.decode(document)
    if sys.stdout.isatty():
        Console().print(tables(status))
    else:
        typer.echo("\n".join(lines(status)))


def _every_second(show: Callable[[], None]) -> None:
    """Show it for as long as somebody reads; a controller that is away is waited for."""
    try:
        while True:
            try:
                show()
            except CannotStart as error:
                typer.echo(f"status: {error}", err=True)
            sys.stdout.flush()
            time.sleep(WATCH_S)
    except (KeyboardInterrupt, BrokenPipeError):
        # Else the interpreter would complain about the pipe when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _watch(look: Callable[[], bytes]) -> None:
    with Live(Text("…"), auto_refresh=False, screen=True) as live:

        def show() -> None:
            try:
                live.update(tables(msgspec.json.decode(look())), refresh=True)
            except CannotStart as error:
                live.update(Text(f"{error}", "red"), refresh=True)

        _every_second(show)


def _by_http(url: str, path: str = "/admin/pool") -> bytes:
    """Return what an edge's admin port tells at `path`.

    Raises:
        CannotStart: nobody answers, or the key is not good for it.
    """
    key = os.environ.get("TIDEPOOL_API_KEY", "")
    if not key:
        raise CannotStart("--url needs a key: set TIDEPOOL_API_KEY")
    status, body = get(f"{url.rstrip('/')}{path}", {"authorization": f"Bearer {key}"}, 20.0)
    if status == 200:
        return body
    if status == 0:
        raise CannotStart(f"nobody answers at {url}; is it the admin URL?")
    raise CannotStart(f"{url} answered {status}: {_detail(body)}")


def _detail(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_Problem).detail
    except msgspec.DecodeError:
        return "no problem document; is it the admin URL?"


class _Problem(msgspec.Struct):
    detail: str


def warm_command(
    name: str,
    until: Until = None,
    reason: Reason = "",
    data: Data = DATA_DEFAULT,
    registry: Registry = "",
) -> None:
    """Let every version of an endpoint be loaded somewhere now, and stay so until a time."""
    if until is None:
        _ask(data, registry, "warm", name)
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
            _ask(data, registry, "warm", name)  # also if it was unloaded by request
    if until_unix_s:
        shown = datetime.fromtimestamp(until_unix_s).astimezone().isoformat(" ", "minutes")
        typer.echo(f"warming {name} until {shown}")
    else:
        typer.echo(f"{name} is warm by request no longer")


def _ask(data: Path, registry: str, what: str, argument: str) -> Answer:
    with said():
        store = store_of(data, registry) if registry else None
        address = controller_address(data, store)
        if address is None:
            raise CannotStart(f"no stack runs on --data {data}; start one with `tidepool up`")
        answer = asyncio.run(ask(address, node_of(data).data, what, argument))
    if not answer.ok:
        raise CannotStart(answer.detail)
    return answer
