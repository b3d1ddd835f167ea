"""A worker's two versions on one device, in virtual time: a baseline with callers, a candidate."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from pool.copy_guard import CopyGuard
from pool.engines.base import EngineError, Tensors
from pool.loaded import Loaded
from pool.queueing.engine_queue import EngineQueue
from pool.queueing.ticket import Answer, Outcome, Ticket
from pool.shadow import Shadows
from pool.wire import data
from pool.wire.control import ShadowCount
from pool.wire.data import ShadowOf, Tensor
from registry_sync.documents import TensorSpec
from tests.support.artifacts import manifest_of
from tests.support.counting_engine import TestSession

T = TypeVar("T")

X = (TensorSpec("x", "FP32", (-1, 4)),)
Y = (TensorSpec("y", "FP32", (-1, 4)),)
BASELINE, CANDIDATE = ("m", "1"), ("m", "2")
MARK = ShadowOf("e/r", *CANDIDATE, 1e6)


class Device:
    """Runs one thing at a time, as one that is full does; the loop's time passes meanwhile."""

    def __init__(self) -> None:
        self.free_s = 0.0
        self.runs: list[tuple[str, float, float]] = []  # who, from when to when


@dataclass
class DeviceRunner:
    """One session's way to the device; see `pool.queueing.runner.Runner`."""

    device: Device
    name: str
    session: TestSession
    duration_s: Callable[[int], float]

    def start(self, work: Callable[[], T], done: Callable[[T, float], None]) -> None:
        """Carry out `work` once the device is free."""
        loop = asyncio.get_running_loop()
        before = len(self.session.batch_rows)
        result = work()
        busy_s = sum(self.duration_s(rows) for rows in self.session.batch_rows[before:])
        now_s = loop.time()
        from_s = max(now_s, self.device.free_s)
        self.device.free_s = from_s + busy_s
        self.device.runs.append((self.name, from_s, from_s + busy_s))
        loop.call_at(from_s + busy_s, done, result, from_s + busy_s - now_s)

    def close(self) -> None:
        """Nothing has to end."""


class SoonRunner:
    """Carries work out in the loop's next turn."""

    def start(self, work: Callable[[], T], done: Callable[[T, float], None]) -> None:
        """Carry out `work`."""
        asyncio.get_running_loop().call_soon(lambda: done(work(), 0.0))

    def close(self) -> None:
        """Nothing has to end."""


@dataclass
class VersionSession(TestSession):
    """Gives its input back, changed as its version says."""

    change: Callable[[Tensors], Tensors] = dict

    def infer(self, tensors: Tensors, outputs: Sequence[str] = ()) -> Tensors:
        """Answer."""
        return {"y": self.change(super().infer(tensors, outputs))["y"]}


@dataclass(eq=False)
class Replica:
    """Where a version is in the worker; see `pool.shadow.Place`."""

    session: VersionSession
    queue: EngineQueue | None
    loaded: Loaded | None
    state: str = "warm"


@dataclass
class Caller:
    """One call, and how it went."""

    arrived_s: float
    outcomes: list[Outcome] = field(default_factory=list)
    took_s: float = -1.0


class Bench:
    """The part of a worker that callers and copies meet in; make it on the loop."""

    def __init__(
        self,
        *,
        rows_max: int = 8,
        change: Callable[[Tensors], Tensors] = dict,
        duration_s: Callable[[int], float] = lambda rows: 0.004 + 0.001 * rows,
        guard: CopyGuard | None = None,
        candidate_s: float = 0.0,  # that each of its runs takes; 0: as long as the baseline's
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.device = Device()
        self.duration_s = duration_s
        other_s = (lambda rows: candidate_s) if candidate_s else duration_s
        self.replicas = {
            BASELINE: self._replica(BASELINE, rows_max, duration_s, dict),
            CANDIDATE: self._replica(CANDIDATE, rows_max, other_s, change),
        }
        self.arrivals = 0
        self.callers: list[Caller] = []
        self.shadows = Shadows(
            self.replicas.get,
            lambda: all(one.queue is None or one.queue.is_idle for one in self.replicas.values()),
            lambda: self.arrivals,
            guard=guard,
            clock=self.loop.time,
            runner=SoonRunner(),
        )

    def _replica(
        self,
        ref: tuple[str, str],
        rows_max: int,
        duration_s: Callable[[int], float],
        change: Callable[[Tensors], Tensors],
    ) -> Replica:
        session = VersionSession(X, Y, change=change)
        queue = EngineQueue(
            session,
            name="/".join(ref),
            rows_max=rows_max,
            clock=self.loop.time,
            runner=DeviceRunner(self.device, ref[1], session, duration_s),
        )
        manifest = manifest_of({"f": b"x"}, *ref)
        loaded = Loaded(manifest, manifest.digest, session, "test", {"y": "FP32"})
        return Replica(session, queue, loaded)

    def call(
        self,
        values: Sequence[float] = (1.0, 2.0, 3.0, 4.0),
        *,
        marks: tuple[ShadowOf, ...] = (MARK,),
        slo_s: float = 1e6,
        to: tuple[str, str] = BASELINE,
    ) -> Caller:
        """Let somebody call, as `pool.serving` does."""
        now_s = self.loop.time()
        caller = Caller(now_s)
        self.callers.append(caller)
        self.arrivals += 1
        array = np.array([values], np.float32)
        tensor = Tensor("x", "FP32", array.shape, array.tobytes())
        number = len(self.callers)
        call = data.Call(number, f"r{number}", *to, "d", 0, 0, (), shadow=marks)
        replica = self.replicas[to]

        def settle(outcome: Outcome) -> None:
            caller.outcomes.append(outcome)
            caller.took_s = self.loop.time() - now_s
            if isinstance(outcome, Answer) and marks and replica.loaded is not None:
                self.shadows.offer(call, [tensor], outcome, replica.loaded)

        assert replica.queue is not None
        replica.queue.submit(
            Ticket(1, "x", now_s, now_s + slo_s, {"x": array}, settle, bytes=array.nbytes)
        )
        return caller

    @property
    def count(self) -> ShadowCount:
        """What was found, of the one pair."""
        self.shadows.tell_again()
        report = self.shadows.report()
        assert report is not None
        (count,) = report.counts
        return count

    def copies(self) -> list[tuple[float, float]]:
        """Return from when to when the candidate ran."""
        return [(from_s, to_s) for name, from_s, to_s in self.device.runs if name == CANDIDATE[1]]


async def load(
    bench: Bench, *, calls: int, calls_per_s: float, seed: int, slo_s: float, is_shadowed: bool
) -> list[float]:
    """Let callers come by chance; return how long each answered one took, in order of arrival."""
    dice = random.Random(seed)
    marks = (MARK,) if is_shadowed else ()
    next_s = bench.loop.time()
    for _ in range(calls):
        next_s += dice.expovariate(calls_per_s)
        await asyncio.sleep(max(0.0, next_s - bench.loop.time()))
        bench.call([dice.random() for _ in range(4)], marks=marks, slo_s=slo_s)
    await asyncio.sleep(60)
    assert all(len(caller.outcomes) == 1 for caller in bench.callers)
    return [one.took_s for one in bench.callers if isinstance(one.outcomes[0], Answer)]


def fails_on(value: float) -> Callable[[Tensors], Tensors]:
    """Return a version that fails when a row begins with `value`."""

    def change(tensors: Tensors) -> Tensors:
        if (tensors["y"][:, 0] == value).any():
            raise EngineError(f"{value} is more than this model can bear")
        return tensors

    return change
