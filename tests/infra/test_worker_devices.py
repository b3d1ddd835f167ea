"""On which devices a node's workers serve."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.stack import Node, devices_for, worker_processes
from pool.config import WorkerConfig
from pool.engines import device
from pool.engines.device import Device, Gpus


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        ([], ["cpu", "cpu", "cpu"]),
        (["cuda:0"], ["cuda:0", "cuda:0", "cuda:0"]),
        (["cuda:0", "cuda:1"], ["cuda:0", "cuda:1", "cuda:0"]),
    ],
)
def test_workers_take_the_gpus_in_turn_and_the_cpu_where_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: list[str], expected: list[str]
) -> None:
    found = Gpus(tuple(Device(name, "sm_90") for name in gpus))
    monkeypatch.setattr(device, "gpus", lambda: found)
    assert devices_for(3, gpus) == expected
    specs = worker_processes(Node(tmp_path), 3, "info", controller="")
    configs = [spec.config for spec in specs]
    assert [one.device for one in configs if isinstance(one, WorkerConfig)] == expected
    # Or CUDA would count them in another order than these names do.
    assert all(("CUDA_DEVICE_ORDER", "PCI_BUS_ID") in spec.env for spec in specs)
