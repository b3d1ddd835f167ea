"""`keys fleet`: the fleet secret is rotated on a node, never shown, and plans go with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pool.wire.fleet_secret import VARIABLE, load_secrets
from pool.wire.handshake import Secret
from registry_sync.local_plans import LocalPlans
from tests.support import made_plans
from tests.support.commands import Commands
from tests.support.processes import private_text

OLD = "the secret of this fleet"


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.delenv(VARIABLE, raising=False)
    private_text(tmp_path / "secrets", OLD)
    return Commands("--data", str(tmp_path))


def test_rotate_then_retire(node: Commands, tmp_path: Path) -> None:
    before = Secret.of(OLD).id
    assert node.ok("keys", "fleet", "list") == f"{before}  current"
    said = node("keys", "fleet", "rotate")
    assert said.exit_code == 0
    text = (tmp_path / "secrets").read_text()
    made = text.partition(",")[0]
    assert text == f"{made},{OLD}"
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o600
    assert made not in said.output
    assert OLD not in said.output
    found = json.loads(node.ok("keys", "fleet", "list", "--json"))
    assert found == {"current": Secret.of(made).id, "previous": before}
    assert "retire" in node.fails("keys", "fleet", "rotate")
    node.ok("keys", "fleet", "retire")
    assert (tmp_path / "secrets").read_text() == made
    assert "only" in node.fails("keys", "fleet", "retire")
    assert [path.name for path in tmp_path.glob("secrets*")] == ["secrets"]


def test_other_nodes_take_it_from_the_file_of_the_first(node: Commands, tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.write_text(f"the secret of tomorrow,{OLD}\n")
    node.ok("keys", "fleet", "rotate", "--from", str(first))
    assert (tmp_path / "secrets").read_text() == f"the secret of tomorrow,{OLD}"
    node.ok("keys", "fleet", "rotate", "--from", "-", stdin=first.read_text())
    assert (tmp_path / "secrets").read_text() == f"the secret of tomorrow,{OLD}"
    first.write_text("")
    assert "empty" in node.fails("keys", "fleet", "rotate", "--from", str(first))
    first.write_text("short")
    assert "16 characters" in node.fails("keys", "fleet", "rotate", "--from", str(first))


def test_environment_rules_and_is_said_so(
    node: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "a secret in the environment")
    for word in ("rotate", "retire"):
        said = node.fails("keys", "fleet", word)
        assert "NEW,OLD" in said
        assert "a secret in" not in said
    assert (tmp_path / "secrets").read_text() == OLD


def test_node_without_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    node = Commands("--data", str(tmp_path))
    assert VARIABLE in node.fails("keys", "fleet", "list")
    assert "no fleet secret" in node.fails("keys", "fleet", "retire")


def test_plans_of_the_node_are_signed_anew(node: Commands, tmp_path: Path) -> None:
    old = Secret.of(OLD)
    plans = LocalPlans(tmp_path / "store" / "engines")
    made_plans.add(plans, b"a plan", secret=(old.id, old.key))
    assert "1 plans" in node("keys", "fleet", "rotate").stderr
    node.ok("keys", "fleet", "retire")
    held = load_secrets(tmp_path)
    assert held is not None
    assert plans.find(made_plans.key_of(), held.keys) is not None
