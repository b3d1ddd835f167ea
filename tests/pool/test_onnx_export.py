"""Archives of torch.export as ONNX: the same numbers, or none at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from pool.engines.onnx_export import CannotExport
from pool.engines.torch_engine import export_onnx
from registry_sync.onnx_signature import read_signature
from tests.support import pt2
from tests.support.twins import MIXED


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "onnx").mkdir()
    return tmp_path / "onnx"


def test_it_computes_the_same_and_keeps_names_and_batch_axis(tmp_path: Path, folder: Path) -> None:
    report = export_onnx(_mixed(tmp_path), folder)
    assert (report.verdict, report.inputs, report.runs) == ("passed", "random", 8)
    assert report.reference.startswith("torch 2.")
    assert [path.name for path in folder.iterdir()] == ["model.onnx"]
    found = read_signature(folder / "model.onnx", {})
    assert (found.inputs, found.outputs) == (MIXED.inputs, MIXED.outputs)
    assert found.has_batch_axis


def test_it_says_nothing_of_where_it_was_made(tmp_path: Path, folder: Path) -> None:
    export_onnx(_mixed(tmp_path), folder)
    data = (folder / "model.onnx").read_bytes()
    assert b"stack_trace" not in data
    assert b"tests/support" not in data


def _mixed(tmp_path: Path) -> Path:
    (tmp_path / "archive").mkdir()
    MIXED.archive(tmp_path / "archive")
    return tmp_path / "mixed.raw.pt2"


def test_what_onnx_does_not_have_is_said(tmp_path: Path, folder: Path) -> None:
    class Solving(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.linalg.eigvalsh(x)

    path = pt2.save(tmp_path / "m.pt2", Solving(), torch.eye(3), rows=False)
    with pytest.raises(CannotExport, match=r"m\.pt2: torch cannot export it to ONNX: (?s:.)*eig"):
        export_onnx(path, folder)


def test_an_export_that_computes_something_else_is_refused(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes of the exporter is altered on its way, as a wrong translation would be."""
    save = onnx.save_model

    def wrong(model: Any, *args: Any, **options: Any) -> None:
        for tensor in model.graph.initializer:
            if tensor.name.endswith("weight"):
                values = onnx.numpy_helper.to_array(tensor) * np.float32(1.01)
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        save(model, *args, **options)

    monkeypatch.setattr(onnx, "save_model", wrong)
    with pytest.raises(CannotExport, match=r'does not compute what torch computes: output "y"'):
        export_onnx(_mixed(tmp_path), folder)


def test_the_command_publishes_what_it_exported(tmp_path: Path) -> None:
    done = _tidepool(
        *("publish", "m", "--onnx-from", str(pt2.scaled(tmp_path / "m.pt2"))),
        *("--registry", str(tmp_path / "registry"), "--data", str(tmp_path / "data")),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1"
    assert "8 runs on random inputs are within" in done.stderr
    assert (tmp_path / "registry/models/m/1/manifest.json").read_text().count('"onnx"') == 1


def test_the_command_wants_one_artifact() -> None:
    done = _tidepool("publish", "m")
    assert done.returncode == 2
    assert "--onnx-from" in done.stderr


def _tidepool(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "infra.cli", *args],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
