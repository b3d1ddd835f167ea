"""What the documents promise: their lengths, links, commands, examples and the import table."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from infra.cli import COMMANDS, make_app
from registry_sync.documents import parse_spec
from tests.test_architecture import MAY_IMPORT

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PACKAGE_READMES = sorted(found for name in MAY_IMPORT for found in (ROOT / name).rglob("README.md"))
# Terraform modules explain themselves beside their variables; what was decided is told above them.
DECIDING_READMES = [
    path for path in PACKAGE_READMES if path.parent.parent.name not in ("modules", "examples")
]
DOCUMENTS = [README, ROOT / "edge" / "HTTP.md", *PACKAGE_READMES, ROOT / "CHANGELOG.md"]
README_LINES_MAX, PACKAGE_LINES_MAX, DECISION_LINES_MAX = 150, 160, 15

_LINK = re.compile(r"\]\(([^)\s#]+)")
_CODE = re.compile(r"```\w*\n(.*?)```|`([^`\n]+)`|^ {4}([^\n]+)$", re.DOTALL | re.MULTILINE)
# A command begins a line or follows a path, a pipe, another command or the word "and".
_COMMAND = re.compile(r"(?:^|[/;|&] ?)tidepool ([a-z][^;&#\n]*?)(?= [|#&] |[;&#\n]|\Z)", re.M)


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _commands(text: str) -> Iterator[list[str]]:
    """Yield the words behind each `tidepool` that code calls, once for each `a|b` among them."""
    for code in _CODE.finditer(text):
        for match in _COMMAND.finditer(code[1] or code[2] or code[3]):
            words = shlex.split(match[1])
            for family in words[1].split("|") if len(words) > 1 else [""]:
                yield [words[0], family, *words[2:]]


def _misfit(words: list[str]) -> str:
    """Say what is wrong with a command; empty if nothing is."""
    name, second, *rest = words
    if name not in COMMANDS:
        return f"no command {name!r}"
    app: Any = typer.main.get_command(make_app(name))
    found = app.commands[name]
    below = getattr(found, "commands", None)
    if below is not None and second:
        if second not in below:
            return f"no command {name} {second}"
        found = below[second]
    options = {option for parameter in found.params for option in parameter.opts}
    unknown = [word for word in (second, *rest) if word.startswith("--") and word not in options]
    return f"{name} has no {', '.join(unknown)}" if unknown else ""


def _decisions(text: str) -> list[str]:
    return re.split(r"^### ", text, flags=re.MULTILINE)[1:]


@pytest.mark.parametrize(
    ("path", "lines_max"),
    [(README, README_LINES_MAX), *((path, PACKAGE_LINES_MAX) for path in PACKAGE_READMES)],
    ids=lambda value: _name(value) if isinstance(value, Path) else "",
)
def test_readme_is_short(path: Path, lines_max: int) -> None:
    assert len(path.read_text().splitlines()) <= lines_max


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    links = [link for link in _LINK.findall(path.read_text()) if "://" not in link]
    assert not [link for link in links if not (path.parent / link).exists()]


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_every_command_and_option_that_is_named_exists(path: Path) -> None:
    assert not [found for words in _commands(path.read_text()) if (found := _misfit(words))]


def test_commands_are_found_in_every_kind_of_code() -> None:
    text = (
        "`tidepool warm` but not tidepool run\n\n    tidepool up --port 1 # all\n\n"
        "```sh\nx && .venv/bin/tidepool demo\ntidepool edge & curl; echo y | tidepool keys list\n"
        "```\n`tidepool endpoint get|set`\n"
    )
    assert [" ".join(words).strip() for words in _commands(text)] == [
        "warm",
        "up --port 1",
        "demo",
        "edge",
        "keys list",
        "endpoint get",
        "endpoint set",
    ]


@pytest.mark.parametrize(
    "words", [["teleport", ""], ["keys", "lend"], ["up", "--url"], ["publish", "m", "f", "--url"]]
)
def test_command_that_does_not_exist_is_found_out(words: list[str]) -> None:
    assert _misfit(words)


def test_import_table_is_the_one_that_is_held() -> None:
    rows = re.findall(
        r"^\| \[`(\w+)`\]\(\S+\) \|[^|]*\| (.+) \|$", README.read_text(), re.MULTILINE
    )
    told = {
        package: {package if word == "itself" else word.strip("`") for word in words.split(", ")}
        for package, words in rows
    }
    assert told == {package: {*may} for package, may in MAY_IMPORT.items()}


def test_example_of_an_endpoint_is_a_good_one() -> None:
    example = re.search(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL)
    assert example is not None
    assert [variant.weight for variant in parse_spec(example[1]).variants] == [90, 10]


@pytest.mark.parametrize("path", DECIDING_READMES, ids=_name)
def test_readme_of_a_package_ends_in_dated_decisions(path: Path) -> None:
    _, _, end = path.read_text().partition("\n## Decisions\n")
    assert "\n## " not in end
    decisions = _decisions(end)
    assert decisions
    assert all(re.match(r"\d{4}-\d\d-\d\d \S", decision) for decision in decisions)
    assert all("Decided: " in decision for decision in decisions)
    assert all("Would change our mind: " in decision for decision in decisions)
    assert all(len(decision.strip().splitlines()) <= DECISION_LINES_MAX for decision in decisions)


@pytest.mark.parametrize("path", PACKAGE_READMES, ids=_name)
def test_readme_of_a_package_names_every_module_of_it(path: Path) -> None:
    named = re.findall(r"`([\w/]+)`", path.read_text().partition("\n## Decisions\n")[0])
    modules = {
        str(file.relative_to(path.parent).with_suffix(""))
        for file in path.parent.rglob("*.py")
        if file.name != "__init__.py"
    }
    folders = tuple(name for name in named if name.endswith("/"))
    assert not {name for name in modules - {*named} if not name.startswith(folders or ("/",))}


def test_changelog_begins_with_what_is_unreleased() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
