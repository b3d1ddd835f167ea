"""Documents that are shown as they come: in place on a terminal, by changes in a pipe."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import pytest
from rich.text import Text

from infra.live import Document, InPlace, View

VIEW = View(
    "test",
    lambda seen: [f"{seen['id']} at {seen['step']}", f"  {seen['count']} calls"],
    lambda seen: Text(f"{seen['id']} at {seen['step']}: {seen['count']} calls"),
)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(*documents: Document, then: Exception | None = None) -> None:
    with InPlace(VIEW, lambda seen: (seen["id"], seen["step"])) as shown:
        for document in documents:
            shown(document)
        if then is not None:
            raise then


def on_terminal(patch: pytest.MonkeyPatch, *documents: Document, then: Any = None) -> str:
    """Return what a terminal is sent."""
    patch.setenv("TERM", "xterm")
    patch.setenv("COLUMNS", "100")
    terminal = _Terminal()
    patch.setattr("sys.stdout", terminal)
    with contextlib.suppress(TimeoutError):
        show(*documents, then=then)
    return terminal.getvalue()


def test_pipe_gets_what_has_changed_and_the_last_before_that(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen = [(1, 5), (1, 6), (1, 7), (2, 8), (1, 9), (1, 10)]
    show(*({"id": "a", "step": step, "count": count} for step, count in seen))
    assert capsys.readouterr().out.splitlines() == [
        *("a at 1", "  5 calls", "a at 1", "  7 calls"),
        *("a at 2", "  8 calls"),
        *("a at 1", "  9 calls"),
    ]


def test_terminal_shows_every_document_in_the_place_of_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = on_terminal(monkeypatch, *({"id": "a", "step": 1, "count": n} for n in (5, 6, 7, 7)))
    assert all(f"a at 1: {count} calls" in text for count in (5, 6, 7))
    assert text.count("\n") == 1  # when it has ended


def test_document_about_something_else_begins_below(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = ({"id": name, "step": 1, "count": 5} for name in "ab")
    first, second, _ = on_terminal(monkeypatch, a, a, b, b).split("\n")
    assert ("a at 1" in first, "b at 1" in first) == (True, False)
    assert ("a at 1" in second, "b at 1" in second) == (False, True)


def test_terminal_has_its_cursor_back_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    text = on_terminal(monkeypatch, {"id": "a", "step": 1, "count": 5}, then=TimeoutError())
    assert 0 <= text.rfind("\x1b[?25l") < text.rfind("\x1b[?25h")
