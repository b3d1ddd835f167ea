"""A builder process: builds one plan, or tries one out, and ends; `building` starts it.

A process of its own, because a build takes minutes, memory that does not come back, and now and
then the process with it.  It gives way to everything that serves, is the first that a machine out
of memory takes, and ends with whoever wanted the plan.  It holds no secret: whoever started it
vouches for the plan.  Its last line on stdout is a `BuilderResult`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Final

import msgspec
import structlog

from pool.config import BuilderConfig, BuilderResult
from pool.engines import choice
from pool.engines.base import (
    BuildSpec,
    CannotBuild,
    Engine,
    EngineError,
    PlanEngine,
    PlanRefused,
    Session,
    reason_of,
)
from pool.engines.local_caches import caches_of
from pool.engines.registry import BadEngineName, find_engines, find_plan_engines
from pool.engines.trial import try_out
from registry_sync.documents import Manifest
from registry_sync.golden import BadGolden
from registry_sync.local import LocalStore
from registry_sync.logs import configure
from registry_sync.parts import FULL
from registry_sync.plans import NOT_RUN, REASON_CHARS_MAX, GateReport, PlanIdentity

_PR_SET_PDEATHSIG: Final = 1
_NICE: Final = 19
_OOM_SCORE: Final = "800"  # of 1000: before anything that serves
_CHUNK_BYTES: Final = 1 << 20
_PASSING: Final = (*FULL, errno.ENOMEM, errno.EIO)  # others come again

_log = structlog.get_logger()


def give_way() -> None:
    """Let this process run only where nobody else wants to: its threads, and those to come.

    Linux may group tasks by session (sched(7), autogroup), and compares groups before it looks at
    who is idle in one: so a builder stays in the session of those that serve.
    """
    with contextlib.suppress(OSError):
        for thread in map(int, os.listdir("/proc/self/task")):
            os.setpriority(os.PRIO_PROCESS, thread, _NICE)
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))


def end_first() -> None:
    """Let a machine that runs out of memory take this process before any that serves."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)


def end_with(parent: int) -> None:
    """Let Linux kill this process when `parent`, which has started it, dies."""
    if parent:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before that was heard
            os._exit(1)


class _Job:
    """What the config names, found."""

    def __init__(self, config: BuilderConfig) -> None:
        self.config = config
        local = LocalStore(Path(config.data) / "store")
        manifest = local.load_manifest(config.model, config.version)
        if manifest is None:
            raise CannotBuild(f"{config.model} version {config.version} is not on this node")
        self.manifest: Manifest = manifest
        folder = local.folder_of(manifest)
        self.spec = BuildSpec(manifest, folder, config.wish, config.rows_max, config.device_class)
        self.engine = self._engine()
        self.identity: PlanIdentity = self.engine.identity(self.spec)
        if self.identity.key != config.key:
            raise CannotBuild(
                f"here the plan has the key {self.identity.key}, not {config.key}: the installed "
                "libraries are others than when the worker started; restart it"
            )
        self.caches = caches_of(Path(config.data))

    def _engine(self) -> PlanEngine:
        config = self.config
        found = find_plan_engines(config.engines, config.device, config.threads)
        for engine in found:
            if engine.name == config.engine:
                return engine
        names = ", ".join(engine.name for engine in found) or "none"
        raise CannotBuild(
            f'there is no engine "{config.engine}" here that builds; there is {names}'
        )

    def build(self) -> BuilderResult:
        """Build, and try the plan out if its device is here."""
        plan = Path(self.config.plan)
        started_s = time.monotonic()
        built = self.engine.build(self.spec, plan, self.caches)
        build_s = time.monotonic() - started_s
        if built.inspector:
            plan.with_name("inspector.json").write_bytes(built.inspector)
        sha256, size = _digest_of(plan)
        _log.info("plan_built", key=self.config.key, bytes=size, build_s=round(build_s, 3))
        report = NOT_RUN
        probe = self.engine.probe()
        if probe.available and probe.device_class == self.config.device_class:
            try:
                report = self.try_out()
            except PlanRefused as error:
                # There may be no memory beside what serves here; others may have it.
                report = GateReport("not_run", _bounded(f"its builder could not load it: {error}"))
            except BadGolden as error:
                # The version's fault; the plan may be as good for others as any.
                report = GateReport("not_run", _bounded(str(error)))
        return BuilderResult(
            state="built", plan_sha256=sha256, bytes=size, build_s=build_s, gate=report
        )

    def try_out(self) -> GateReport:
        """Run the plan beside the portable engine; raises `PlanRefused`, `BadGolden`."""
        config = self.config
        engines = find_engines(config.engines, config.device)
        reference = choice.portable(engines, self.manifest.format, "")
        golden = Path(config.golden).read_bytes() if config.golden else None
        candidate = self.engine.load_plan(self.spec, self.identity, Path(config.plan), self.caches)
        with contextlib.closing(candidate):
            candidate.warmup()
            with contextlib.closing(self._load(reference)) as session:
                session.warmup()
                return try_out(
                    session,
                    candidate,
                    self.spec,
                    golden,
                    reference_name=f"{reference.name} {reference.probe().version}",
                    device=config.device_class,
                )

    def _load(self, engine: Engine) -> Session:
        return engine.load(self.spec.folder, self.manifest, self.config.threads)


def run(config: BuilderConfig) -> BuilderResult:
    """Do one task, whatever comes of it."""
    try:
        job = _Job(config)
        if config.task == "build":
            return job.build()
        return BuilderResult(state="tried", gate=job.try_out())
    except PlanRefused as error:
        return BuilderResult(state="refused", reason=_bounded(str(error)))
    except MemoryError:
        return BuilderResult(state="failed", reason="out of memory", retry=True)
    except OSError as error:
        text = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
        if error.errno in FULL:
            text = f"{text}; the node's disk is full, or a limit on it is reached: {config.data}"
        return BuilderResult(state="failed", reason=_bounded(text), retry=error.errno in _PASSING)
    except (EngineError, BadEngineName, BadGolden) as error:
        return BuilderResult(state="failed", reason=_bounded(str(error)))
    except Exception as error:
        # A framework may raise anything; whoever waits is to hear what it was.
        _log.exception("bug", key=config.key)
        return BuilderResult(state="failed", reason=_bounded(reason_of(error)))


def _digest_of(path: Path) -> tuple[str, int]:
    sha256, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            sha256.update(chunk)
            size += len(chunk)
    return sha256.hexdigest(), size


def _bounded(text: str) -> str:
    return text if len(text) <= REASON_CHARS_MAX else text[: REASON_CHARS_MAX - 1] + "…"


def main() -> None:
    """Do what the JSON in argv[1] says."""
    config = msgspec.json.decode(sys.argv[1], type=BuilderConfig)
    end_with(config.parent)
    end_first()
    if config.gives_way:
        give_way()
    # Frameworks print; the result must be the only line.
    answer = os.dup(1)
    os.dup2(2, 1)
    configure("builder", config.log_level)
    result = run(config)
    os.write(answer, msgspec.json.encode(result) + b"\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # what a framework does at its end is of no interest


if __name__ == "__main__":
    main()
