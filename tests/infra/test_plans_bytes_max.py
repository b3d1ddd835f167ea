"""`--plans-bytes-max`: the bound reaches whoever keeps plans on the node."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from pathlib import Path

import pytest

from infra.stack import Node, sync_process, worker_processes
from pool.config import WorkerConfig
from registry_sync.client import SyncError, fetch_plan_via, ping_via
from registry_sync.config import SyncConfig
from registry_sync.directory import DirectoryStore
from registry_sync.plans import BadPlan
from tests.support.plans import FLEET, identity_of, put
from tests.support.processes import command


async def answered(socket: str) -> None:
    async with asyncio.timeout(30.0):
        while True:
            with contextlib.suppress(SyncError):
                return await ping_via(socket)
            await asyncio.sleep(0.02)


def test_the_sync_command_keeps_to_the_bound(tmp_path: Path) -> None:
    identity, socket = identity_of(), Node(tmp_path).sync_socket
    put(DirectoryStore(tmp_path / "registry"), identity, plan=b"x" * 5000)
    words = ("sync", "--data", str(tmp_path), "--registry", str(tmp_path / "registry"))
    with subprocess.Popen(command(*words, "--plans-bytes-max", "4096")) as process:
        try:
            asyncio.run(answered(socket))
            with pytest.raises(BadPlan, match="at most 4096 bytes of plans: raise --plans-bytes"):
                asyncio.run(fetch_plan_via(socket, identity.key, [FLEET.id]))
        finally:
            process.terminate()


def test_sync_and_workers_of_a_node_are_told_the_same(tmp_path: Path) -> None:
    node = Node(tmp_path)
    sync = sync_process(node, "r", "info", plans_bytes_max=4096).config
    workers = worker_processes(node, 2, "info", controller="", plans_bytes_max=4096)
    assert isinstance(sync, SyncConfig)
    assert sync.plans_bytes_max == 4096
    for worker in workers:
        assert isinstance(worker.config, WorkerConfig)
        assert worker.config.plans_bytes_max == 4096
