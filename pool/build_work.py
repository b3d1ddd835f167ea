"""The builds that one worker does for the fleet: ordered by the controller, or wanted by itself.

Each plan once, however often it is ordered.  Every order is answered at once with how it stands;
what holds is said again to each controller that is dialled.  A plan that cannot be put into the
registry yet is used on this node meanwhile, and put there later.
"""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import structlog
from msgspec.structs import replace

from pool import building
from pool.building import BuildFailed
from pool.engines.base import CannotBuild, reason_of
from pool.engines.choice import Option
from pool.loaded import CannotLoad
from pool.plan_shelf import PlanShelf
from pool.wire.control import Build, BuildReport
from registry_sync.client import SyncError
from registry_sync.plans import BadPlan

REASON_CHARS_MAX: Final = 4000  # of what a report may carry
RETRY_S: Final = 60.0  # what may pass by itself; doubled by each further failure
RETRY_S_MAX: Final = 3600.0
RETRY_S_NEVER: Final = 24 * 3600.0  # only other libraries or another model help
UPLOAD_S_MIN: Final = 2.0  # between tries of an upload, growing
UPLOAD_S_MAX: Final = 60.0
REPORTS_MAX: Final = 1024  # of what holds

Target: TypeAlias = tuple[str, str, str, str]  # model, version, engine ("": any), device class

_log = structlog.get_logger()


class Reports:
    """What this worker has to say of plans, said again to whoever has not heard it."""

    def __init__(self, send: Callable[[BuildReport], object]) -> None:
        self._send = send
        # The whole mutable state: the last word on each plan for each version, and what is refused:
        # who has built a plan may refuse it.
        self._last: dict[Target, BuildReport] = {}
        self._refused: dict[Target, BuildReport] = {}

    def say(self, report: BuildReport) -> None:
        """Say how it stands, and again to whoever is dialled next."""
        target = (report.model, report.version, report.engine, report.device_class)
        if report.state == "refused":
            self._keep(self._refused, target, report)
            self._send(report)
            return
        if report.state == "wanted":
            self._refused.pop(target, None)
        self._last.pop(target, None)
        # A controller that begins after the plan has come knows of none: no worker wants it any
        # more.  The others answer one order, or take back one word.
        if report.state not in ("other", "dropped", "unwanted"):
            self._keep(self._last, target, report)
        self._send(report)

    @staticmethod
    def _keep(known: dict[Target, BuildReport], target: Target, report: BuildReport) -> None:
        known.pop(target, None)
        known[target] = report
        if len(known) > REPORTS_MAX:
            del known[next(iter(known))]

    def forget(self, key: str) -> None:
        """Take back that a plan is wanted or refused."""
        self._last = {
            target: report
            for target, report in self._last.items()
            if report.key != key or report.state != "wanted"
        }
        for target, report in list(self._refused.items()):
            if report.key == key:
                del self._refused[target]
                self._send(replace(report, state="unwanted", reason=""))

    def again(self) -> None:
        """Say what holds to a controller that does not know us."""
        for report in [*self._last.values(), *self._refused.values()]:
            self._send(report)


def report_of(option: Option, state: str, reason: str = "", retry_s: float = 0.0) -> BuildReport:
    """Return what is to be said of one plan."""
    manifest = option.spec.manifest
    return BuildReport(
        option.key,
        manifest.model,
        manifest.version,
        option.engine.name,
        option.spec.device_class,
        state,
        reason[:REASON_CHARS_MAX],
        int(retry_s * 1000),
    )


