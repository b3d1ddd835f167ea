"""Building plans and trying them out in processes of their own, from a worker or a command.

Decides how often a builder that dies is started anew, and vouches for what one has built.  Who
wants a plan, and what becomes of it, is not decided here.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import fcntl
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final, Literal

import msgspec
import structlog

from pool.config import BuilderConfig, BuilderResult
from pool.engines.choice import Option
from pool.wire.handshake import Secret
from registry_sync.local_plans import LocalPlan, LocalPlans
from registry_sync.plans import BadPlan, GateReport, PlanMeta, signed, write

DEATHS_MAX: Final = 3  # of builders of one plan in a row
PAUSE_S: Final = 1.0  # before the second one; longer each time
BUILD_S_MAX: Final = 6 * 3600.0  # TensorRT takes an hour for the largest models
TRIAL_S_MAX: Final = 1800.0
LOCK_POLL_S: Final = 0.25

_log = structlog.get_logger()
_result_of = msgspec.json.Decoder(BuilderResult)


class BuildFailed(Exception):
    """No plan, or no verdict; the text says why.

    `retry`: whether it may well go better with nothing changed: a full disk, a builder that died.
    """

    def __init__(self, text: str, *, retry: bool) -> None:
        super().__init__(text)
        self.retry = retry


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """Where builders work and what they are told besides the plan."""

    data: Path  # the node's data folder
    engines: tuple[str, ...] = ()  # further ones, as the worker has
    device: str = ""
    threads: int = 0
    gives_way: bool = True  # to whatever else runs on this machine
    log_level: str = "info"
    pause_s: float = PAUSE_S

    def task(
        self, task: Literal["build", "gate"], option: Option, plan: Path, golden: Path | None
    ) -> BuilderConfig:
        """Return what a builder is told; its process ends with this one."""
        manifest = option.spec.manifest
        return BuilderConfig(
            task=task,
            data=str(self.data),
            model=manifest.model,
            version=manifest.version,
            engine=option.engine.name,
            device_class=option.spec.device_class,
            key=option.key,
            wish=option.spec.wish,
            rows_max=option.spec.rows_max,
            plan=str(plan),
            golden=str(golden or ""),
            engines=self.engines,
            device=self.device,
            threads=self.threads,
            gives_way=self.gives_way,
            parent=os.getpid(),
            log_level=self.log_level,
        )


async def build(
    bench: Bench, option: Option, plans: LocalPlans, secret: Secret, golden: Path | None = None
) -> PlanMeta:
    """Build a plan into the node's folder, unless another process of the node just has.

    Args:
        option: what to build; the artifact is in the node's local store.
        secret: vouches for the plan.
        golden: a file with recorded inputs; None: there are none.

    Raises:
        BuildFailed: see there.
    """
    async with _sole_builder(bench.data, option.key):
        with contextlib.suppress(BadPlan):
            found = await asyncio.to_thread(plans.find, option.key, {secret.id: secret.key})
            if found is not None:
                return found.meta
        try:
            return await _build(bench, option, plans, secret, golden)
        except BadPlan as error:
            raise BuildFailed(str(error), retry=False) from None
        except OSError as error:
            place = error.filename or bench.data
            text = f"the plan cannot be kept: {error.strerror or error}: {place}"
            raise BuildFailed(text, retry=True) from error


async def try_out(
    bench: Bench, option: Option, plan: LocalPlan, golden: Path | None = None
) -> GateReport:
    """Compare a plan that is here with the artifact.

    Returns:
        The verdict, never "not_run".

    Raises:
        BuildFailed: this device does not load it, or something else prevents a verdict, such as
            recorded inputs that are none of the model's.
    """
    config = bench.task("gate", option, plan.plan, golden)
    result = await _until_result(lambda: _run(config, TRIAL_S_MAX), bench.pause_s)
    if result.state != "tried":
        raise BuildFailed(result.reason, retry=True)
    return result.gate


async def _build(
    bench: Bench, option: Option, plans: LocalPlans, secret: Secret, golden: Path | None
) -> PlanMeta:
    async def once() -> BuilderResult | int:
        # A new folder each time: nothing of a builder that died is to be taken for whole.
        with plans.scratch() as folder:
            config = bench.task("build", option, folder / "plan", golden)
            result = await _run(config, BUILD_S_MAX)
            if isinstance(result, BuilderResult) and result.state == "built":
                made.append(_meta_of(option, result, secret))
                (folder / "meta.json").write_bytes(write(made[0]))
                await asyncio.to_thread(plans.add, option.key, secret.id, folder)
            return result

    made: list[PlanMeta] = []
    result = await _until_result(once, bench.pause_s)
    if not made:
        raise BuildFailed(result.reason, retry=result.retry)
    return made[0]


def _meta_of(option: Option, result: BuilderResult, secret: Secret) -> PlanMeta:
    manifest = option.spec.manifest
    meta = PlanMeta(
        identity=option.identity,
        key=option.key,
        model=manifest.model,
        version=manifest.version,
        plan_sha256=result.plan_sha256,
        bytes=result.bytes,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        build_s=round(result.build_s, 3),
        gate=result.gate,
    )
    return signed(meta, secret.key)


async def _until_result(
    once: Callable[[], Awaitable[BuilderResult | int]], pause_s: float
) -> BuilderResult:
    """Start builders until one ends with a result; raises `BuildFailed` when too many died."""
    code = 0
    for death in range(DEATHS_MAX):
        if death:
            await asyncio.sleep(pause_s * 4 ** (death - 1))
        result = await once()
        if isinstance(result, BuilderResult):
            return result
        code = result
        _log.warning("builder_died", code=code, deaths=death + 1)
    raise BuildFailed(f"its builder died {DEATHS_MAX} times, {_how(code)}", retry=True)


def _how(code: int) -> str:
    if code >= 0:
        return f"the last time with status {code}"
    try:
        return f"the last time of {signal.Signals(-code).name}"
    except ValueError:
        return f"the last time of signal {-code}"


async def _run(config: BuilderConfig, s_max: float) -> BuilderResult | int:
    """Run a builder to its end; return what it says, or its status if it says nothing."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # never import what lies in the current folder
        "-m",
        "pool.builder",
        msgspec.json.encode(config).decode(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        preexec_fn=os.setpgrp,  # so that it and the compilers it starts can be ended together
    )
    _log.info("builder_started", task=config.task, key=config.key, child_pid=process.pid)
    try:
        async with asyncio.timeout(s_max):
            output, _ = await process.communicate()
    except TimeoutError:
        raise BuildFailed(f"its builder took more than {s_max:.0f} s", retry=False) from None
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    lines = output.strip().splitlines()
    try:
        return _result_of.decode(lines[-1])
    except (IndexError, msgspec.DecodeError):
        return process.returncode or 0


@contextlib.asynccontextmanager
async def _sole_builder(data: Path, key: str) -> AsyncIterator[None]:
    """Be the only one of this node that builds a plan; a process that dies lets go."""
    folder = data / "store" / "build-locks"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / key
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(LOCK_POLL_S)
        yield
    finally:
        os.close(descriptor)
