"""The Terraform modules: their own tests, with AWS's provider mocked, and what they look like.

The cases are the runs of `infra/terraform/tests/*.tftest.hcl`, all by one `terraform test`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import typer.main

from infra.cli import make_app
from pool.aws.config import decode
from tests.support import terraform
from tests.support.terraform import MODULES, Root

CASES_MIN = 20
VARIABLES_MAX = 15
NEWCOMER_SETS_MAX = 3
README_LINES_MAX = 60

_TESTS = MODULES / "tests"
_NAMES = sorted(path.name for path in (MODULES / "modules").iterdir())
_CASES = [
    f"{path.name.removesuffix('.tftest.hcl')}: {name}"
    for path in sorted(_TESTS.glob("*.tftest.hcl"))
    for name in re.findall(r'^run "(\w+)"', path.read_text(), re.MULTILINE)
]
_BLOCK = re.compile(r'^variable "(\w+)" \{\n(.*?)^\}', re.MULTILINE | re.DOTALL)


@dataclass
class _Outcome:
    status: str = ""  # empty: it was not run
    said: list[str] = field(default_factory=list)


@dataclass
class _Outcomes:
    """How every run ended, and what was said of none of them."""

    by_case: dict[str, _Outcome] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> _Outcomes:
    """How every run ended."""
    root = Root(terraform.copied(tmp_path_factory.mktemp("modules")) / "tests")
    root.init("-test-directory=.")
    done = root.run("test", "-test-directory=.", "-json")
    outcomes = _Outcomes()
    for line in done.out.splitlines():
        if not line.startswith("{"):
            outcomes.said.append(line)
            continue
        event = json.loads(line)
        case = f"{event.get('@testfile', '').removesuffix('.tftest.hcl')}: {event.get('@testrun')}"
        if event["type"] == "test_run" and event["test_run"]["progress"] == "complete":
            outcomes.by_case.setdefault(case, _Outcome()).status = event["test_run"]["status"]
        elif event["type"] == "diagnostic" and "@testrun" in event:
            said = outcomes.by_case.setdefault(case, _Outcome()).said
            said.append(_text_of(event["diagnostic"]))
        elif event["type"] == "diagnostic":
            outcomes.said.append(_text_of(event["diagnostic"]))
    return outcomes


def _text_of(diagnostic: dict[str, object]) -> str:
    at = diagnostic.get("range")
    where = f"{at['filename']}:{at['start']['line']}: " if isinstance(at, dict) else ""
    return f"{where}{diagnostic['summary']}\n{diagnostic.get('detail', '')}"


@pytest.mark.terraform
@pytest.mark.parametrize("case", _CASES)
def test_case(case: str, outcomes: _Outcomes) -> None:
    outcome = outcomes.by_case.get(case, _Outcome())
    assert outcome.status == "pass", "\n".join(outcome.said or outcomes.said)


def test_there_are_enough_cases() -> None:
    assert len(set(_CASES)) == len(_CASES) >= CASES_MIN


def test_the_launcher_reads_what_the_modules_tell_the_controller() -> None:
    """`pools.json` is what runs of `pool` and `edge` give out, to the last value."""
    pools = decode((_TESTS / "pools.json").read_bytes())
    assert pools.fleet == "prod"
    assert [pool.instances_max for pool in pools.pools] == [4]


def test_a_newcomer_sets_three_variables() -> None:
    text = (MODULES / "examples" / "minimal" / "variables.tf").read_text()
    must = [name for name, body in _BLOCK.findall(text) if not _has(body, "default")]
    assert must == ["region", "certificate_arn", "images"]
    assert len(must) <= NEWCOMER_SETS_MAX


@pytest.mark.parametrize("name", _NAMES)
def test_a_module_is_small_and_says_what_it_takes(name: str) -> None:
    folder = MODULES / "modules" / name
    variables = dict(_BLOCK.findall((folder / "variables.tf").read_text()))
    assert 0 < len(variables) <= VARIABLES_MAX
    for variable, body in variables.items():
        assert _has(body, "description"), variable
        assert _has(body, "type"), variable
    outputs = re.findall(r'^output "\w+" \{\n(.*?)^\}', _text(folder, "outputs.tf"), re.M | re.S)
    assert all(_has(body, "description") for body in outputs)
    assert len(_text(folder, "README.md").splitlines()) <= README_LINES_MAX


def test_the_commands_of_the_tasks_are_ours() -> None:
    """Every option in a task definition is one of the command that it is given to."""
    app = typer.main.get_group(make_app(None))
    texts = [_text(MODULES / "modules", name) for name in ("edge/tasks.tf", "pool/task.tf")]
    commands = re.findall(r"command = \[\n(.*?)\n\s+\]", "\n".join(texts), re.DOTALL)
    found = [(re.findall(r'"(.*?)"', text)[0], re.findall(r'"(--.*?)"', text)) for text in commands]
    assert sorted(name for name, _ in found) == ["controller", "edge", "pool", "pool"]
    for name, told in found:
        known = {word for param in app.commands[name].params for word in param.opts}
        assert set(told) <= known, name


def test_nothing_but_the_controller_scales_instances() -> None:
    """Capacity providers' own scaling starts two from none; policies do not ask who works."""
    text = "".join(path.read_text() for path in (MODULES / "modules" / "pool").glob("*.tf"))
    assert not re.findall(r'"aws_(?:ecs_\w*capacity_provider|autoscaling_(?!group")\w+)', text)


def test_one_provider_and_no_other() -> None:
    for path in MODULES.rglob("versions.tf"):
        assert re.findall(r'source\s*=\s*"([^"]+)"', path.read_text()) == ["hashicorp/aws"], path
        assert re.findall(r'^\s+version\s*=\s*"([^"]+)"', path.read_text(), re.M) == ["~> 5.100"]


def _has(body: str, argument: str) -> bool:
    return re.search(rf"^  {argument}\s*=", body, re.MULTILINE) is not None


def _text(folder: Path, name: str) -> str:
    return (folder / name).read_text()
