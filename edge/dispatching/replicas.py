"""The engines as an edge calls them: their routes, and which warm replica takes a call."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection

import structlog

from edge.dispatching.calls import Call, Ref
from edge.dispatching.outliers import ERRORS, SLOW, Outliers
from edge.dispatching.worker_conn import WorkerConn
from edge.errors import ModelFailed
from pool.wire import data
from pool.wire.control import EngineRoute, Routes

_log = structlog.get_logger()


class Replicas:
    """What the controller says of an engine, and what this edge has seen of its replicas."""

    def __init__(self, route: EngineRoute) -> None:
        self.route = route
        # Of fewer than two, none can be told to be worse than the others.
        self.outliers = Outliers() if len(route.warm) > 1 else None

    def follow(self, route: EngineRoute, replaced: Collection[str]) -> None:
        """Go by a newer route.

        Args:
            route: the same engine's.
            replaced: workers that have another process now.
        """
        self.route = route
        if len(route.warm) < 2:
            self.outliers = None
        elif self.outliers is None:
            self.outliers = Outliers()
        else:
            self.outliers.keep([name for name in route.warm if name not in replaced])

    def choose(self, up: list[WorkerConn], now_s: float) -> WorkerConn:
        """Return which of the warm replicas that can be called takes the next call.

        The lighter of two random ones, and when both are alike a random one: with turns, every
        second call of a client would meet the same replica, and what they are be taken for what
        it does.

        Source:
            Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing" (2001).
        """
        outliers = self.outliers
        if outliers is not None and not outliers.is_calm:
            up = outliers.allowed(up, now_s)
        if len(up) > 1:
            up = random.sample(up, 2)
        return min(up, key=lambda conn: conn.load)


class Engines:
    """All engines that the routes name.

    Args:
        is_up: tells whether a worker can be called now.
    """

    def __init__(self, is_up: Callable[[str], bool]) -> None:
        self._is_up = is_up
        # The whole mutable state.
        self._engines: dict[Ref, Replicas] = {}
        self._incarnations: dict[str, str] = {}  # of the routes' workers
        self.sent = 0
        self.ejections = {ERRORS: 0, SLOW: 0}  # how often a replica was left alone

    def follow(self, routes: Routes) -> None:
        """Go by newer routes."""
        before, now = self._incarnations, {w.id: w.incarnation for w in routes.workers}
        self._incarnations = now
        replaced = [name for name in now if before.get(name, now[name]) != now[name]]
        engines, self._engines = self._engines, {}
        for route in routes.engines:
            ref = (route.model, route.version)
            engine = self._engines[ref] = engines.get(ref) or Replicas(route)
            engine.follow(route, replaced)

    def get(self, ref: Ref) -> Replicas | None:
        """Return an engine; None: the routes name none."""
        return self._engines.get(ref)

    def send(self, call: Call, conn: WorkerConn, now_s: float) -> None:
        """Send a call over `conn`, and note what that means for how it may end."""
        engine = self._engines.get(call.ref)
        outliers = None if engine is None else engine.outliers
        call.is_held = engine is None or conn.id not in engine.route.warm
        call.is_watched = outliers is not None
        if outliers is not None:
            outliers.sent(conn.id, now_s)
        self.sent += 1
        conn.send(call, now_s)

    def answered(self, call: Call, worker: str, reply: data.Reply) -> None:
        """Hold a worker's answer to a watched call against those of other replicas."""
        if reply.status == 200:
            now_s = time.monotonic()
            run_s = now_s - call.sent_s - reply.queue_us / 1e6
            # How long a stream takes says more of its input than of its worker.
            self._judge(call.ref, worker, now_s, False, run_s if call.on_chunk is None else None)
        elif reply.status == ModelFailed.status:
            self.failed(call.ref, worker)

    def failed(self, ref: Ref, worker: str) -> None:
        """Hold it against a worker that it was lost, or has not answered in time."""
        self._judge(ref, worker, time.monotonic(), True)

    def _judge(
        self, ref: Ref, worker: str, now_s: float, failed: bool, run_s: float | None = None
    ) -> None:
        engine = self._engines.get(ref)
        if engine is None or engine.outliers is None or worker not in engine.route.warm:
            return
        why = engine.outliers.ended(worker, now_s, failed=failed, run_s=run_s)
        if not why:
            return
        warm = engine.route.warm
        if engine.outliers.put_out(worker, why, now_s, warm, list(filter(self._is_up, warm))):
            self.ejections[why] += 1
            _log.warning("replica_out", worker=worker, model=ref[0], version=ref[1], why=why)

    def away(self) -> dict[str, list[str]]:
        """Return by worker for which engines it is left alone, but for calls on trial, and why."""
        found: dict[str, list[str]] = {}
        for ref, engine in self._engines.items():
            if engine.outliers is not None and not engine.outliers.is_calm:
                for name, why in engine.outliers.away.items():
                    found.setdefault(name, []).append(f"{why} of {'/'.join(ref)}")
        return found
