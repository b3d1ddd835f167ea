"""How a command shows a document: as JSON, as lines in a pipe, as tables on a terminal; also live.

On a terminal it is refreshed in place, in a pipe printed anew every second.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import typer
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from infra.stack import CannotStart

WATCH_S = 1.0

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class View:
    """Both forms of one kind of document."""

    name: str  # of the command, for what is said on stderr
    lines: Callable[[Document], Sequence[str]]
    tables: Callable[[Document], RenderableType]


def show(look: Callable[[], bytes], view: View, *, json: bool, watch: bool) -> None:
    """Show the JSON document that `look` returns, once or until nobody reads any more.

    Raises:
        CannotStart: `look` did; while it is watched that is only said, and `look` tried again.
    """
    if not watch:
        _print(look(), view, json=json)
    elif json or not sys.stdout.isatty():
        _every_second(lambda: _print(look(), view, json=json), view.name)
    else:
        _watch(look, view)


def _print(document: bytes, view: View, *, json: bool) -> None:
    if json:
        typer.echo(document.decode())
    elif sys.stdout.isatty():
        Console().print(view.tables(msgspec.json.decode(document)))
    else:
        typer.echo("\n".join(view.lines(msgspec.json.decode(document))))


def _every_second(show_once: Callable[[], None], name: str) -> None:
    """Show it for as long as somebody reads; a controller that is away is waited for."""
    try:
        while True:
            try:
                show_once()
            except CannotStart as error:
                typer.echo(f"{name}: {error}", err=True)
            sys.stdout.flush()
            time.sleep(WATCH_S)
    except (KeyboardInterrupt, BrokenPipeError):
        # Else the interpreter would complain about the pipe when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _watch(look: Callable[[], bytes], view: View) -> None:
    with Live(Text("…"), auto_refresh=False, screen=True) as live:

        def show_once() -> None:
            try:
                live.update(view.tables(msgspec.json.decode(look())), refresh=True)
            except CannotStart as error:
                live.update(Text(f"{error}", "red"), refresh=True)

        _every_second(show_once, view.name)
