"""Every row of tests/README.md is held by a test that names it, and every such name is a row.

A test names the rows that it holds: ``@pytest.mark.rule("F1", "SEC-5")``.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FAULTS = [f"F{number}" for number in range(1, 31)]
RULES = [f"SEC-{number}" for number in range(1, 25)]


@cache
def rows() -> dict[str, str]:
    """Return the table's rows by their id: whatever follows it."""
    text = (TESTS / "README.md").read_text()
    found = re.findall(r"^\| (F\d+|SEC-\d+) \| (.+) \|$", text, re.MULTILINE)
    assert len(dict(found)) == len(found), "a row is there twice"
    return dict(found)


def named_in(source: str) -> set[str]:
    """Return the rows that a file's tests name."""
    return {
        argument.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.rule"
        for argument in node.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    }


@cache
def held() -> dict[str, set[str]]:
    """Return the files with tests that name a row, by the row."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted(TESTS.rglob("test_*.py")):
        if path != Path(__file__):
            for row in named_in(path.read_text()):
                found[row].add(str(path.relative_to(TESTS)))
    return found


def test_the_table_has_every_fault_and_every_rule_in_order() -> None:
    assert [*rows()] == [*FAULTS, *RULES]


@pytest.mark.parametrize("row", [*FAULTS, *RULES])
def test_every_row_is_held_by_a_test(row: str) -> None:
    assert held()[row]


def test_what_tests_name_is_in_the_table() -> None:
    assert not {row: files for row, files in held().items() if row not in rows()}


@pytest.mark.parametrize("row", [*FAULTS, *RULES])
def test_files_that_a_row_names_hold_it(row: str) -> None:
    files = set(re.findall(r"`([\w/]+\.py)`", rows()[row].rpartition(" | ")[2]))
    assert files <= held()[row]


def test_marks_are_read_wherever_they_stand() -> None:
    source = """
pytestmark = pytest.mark.rule("F1")

@pytest.mark.slow
@pytest.mark.rule("F2", "SEC-3")
async def test_a() -> None: ...

@pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.rule("F4"))])
def test_b() -> None: ...
"""
    assert named_in(source) == {"F1", "F2", "SEC-3", "F4"}
