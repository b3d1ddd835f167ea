"""`keys signing …` and `publish --sign`: commands over a directory registry."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from infra import local
from infra.child import ProcessSpec
from infra.commands import run as run_commands
from infra.commands.options import trusted_file
from infra.local import TierOptions, UpOptions
from infra.stack import CannotStart, Node, StackFile
from registry_sync import catalog
from registry_sync.open import open_store
from registry_sync.signing import load_key
from registry_sync.trust import Trust
from tests.support import models
from tests.support.commands import Commands

pytestmark = pytest.mark.rule("SEC-10")


@pytest.fixture
def run(tmp_path: Path) -> Commands:
    return Commands("--data", str(tmp_path / "data"))


@pytest.fixture
def bare() -> Commands:
    return Commands()


@pytest.fixture
def key(tmp_path: Path, bare: Commands) -> Path:
    bare.ok("keys", "signing", "create", str(tmp_path / "release.key"), "--name", "release")
    return tmp_path / "release.key"


@pytest.fixture
def file(tmp_path: Path, key: Path, run: Commands) -> Path:
    run.ok("keys", "signing", "trust", f"{key}.pub", "--file", str(tmp_path / "trusted"))
    return tmp_path / "trusted"


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    models.identity(tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def write_stack(tmp_path: Path, require_signed: Path) -> None:
    """Pretend that a stack runs here."""
    (tmp_path / "data" / "registry").mkdir(parents=True)
    Node(tmp_path / "data").write_stack(
        StackFile(
            *("http://127.0.0.1:1", "http://127.0.0.1:2", str(tmp_path / "data" / "registry")),
            *("unix:/nowhere", os.getpid()),
            require_signed=str(require_signed),
        )
    )


def test_created_key_is_shown_by_its_public_line_alone(tmp_path: Path, bare: Commands) -> None:
    line = bare.ok("keys", "signing", "create", str(tmp_path / "k"), "--name", "me")
    assert line == (tmp_path / "k.pub").read_text().strip()
    assert "already" in bare.fails("keys", "signing", "create", str(tmp_path / "k"))
    shown = json.loads(bare.ok("keys", "signing", "create", str(tmp_path / "j"), "--json"))
    assert shown["public"] == str(tmp_path / "j.pub")
    assert shown["id"] == load_key(tmp_path / "j").public.id


def test_list_shows_who_is_trusted_and_who_no_longer(
    key: Path, file: Path, run: Commands, bare: Commands, tmp_path: Path
) -> None:
    other = bare.ok("keys", "signing", "create", str(tmp_path / "other"), "--name", "other")
    run.ok("keys", "signing", "trust", other, "--file", str(file))
    id = load_key(key).public.id
    assert run.ok("keys", "signing", "revoke", id, "--file", str(file)) == f"revoked {id}"
    rows = json.loads(run.ok("keys", "signing", "list", "--file", str(file), "--json"))
    assert [(row["name"], row["state"]) for row in rows] == [
        ("other", "trusted"),
        ("release", "revoked"),
    ]
    lines = run.ok("keys", "signing", "list", "--file", str(file)).splitlines()
    assert lines[1] == f"{id}  revoked  release"


def test_default_file_is_that_of_the_stack(file: Path, run: Commands, tmp_path: Path) -> None:
    assert "--file" in run.fails("keys", "signing", "list")
    write_stack(tmp_path, file)
    assert "release" in run.ok("keys", "signing", "list")


def test_private_key_is_not_to_be_trusted(key: Path, file: Path, run: Commands) -> None:
    before = file.read_bytes()
    found = run.fails("keys", "signing", "trust", str(key), "--file", str(file))
    assert f"give {key}.pub" in found
    assert "no public key" in run.fails("keys", "signing", "trust", "x:y", "--file", str(file))
    assert file.read_bytes() == before


def test_published_version_is_signed(
    key: Path, file: Path, graph: Path, run: Commands, tmp_path: Path
) -> None:
    run.ok("publish", "m", str(graph), "--sign", str(key))
    store = open_store(str(tmp_path / "data" / "registry"))
    Trust(file).check(store.get(catalog.manifest_key("m", "1")).data)


def test_stack_that_wants_signatures_is_not_given_others(
    key: Path, file: Path, graph: Path, run: Commands, bare: Commands, tmp_path: Path
) -> None:
    write_stack(tmp_path, file)
    assert "publish with --sign KEYFILE" in run.fails("publish", "m", str(graph))
    bare.ok("keys", "signing", "create", str(tmp_path / "other"))
    found = run.fails("publish", "m", str(graph), "--sign", str(tmp_path / "other"))
    assert "does not trust the key" in found
    assert not (tmp_path / "data" / "registry" / "models").exists()
    run.ok("publish", "m", str(graph), "--sign", str(key))


def test_key_that_others_can_read_signs_nothing(key: Path, graph: Path, run: Commands) -> None:
    key.chmod(0o644)
    assert "chmod 600" in run.fails("publish", "m", str(graph), "--sign", str(key))


def test_node_does_not_start_without_somebody_to_trust(
    file: Path, run: Commands, tmp_path: Path
) -> None:
    assert trusted_file(None) == ""
    assert trusted_file(file) == str(file)
    (tmp_path / "empty").write_text("# nobody\n")
    (tmp_path / "bad").write_text("nonsense\n")
    for name, why in (("none", "No such file"), ("empty", "no key is trusted"), ("bad", "line 1")):
        with pytest.raises(CannotStart, match=why):
            trusted_file(tmp_path / name)
        for tier in ("up", "sync", "controller"):
            found = run.fails(tier, "--require-signed", str(tmp_path / name))
            assert found.startswith("--require-signed"), (tier, found)
    registry = ("--registry", str(tmp_path / "r"))
    for tier in ("edge", "pool"):
        found = run.fails(tier, *registry, "--require-signed", str(tmp_path / "none"))
        assert found.startswith("--require-signed"), (tier, found)


@pytest.mark.parametrize("tier", ["up", "edge", "pool", "controller", "sync"])
def test_every_process_of_a_tier_is_told(
    file: Path, run: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tier: str
) -> None:
    found: list[ProcessSpec] = []

    async def keep_tier(options: TierOptions) -> None:
        found.extend(options.processes)

    async def keep_up(options: UpOptions) -> None:
        options.node.prepare()
        found.extend(local._processes(options))

    monkeypatch.setattr(run_commands, "run_tier", keep_tier)
    monkeypatch.setattr(run_commands, "up", keep_up)
    monkeypatch.setattr(run_commands, "configure", lambda *_: None)  # it holds for the process
    ports = ("--port", "0", "--admin-port", "0") if tier in ("up", "edge") else ()
    registry = ("--registry", str(tmp_path / "r"))
    run.ok(tier, *registry, *ports, "--require-signed", str(file))
    expected = {"up": 4, "pool": 2}.get(tier, 1)
    assert [spec.config.require_signed for spec in found] == [str(file)] * expected
