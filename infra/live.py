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


class InPlace:
    """Shows documents as they come, for as long as it is entered.

    On a terminal each is refreshed in place until one about something else begins below it.  In a
    pipe one is printed when something has changed, and the last one before that.

    Args:
        view: how they are shown.
        changed: what of a document is worth a print in a pipe; its first part says what it is
            about.
    """

    def __init__(self, view: View, changed: Callable[[Document], tuple[Any, ...]]) -> None:
        self._view = view
        self._changed = changed
        # The whole mutable state: what came last, what of it is not printed yet, and where on the
        # terminal it stands.
        self._seen: tuple[Any, ...] = ()
        self._unprinted: Document | None = None
        self._live: Live | None = None

    def __enter__(self) -> InPlace:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def __call__(self, document: Document) -> None:
        """Show a document."""
        before, self._seen = self._seen, self._changed(document)
        if not sys.stdout.isatty():
            self._print(document, is_news=self._seen != before)
            return
        if self._seen[:1] != before[:1]:
            self._stop()
        if self._live is None:
            self._live = Live(auto_refresh=False)
            self._live.start()
        self._live.update(self._view.tables(document), refresh=True)

    def _print(self, document: Document, *, is_news: bool) -> None:
        if not is_news:
            self._unprinted = document
            return
        for one in (self._unprinted, document):
            if one is not None:
                typer.echo("\n".join(self._view.lines(one)))
        sys.stdout.flush()
        self._unprinted = None

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
