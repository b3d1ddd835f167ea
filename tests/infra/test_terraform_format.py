"""All of infra/terraform is formatted, and the example that uses every module is valid."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.terraform import MODULES, Root, copied

pytestmark = pytest.mark.terraform


def test_all_of_it_is_formatted() -> None:
    Root(MODULES).run("fmt", "-check", "-recursive", "-diff").ok()


def test_example_of_all_modules_is_valid(tmp_path: Path) -> None:
    # The example reads the rules of Prometheus beside it.
    shutil.copytree(
        MODULES.parent / "monitoring" / "prometheus", tmp_path / "monitoring" / "prometheus"
    )
    root = Root(copied(tmp_path) / "examples" / "complete")
    root.init()
    root.run("validate").ok()
