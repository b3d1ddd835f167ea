"""`status` and `warm`: questions to the controller of the running stack."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from infra.client import ask, get
from infra.commands.options import (
    DATA_DEFAULT,
    Data,
    Json,
    Registry,
    controller_address,
    node_of,
    said,
    store_of,
)
from infra.stack import CannotStart
from infra.status_view import Document, lines, tables
from pool.wire.control import Answer

WATCH_S = 1.0
AdminUrl = Annotated[
    str,
    typer.Option("--url", help="An edge's admin URL, asked with TIDEPOOL_API_KEY; else --data."),
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
) -> None:
    """Show workers, edges and endpoints, with what the last minute brought."""

    def look() -> bytes:
        return _by_http(url) if url else _ask(data, registry, "status", "").data

    if not watch:
        _print(look(), json)
    elif json or not sys.stdout.isatty():
        _every_second(lambda: _print(look(), json))
    else:
        _watch(look)


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


def _by_http(url: str) -> bytes:
    """Return the status as an edge's admin port tells it.

    Raises:
        CannotStart: nobody answers, or the key is not good for it.
    """
    key = os.environ.get("TIDEPOOL_API_KEY", "")
    if not key:
        raise CannotStart("--url needs a key: set TIDEPOOL_API_KEY")
    status, body = get(f"{url.rstrip('/')}/admin/pool", {"authorization": f"Bearer {key}"}, 20.0)
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


def warm_command(name: str, data: Data = DATA_DEFAULT, registry: Registry = "") -> None:
    """Let every version of an endpoint be loaded somewhere now."""
    _ask(data, registry, "warm", name)
    typer.echo(f"warming {name}")


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
