"""Python and the libraries: what our own metadata asks for, against what is installed."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from infra.doctor.findings import Finding, ok, warning, wrong

EXTRAS: Final = frozenset({"", "gpu", "torch"})  # those of users who serve
_REQUIREMENT: Final = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*(?:\(?>=\s*(?P<floor>[0-9.]+))?[^;]*"
    r"""(?:;.*\bextra\s*==\s*['"](?P<extra>\w+)['"])?"""
)
_PYTHON: Final = re.compile(
    r">=\s*([0-9.]+)\s*,\s*<\s*([0-9.]+)|<\s*([0-9.]+)\s*,\s*>=\s*([0-9.]+)"
)


class Requirement(msgspec.Struct, frozen=True):
    """The lowest release of a library; empty: any."""

    name: str
    floor: str
    extra: str = ""  # by which it comes; empty: always


def examine() -> list[Finding]:
    """Look at this interpreter and what is installed for it."""
    try:
        metadata = importlib.metadata.metadata("tidepool")
    except importlib.metadata.PackageNotFoundError:
        return [
            warning(
                "libraries",
                "tidepool runs from a folder and is not installed, so nobody knows what it needs",
                "pip install tidepool, or pip install -e FOLDER",
            )
        ]
    asked = metadata["Requires-Python"] or ""
    needed = map(read_requirement, importlib.metadata.requires("tidepool") or ())
    return [
        python(sys.version_info[:2], asked),
        *libraries((one for one in needed if one is not None), version_of),
    ]


def python(version: tuple[int, int], asked: str) -> Finding:
    """Judge the interpreter by `Requires-Python`.

    >>> python((3, 10), ">=3.11,<3.15").state
    'wrong'
    """
    here = f"Python {version[0]}.{version[1]}"
    found = _PYTHON.search(asked)
    if found is None:
        return ok("python", here)
    low, high = found[1] or found[4], found[2] or found[3]
    if numbers(low) <= version < numbers(high):
        return ok("python", here)
    return wrong(
        "python",
        f"{here}; tidepool needs {low} or newer, below {high}",
        f"make the environment anew with Python {low} to below {high}",
    )


def libraries(
    needed: Iterable[Requirement], version_of: Callable[[str], str | None]
) -> list[Finding]:
    """Judge what is installed; of an extra only what is there.

    Args:
        needed: of all extras.
        version_of: from a distribution's name to its version; None: it is not there.
    """
    count = 0
    findings = []
    for one in needed:
        if one.extra not in EXTRAS:
            continue
        version = version_of(one.name)
        asked = f"{one.name}>={one.floor}" if one.floor else one.name
        if version is None:
            if not one.extra:
                findings.append(
                    wrong("libraries", f"{one.name} is not installed", f"pip install '{asked}'")
                )
            continue
        count += 1
        if one.floor and numbers(version) < numbers(one.floor):
            findings.append(
                wrong(
                    "libraries",
                    f"{one.name} {version} is older than {one.floor}, the lowest that is known "
                    "to work and to have no known hole",
                    f"pip install '{asked}'",
                )
            )
    return findings or [ok("libraries", f"{count} as needed")]


def read_requirement(text: str) -> Requirement | None:
    """Read one line of our own metadata; None: it asks for none of others' libraries.

    >>> read_requirement('torch>=2.10; extra == "gpu"')
    Requirement(name='torch', floor='2.10', extra='gpu')
    """
    found = _REQUIREMENT.fullmatch(text.strip())
    if found is None or found["name"] == "tidepool":
        return None
    return Requirement(found["name"], found["floor"] or "", found["extra"] or "")


def numbers(version: str) -> tuple[int, ...]:
    """Return a release as numbers, so that releases compare; what is no number ends it.

    >>> numbers("2.13.0+cpu") > numbers("2.9")
    True
    >>> numbers("3.0") == numbers("3")
    True
    """
    found = re.match(r"\d+(?:\.\d+)*", version)
    parts = [int(part) for part in found[0].split(".")] if found else [0]
    while len(parts) > 1 and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def version_of(name: str) -> str | None:
    """Return the version of an installed distribution; None: it is not there."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
