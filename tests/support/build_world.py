"""A fleet of workers that want and build plans, in simulated time, around a `BuildDesk`.

Workers do what `pool.wire.control` says of builds.  Messages take their time and may come twice;
workers die, fall silent, come back; the controller is replaced by one that knows nothing.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from random import Random

from pool.build_desk import ANSWER_S_MAX, BuildDesk
from pool.build_jobs import Ask, Drop, Ref, Report, Target, Tell
from pool.build_work import RETRY_S

STEP_S = 0.5
NOTICE_S = 1.5  # until a controller notices that a worker is silent
SETTLE_S = 3.0  # until a new controller acts
WAY_S_MAX = 1.0  # that a message takes


@dataclass
class Build:
    """A builder process."""

    key: str
    target: Target
    began_s: float
    is_excused: bool = False  # another may begin beside it: its worker cannot be heard


@dataclass
class SimWorker:
    """One worker; `runtime` is part of every key that it says."""

    id: str
    device_class: str
    builds: frozenset[str]
    refs: set[Ref]
    runtime: str = "1"
    incarnation: int = 1
    is_up: bool = True
    silent_until_s: float = 0.0
    is_mute: bool = False  # answers no order
    connection: int = 0  # a message of an earlier one is lost
    said_s: float = 0.0  # when the last report on its way arrives: they do not overtake
    build: Build | None = None
    plans: set[str] = field(default_factory=set)  # that it was told of, or built
    held_s: dict[str, float] = field(default_factory=dict)  # key → until when a failure holds


class World:
    """The whole simulation; `check` is called whenever a builder begins."""

    def __init__(self, random: Random, workers: list[SimWorker], artifacts: dict[Ref, str]) -> None:
        self.random, self.artifacts = random, artifacts
        self.workers = {worker.id: worker for worker in workers}
        self.now_s = 0.0
        self.desk: BuildDesk = BuildDesk()
        self.acts_from_s = SETTLE_S
        self.wishes: set[Target] = set()
        self.registry: dict[str, Target] = {}
        self.failing_p = 0.0  # chance that a build fails
        self.twice_p = 0.0  # chance that a report comes twice
        self.build_s_max = 60.0
        self.step_s = STEP_S
        self.began: list[tuple[float, str, str]] = []  # when, key, worker
        self.doubled: list[str] = []  # what must not happen
        self.told: Counter[tuple[str, int, str, Ref]] = Counter()
        self.wanted: Counter[tuple[str, int, str, Ref]] = Counter()
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        for worker in workers:
            self.register(worker)
        self.after(STEP_S, self._step)

    # time

    def after(self, pause_s: float, what: Callable[[], object]) -> None:
        heapq.heappush(self._events, (self.now_s + pause_s, next(self._numbers), what))

    def run(self, s: float) -> None:
        """Let so much time pass."""
        end_s = self.now_s + s
        while self._events and self._events[0][0] <= end_s:
            self.now_s, _, what = heapq.heappop(self._events)
            what()
        self.now_s = end_s

    def _step(self) -> None:
        self.desk.wish(self.wishes, self.artifacts)
        if self.now_s >= self.acts_from_s:
            for order in self.desk.step(self.now_s):
                self._send(order)
        self.after(self.step_s, self._step)

    # the fleet's faults

    def kill(self, worker: SimWorker, back_s: float) -> None:
        """Let its process and its builder die; another one comes back."""
        worker.is_up, worker.build = False, None
        self._hang_up(worker)

        def back() -> None:
            worker.is_up, worker.silent_until_s = True, 0.0
            worker.incarnation += 1
            worker.plans.clear()
            worker.held_s.clear()
            self.register(worker)

        self.after(back_s, back)

    def silence(self, worker: SimWorker, s: float) -> None:
        """Let it neither hear nor speak; its builder goes on."""
        worker.silent_until_s = max(worker.silent_until_s, self.now_s + s)
        if worker.build is not None:
            worker.build.is_excused = True
        if s > NOTICE_S:
            self._hang_up(worker)
        was = worker.incarnation

        def back() -> None:
            if worker.is_up and worker.incarnation == was and s > NOTICE_S:
                self.register(worker)

        self.after(s, back)

    def mute(self, worker: SimWorker, is_mute: bool) -> None:
        """Let it answer no order, or answer again; whatever else it does goes on."""
        worker.is_mute = is_mute
        if worker.build is not None:
            worker.build.is_excused = True

    def _hang_up(self, worker: SimWorker) -> None:
        worker.connection += 1
        connection, desk = worker.connection, self.desk

        def noticed() -> None:
            if worker.connection == connection and self.desk is desk:
                desk.leave(worker.id, self.now_s)

        self.after(self.random.uniform(0, NOTICE_S), noticed)

    def replace_controller(self) -> None:
        """Let another controller lead, which knows nothing."""
        self.desk = BuildDesk()
        self.acts_from_s = self.now_s + SETTLE_S
        for worker in self.workers.values():
            worker.connection += 1
            if worker.build is not None:
                worker.build.is_excused = True
            if worker.is_up:
                self.after(self.random.uniform(0, 2.0), lambda w=worker: self.register(w))

    def register(self, worker: SimWorker) -> None:
        """Let a worker dial, and say again what holds."""
        if not worker.is_up:
            return
        if self.now_s < worker.silent_until_s:
            pause_s = worker.silent_until_s - self.now_s + 0.01
            was = worker.incarnation

            def later() -> None:
                if worker.incarnation == was:
                    self.register(worker)

            self.after(pause_s, later)
            return
        worker.connection += 1
        name = (worker.id, str(worker.incarnation), worker.device_class)
        self.desk.join(*name, worker.builds, self.now_s)
        self.desk.run(worker.id, worker.refs)
        if worker.build is not None:
            self._say(worker, "building", worker.build.key, worker.build.target)
        self.want(worker)

    def want(self, worker: SimWorker) -> None:
        """Let it look for plans of what it runs, and say what it misses."""
        for ref in sorted(worker.refs):
            target = Target(*ref, "rtx", worker.device_class)
            key = self.key_of(worker, target)
            if key in self.registry:
                worker.plans.add(key)
            elif key not in worker.plans:
                self._say(worker, "wanted", key, target)

    # messages

    def key_of(self, worker: SimWorker, target: Target) -> str:
        artifact = self.artifacts[target.ref]
        return f"{artifact}-{target.engine or 'rtx'}-{worker.runtime}-{target.device_class}"

    def _say(
        self,
        worker: SimWorker,
        state: str,
        key: str,
        target: Target,
        why: str = "",
        retry_s: float = 0.0,
    ) -> None:
        report = Report(target, state, key, why, retry_s)
        connection, desk, incarnation = worker.connection, self.desk, worker.incarnation

        def arrive() -> None:
            if worker.connection != connection or self.desk is not desk:
                return
            if state == "wanted":
                self.wanted[worker.id, incarnation, key, target.ref] += 1
            desk.report(worker.id, report, self.now_s)

        for _ in range(1 + (self.random.random() < self.twice_p)):
            at_s = max(worker.said_s, self.now_s + self.random.uniform(0.0, WAY_S_MAX))
            worker.said_s = at_s
            self.after(at_s - self.now_s, arrive)

    def _send(self, order: Ask | Drop | Tell) -> None:
        worker = self.workers[order.worker]
        connection, lapse_s = worker.connection, self._lapse_s(order)

        def arrive() -> None:
            if not worker.is_up or worker.connection != connection:
                return
            if self.now_s < worker.silent_until_s:
                self.after(worker.silent_until_s - self.now_s + 0.01, arrive)
            elif isinstance(order, Tell):
                self._hear(worker, order)
            elif not worker.is_mute:
                self._answer(worker, order, lapse_s)

        if isinstance(order, Tell):
            self.told[worker.id, worker.incarnation, order.key, order.target.ref] += 1
        self.after(self.random.uniform(0.0, WAY_S_MAX), arrive)

    def _lapse_s(self, order: Ask | Drop | Tell) -> float:
        """Return when the desk asks another instead, unless it hears from this worker before."""
        for job in self.desk.jobs.values():
            attempt = job.attempts.get(order.worker)
            if attempt is not None and (job.key, attempt.target) == (order.key, order.target):
                return inf if attempt.said_s is not None else attempt.since_s + ANSWER_S_MAX
        return inf

    def _hear(self, worker: SimWorker, news: Tell) -> None:
        key = self.key_of(worker, news.target)
        if key != news.key:
            return
        if key in self.registry:
            worker.plans.add(key)
        else:
            self._say(worker, "wanted", key, news.target)

    def _answer(self, worker: SimWorker, order: Ask | Drop, lapse_s: float) -> None:
        target = order.target._replace(engine=order.target.engine or "rtx")
        key = self.key_of(worker, target)
        if isinstance(order, Drop):
            if worker.build is not None and worker.build.key == key:
                worker.build = None
            self._say(worker, "dropped", order.key, order.target)
        elif order.key and order.key != key:
            self._say(worker, "other", order.key, target)
        elif worker.build is not None and worker.build.key == key:
            self._say(worker, "building", key, target)
        elif (left_s := worker.held_s.get(key, -inf) - self.now_s) > 0:
            # Maybe a question that was under way as the build failed: it must begin none.
            self._say(worker, "failed", key, target, "no memory", left_s)
        elif key in self.registry:
            self._say(worker, "built", key, target)
        elif worker.build is not None:
            self._say(worker, "failed", key, target, "builds another")
        else:
            self._begin(worker, key, target, lapse_s)

    def _begin(self, worker: SimWorker, key: str, target: Target, lapse_s: float) -> None:
        self.began.append((self.now_s, key, worker.id))
        for other in self.workers.values():
            build = other.build
            if build is None or build.key != key or build.is_excused:
                continue
            # Who was asked instead of a worker that was mute until now may be the first of both.
            if build.began_s < lapse_s:
                self.doubled.append(f"{self.now_s}: {key} by {worker.id} beside {other.id}")
        # Its first answer to an order may come just as the order is given to another.
        is_late = self.now_s + WAY_S_MAX > lapse_s
        build = worker.build = Build(key, target, self.now_s, is_excused=is_late)
        self._say(worker, "building", key, target)

        def end() -> None:
            if worker.build is not build:
                return  # it died
            if worker.silent_until_s > self.now_s:
                self.after(worker.silent_until_s - self.now_s + 0.01, end)
                return
            worker.build = None
            if self.random.random() < self.failing_p:
                worker.held_s[key] = self.now_s + RETRY_S
                self._say(worker, "failed", key, target, "no memory", RETRY_S)
                return
            self.registry.setdefault(key, target)
            self._say(worker, "built", key, target)

        self.after(self.random.uniform(1.0, self.build_s_max), end)
