"""A process that has imported nothing of torch loads a plan and two archives, all at once.

``python -m tests.support.loads_at_once FOLDER``: what `compiled_in` has left there.  Prints a line
of JSON: what each thread ended with, nothing if well.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from pool.engines.base import BuildSpec, Session
from pool.engines.device import cpu
from pool.engines.torch_engine import TorchCompiledEngine, TorchEngine
from registry_sync.documents import EngineWish, Manifest

ARCHIVES: Final = 2
INPUTS: Final = {
    "x": np.ones((3, 4), np.float32),
    "i": np.ones((3, 2), np.int64),
    "m": np.ones((3, 2), np.bool_),
}


def loads_at_once(manifest: Manifest, folder: Path) -> list[str]:
    """Load, warm up and run in a thread each; return what each ended with."""
    wish = EngineWish(precision="fp32", ahead_of_time=True)
    artifact = folder / "artifact"
    spec = BuildSpec(manifest, artifact, wish, manifest.rows_max, cpu().device_class)
    portable, compiled = TorchEngine("cpu"), TorchCompiledEngine("cpu", 1)
    identity = compiled.identity(spec)
    loads: list[Callable[[], Session]] = [
        lambda: compiled.load_plan(spec, identity, folder / "plan", folder / "caches"),
        *[lambda: portable.load(artifact, manifest, 1)] * ARCHIVES,
    ]
    barrier = threading.Barrier(len(loads))

    def run(load: Callable[[], Session]) -> str:
        barrier.wait()
        try:
            session = load()
            session.warmup()
            session.infer(INPUTS)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    assert "torch" not in sys.modules
    with ThreadPoolExecutor(len(loads)) as threads:
        return list(threads.map(run, loads))


if __name__ == "__main__":
    given = msgspec.json.decode(sys.stdin.buffer.read(), type=Manifest)
    print(json.dumps(loads_at_once(given, Path(sys.argv[1]))))
