"""Whatever the registry holds, a terminal is given nothing to act upon."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from infra import engines_view, status_view
from infra.printable import printable
from registry_sync.directory import DirectoryStore
from registry_sync.plan_catalog import plans, rows
from registry_sync.plans import GateReport
from tests.support.plans import FLEET, identity_of, put
from tests.support.processes import tidepool

HOSTILE = "m\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\r\nfake [/red][bold]"
SEEN = r"m\x1b]0;owned\x07\x1b[2J\x9b31m\u202e  fake [/red][bold]"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("gewöhnlich – 模型 🙂", "gewöhnlich – 模型 🙂"),
        ("a\tb\nc", "a b c"),
        ("\x00\x7f\x85\u2028\ud800", r"\x00\x7f\x85\u2028\ud800"),
        (HOSTILE, SEEN),
    ],
)
def test_nothing_invisible_is_left(text: str, seen: str) -> None:
    assert printable(text) == seen
    assert printable({text: [text, 1, None]}) == {seen: [seen, 1, None]}


def drawn(table: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=2000, color_system=None)
    console.print(table)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def harmless(text: str) -> bool:
    return all(character.isprintable() or character == "\n" for character in text)


def test_plans_with_hostile_metadata_are_listed(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "data" / "registry")
    gate = GateReport("failed", HOSTILE)
    identity = identity_of("sm_86" + HOSTILE, engine=HOSTILE, runtime=HOSTILE)
    put(store, identity, model=HOSTILE, version=HOSTILE, gate=gate)
    found = rows(plans(store, {FLEET.id: FLEET.key}))
    assert found[0]["model"] == HOSTILE  # as it is, for machines
    for text in ("\n".join(engines_view.lines(found)), drawn(engines_view.table(found))):
        assert harmless(text), text
        assert f"{SEEN}/{SEEN}" in text
        assert f"sm_86{SEEN}" in text
    for words in (("engines", "list"), ("engines", "gc", "--dry-run", "--days", "1")):
        ended = tidepool(*words, "--data", str(tmp_path / "data"))
        assert (ended.code, harmless(ended.stdout)) == (0, True), ended


def test_status_of_hostile_names_is_shown() -> None:
    engine = {"model": HOSTILE, "version": HOSTILE, "state": HOSTILE, "engine": HOSTILE}
    worker = {"id": HOSTILE, "state": HOSTILE, "device": HOSTILE, "pid": 1, "calls": 2}
    variant = {"name": HOSTILE, "model": HOSTILE, "version": HOSTILE, "weight": 1.0}
    build = {"model": HOSTILE, "version": HOSTILE, "device_class": HOSTILE, "engine": HOSTILE}
    status: dict[str, Any] = {
        "controller": {"registry_error": HOSTILE},
        "workers": [
            {**worker, "wait_ms": 0.0, "engines": [{**engine, "bytes": 1, "detail": HOSTILE}]}
        ],
        "edges": [{"id": HOSTILE, "pid": 3}],
        "endpoints": [
            {
                "name": HOSTILE,
                "revision": 1,
                "variants": [{**variant, "replicas": 1, "requests": 2, "errors": 0}],
            }
        ],
        "builds": [{**build, "state": HOSTILE, "worker": HOSTILE, "reason": HOSTILE}],
        "rejected": {HOSTILE: HOSTILE},
    }
    for text in ("\n".join(status_view.lines(status)), drawn(status_view.tables(status))):
        assert harmless(text), text
        assert text.count(SEEN) >= 15
