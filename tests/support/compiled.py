"""One model compiled by AOTInductor, once for a whole run: a compiler takes ten seconds."""

from __future__ import annotations

import fcntl
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pool.engines.base import BuildSpec
from pool.engines.device import cpu
from pool.engines.torch_engine import TorchCompiledEngine
from registry_sync.documents import EngineWish
from tests.support.twins import MIXED


@dataclass(frozen=True)
class Compiled:
    """`MIXED` compiled for this CPU: what it was built from, the plan, and the build's caches."""

    spec: BuildSpec
    plan: Path
    caches: Path


def compiled_in(root: Path) -> Compiled:
    """Find it below a folder that all processes of the run share, or compile it there."""
    folder = root / "compiled"
    with (root / "compiled.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # closing the file gives it back
        if not folder.exists():
            made = Path(tempfile.mkdtemp(prefix="compiling-", dir=root))
            (made / "artifact").mkdir()
            MIXED.archive(made / "artifact")
            built = _in(made)
            TorchCompiledEngine("cpu").build(built.spec, built.plan, built.caches)
            made.rename(folder)
    return _in(folder)


def _in(folder: Path) -> Compiled:
    artifact = folder / "artifact"
    manifest = MIXED.manifest(artifact, "torch-export")
    wish = EngineWish(precision="fp32", ahead_of_time=True)
    spec = BuildSpec(manifest, artifact, wish, manifest.rows_max, cpu().device_class)
    return Compiled(spec, folder / "plan", folder / "caches")
