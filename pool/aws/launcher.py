"""The launcher of AWS: a place is a standalone ECS task, and instances come and go with the places.

`reconcile` decides, `client` makes the calls; this owns when.  It looks and acts only while the
controller beside it leads and has said on this very connection what is to be up.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Final

import msgspec
import structlog

from pool.aws import memory, places, reconcile
from pool.aws.client import Cloud, CloudBusy, CloudError, CloudRefused, Over, Started
from pool.aws.config import PoolConfig, PoolsConfig, worker_id
from pool.aws.memory import Memory
from pool.aws.observed import Observed
from pool.aws.steps import Action, End, Run, Stop
from pool.wire.control import Place

BUSY_S: Final = 6.0  # between two looks while something is under way: five calls
UP_S: Final = 20.0  # while all is as it is to be; a spot notice leaves two minutes
REST_S: Final = 300.0  # while there is nothing at all: two calls
NEW_S: Final = (
    30.0  # from a reign's first look: what drains may not show, nor what is wanted be said
)
FRESH_S: Final = 10.0  # a look that is older is made anew before a controller is told of it
STEPS_MAX: Final = 10  # from one look to the next; a step may take a second, for the rate of calls
LEADS_S: Final = 0.5  # who does not lead looks so often whether it does
BACKOFF_S: Final = (4.0, 60.0)  # after calls that failed; doubles

_log = structlog.get_logger()


class AwsLauncher:
    """All pools of a fleet.

    Args:
        config: the pools.
        cloud: makes the calls.
        leader: returns the epoch of the controller beside this, while it leads and is connected.
        redial: has every connection to that controller made anew.
    """

    def __init__(
        self,
        config: PoolsConfig,
        cloud: Cloud,
        leader: Callable[[], int | None],
        redial: Callable[[], None],
    ) -> None:
        self._config = config
        self._cloud = cloud
        self._leader = leader
        self._redial = redial
        self._news = asyncio.Event()
        self._looking = asyncio.Lock()
        # The whole mutable state: what is to be up by pool, as the present connections say, and as
        # was said last; what was seen last, and when; when that was tried first, and failed last,
        # and whether a controller was told of places that could not be looked at; what the policy
        # remembers; and leaks that were found.
        self._wanted: dict[str, frozenset[str] | None] = dict.fromkeys(p.name for p in config.pools)
        self._likely: dict[str, frozenset[str]] = {}
        self._seen = Observed({})
        self._seen_s: float | None = None
        self._tried_s: float | None = None
        self._failed_s = -math.inf
        self._is_blind = False
        self._memory = Memory()
        # Since when this reign looks, and whether all that drains from before it is known.
        self._epoch: int | None = None
        self._reign_s: float | None = None
        self._is_new = True
        self._leaks = Counter[str]()  # found and ended
        self.pools = tuple(PoolLauncher(self, pool) for pool in config.pools)

    # what pools ask

    async def begin(self, pool: str) -> None:
        """Be ready for a new word on a pool: a controller is about to be told of its places.

        If it cannot be seen what there is, it is told what was seen last.  Its word is no good
        then, and waits until AWS answers.
        """
        self._wanted[pool] = None
        async with self._looking:
            if self._seen_s is None or _now_s() - self._seen_s > FRESH_S:
                if _now_s() - self._failed_s <= FRESH_S:  # pools do not wait for it in turn
                    self._is_blind = True
                    return
                try:
                    await self._look()
                except CloudError as error:
                    self._is_blind = True
                    _log.warning("aws_cannot_be_seen", pool=pool, error=str(error)[:500])

    def places_of(self, pool: PoolConfig) -> tuple[Place, ...]:
        """Return a pool's places; see `places.places_of`."""
        wanted = self._wanted[pool.name]
        likely = self._likely.get(pool.name, ())
        return places.places_of(pool, wanted, self._seen, self._memory, _now_s(), likely)

    def hold_up(self, pool: PoolConfig, workers: Collection[str]) -> None:
        """Take note of which of a pool's workers are to be up."""
        if self._is_blind:
            return
        names = frozenset(name for name in pool.node_ids() if worker_id(name) in workers)
        if names != self._wanted[pool.name]:
            self._wanted[pool.name] = self._likely[pool.name] = names
            self._news.set()
            self._tell()

    def counts_of(self, pool: PoolConfig) -> dict[str, int]:
        """Return what is shown of a pool; calls and leaks are those of all pools."""
        group = self._seen.groups.get(pool.group)
        members = [] if group is None else [i for i in group.instances if not i.is_ending]
        found = {
            "instances_max": pool.instances_max,
            "leaks_task": self._leaks["task"],
            "leaks_instance": self._leaks["instance"],
        }
        if self._seen_s is not None:
            found["instances_desired"] = 0 if group is None else group.desired
            found["instances"] = len(members)
            found["instances_joined"] = sum(one.is_joined for one in members)
        since_s = self._tried_s if self._seen_s is None else self._seen_s
        if since_s is not None:
            found["look_age_ms"] = round((_now_s() - since_s) * 1000)
        for (name, outcome), count in list(self._cloud.calls.items()):
            found[f"calls/{name}/{outcome}"] = count
        return found

    def trouble(self) -> str:
        """Return which calls fail, and what AWS says to them; empty: none."""
        return self._cloud.trouble

    # rounds

    async def run(self) -> None:
        """Keep AWS as it is to be, whenever the controller leads, until cancelled."""
        failures = 0
        while True:
            epoch = self._leader()
            has_word = any(names is not None for names in self._wanted.values())
            if epoch is None or not (has_word or self._is_blind):
                await asyncio.sleep(LEADS_S)
                continue
            self._news.clear()
            if epoch != self._epoch:
                self._epoch, self._reign_s, self._is_new = epoch, None, True
                self._memory = msgspec.structs.replace(self._memory, absent_s={})
            try:
                async with self._looking:
                    await self._look()
                    was_blind, self._is_blind = self._is_blind, False
                if was_blind:
                    self._redial()  # so that the word is on what there is
                    failures = 0
                    continue
                wait_s = await self._act(epoch)
                failures = 0
            except CloudError:  # the log says which, and why
                wait_s = min(BACKOFF_S[0] * 2**failures, BACKOFF_S[1]) * random.uniform(0.5, 1.0)
                failures += 1
                await asyncio.sleep(wait_s)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._news.wait()

    async def _look(self) -> None:
        if self._tried_s is None:
            self._tried_s = _now_s()
        known = tuple(self._memory.live)
        is_wide, now_s = self._is_new, _now_s()
        try:
            seen = await asyncio.to_thread(self._cloud.observe, known, is_wide=is_wide)
        except CloudError:
            self._failed_s = _now_s()
            raise
        if is_wide:  # what was told to end just before shows after a while
            self._reign_s = now_s if self._reign_s is None else self._reign_s
            self._is_new = now_s - self._reign_s < NEW_S
        now_s = _now_s()
        for task in seen.tasks:
            if task.is_stopped and task.id in self._memory.live:
                _log.info("task_stopped", place=task.node_id, task=task.id, why=task.why[:500])
        self._memory = memory.learn(self._wanted, seen, self._memory, now_s)
        self._seen, self._seen_s = seen, now_s
        self._tell()

    async def _act(self, epoch: int) -> float:
        """Do what is to be done; return when to look again."""
        plan = reconcile.plan(
            self._config,
            self._wanted,
            self._seen,
            self._memory,
            now_s=_now_s(),
            hour=int(time.time() // 3600),
            may_end=not self._is_new,
        )
        for count, action in enumerate(plan.actions):
            if self._leader() != epoch or self._news.is_set() or count == STEPS_MAX:
                return 0.0  # what was decided may not hold any more
            await self._carry_out(action, epoch)
            self._tell()
        if not plan.is_settled:
            return BUSY_S
        groups = self._seen.groups.values()
        is_empty = not self._memory.live and not any(g.desired or g.instances for g in groups)
        return REST_S if is_empty else UP_S

    async def _carry_out(self, action: Action, epoch: int) -> None:
        try:
            outcome = await asyncio.to_thread(self._cloud.carry_out, action, epoch)
        except CloudRefused as error:
            _log.warning("aws_refused", error=str(error)[:500])
            self._memory = memory.refused(self._memory, action, _now_s())
            return
        except CloudBusy:
            raise
        except CloudError:  # nobody knows whether it was done; the next looks will show
            match action:
                case Run():
                    self._memory = memory.unheard(self._memory, action, _now_s())
                case Stop():
                    self._memory = memory.done(self._memory, action, _now_s())
            return
        _log.info("aws", action=type(action).__name__, **_shown(action))
        match action, outcome:
            case Run(), Started(task):
                self._memory = memory.ran(self._memory, action, task, _now_s())
            case Run(), Over(task):
                self._memory = memory.passed(self._memory, action, task)
                self._news.set()  # the next one can be started now
            case _:
                if isinstance(action, Stop | End) and action.is_leak:
                    self._leaks["task" if isinstance(action, Stop) else "instance"] += 1
                self._memory = memory.done(self._memory, action, _now_s())

    def _tell(self) -> None:
        for pool in self.pools:
            pool.tell()


class PoolLauncher:
    """The launcher of one pool; see `pool.launcher.Launcher`."""

    def __init__(self, launcher: AwsLauncher, pool: PoolConfig) -> None:
        self._launcher = launcher
        self.pool = pool
        self._changed = asyncio.Event()
        self._told: tuple[Place, ...] = ()

    @property
    def changed(self) -> asyncio.Event:
        """Set whenever `places` may say something else; whoever looks clears it."""
        return self._changed

    def places(self) -> tuple[Place, ...]:
        """Return the places as they were seen last."""
        self._told = self._launcher.places_of(self.pool)
        return self._told

    def counts(self) -> Mapping[str, int]:
        """Return what is shown of the pool."""
        return self._launcher.counts_of(self.pool)

    def trouble(self) -> str:
        """Return what is wrong with the pools."""
        return self._launcher.trouble()

    def hold_up(self, workers: Collection[str]) -> None:
        """Let these have a task, and no others."""
        self._launcher.hold_up(self.pool, workers)

    def tell(self) -> None:
        """Say so if the places are others than were told last."""
        if self._launcher.places_of(self.pool) != self._told:
            self._changed.set()


def _shown(action: Action) -> dict[str, object]:
    fields = {name: getattr(action, name) for name in action.__struct_fields__}
    return {"action_" + name if name == "task" else name: value for name, value in fields.items()}


def _now_s() -> float:
    return asyncio.get_running_loop().time()
