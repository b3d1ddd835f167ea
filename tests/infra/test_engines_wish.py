"""`publish --build-for` and `engines wish`: what becomes a wish, and what is refused before it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx.parser
import pytest

from infra.wishing import parse_targets
from registry_sync import catalog, wishes
from registry_sync.names import BadName
from registry_sync.open import open_store
from registry_sync.stores import Store
from tests.support.models import identity
from tests.support.processes import Ended, tidepool
from tests.support.stack import Stack, until


class Node:
    """Commands on one data folder."""

    def __init__(self, folder: Path) -> None:
        self.model = str(identity(folder / "m.onnx"))
        self.data = folder / "data"

    def __call__(self, *arguments: str) -> Ended:
        ended = tidepool(*arguments, "--data", str(self.data))
        assert "Traceback" not in ended.stderr, ended.stderr
        return ended

    @property
    def store(self) -> Store:
        return open_store(str(self.data / "registry"))

    def wished(self) -> list[tuple[str, str, str, str]]:
        """Return all wishes."""
        found = wishes.everything(self.store)
        return [(one.model, one.version, one.device_class, one.engine) for one in found]

    def trail(self) -> list[tuple[str, str, str, str, str]]:
        """Return the records of wishes, the oldest first."""
        records = json.loads(self("audit", "--json").stdout)[::-1]
        names = ("what", "target", "before", "after", "why")
        found = [tuple(record[name] for name in names) for record in records]
        return [record for record in found if record[0].startswith("engine.")]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """Commands on a fresh folder, on which nothing runs."""
    return Node(tmp_path)


def test_targets_are_a_list_with_commas() -> None:
    with pytest.raises(ValueError, match="no device class is named"):
        parse_targets(" ")
    assert parse_targets(" sm_86, sm_120,sm_86 ") == ["sm_86", "sm_120"]
    for text in ("sm_86,", "86", "sm_86;sm_120", "all"):
        with pytest.raises(BadName):
            parse_targets(text)


def test_publish_writes_a_wish_for_each_target(node: Node) -> None:
    ended = node("publish", "m", node.model, "--build-for", "sm_86,sm_120", "--reason", "L4s")
    assert (ended.code, ended.stdout) == (0, "1\n"), ended
    assert node.wished() == [("m", "1", "sm_120", ""), ("m", "1", "sm_86", "")]
    assert node.trail() == [
        ("engine.wish", "m", "", "version 1 sm_86", "L4s"),
        ("engine.wish", "m", "", "version 1 sm_120", "L4s"),
    ]


@pytest.mark.parametrize(
    ("targets", "why"),
    [
        ("sm_90", "sm_90: nothing that is installed here"),
        ("sm_86,sm_20,cpu_avx2", "sm_20, cpu_avx2: nothing that is installed here"),
        ("sm_90", "builds for sm_75, sm_80, sm_86, sm_89, sm_120, sm_121"),
        ("ampere", "device class 'ampere'"),
    ],
)
def test_what_nothing_can_ever_build_is_refused_before_anything_is_published(
    node: Node, targets: str, why: str
) -> None:
    ended = node("publish", "m", node.model, "--build-for", targets)
    assert (ended.code, ended.stdout) == (1, ""), ended
    assert why in ended.stderr
    assert catalog.models(node.store) == {}
    assert node.store.list("blobs") == node.store.list("builds") == []


GRAPHS = {
    "open": (
        "g (float[n,s,2] x) => (float[n,s,2] y) <float[2,2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }"
    ),
    "double": "g (double[n,2] x) => (double[n,2] y) { y = Add(x, x) }",
}


@pytest.mark.parametrize(
    ("kind", "options", "why"),
    [
        ("open", (), r'sm_86: tensorrt_rtx: input "x": axis 1 may have any size'),
        ("open", ("--precision", "fp16"), r"--axis x:1=1,128,512"),
        ("double", (), r'input "x" is FP64, which TensorRT does not have'),
    ],
)
def test_a_plan_that_could_have_no_identity_is_refused_before_anything_is_published(
    node: Node, tmp_path: Path, kind: str, options: tuple[str, ...], why: str
) -> None:
    path = graph(tmp_path, kind)
    ended = node("publish", "odd", path, "--build-for", "sm_86", *options)
    assert (ended.code, ended.stdout) == (1, ""), ended
    assert why in ended.stderr
    assert node.store.list("models") == node.store.list("blobs") == []
    node("publish", "odd", path)
    ended = node("engines", "wish", "odd", "1", "--for", "sm_86")
    assert (ended.code, node.wished()) == (1, []), ended
    assert "sm_86: tensorrt_rtx: " in ended.stderr


def test_an_open_axis_with_a_range_is_wished_for(node: Node, tmp_path: Path) -> None:
    path = graph(tmp_path, "open")
    words = ("--axis", "x:1=1,2,4", "--precision", "fp16", "--build-for", "sm_86")
    ended = node("publish", "odd", path, *words)
    assert (ended.code, ended.stdout) == (0, "1\n"), ended
    assert "the build will tell" in ended.stderr
    assert node.wished() == [("odd", "1", "sm_86", "")]


@pytest.mark.parametrize("targets", ["", " "])
def test_no_target_at_all_is_bad_usage(node: Node, targets: str) -> None:
    ended = node("publish", "m", node.model, "--build-for", targets)
    assert (ended.code, ended.stdout) == (2, ""), ended
    assert "no device class is named, such as sm_86" in ended.stderr
    assert node.store.list("models") == []


def graph(folder: Path, kind: str) -> str:
    """Write one of `GRAPHS`."""
    path = folder / f"{kind}.onnx"
    onnx.save(
        onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> {GRAPHS[kind]}'), path
    )
    return str(path)


def test_a_wish_is_written_and_withdrawn_later_too(node: Node) -> None:
    node("publish", "m", node.model)
    words = ("engines", "wish", "m", "1", "--for", "sm_86")
    assert node(*words, "--engine", "tensorrt_rtx").code == 0
    assert node.wished() == [("m", "1", "sm_86", "tensorrt_rtx")]
    ended = node(*words, "--withdraw", "--reason", "sold")
    assert (ended.code, ended.stdout) == (0, "withdrawn: m version 1 for sm_86\n")
    assert node.wished() == []
    assert node.trail() == [
        ("engine.wish", "m", "", "version 1 sm_86", ""),
        ("engine.withdraw", "m", "version 1 sm_86", "", "sold"),
    ]
    ended = node(*words, "--withdraw")
    assert ended.code == 1
    assert "nobody wishes for a plan of m version 1 for sm_86" in ended.stderr


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("m", "2", "--for", "sm_86"), "m version 2 is not published"),
        (("m", "1", "--for", "sm_90"), "nothing that is installed here"),
        (("m", "1", "--for", "sm_86", "--engine", "tensorrt"), "no tensorrt that is installed"),
        (("m", "1", "--for", "sm_86", "--engine", "../x"), "engine '../x' is not a name"),
        (("m", "one", "--for", "sm_86"), "version"),
        (("m", "1", "--for", ""), "no device class is named"),
    ],
)
def test_a_wish_that_cannot_be_is_refused(node: Node, words: tuple[str, ...], why: str) -> None:
    node("publish", "m", node.model)
    ended = node("engines", "wish", *words)
    assert (ended.code, ended.stdout) == (1, ""), ended
    assert why in ended.stderr
    assert node.wished() == []


ENGINE = "tests.support.plan_engine:OptimizedEngine"


def test_what_only_a_live_worker_can_build_is_wished_for_and_built(
    start_stack: Callable[..., Stack], tmp_path: Path
) -> None:
    stack = start_stack(engines=[ENGINE])
    (worker,) = stack.status()["workers"]
    here = worker["device_class"]
    assert f"optimized/{here}" in worker["builds"]
    path = str(identity(tmp_path / "m.onnx"))
    ended = tidepool("publish", "m", path, "--build-for", "sm_90", "--data", str(stack.data))
    assert ended.code == 1
    assert "nothing that is installed here or that a live worker has" in ended.stderr
    stack.cli("publish", "m", path, "--build-for", here)

    def built() -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(stack.cli("engines", "list", "--json"))
        return rows

    (row,) = until(built, 120.0, "the plan is there", 0.25)
    assert (row["engine"], row["device"], row["gate"]) == ("optimized", here, "passed")
    assert row["relative_error"] == 0.0  # its device is here, so that the builder has tried it
