"""On which devices a node's workers serve."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from infra.stack import CannotStart, Node, devices_for, worker_processes
from pool.config import WorkerConfig
from pool.engines import device
from pool.engines.device import Device, Gpus
from tests.support.processes import command


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


def devices_on(tmp_path: Path, on: str) -> list[str]:
    specs = worker_processes(Node(tmp_path), 2, "info", controller="", on=on)
    return [spec.config.device for spec in specs if isinstance(spec.config, WorkerConfig)]


def test_all_workers_serve_on_the_device_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Gpus(tuple(Device(f"cuda:{at}", "sm_90") for at in range(2)))
    monkeypatch.setattr(device, "gpus", lambda: found)
    assert devices_on(tmp_path, "cpu") == ["cpu", "cpu"]
    assert devices_on(tmp_path, "cuda:1") == ["cuda:1", "cuda:1"]
    assert devices_on(tmp_path, "auto") == ["cuda:0", "cuda:1"]
    with pytest.raises(CannotStart, match=r'--device: there is no device "cuda:2".*cuda:1'):
        devices_on(tmp_path, "cuda:2")
    with pytest.raises(CannotStart, match="auto, cpu or cuda:N"):
        devices_on(tmp_path, "")


@pytest.mark.parametrize("tier", ["up", "pool"])
def test_a_device_that_is_not_there_is_refused_before_anything_starts(
    tmp_path: Path, tier: str
) -> None:
    words = (tier, "--data", str(tmp_path), "--registry", str(tmp_path / "registry"))
    words += ("--port", "0", "--admin-port", "0") if tier == "up" else ()
    done = subprocess.run(
        command(*words, "--device", "cuda:77"), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert '--device: there is no device "cuda:77" here' in done.stderr
    assert "Traceback" not in done.stderr


def test_workers_are_told_how_much_memory_engines_may_use(tmp_path: Path) -> None:
    workers = worker_processes(
        Node(tmp_path), 2, "info", controller="", memory_bytes_max=1 << 30, on="cpu"
    )
    for worker in workers:
        assert isinstance(worker.config, WorkerConfig)
        assert worker.config.memory_bytes_max == 1 << 30
