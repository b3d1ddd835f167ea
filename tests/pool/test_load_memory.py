"""Loading in a real worker process: how soon it answers, and what memory comes back."""

from __future__ import annotations

import functools
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry_sync.documents import TensorSpec
from tests.support.worker_process import put_file, put_model, running_worker

MIB = 1 << 20
X = (TensorSpec("x", "FP32", (-1, 4)),)
Y = (TensorSpec("y", "FP32", (-1, 4)),)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: sockets lie there."""
    made = Path(tempfile.mkdtemp(prefix="tp"))
    yield made
    shutil.rmtree(made)


@pytest.mark.parametrize("cycles", [20, pytest.param(200, marks=pytest.mark.slow)])
async def test_memory_of_what_is_unloaded_comes_back(folder: Path, cycles: int) -> None:
    manifest = put_model(folder / "store", "big", mib=50)
    after: list[int] = []
    async with running_worker(folder) as worker:
        for _ in range(cycles):
            assert await worker.load("big") == "warm"
            assert (await worker.call(manifest)).status == 200
            assert worker.rss_bytes() > 50 * MIB
            await worker.unload("big")
            after.append(worker.rss_bytes())
    print("\nMiB after unload:", [round(size / MIB, 1) for size in after[:: max(1, cycles // 20)]])
    assert max(after[10:]) <= 1.05 * after[9]


async def test_load_that_fails_leaves_the_memory_as_it_was(folder: Path) -> None:
    put_file(folder / "store", "damaged", b"no model at all" * MIB, X, Y)
    whole = put_model(folder / "store", "whole", mib=50)
    blob = next((folder / "store").rglob(whole.files[0].sha256))
    put_file(folder / "store", "cut", blob.read_bytes()[: 40 * MIB], X, Y)
    z = (TensorSpec("z", "FP32", (-1, 4)),)
    put_file(folder / "store", "other", blob.read_bytes(), X, z)  # loads, and is not as promised
    small = put_model(folder / "store", "small", mib=0.1)
    async with running_worker(folder) as worker:
        assert (await worker.call(small)).status == 200
        for model in ("damaged", "cut"):  # what the libraries keep once
            assert await worker.load(model) == "failed"
        before = worker.rss_bytes()
        for model in ("damaged", "cut", "other", "damaged", "cut", "other"):
            await worker.unload(model)
            assert await worker.load(model) == "failed"
        assert worker.rss_bytes() <= 1.05 * before
        assert (await worker.call(small)).status == 200


async def test_model_too_large_for_the_memory_fails_and_everything_else_is_served(
    folder: Path,
) -> None:
    large = put_model(folder / "store", "large", mib=200)
    small = put_model(folder / "store", "small", mib=0.1)
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_DATA, (400 * MIB, 400 * MIB))
    async with running_worker(folder, prepare=limit) as worker:
        after: list[int] = []
        for _ in range(6):
            reply = await worker.call(large)
            assert reply.status == 503, reply.detail
            assert (await worker.call(small)).status == 200
            await worker.unload("large")
            after.append(worker.rss_bytes())
        print("\nMiB after failing:", [round(size / MIB, 1) for size in after])
        assert max(after) < 100 * MIB
        assert max(after[2:]) <= 1.05 * after[1]  # the libraries keep a little, once
        assert worker.process.poll() is None


async def test_small_model_is_answered_soon_after_the_start(folder: Path) -> None:
    """Counted from when the process is up; the start of the interpreter is printed beside it."""
    manifest = put_model(folder / "store", "small", mib=0.1)
    found: list[tuple[float, float, float]] = []
    for _ in range(3):
        async with running_worker(folder) as worker:
            await worker.edge()
            up_s = time.monotonic()
            assert (await worker.call(manifest)).status == 200
            answered_s = time.monotonic()
            found.append((answered_s - up_s, answered_s - worker.started_s, worker.cpu_s()))
    for since_up_s, since_exec_s, cpu_s in found:
        print(f"\nfirst answer: {since_up_s:.3f} s, from exec {since_exec_s:.3f}, CPU {cpu_s:.2f}")
    assert min(since_up_s for since_up_s, _, _ in found) <= 0.3
