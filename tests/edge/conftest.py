"""A pool of an edge, and workers of which every word is the test's."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edge.dispatching import worker_conn
from tests.support.edge_fleet import Fleet


@pytest.fixture
def redial_s(monkeypatch: pytest.MonkeyPatch) -> float:
    """Redial often; returns how long it takes to see that nobody is redialled."""
    monkeypatch.setattr(worker_conn, "REDIAL_S_MAX", 0.03)
    return 0.1


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    folder = Path(tempfile.mkdtemp(prefix="tp"))
    made = Fleet(folder)
    sweeper = asyncio.get_running_loop().create_task(made.pool.sweep_forever())
    yield made
    assert not sweeper.done()
    sweeper.cancel()
    await made.pool.close()
    for worker in made.workers.values():
        await worker.down()
    await asyncio.sleep(0.02)
    shutil.rmtree(folder)
