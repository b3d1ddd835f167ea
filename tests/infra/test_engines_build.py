"""`engines build`: real plans, built by TensorRT for RTX on this machine, for GPUs it has not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from registry_sync.documents import Batch, EndpointSpec, Variant
from registry_sync.endpoints import get_spec, set_spec
from registry_sync.open import open_store
from registry_sync.stores import Store
from tests.support.models import mlp, save, tensor
from tests.support.plans import FLEET
from tests.support.processes import Ended, tidepool

SECRET = {"TIDEPOOL_FLEET_SECRET": "the secret of this fleet"}


class Node:
    """Commands on one data folder."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"

    def __call__(self, *arguments: str, env: dict[str, str] = SECRET) -> Ended:
        # A builder gives way to whatever else runs on the machine.
        ended = tidepool(*arguments, "--data", str(self.data), env=env, timeout_s=240.0)
        assert "Traceback" not in ended.stderr, ended.stderr
        return ended

    def build(self, *arguments: str, code: int = 0) -> tuple[list[dict[str, Any]], str]:
        """Run `engines build --json`; returns its rows and what it says on stderr."""
        ended = self("engines", "build", "m", *arguments, "--json")
        assert ended.code == code, ended
        return json.loads(ended.stdout), ended.stderr

    def listed(self) -> list[dict[str, Any]]:
        """Return the rows of `engines list`."""
        found: list[dict[str, Any]] = json.loads(self("engines", "list", "--json").stdout)
        return found

    @property
    def store(self) -> Store:
        return open_store(str(self.data / "registry"))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    """A folder with the model `m`, version 1; nothing runs on it."""
    folder = tmp_path_factory.mktemp("build")
    node = Node(folder)
    assert node("publish", "m", str(mlp(folder / "m.onnx"))).code == 0
    return node


def keys_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [row["key"] for row in rows]


def test_plans_are_built_once_for_devices_that_are_not_here(node: Node) -> None:
    made, said = node.build("1", "--for", "sm_86,sm_120", "--reason", "the new cards")
    assert [row["device"] for row in made] == ["sm_86", "sm_120"]
    for row in made:
        assert (row["state"], row["engine"], row["gate"]) == ("built", "tensorrt_rtx", "not_run")
        assert row["bytes"] > 0
        assert row["build_s"] > 0
    assert "m version 1 for sm_120 …" in said
    assert keys_of(node.listed()) == keys_of(made)
    again, _ = node.build("1", "--for", "sm_120,sm_86")
    assert [row["state"] for row in again] == ["there", "there"]
    assert sorted(keys_of(again)) == sorted(keys_of(made))
    trail = json.loads(node("audit", "--json").stdout)
    assert [(r["what"], r["target"], r["after"], r["why"]) for r in trail[:2]] == [
        ("engine.build", "m", f"version 1 {row['device']} {row['key']}", "the new cards")
        for row in reversed(made)
    ]


def test_a_plan_lies_where_the_nodes_of_the_fleet_look_for_it(node: Node, tmp_path: Path) -> None:
    (first,), _ = node.build("1", "--for", "sm_89")
    names = {entry.key for entry in node.store.list(f"engines/{first['key']}")}
    place = f"engines/{first['key']}/{FLEET.id}"
    assert {f"{place}/plan", f"{place}/meta.json", f"engines/{first['key']}/used.json"} <= names
    other = Node(tmp_path)
    (second,), _ = other.build("1", "--for", "sm_89", "--registry", str(node.data / "registry"))
    assert (second["state"], second["key"]) == ("there", first["key"])


def test_what_fails_is_named_and_does_not_keep_others_from_being_built(node: Node) -> None:
    made, said = node.build("1", "--for", "sm_90,sm_86", code=1)
    assert [row["device"] for row in made] == ["sm_86"]
    assert "sm_90: nothing here builds onnx for sm_90" in said
    assert "sm_121" in said.partition("there is:")[2]


def test_the_endpoints_have_their_say_in_what_is_built(node: Node) -> None:
    (alone,), _ = node.build("1", "--for", "sm_86")
    spec, _ = get_spec(node.store, "m")
    set_spec(node.store, EndpointSpec("m", spec.variants, batch=Batch(4), cache=spec.cache))
    (smaller,), _ = node.build("1", "--for", "sm_86")
    assert smaller["key"] != alone["key"]
    # Another endpoint with larger batches widens it again: both are served by one engine.
    set_spec(node.store, EndpointSpec("m2", (Variant("a", "m", "1", 100.0),)))
    (both,), _ = node.build("1", "--for", "sm_86")
    assert (both["state"], both["key"]) == ("there", alone["key"])


def test_an_operator_that_the_engine_does_not_know_is_said(node: Node, tmp_path: Path) -> None:
    # TensorRT has no complex arithmetic.
    nodes = [helper.make_node("DFT", ["x"], ["y"], onesided=0)]
    shape = ["N", 8, 1]
    inputs = [tensor("x", TensorProto.FLOAT, shape)]
    path = save(tmp_path / "f.onnx", nodes, inputs, [tensor("y", TensorProto.FLOAT, ["N", 8, 2])])
    assert node("publish", "m", str(path), "--version", "7").code == 0
    made, said = node.build("7", "--for", "sm_86", code=1)
    assert made == []
    assert "sm_86: " in said
    assert "DFT" in said


@pytest.mark.parametrize(
    ("words", "env", "why"),
    [
        (("9", "--for", "sm_86"), SECRET, "m version 9 is not published"),
        (("x", "--for", "sm_86"), SECRET, "version"),
        (("1", "--for", ""), SECRET, "no device class is named"),
        (("1", "--for", "sm_86"), {}, "set TIDEPOOL_FLEET_SECRET"),
        (("1", "--for", "sm_86"), {"TIDEPOOL_FLEET_SECRET": "short"}, "at least 16 characters"),
        (("1", "--for", "sm_86", "--reason", "a\nb"), SECRET, "a reason is one line"),
    ],
)
def test_what_cannot_begin_is_refused(
    node: Node, words: tuple[str, ...], env: dict[str, str], why: str
) -> None:
    ended = node("engines", "build", "m", *words, env=env)
    assert (ended.code, ended.stdout) == (1, ""), ended
    assert why in ended.stderr
