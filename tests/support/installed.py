"""Builds the distributions, and installs the wheel with what it declares and nothing else."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement

from tests.support.source import ROOT

SOURCE_DATE_EPOCH = "1767225600"
FILES = ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "MANIFEST.in", ".dockerignore")
PACKAGES = ("edge", "infra", "pool", "registry_sync")
LEFT_OUT = shutil.ignore_patterns("__pycache__", ".terraform", "*.egg-info")


def copy_source(folder: Path) -> Path:
    """Copy what a checkout has of the project itself."""
    folder.mkdir()
    for name in FILES:
        shutil.copy2(ROOT / name, folder)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=LEFT_OUT)
    return folder


def start_build(kind: str, source: Path, folder: Path) -> subprocess.Popen[str]:
    """Start the build of a "wheel" or "sdist" out of a source folder; `built` waits for it."""
    folder.mkdir(exist_ok=True)
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(folder)!r})"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=source,
        env={**os.environ, "SOURCE_DATE_EPOCH": SOURCE_DATE_EPOCH},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def built(build: subprocess.Popen[str], folder: Path) -> Path:
    """Wait for a build and return its one file."""
    said, _ = build.communicate(timeout=120)
    assert build.returncode == 0, said[-3000:]
    [found] = folder.iterdir()
    return found


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpack a source distribution and return its folder."""
    with tarfile.open(sdist) as archive:
        # Python 3.11 has filters from its fourth release on.
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
        archive.extractall(folder)
    [found] = folder.iterdir()
    return found


def install(wheel: Path, folder: Path) -> Path:
    """Install a wheel into a new environment, beside links to the packages that it needs.

    What the tests' own environment has beyond these cannot be imported there.

    Returns:
        The environment's folder of commands.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
    commands = folder / "bin"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"),
            *("--python", commands / "python", "install", "--no-deps", "--no-index"),
            *("--no-compile", wheel),
        ],
        # A checkout on the path would count as the installed project.
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        check=True,
        timeout=120,
    )
    # Where packages lie below an environment's folder: the same in every one of this Python.
    inside = Path(sysconfig.get_path("purelib", vars={"base": "", "platbase": ""}).lstrip("/"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for distribution in _needed(project["dependencies"]):
        _link(distribution, folder / inside)
    return commands


def _needed(dependencies: Iterable[str]) -> list[importlib.metadata.Distribution]:
    """Return what is installed here of dependencies, and of theirs."""
    found: dict[str, importlib.metadata.Distribution] = {}
    wanted = [(Requirement(text), "") for text in dependencies]
    seen = set()
    while wanted:
        requirement, extra = wanted.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        distribution = importlib.metadata.distribution(requirement.name)
        found[distribution.name] = distribution
        for extra in ("", *requirement.extras):
            if (distribution.name, extra) not in seen:
                seen.add((distribution.name, extra))
                wanted += [(Requirement(text), extra) for text in distribution.requires or ()]
    return list(found.values())


def _link(distribution: importlib.metadata.Distribution, folder: Path) -> None:
    """Link whatever a distribution has at the top of its folder of packages."""
    tops = {Path(str(file)).parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}
    for top in tops:
        target = folder / top
        if not target.exists():
            target.symlink_to(Path(str(distribution.locate_file(top))))
