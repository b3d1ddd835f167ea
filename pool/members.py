"""Who has registered with the controller: a worker or an edge, and its connection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pool.placement import Ref, WorkerView
from pool.status import WorkerStatus
from pool.wire import control
from pool.wire.peer import Peer


@dataclass
class Worker:
    """A registered worker."""

    peer: Peer
    register: control.RegisterWorker
    heard_s: float
    heartbeat: control.Heartbeat
    is_connected: bool = True
    loads: dict[Ref, int] = field(default_factory=dict)  # also of engines that sleep
    commanded_s: dict[tuple[str, Ref], float] = field(default_factory=dict)

    def take(self, heartbeat: control.Heartbeat) -> bool:
        """Take a heartbeat; tell whether it is worth acting on before the next round."""
        before, self.heartbeat = self.heartbeat, heartbeat
        return _outline(before) != _outline(heartbeat)

    def command(self, op: str, ref: Ref, now_s: float, *, again_s: float, most: int) -> bool:
        """Tell whether a command is due now, and remember that it was given.

        Args:
            op: load or unload; the other one is due again at once, if it is wanted.
            ref: of what.
            now_s: monotonic.
            again_s: a command that was given so long ago is due again.
            most: commands that are remembered.
        """
        if now_s - self.commanded_s.get((op, ref), float("-inf")) < again_s:
            return False
        self.commanded_s.pop((op, ref), None)
        self.commanded_s.pop(("unload" if op == "load" else "load", ref), None)
        self.commanded_s[op, ref] = now_s
        if len(self.commanded_s) > most:
            del self.commanded_s[next(iter(self.commanded_s))]
        return True

    def view(self) -> WorkerView:
        """Return what placement goes by."""
        engines = {(engine.model, engine.version): engine for engine in self.heartbeat.engines}
        return WorkerView(
            self.register.id,
            self.heartbeat.draining,
            engines,
            memory_bytes_max=self.register.memory_bytes_max,
            pid=self.register.pid if self.is_connected else 0,
            is_fallback=self.register.is_fallback,
        )

    def status(self) -> WorkerStatus:
        """Return what is shown of it."""
        return WorkerStatus(
            id=self.register.id,
            pid=self.register.pid,
            device=self.register.device,
            address=self.register.address,
            draining=self.heartbeat.draining,
            wait_us=self.heartbeat.wait_us,
            calls=self.heartbeat.calls,
            engines=self.heartbeat.engines,
            plans_refused=self.heartbeat.plans_refused,
            device_class=self.register.device_class,
            builds=self.register.builds,
            phases=self.register.phases,
            is_fallback=self.register.is_fallback,
        )


@dataclass
class Edge:
    """A registered edge process."""

    peer: Peer
    register: control.RegisterEdge
    heard_s: float
    acked_seq: int = 0
    in_flight: int = 0
    waiting: Mapping[str, int] = field(default_factory=dict)  # see `Counters`
    away: Mapping[str, str] = field(default_factory=dict)


def _outline(beat: control.Heartbeat) -> tuple[bool, list[tuple[str, str, str, bool, int]]]:
    """Return what a worker has, and whether that is in use or was since the last heartbeat.

    How much it is in use, a round finds early enough.
    """
    return beat.draining, [
        (e.model, e.version, e.state, e.calls > 0, 0 if e.calls else e.arrived)
        for e in beat.engines
    ]
