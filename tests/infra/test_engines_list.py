"""`engines list`: what is shown of plans, for people and for machines."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from infra.engines_view import lines, table
from registry_sync.directory import DirectoryStore
from registry_sync.plan_catalog import plans, rows
from tests.support.plans import FAILED, FLEET, PASSED, STRANGER, identity_of, put
from tests.support.processes import tidepool


def fill(folder: Path) -> DirectoryStore:
    """Write one plan of each kind: passed, failed, not run, forged and without metadata."""
    store = DirectoryStore(folder)
    put(store, identity_of("sm_86"), gate=PASSED)
    put(store, identity_of("sm_89", engine="tensorrt", precision="fp16"), gate=FAILED)
    put(store, identity_of("sm_120"), used="")
    put(store, identity_of("sm_121"), gate=PASSED, forger=STRANGER)
    store.put_new(f"engines/{'0' * 64}/{FLEET.id}/plan", b"orphan")
    return store


@pytest.fixture
def shown(tmp_path: Path) -> list[dict[str, Any]]:
    """The rows of `fill`."""
    return rows(plans(fill(tmp_path), {FLEET.id: FLEET.key}))


EXPECTED = [
    "m/1  sm_86  tensorrt_rtx 1.7.1  fp32  16 B  "
    "passed, error 3.0e-05, top-1 100 %  used 2026-11-26",
    "m/1  sm_89  tensorrt 1.7.1  fp16  16 B  failed, error 5.0e-01  used 2026-11-26",
    "  y: relative error 0.5, at most 0.01",
    "m/1  sm_120  tensorrt_rtx 1.7.1  fp32  16 B  not run  used –",
    "m/1  sm_121  tensorrt_rtx 1.7.1  fp32  16 B  not run  used 2026-11-26",
    "  its MAC is not one of this fleet",
    "–  –  –  –  6 B  not run  used –",
    "  it is not whole: meta.json missing; it is being written, or its writer died",
]


def test_lines_say_what_each_plan_is_and_what_is_against_it(shown: list[dict[str, Any]]) -> None:
    found = lines(shown)
    assert [line if line.startswith("  ") else line[14:] for line in found] == EXPECTED
    assert found[0][:12] == shown[0]["key"][:12]


def test_a_terminal_gets_the_same_in_a_table(shown: list[dict[str, Any]]) -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=True)
    console.print(table(shown))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("precision", "sm_120", "not run", "relative error 0.5, at most 0.01", "\x1b["):
        assert words in text


def test_the_command_prints_the_rows_and_judges_by_the_nodes_secret(tmp_path: Path) -> None:
    fill(tmp_path / "data" / "registry")
    words = ("engines", "list", "--data", str(tmp_path / "data"))
    env = {"TIDEPOOL_FLEET_SECRET": "the secret of this fleet"}
    found = json.loads(tidepool(*words, "--json", env=env).stdout)
    assert [row["gate"] for row in found] == ["passed", "failed", *["not_run"] * 3]
    assert {"key", "model", "version", "engine", "device", "precision", "bytes"} < found[0].keys()
    assert tidepool(*words, env=env).stdout.splitlines()[0][14:] == EXPECTED[0]
    # Without the secret nobody can tell the forged one.
    unheld = json.loads(tidepool(*words, "--json").stdout)
    assert [row["gate"] for row in unheld][3] == "passed"


def test_no_plans_are_nothing_and_no_registry_is_said(tmp_path: Path) -> None:
    DirectoryStore(tmp_path / "registry")
    words = ("engines", "list", "--json", "--registry")
    assert tidepool(*words, str(tmp_path / "registry"), cwd=tmp_path).stdout == "[]\n"
    ended = tidepool(*words, str(tmp_path / "nowhere"), cwd=tmp_path)
    assert (ended.code, ended.stdout) == (1, "")
    assert "there is no registry at" in ended.stderr
