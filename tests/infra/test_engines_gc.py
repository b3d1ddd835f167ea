"""`engines gc`: plans that nobody has used for long leave the registry, and only those."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from registry_sync.directory import DirectoryStore
from registry_sync.open import open_store
from tests.support.plans import identity_of, put
from tests.support.processes import tidepool


def day(ago: int) -> str:
    """Return the day so many days ago."""
    return (datetime.now(UTC).date() - timedelta(days=ago)).isoformat()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with plans that were used today, 20 and 40 days ago."""
    store = DirectoryStore(tmp_path / "registry")
    for device, ago in (("sm_86", 0), ("sm_89", 20), ("sm_120", 40)):
        put(store, identity_of(device), used=day(ago))
    return tmp_path


def run(data: Path, *words: str) -> Any:
    """Run a command that must succeed; returns what it prints as JSON."""
    ended = tidepool(*words, "--json", "--data", str(data))
    assert ended.code == 0, ended
    return json.loads(ended.stdout)


def devices(data: Path) -> list[str]:
    """Return the devices of the plans that are there."""
    return [row["device"] for row in run(data, "engines", "list")]


def test_only_what_nobody_has_used_for_so_long_goes(data: Path) -> None:
    (gone,) = run(data, "engines", "gc", "--reason", "space")
    assert gone["key"] == identity_of("sm_120").key
    assert gone["used"] == day(40)
    assert gone["bytes"] > 0
    assert gone["of"] == [{"model": "m", "version": "1"}]
    assert devices(data) == ["sm_86", "sm_89"]
    assert len(run(data, "engines", "gc", "--days", "10")) == 1
    assert devices(data) == ["sm_86"]
    trail = run(data, "audit")
    assert [(r["what"], r["target"], r["before"], r["why"]) for r in trail] == [
        ("engine.gc", "engines", "1 plans unused for 10 days", ""),
        ("engine.gc", "engines", "1 plans unused for 30 days", "space"),
    ]


def test_a_dry_run_removes_and_records_nothing(data: Path) -> None:
    assert len(run(data, "engines", "gc", "--dry-run")) == 1
    assert devices(data) == ["sm_86", "sm_89", "sm_120"]
    assert run(data, "audit") == []


def test_people_see_what_went(data: Path) -> None:
    ended = tidepool("engines", "gc", "--dry-run", "--days", "10", "--data", str(data))
    lines = sorted(line.split("  ")[1] for line in ended.stdout.splitlines())
    assert lines == ["m/1 sm_120", "m/1 sm_89"]
    assert "2 would go" in ended.stderr


def test_plans_of_today_cannot_be_removed(data: Path) -> None:
    for days in ("0", "-1"):
        assert tidepool("engines", "gc", "--days", days, "--data", str(data)).code == 2
    assert tidepool("engines", "gc", "--days", "1", "--data", str(data)).code == 0
    assert devices(data) == ["sm_86"]


def test_bucket_may_keep_what_went_and_people_are_told(tmp_path: Path, s3_url: str) -> None:
    put(open_store(s3_url), identity_of("sm_120"), used=day(40))
    where = ("--data", str(tmp_path), "--registry", s3_url)
    told = [tidepool("engines", "gc", *words, *where) for words in (("--dry-run",), (), ())]
    assert [one.code for one in told] == [0, 0, 0]
    # Only where something went.
    assert ["noncurrent versions" in one.stderr for one in told] == [False, True, False]
