"""Every command that changes a document leaves a record, and `tidepool audit` shows them."""

from __future__ import annotations

import getpass
import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from registry_sync.keys import find_id
from registry_sync.open import open_store
from tests.support.faulty_s3 import RESET, faulty_s3
from tests.support.models import identity
from tests.support.processes import Ended, tidepool
from tests.support.seaweed import S3Server

SPEC = """
endpoint: m
variants: [{name: stable, model: m, version: 1, weight: 100}]
"""


def run(data: Path, *arguments: str, stdin: str = "") -> str:
    """Run a command that must succeed; returns its stdout."""
    ended = tidepool(*arguments, "--data", str(data), stdin=stdin.encode())
    assert ended.code == 0, ended
    return ended.stdout.strip()


def trail(data: Path, *arguments: str) -> list[dict[str, Any]]:
    """Return what `audit` shows, the oldest first."""
    found: list[dict[str, Any]] = json.loads(run(data, "audit", "--json", *arguments))
    return found[::-1]


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A registry that commands have changed, and the key that they made."""
    folder = tmp_path_factory.mktemp("audit")
    data = folder / "data"
    run(data, "publish", "m", str(identity(folder / "m.onnx")), "--reason", "first model")
    run(data, "endpoint", "set", "m", "--reason", "no cache", stdin=SPEC)
    run(data, "endpoint", "rollback", "m", "--reason", "the cache is missed")
    key = run(data, "keys", "create", "--reason", "for the shop")
    run(data, "keys", "revoke", find_id(key))
    return data, key


def test_every_change_is_in_the_trail(changed: tuple[Path, str]) -> None:
    data, key = changed
    id = find_id(key)
    fields = ("what", "target", "before", "after", "why")
    assert [tuple(record[name] for name in fields) for record in trail(data)] == [
        ("model.publish", "m", "", "1", "first model"),
        ("endpoint.set", "m", "1", "2", "no cache"),
        ("endpoint.rollback", "m", "2", "3", "the cache is missed"),
        ("key.create", id, "", "", "for the shop"),
        ("key.revoke", id, "", "", ""),
    ]
    assert {record["who"] for record in trail(data)} == {
        f"{getpass.getuser()}@{socket.gethostname()}"
    }
    assert {record["by"] for record in trail(data)} == {"cli"}


def test_no_secret_is_in_the_trail(changed: tuple[Path, str]) -> None:
    data, key = changed
    store = open_store(str(data / "registry"))
    text = b"".join(store.get(entry.key).data for entry in store.list("audit"))
    assert key.rpartition("_")[2].encode() not in text


def test_the_trail_is_asked_by_endpoint_key_and_time(changed: tuple[Path, str]) -> None:
    data, key = changed
    assert len(trail(data, "--endpoint", "m")) == 3
    assert [r["what"] for r in trail(data, "--key", find_id(key))] == ["key.create", "key.revoke"]
    assert trail(data, "--until", "1d") == []
    assert [r["what"] for r in trail(data, "--limit", "2")] == ["key.create", "key.revoke"]
    ended = tidepool("audit", "--since", "yesterday", "--data", str(data))
    assert ended.code == 1
    assert "'yesterday' is no time" in ended.stderr


def test_the_trail_is_shown_a_line_each(changed: tuple[Path, str]) -> None:
    data, _ = changed
    lines = run(data, "audit", "--endpoint", "m").splitlines()
    assert len(lines) == 3
    assert re.fullmatch(r"\S+\+00:00  cli \S+  endpoint.set m  1 → 2  no cache", lines[1]), lines[1]


def test_a_reason_that_is_none_changes_nothing(changed: tuple[Path, str]) -> None:
    data, _ = changed
    before = trail(data)
    words = ("endpoint", "set", "m", "--data", str(data), "--reason", "a\nb")
    ended = tidepool(*words, stdin=SPEC.encode())
    assert ended.code == 1
    assert "a reason is one line" in ended.stderr
    assert trail(data) == before


def test_a_change_that_cannot_be_recorded_is_made_and_said_aloud(
    seaweed: S3Server, s3_url: str, tmp_path: Path
) -> None:
    with faulty_s3(seaweed.endpoint) as proxy:
        env = {**seaweed.environment, "AWS_ENDPOINT_URL": proxy.endpoint}
        proxy.faults = [None, None] + [RESET] * 5  # the read and the write, then the record
        ended: Ended = tidepool(
            *("keys", "create", "--reason", "emergency", "--json"),
            *("--registry", s3_url, "--data", str(tmp_path)),
            env=env,
        )
    assert ended.code == 0, ended
    made = json.loads(ended.stdout)
    assert "warning: done, but missing in the audit trail" in ended.stderr
    lost = json.loads(ended.stderr.splitlines()[0].partition("): ")[2])
    assert (lost["what"], lost["target"], lost["why"]) == ("key.create", made["id"], "emergency")
    store = open_store(s3_url)
    assert made["id"] in store.get("keys.json").data.decode()
    assert store.list("audit") == []
