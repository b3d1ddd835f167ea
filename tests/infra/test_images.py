"""The images' Containerfiles, held to what can be known without building them."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer.core
import typer.main
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from infra.cli import make_app
from infra.health import SOCKETS
from tests.support.containerfile import Containerfile, Instruction, parse
from tests.support.source import ROOT

FOLDER = ROOT / "infra" / "images"
FILES = {path.name.removesuffix(".Containerfile"): path for path in FOLDER.glob("*.Containerfile")}
USER = "10001:10001"
# Names under which a compiler, or what brings one, is installed.
COMPILERS = re.compile(r"\b(gcc|g\+\+|clang|cc|build-essential|make|python3-dev|nvcc|\w+-devel)\b")


@pytest.fixture(params=sorted(FILES))
def file(request: pytest.FixtureRequest) -> Containerfile:
    return parse(FILES[request.param])


def copies(file: Containerfile) -> list[tuple[str, list[str]]]:
    """Return each COPY: from which stage ("": the repository), and its sources."""
    found = []
    for instruction in (one for stage in file.stages for one in stage.all("COPY")):
        words = instruction.words
        origin = ""
        if words[0].startswith("--"):
            assert words[0].startswith("--from="), instruction
            origin = words.pop(0).removeprefix("--from=")
        found.append((origin, words[:-1]))
    return found


def ignored(path: str) -> bool:
    """Tell whether `.dockerignore` keeps a file or folder of the repository out of a build."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line.strip("# ")]
    rules = [line for line in rules if not line.startswith("#")]
    assert rules[0] == "*", "all is left out but what is named"
    name = Path(path)
    tops = [str(part) for part in (name, *name.parents)]
    kept = any(rule.startswith("!") and rule[1:] in tops for rule in rules)
    return not kept or any(rule in tops for rule in rules[1:])


def test_there_is_one_for_each_kind_of_machine() -> None:
    assert set(FILES) == {"edge", "pool"}


@pytest.mark.parametrize("name", sorted(FILES))
def test_linter_has_nothing_to_say(name: str) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, "--no-color", FILES[name]], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_bases_are_arguments_with_a_whole_version(file: Containerfile) -> None:
    images = {file.base_of(stage) for stage in file.stages} - {one.name for one in file.stages}
    assert images == set(file.arguments.values())
    for image in images:
        # A registry by name, so that no engine guesses one; a tag that says more than a minor
        # release; or a digest.
        assert re.fullmatch(r"[\w.-]+\.\w+/[\w./-]+(:\d+\.\d+\.\d+-[\w.-]+|@sha256:\w{64})", image)


def test_what_is_copied_is_there(file: Containerfile) -> None:
    stages = [stage.name for stage in file.stages]
    for origin, sources in copies(file):
        if origin:
            assert origin in stages
            continue
        for source in sources:
            assert (ROOT / source).exists(), source
            assert not ignored(source), f".dockerignore keeps {source} out"


def test_what_builds_the_wheel_is_all_copied(file: Containerfile) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = [
        name.removesuffix("*")
        for name in project["tool"]["setuptools"]["packages"]["find"]["include"]
    ]
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    copied = [source for origin, sources in copies(file) if not origin for source in sources]
    assert {*needed, *packages} <= set(copied)


def test_build_sees_nothing_of_a_checkout_but_the_sources() -> None:
    for name in (".git", ".tidepool", "tests", "infra/pictures", ".ci", "secrets.txt"):
        assert ignored(name), name


def test_result_has_no_compiler_and_no_pip(file: Containerfile) -> None:
    for stage in file.stages:
        for instruction in stage.all("RUN"):
            assert not COMPILERS.search(instruction.text), instruction
    last = file.behind(file.stages[-1])
    assert not [
        one for stage in last for one in stage.all("RUN") if re.search(r"\bpip\b", one.text)
    ]
    assert [sources for origin, sources in copies(file) if origin == "packages"] == [
        ["/opt/tidepool"]
    ]


def test_result_is_run_by_nobody_special_on_volumes_that_are_its_own(file: Containerfile) -> None:
    last = file.stages[-1]
    assert last.one("USER").text == USER
    names = [one.name for one in last.instructions]
    # What is done as root comes before, and a volume takes what its folder is then.
    assert names.index("USER") > max(at for at, name in enumerate(names) if name == "RUN")
    assert last.one("VOLUME").words == ["/data", "/tmp"]
    made = " ".join(one.text for one in last.all("RUN"))
    assert "--uid 10001" in made
    assert "--owner 10001 --group 10001 /data" in made
    environment = dict(word.split("=", 1) for word in last.one("ENV").words)
    assert environment["TIDEPOOL_DATA"] == "/data"
    assert environment["HOME"] == "/tmp"
    assert environment["PATH"].split(":")[0] == "/opt/tidepool/bin"


def test_entry_point_and_health_check_need_no_shell(file: Containerfile) -> None:
    last = file.stages[-1]
    assert last.one("ENTRYPOINT").words == ["tidepool"]
    assert last.one("ENTRYPOINT").is_json
    check = last.one("HEALTHCHECK").text
    command = Instruction(0, "CMD", check.partition("CMD ")[2])
    tier = "pool" if "pool" in file.path.name else "edge"
    assert command.words == ["python", "-m", "infra.health", tier]


def test_gpu_is_in_the_pools_image_alone() -> None:
    edge, pool = parse(FILES["edge"]), parse(FILES["pool"])
    installs = {
        file.path.name: " ".join(
            one.text
            for stage in file.stages
            if stage.name == "packages"
            for one in stage.all("RUN")
        )
        for file in (edge, pool)
    }
    assert "[gpu]" in installs[pool.path.name]
    assert "[gpu]" not in installs[edge.path.name]
    bases = {file.base_of(file.behind(file.stages[-1])[-1]) for file in (edge, pool)}
    assert ["nvidia/cuda" in base for base in sorted(bases)] == [True, False]


COMMANDS = [
    (path.parent.name, re.findall(r'"([^"]*)"', found))
    for path in sorted((ROOT / "infra" / "terraform" / "modules").rglob("*.tf"))
    for found in re.findall(
        r"^ *command *= \[(.*?)\]\n", path.read_text(), re.DOTALL | re.MULTILINE
    )
]
TIERS = [(module, words) for module, words in COMMANDS if words[0] in SOCKETS or words[0] == "edge"]


def test_task_definitions_run_every_tier() -> None:
    assert {words[0] for _, words in TIERS} == {"edge", "controller", "pool"}


@pytest.mark.parametrize(
    ("module", "words"), TIERS, ids=[f"{module}-{words[0]}" for module, words in TIERS]
)
def test_command_of_a_task_definition_has_only_options_that_there_are(
    module: str, words: list[str]
) -> None:
    tier, *rest = words
    command = typer.main.get_command(make_app(tier))
    assert isinstance(command, typer.core.TyperGroup)
    known = {option for one in command.commands[tier].params for option in one.opts}
    assert {word for word in rest if word.startswith("--")} <= known


def test_constraints_fit_what_the_project_allows() -> None:
    lines = (FOLDER / "constraints.txt").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if not line.startswith("#")]
    versions = {canonicalize_name(one.name): str(one.specifier)[2:] for one in pinned}
    assert all(str(one.specifier).startswith("==") for one in pinned)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(versions[canonicalize_name(wanted.name)]), text
    for text in project["optional-dependencies"]["gpu"]:
        wanted = Requirement(text)
        if (version := versions.get(canonicalize_name(wanted.name))) is not None:
            assert wanted.specifier.contains(version), text
