"""Document commands with the bucket's URL and a role alone: no key in the environment, no file.

boto3's own chain asks endpoints as ECS and EC2 have them, here on loopback.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from registry_sync.open import open_store
from tests.support.commands import Commands
from tests.support.ecs_agent import EcsAgent, ecs_agent
from tests.support.models import identity
from tests.support.seaweed import S3Server

SPEC = """
endpoint: echo
variants: [{name: v1, model: echo, version: "1", weight: 100}]
deadline_ms: 5000
"""


@pytest.fixture
def agent(s3_url: str, seaweed: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[EcsAgent]:
    """A role that may write, for who asks the agent; nothing else in the environment knows any."""
    known = seaweed.environment
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with ecs_agent(
        access_key=known["AWS_ACCESS_KEY_ID"], secret_key=known["AWS_SECRET_ACCESS_KEY"]
    ) as agent:
        yield agent


@pytest.fixture
def task(agent: EcsAgent, monkeypatch: pytest.MonkeyPatch) -> EcsAgent:
    """The role of an ECS task."""
    for name, value in agent.environment.items():
        monkeypatch.setenv(name, value)
    return agent


@pytest.fixture
def commands(s3_url: str, tmp_path: Path) -> Commands:
    return Commands("--data", str(tmp_path / "data"), "--registry", s3_url)


def test_every_kind_of_document_is_written_and_read(
    task: EcsAgent, commands: Commands, tmp_path: Path
) -> None:
    first = json.loads(commands.ok("keys", "create", "--scope", "admin", "--json"))
    assert first["key"].startswith(f"tp_{first['id']}_")
    assert commands.ok("publish", "echo", str(identity(tmp_path / "echo.onnx"))) == "1"
    (tmp_path / "echo.yaml").write_text(SPEC)
    commands.ok("endpoint", "lint", "echo", str(tmp_path / "echo.yaml"))
    commands.ok("endpoint", "set", "echo", str(tmp_path / "echo.yaml"))
    assert json.loads(commands.ok("endpoint", "get", "echo", "--json"))["deadline_ms"] == 5000
    assert "echo  1" in commands.ok("models")
    assert json.loads(commands.ok("engines", "list", "--json")) == []
    commands.ok("keys", "rotate", first["id"])
    assert [row["id"] for row in json.loads(commands.ok("keys", "list", "--json"))] == [first["id"]]
    commands.ok("keys", "revoke", first["id"])
    assert json.loads(commands.ok("keys", "list", "--json")) == []
    assert "key.revoke" in commands.ok("audit")


def test_role_of_an_instance_will_do_as_well(
    agent: EcsAgent, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a machine of EC2 on which an operator, or a build, runs commands (IMDSv2)."""
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", agent.url)
    made = json.loads(commands.ok("keys", "create", "--json"))
    assert made["id"] in commands.ok("keys", "list")


def test_credentials_that_end_soon_are_fetched_anew(task: EcsAgent, s3_url: str) -> None:
    task.good_for = timedelta(minutes=5)  # of which boto3 makes do with no less than ten
    store = open_store(s3_url)
    store.put_new("models/a", b"1")
    asked = task.asked["/credentials"]
    assert store.get("models/a").data == b"1"
    assert task.asked["/credentials"] > asked
    task.good_for = timedelta(hours=6)
    store.get("models/a")
    asked = task.asked["/credentials"]
    store.get("models/a")
    assert task.asked["/credentials"] == asked
    store.close()


def test_role_that_may_only_read_is_told_what_it_may_not(
    task: EcsAgent, commands: Commands, seaweed: S3Server
) -> None:
    task.access_key = seaweed.reader_environment["AWS_ACCESS_KEY_ID"]
    task.secret_key = seaweed.reader_environment["AWS_SECRET_ACCESS_KEY"]
    assert commands.ok("keys", "list") == ""
    assert "keys.json: access denied: AccessDenied" in commands.fails("keys", "create")


def test_nobody_to_ask_for_credentials_is_named(agent: EcsAgent, commands: Commands) -> None:
    assert "Unable to locate credentials" in commands.fails("keys", "create")


def test_controller_in_a_network_that_is_not_ours_is_not_needed(
    task: EcsAgent, commands: Commands, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks at the registry by itself; whoever only has the bucket cannot tell it to."""
    monkeypatch.delenv("TIDEPOOL_FLEET_SECRET", raising=False)
    record = {"epoch": 1, "url": "tcp://127.0.0.1:9", "holder": "controller", "nonce": "n"}
    open_store(s3_url).put_new("control/leader.json", json.dumps(record).encode())
    result = commands("keys", "create")
    assert result.exit_code == 0
    assert result.stdout.startswith("tp_")
    assert "written; no controller could be told" in result.stderr
