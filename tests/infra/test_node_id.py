"""What a node is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.stack import CannotStart, Node, worker_processes
from pool.config import NODE_ID, WorkerConfig


def test_node_makes_its_id_once(tmp_path: Path) -> None:
    assert Node(tmp_path).id() == Node(tmp_path).id()


def test_node_that_somebody_placed_is_called_as_it_was_told_and_so_is_its_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NODE_ID, "gpu-3")
    assert Node(tmp_path).id() == "gpu-3"
    (spec,) = worker_processes(Node(tmp_path), 1, "info", controller="", on="cpu")
    assert isinstance(spec.config, WorkerConfig)
    assert spec.config.id == "gpu-3-0"


def test_node_is_not_called_what_is_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NODE_ID, "../gpu")
    with pytest.raises(CannotStart, match="TIDEPOOL_NODE_ID"):
        Node(tmp_path).id()
