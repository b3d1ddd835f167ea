"""The JSON Schema of a spec: the copy in the repository, and what it takes and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
import pytest
import yaml

import registry_sync
from registry_sync import documents
from registry_sync.documents import EndpointSpec, Variant
from registry_sync.endpoint_schema import SCHEMA
from registry_sync.rollouts import started

COPY = Path(registry_sync.__file__).parent / "endpoint.schema.json"

PLAIN = """
endpoint: magika
variants: [{name: stable, model: magika, version: 1, weight: 100}]
"""
WHOLE = """
endpoint: magika
variants:
  - {name: stable, model: magika, version: "1", weight: 90}
  - {name: canary, model: magika, version: "2", weight: 10}
assign: {by: ["header:x-user-id", key], salt: magika, header_may_pick: false}
cache: {ttl_s: 3600, disk: false}
batch: {rows_max: 32}
deadline_ms: 10000
scale: {replicas_min: 0, replicas_max: 4, idle_s: auto, dedicated: false}
"""
ROLLOUT = """
endpoint: magika
variants:
  - {name: stable, model: magika, version: "1", weight: 100}
  - {name: canary, model: magika, version: "2", weight: 0}
rollout:
  steps: [{weight: 5}, {weight: 25, hold_s: 600}, {weight: 100}]
  guard: {slower_than_ms: 50, latency_ratio_max: 1.5, margin_points: 0.5, alpha: 0.05, then: pause}
  shadow: {sample: 0.1}
"""


@pytest.fixture(scope="module")
def schema() -> Any:
    return jsonschema_rs.Draft202012Validator(SCHEMA)


def test_the_copy_in_the_repository_says_what_is_served() -> None:
    served = json.loads(msgspec.json.encode(SCHEMA))
    assert json.loads(COPY.read_text()) == served, (
        "write the copy anew, as registry_sync/endpoint_schema.py says"
    )


@pytest.mark.parametrize("text", [PLAIN, WHOLE, ROLLOUT])
def test_what_a_person_writes_is_valid(schema: Any, text: str) -> None:
    assert schema.is_valid(yaml.safe_load(text))
    assert documents.problems(text) == []


def test_what_lies_in_a_registry_is_valid(schema: Any) -> None:
    first = EndpointSpec("m", (Variant("stable", "m", "1", 100.0),))
    for spec in (first, started(first, None, id="r1", version="2")):
        assert schema.is_valid(msgspec.json.decode(documents.write(spec)))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("rollout.steps", [{"weight": 0}]),
        ("rollout.steps", []),
        ("rollout.guard.then", "panic"),
        ("rollout.guard.alfa", 0.1),
        ("rollout.shadow.sample", 2),
        ("rollout.wish", "go"),
        ("rollout.baseline", "Bad Name"),
        ("variants", []),
        ("endpoint", "a/b"),
        ("deadline_ms", 0),
        ("extra", 1),
    ],
)
def test_what_does_not_fit_is_not_valid(schema: Any, path: str, value: object) -> None:
    plain = yaml.safe_load(ROLLOUT)
    *folders, last = path.split(".")
    place = plain
    for folder in folders:
        place = place[folder]
    place[last] = value
    assert not schema.is_valid(plain)
    assert any(line.startswith(f"$.{path}") for line in documents.problems(json.dumps(plain)))
