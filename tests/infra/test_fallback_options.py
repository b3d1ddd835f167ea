"""`tidepool pool --fallback`: what its workers are told, and which options do not go with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra.cli import make_app
from infra.stack import Node, worker_processes
from pool.config import WorkerConfig


def test_fallback_workers_are_told_so_and_never_rest(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.prepare()
    specs = worker_processes(node, 2, "info", controller="", on="cpu", is_fallback=True)
    assert [spec.may_rest for spec in specs] == [False, False]
    for spec in specs:
        assert isinstance(spec.config, WorkerConfig)
        assert spec.config.is_fallback
        assert spec.config.device == "cpu"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device", "cuda:0"], "not on --device cuda:0"),
        (["--workers", "2", "--workers-min", "1"], "always up"),
        (["--parked", "1"], "always up"),
    ],
)
def test_options_that_do_not_go_with_fallback_are_named(
    tmp_path: Path, options: list[str], words: str
) -> None:
    command = ["pool", "--fallback", "--data", str(tmp_path), "--registry", str(tmp_path / "r")]
    result = CliRunner().invoke(make_app("pool"), [*command, *options])
    assert result.exit_code == 1
    assert words in f"{result.output} {result.exception}"
