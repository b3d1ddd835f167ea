"""Which releases of others' libraries may be used: none with a hole that is known.

`pip-audit` runs in `.ci/run`, where the advisories can be reached.  What is held here holds without
them: the lowest releases that we allow, and what is installed.
"""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.support.source import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# The first release without a known hole, and which the last one was.
FLOORS = {
    "starlette": ("1.3.1", "CVE-2026-54283: bounds on forms that are not held"),
    "msgpack": ("1.2.1", "CVE-2026-57585: an Unpacker that is used after an error"),
    "onnx": ("1.21", "CVE-2026-27489: external data by a symbolic link"),
    "torch": ("2.10", "CVE-2026-24747: weights_only that is none"),
    "cryptography": ("46.0.5", "CVE-2026-26007: public keys of a small subgroup"),
}
# Known holes with which we live, by the library, and why they are none here.
EXCEPTIONS = {
    "CVE-2025-69872": ("diskcache", "unpickles what it finds: our `Disk` refuses to"),
}


def requirements() -> dict[str, list[Requirement]]:
    """Return what pyproject.toml asks for, by name; extras as well."""
    texts = [*PROJECT["dependencies"]]
    for group in PROJECT["optional-dependencies"].values():
        texts += group
    found: dict[str, list[Requirement]] = {}
    for text in texts:
        requirement = Requirement(text)
        found.setdefault(requirement.name.lower(), []).append(requirement)
    return found


@pytest.mark.rule("SEC-10", "SEC-15", "SEC-18", "SEC-19", "SEC-24")
@pytest.mark.parametrize("name", FLOORS)
def test_no_release_with_a_known_hole_is_allowed_or_here(name: str) -> None:
    floor = Version(FLOORS[name][0])
    for requirement in requirements()[name]:
        lowest = [Version(s.version) for s in requirement.specifier if s.operator in (">=", "==")]
        assert lowest, f"{requirement}: has no lowest release"
        assert max(lowest) >= floor, (str(requirement), FLOORS[name])
    assert Version(importlib.metadata.version(name)) >= floor


@pytest.mark.rule("SEC-24")
def test_every_dependency_of_users_has_a_lowest_release() -> None:
    for text in PROJECT["dependencies"]:
        assert any(s.operator == ">=" for s in Requirement(text).specifier), text


@pytest.mark.rule("SEC-24")
def test_only_recorded_holes_are_passed_over() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    assert "pip-audit" in ci
    assert set(re.findall(r"--ignore-vuln[ =](\S+)", ci)) == set(EXCEPTIONS)
    for library, _ in EXCEPTIONS.values():
        assert library in requirements()


@pytest.mark.rule("SEC-24")
def test_no_second_index_can_slip_a_library_in() -> None:
    """Of a name that is on two indexes pip takes the higher version, whoever put it there."""
    files = [ROOT / "pyproject.toml", ROOT / ".ci" / "run"]
    files += [path for path in (ROOT / "infra").rglob("*") if path.is_file()]
    words = re.compile(r"extra-index-url|trusted-host|find-links|dependency_links")
    found = [
        str(path.relative_to(ROOT))
        for path in files
        if path.suffix != ".pyc" and words.search(path.read_text(errors="replace"))
    ]
    assert not found
