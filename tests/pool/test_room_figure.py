"""Models that do not fit together, in a real worker process: its memory stays within its bound."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pool.wire.control import RegisterWorker
from tests.support.worker_process import put_model, running_worker

MIB = 1 << 20


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: sockets lie there."""
    made = Path(tempfile.mkdtemp(prefix="tp"))
    yield made
    shutil.rmtree(made)


async def test_worker_keeps_to_its_bound_while_every_model_is_answered(folder: Path) -> None:
    manifests = [put_model(folder / "store", f"m{n}", mib=30) for n in range(4)]
    async with running_worker(folder, memory_bytes_max=65 * MIB) as worker:
        member = await worker.member()
        held: list[int] = []
        for manifest in manifests * 2:
            assert (await worker.call(manifest)).status == 200
            held.append(worker.rss_bytes())
        print("\nMiB after each call:", [round(size / MIB) for size in held])
        assert max(held[4:]) <= max(held[:2]) + 20 * MIB  # one more would be 30
        assert (await member.hear(RegisterWorker)).memory_bytes_max == 65 * MIB


@pytest.mark.parametrize(
    ("mib", "idle_s"), [(60, 1.0), pytest.param(200, 15.0, marks=pytest.mark.slow)]
)
async def test_memory_of_a_large_model_is_back_once_it_sleeps_and_no_cpu_is_used(
    folder: Path, mib: int, idle_s: float
) -> None:
    small = put_model(folder / "store", "small", mib=0.1)
    large = put_model(folder / "store", "large", mib=mib)
    async with running_worker(folder) as worker:
        assert (await worker.call(small)).status == 200
        before = worker.rss_bytes()
        for _ in range(2 if idle_s < 10 else 10):
            assert (await worker.call(large)).status == 200
            loaded = worker.rss_bytes()
            await worker.unload("large")
            after = worker.rss_bytes()
        await worker.unload("small")
        began_s, began_cpu_s = time.monotonic(), worker.cpu_s()
        await asyncio.sleep(idle_s)
        share = (worker.cpu_s() - began_cpu_s) / (time.monotonic() - began_s)
    print(
        f"\nbefore {before / MIB:.0f} MiB, loaded {loaded / MIB:.0f}, "
        f"unloaded {after / MIB:.0f}; asleep {100 * share:.2f} % of a core"
    )
    assert loaded - before >= mib * MIB
    assert after - before <= 0.1 * mib * MIB
    assert share <= (0.01 if idle_s > 10 else 0.05)  # a tick of the clock is 10 ms
