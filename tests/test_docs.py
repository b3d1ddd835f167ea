"""What the documents promise: their lengths, links, commands, examples and the import table."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

from infra.cli import COMMANDS, make_app
from registry_sync.documents import parse_spec
from tests.test_architecture import MAY_IMPORT

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PACKAGE_READMES = [ROOT / package / "README.md" for package in MAY_IMPORT]
DOCUMENTS = [README, *PACKAGE_READMES, ROOT / "CHANGELOG.md"]
README_LINES_MAX, PACKAGE_LINES_MAX, DECISION_LINES_MAX = 150, 60, 15

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"```\w*\n(.*?)```|`([^`\n]+)`|^    (.+)$", re.DOTALL | re.MULTILINE)


def _commands(path: Path) -> Iterator[list[str]]:
    """Yield the words after each `tidepool` that is named as a command, up to the next one."""
    for match in _CODE.finditer(path.read_text()):
        text = (match[1] or match[2] or match[3]).replace("\\\n", " ")
        for line in text.splitlines():
            found = re.search(r"(?:^|[|;&/] ?)tidepool ([a-z][^|;&#]*)", line.strip())
            for start in re.finditer(r"(?:^|[|;&/]\s*)tidepool (?=[a-z])", line.strip()):
                rest = line.strip()[start.end() :]
                # `endpoint get|set` names two commands; a bar with spaces ends one.
                rest = re.split(r"\s[|;&#]|[;&]|\s&&", rest)[0]
                yield shlex.split(rest)
            assert found or "tidepool up &" not in line or start


def _spelled(words: list[str]) -> Iterator[list[str]]:
    """Yield `words` once for each alternative of its second word."""
    if len(words) > 1 and "|" in words[1]:
        for word in words[1].split("|"):
            yield [words[0], word, *words[2:]]
    else:
        yield words


def _misfit(words: list[str]) -> str:
    """Say what is wrong with a command line; empty if nothing is."""
    name, *rest = words
    if name not in COMMANDS:
        return f"no command {name!r}"
    command = typer.main.get_command(make_app(name))
    assert isinstance(command, click.Group | typer.core.TyperGroup)
    found = command.commands[name]
    if hasattr(found, "commands") and rest:
        if rest[0] not in found.commands:
            return f"no command {name} {rest[0]}"
        found = found.commands[rest[0]]
    options = {option for parameter in found.params for option in parameter.opts}
    unknown = [word for word in rest if word.startswith("--") and word not in options]
    return f"{name} has no {', '.join(unknown)}" if unknown else ""
