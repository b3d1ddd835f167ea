"""The servers and loops that Tidepool is measured against, as processes of their own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from infra.bench import cpu
from infra.bench.calls import BadTarget, Call, Target, probe
from infra.bench.processes import StartFailed, environment, free_port, running

LOOP_S_MAX = 300.0
READY_S_MAX = 60.0  # Triton listens before its models answer


@contextmanager
def _served(module: str, model: Path, threads: int, spinning: bool) -> Iterator[Target]:
    port = free_port()
    arguments = [str(port), str(model), str(threads), "spinning" if spinning else "blocking"]
    with running(f"infra.bench.peer_{module}", arguments, port) as pid:
        yield Target(module, f"http://127.0.0.1:{port}", lambda: cpu.tree(pid))


def fastapi(model: Path, *, threads: int, spinning: bool) -> AbstractContextManager[Target]:
    """Run FastAPI on uvicorn with one model inline; POST /infer takes raw bytes."""
    return _served("fastapi", model, threads, spinning)


def pydantic(model: Path, *, threads: int, spinning: bool) -> AbstractContextManager[Target]:
    """Run FastAPI with a pydantic body and one model in the thread pool; POST /infer takes JSON."""
    return _served("pydantic", model, threads, spinning)


@contextmanager
def pytriton(python: str, model: Path) -> Iterator[Target]:
    """Run Triton's Python backend with one model as `bench`, by an interpreter that has it.

    Raises:
        StartFailed: it has not, or Triton did not come up.
    """
    port = free_port()
    with running("infra.bench.peer_pytriton", [str(port), str(model)], port, python) as pid:
        target = Target("pytriton", f"http://127.0.0.1:{port}", lambda: cpu.tree(pid))
        _until_ready(Call(f"{target.base_url}/v2/models/bench/ready", method="GET"))
        yield target


def _until_ready(call: Call) -> None:
    deadline_s = time.monotonic() + READY_S_MAX
    while True:
        try:
            probe(call)
            return
        except BadTarget as error:
            if time.monotonic() > deadline_s:
                raise StartFailed(str(error)) from None
            time.sleep(0.1)


@contextmanager
def hello() -> Iterator[Target]:
    """Run granian with an application that answers five bytes to GET /."""
    port = free_port()
    with running("infra.bench.peer_hello", [str(port)], port) as pid:
        yield Target("hello", f"http://127.0.0.1:{port}", lambda: cpu.tree(pid))


def bare_loop_us(
    model: Path,
    rows: NDArray[Any],
    batches: Sequence[int],
    *,
    seconds: float,
    threads: int,
    spinning: bool,
) -> dict[int, float]:
    """Run onnxruntime alone and return the CPU time of one run for each batch size, in µs."""
    with tempfile.TemporaryDirectory(prefix="tidepool-bench-") as folder:
        rows_path = Path(folder, "rows.npy")
        np.save(rows_path, rows, allow_pickle=False)
        plan = {
            "model": str(model),
            "rows_path": str(rows_path),
            "batches": list(batches),
            "seconds": seconds,
            "threads": threads,
            "spinning": spinning,
        }
        finished = subprocess.run(
            [sys.executable, "-m", "infra.bench.peer_loop", msgspec.json.encode(plan).decode()],
            stdout=subprocess.PIPE,
            check=True,
            env=environment(),
            timeout=LOOP_S_MAX,
        )
    return msgspec.json.decode(finished.stdout, type=dict[int, float])