class BuildWork:
    """This worker's builds.

    Args:
        shelf: where plans lie.
        option_of: what to build for a target; brings the artifact.  Raises `CannotBuild` or
            `CannotLoad`.
        reports: to the controller.
        on_plan: called with the key of each plan that has come to this node.
    """

    def __init__(
        self,
        shelf: PlanShelf,
        option_of: Callable[[Target], Awaitable[Option]],
        reports: Reports,
        on_plan: Callable[[str], None],
    ) -> None:
        self._shelf = shelf
        self._option_of = option_of
        self._reports = reports
        self._on_plan = on_plan
        # The whole mutable state: builds under way and what was last said of each, until when a
        # failure holds and how many there were in a row, and the right to build.
        self._tasks: dict[Target, asyncio.Task[None]] = {}
        self._said: dict[Target, BuildReport] = {}
        self._held_s: dict[Target, float] = {}
        self._failures: dict[Target, int] = {}
        self._turn = asyncio.Lock()
        self._ending: set[asyncio.Task[None]] = set()  # given up; their builders end

    def take(self, order: Build) -> None:
        """Take an order, or the question how it goes; it is answered at once."""
        target = (order.model, order.version, order.engine, order.device_class)
        if order.is_over:
            self._drop(target, order.key)
            self._reports.say(BuildReport(order.key, *target, "dropped"))
            return
        name = self.begin(target, order.key)
        self._reports.say(self._said[name])

    def begin(self, target: Target, key: str = "") -> Target:
        """Begin a build, unless it is under way or has just failed, under whichever name.

        Args:
            key: that the plan is to have; empty: whichever it has.

        Returns:
            The name under which it was begun.
        """
        # A controller that has led only since asks under the name that the report says.
        for name, said in self._said.items():
            is_same = name == target or (key and said.key == key)
            if is_same and (name in self._tasks or self._is_held(name)):
                return name
        self._said[target] = BuildReport(key, *target, "building")
        task = asyncio.get_running_loop().create_task(self._work(target, key))
        self._tasks[target] = task
        task.add_done_callback(functools.partial(self._leave, target))
        return target

    def is_under_way(self, target: Target) -> bool:
        """Tell whether this worker builds, or has a plan that waits for the registry."""
        return target in self._tasks

    async def close(self) -> None:
        """Give everything up; the builders end."""
        tasks = [*self._tasks.values(), *self._ending]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _drop(self, asked: Target, key: str) -> None:
        """Give a build up, under whichever name it was begun."""
        for target, task in list(self._tasks.items()):
            if target == asked or (key and self._said[target].key == key):
                _log.info("build_dropped", target=target, key=key)
                del self._tasks[target]
                self._reports.say(replace(self._said[target], state="dropped"))
                self._ending.add(task)
                task.cancel()

    def _leave(self, target: Target, task: asyncio.Task[None]) -> None:
        self._ending.discard(task)
        if self._tasks.get(target) is task:
            del self._tasks[target]

    def _is_held(self, target: Target) -> bool:
        """Tell whether a failure still holds; what is said of it then is how long."""
        left_s = self._held_s.get(target, 0.0) - time.monotonic()
        if left_s <= 0:
            return False
        self._said[target] = replace(self._said[target], retry_ms=int(left_s * 1000))
        return True

    async def _work(self, target: Target, key: str) -> None:
        option: Option | None = None
        try:
            option = await self._option_of(target)
            if key and option.key != key:
                # Of other libraries or newer wishes: this worker's plan is another one.
                self._say(target, BuildReport(key, *target, "other"))
                return
            self._say(target, report_of(option, "building"))
            await self._make(target, option)
        except (CannotBuild, CannotLoad, BuildFailed) as error:
            retry = not isinstance(error, CannotBuild) and getattr(error, "retry", True)
            self._fail(target, key, option, str(error), retry=retry)
        except Exception as error:
            # Whatever went wrong must end as a failed build: nobody waits for this task.
            _log.exception("bug", target=target)
            self._fail(target, key, option, reason_of(error), retry=True)
        else:
            self._failures.pop(target, None)
            self._say(target, report_of(option, "built"))

    async def _make(self, target: Target, option: Option) -> None:
        """See that the plan is in the registry; returns once it is."""
        shelf = self._shelf
        if shelf.secrets is None:
            raise CannotBuild("without a fleet secret nobody could vouch for a plan")
        secret = shelf.secrets.current
        if await shelf.is_in_registry(option):
            self._on_plan(option.key)
            return
        async with self._turn:
            try:
                golden = await shelf.golden(option.spec.manifest)
            except SyncError as error:
                text = f"the golden inputs cannot be had: {error}"
                raise BuildFailed(text, retry=True) from None
            await building.build(shelf.bench, option, shelf.plans, secret, golden)
        self._on_plan(option.key)
        pause_s = UPLOAD_S_MIN
        while True:
            try:
                is_ours = await shelf.put(option.key, secret.id)
            except BadPlan as error:
                raise BuildFailed(f"the plan has left this node: {error}", retry=True) from None
            except SyncError as error:
                if not error.retry:
                    raise BuildFailed(str(error), retry=True) from None
                reason = f"built, and used on its node; it cannot be put into the registry: {error}"
                self._say(target, report_of(option, "building", reason))
            else:
                if not is_ours:
                    self._on_plan(option.key)
                return
            await asyncio.sleep(pause_s * random.uniform(0.75, 1.25))
            pause_s = min(pause_s * 2, UPLOAD_S_MAX)

    def _fail(
        self, target: Target, key: str, option: Option | None, reason: str, *, retry: bool
    ) -> None:
        failures = self._failures[target] = self._failures.get(target, 0) + 1
        pause_s = min(RETRY_S * 2 ** min(failures - 1, 16), RETRY_S_MAX) if retry else RETRY_S_NEVER
        self._held_s[target] = time.monotonic() + pause_s
        _log.warning("build_failed", target=target, reason=reason, retry_s=pause_s)
        if option is None:
            report = BuildReport(key, *target, "failed", reason[:REASON_CHARS_MAX])
        else:
            report = report_of(option, "failed", reason)
        self._say(target, replace(report, retry_ms=int(pause_s * 1000)))

    def _say(self, target: Target, report: BuildReport) -> None:
        self._said[target] = report
        self._reports.say(report)
