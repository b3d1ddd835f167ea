"""`publish --precision` and the flags beside it: what is said, what is written, how it ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from registry_sync import catalog
from registry_sync.directory import DirectoryStore
from registry_sync.documents import AxisRange, EngineWish, GateLimits
from tests.support import models
from tests.support.processes import Ended, tidepool


def run(tmp_path: Path, *arguments: str, stdin: str = "") -> Ended:
    ended = tidepool(*arguments, "--data", str(tmp_path / "data"), stdin=stdin.encode())
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended


def store_of(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "data" / "registry")


FLAGS = (
    *("--precision", "fp16", "--engine", "tensorrt_rtx", "--gate-top1", "0.9"),
    *("--axis", "ids:1=1,16,64", "--axis", "mask:1=1,16,64", "--gate-relative-error", "0.05"),
)


def test_flags_stand_in_the_manifest_and_the_figures_on_stderr(tmp_path: Path) -> None:
    path = str(models.attention(tmp_path / "m.onnx"))
    ended = run(tmp_path, "publish", "m", path, *FLAGS)
    assert (ended.code, ended.stdout) == (0, "1\n"), ended
    assert "fp16: compared on 8 random inputs: " in ended.stderr
    manifest = catalog.load_manifest(store_of(tmp_path), "m", "1")
    extents = AxisRange(1, 16, 64)
    assert manifest.precision == "fp16"
    assert manifest.engine == EngineWish("tensorrt_rtx", axes={"ids:1": extents, "mask:1": extents})
    assert manifest.gate == GateLimits(0.05, 0.9)
    assert [file.path for file in manifest.files] == ["model.fp16.onnx", "model.onnx"]
    spec = (
        "{endpoint: m, variants: [{name: a, model: m, version: '1', weight: 100}],"
        " engine: {name: tensort, precision: bf16, axes: {'ids:2': {min: 1, opt: 1, max: 1}}}}"
    )
    linted = run(tmp_path, "endpoint", "lint", "m", stdin=spec)
    assert linted.code == 1
    paths = [line.partition(": ")[0] for line in linted.stderr.splitlines()]
    assert paths == ["$.engine.name", "$.engine.precision", "$.engine.axes.ids:2"]


def test_answers_that_are_not_good_enough_are_refused_with_the_figures(tmp_path: Path) -> None:
    ends = [[models.tensor(name, TensorProto.FLOAT, ["N", 4])] for name in ("x", "y")]
    weights = [
        numpy_helper.from_array(np.full((4, 4), value, np.float32), name)
        for name, value in (("w", 6e4), ("v", 1e-4))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("MatMul", ["h", "v"], ["y"]),
    ]
    path = models.save(tmp_path / "m.onnx", nodes, *ends, weights)
    ended = run(tmp_path, "publish", "m", str(path), "--precision", "fp16")
    assert (ended.code, ended.stdout) == (1, "")
    assert 'in fp16 the answers are not good enough: output "y" is infinite' in ended.stderr
    assert not list(store_of(tmp_path).list(""))


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--axis", "x:1=1,2"), "expected input:axis=min,opt,max, e.g. input_ids:1=1,128,256"),
        (("--axis", "x:1=1,2,3", "--axis", "x:1=1,2,4"), "x:1 has a range already"),
        (("--precision", "int8"), "fp16"),
    ],
)
def test_flags_that_are_none_are_bad_usage(
    tmp_path: Path, flags: tuple[str, ...], why: str
) -> None:
    ended = run(tmp_path, "publish", "m", str(models.mlp(tmp_path / "m.onnx")), *flags)
    assert (ended.code, ended.stdout) == (2, "")
    assert why in " ".join(ended.stderr.split())
