"""A wake while the registry says nothing, through a real worker process and a sync daemon."""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from registry_sync import daemon
from registry_sync.local import LocalStore
from registry_sync.local_plans import LocalPlans
from tests.support.worker_process import put_model, running_worker


@pytest.fixture
async def folder(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Path]:
    """A node's folder, with a sync daemon whose S3 takes connections and never answers."""
    made = Path(tempfile.mkdtemp(prefix="tp"))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        monkeypatch.setattr(daemon, "SILENT_S_MAX", 0.3)
        (made / "engines").mkdir()
        desk = daemon.Daemon(
            daemon.Registry("s3://bucket/fleet"),
            LocalStore(made / "store"),
            LocalPlans(made / "engines", 1 << 20),
        )
        server = await asyncio.start_unix_server(desk.connected, path=made / "nobody")
        yield made
        server.close()
        await desk.end()
    shutil.rmtree(made)


async def test_what_is_on_the_node_wakes_and_the_rest_is_refused_with_the_reason(
    folder: Path,
) -> None:
    here = put_model(folder / "store", "here", mib=0.1)
    gone = msgspec.structs.replace(here, model="gone")
    async with running_worker(folder) as worker:
        for _ in range(2):
            assert (await worker.call(here)).status == 200
            await worker.unload("here")
        reply = await worker.call(gone)
        assert reply.status == 503
        assert "the registry s3://bucket/fleet has not answered for" in reply.detail
        assert reply.retry_after_ms > 0
        began_s = time.monotonic()
        assert (await worker.call(gone)).status == 503  # at once: it has just been tried
        assert time.monotonic() - began_s < 0.3
        assert (await worker.call(here)).status == 200
