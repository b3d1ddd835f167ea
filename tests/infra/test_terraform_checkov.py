"""checkov on all modules and examples: nothing is found, and what is passed over says why."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.terraform import MODULES

pytestmark = [pytest.mark.slow, pytest.mark.checkov]

_SKIP = re.compile(r"# ?checkov:skip=(\w+):?(.*)")
_REASON_LENGTH_MIN = 20


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    done = subprocess.run(
        [
            *("checkov", "--directory", str(MODULES), "--framework", "terraform"),
            *("--skip-download", "--output", "json"),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.stdout.startswith("{"), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["results"]
    return found


def _skips() -> list[tuple[Path, str, str]]:
    return [
        (path, check, reason.strip())
        for path in sorted(MODULES.rglob("*.tf"))
        for check, reason in _SKIP.findall(path.read_text())
    ]


def test_checkov_finds_nothing(results: dict[str, Any]) -> None:
    assert results["passed_checks"]
    assert not {
        f"{failed['check_id']} {failed['resource']}: {failed['check_name']}"
        for failed in results["failed_checks"]
    }


def test_every_check_that_is_passed_over_says_why() -> None:
    assert not [skip for skip in _skips() if len(skip[2]) < _REASON_LENGTH_MIN]


def test_no_check_is_passed_over_without_need(results: dict[str, Any]) -> None:
    passed_over = {
        (skip["check_id"], Path(skip["file_path"]).name) for skip in results["skipped_checks"]
    }
    assert not {
        f"{path.relative_to(MODULES)}: {check}"
        for path, check, _ in _skips()
        if (check, path.name) not in passed_over
    }
