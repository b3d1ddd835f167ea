"""A fleet of edge processes with one quota in simulated time: real leases and a real ledger.

Messages take time and are lost with their connection; controllers die and know nothing afterwards.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from edge.errors import QuotaExceeded
from edge.leases import Leases
from pool.quota_shares import Ledger, Parts
from pool.wire.control import Message, QuotaAck, QuotaDemand, QuotaParts, QuotaShares
from registry_sync.documents import Quota
from registry_sync.keys import make_key

REPORT_S = 1.0
DELAY_S_MAX = 0.05
TICK_S = 0.5
LOOK_S = 0.1  # so often an edge looks whether another rate holds


@dataclass
class Edge:
    """One edge process, its connection, and what it let through."""

    name: str
    leases: Leases
    rate_per_s: float = 0.0  # of requests that come
    connection: int = 0  # 0: none
    admitted_s: list[float] = field(default_factory=list)


class QuotaFleet:
    """Edges, and perhaps a controller.

    Args:
        count: of edge processes.
        quota: of the one key.
        seed: of everything that is left to chance.
    """

    def __init__(self, count: int, quota: Quota, seed: int) -> None:
        self.now_s = 1000.0
        self.rng = random.Random(seed)
        self.record = make_key("t", ["infer:*"], quota)[1]
        self.ledger: Ledger | None = None
        self._epoch = 0
        self._connections: dict[int, Edge] = {}
        self._ids = itertools.count(1)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self.edges = [self._edge(f"e{number}") for number in range(count)]
        for edge in self.edges:
            edge.leases.expect(count)
            self._at(self.rng.uniform(0, REPORT_S), lambda edge=edge: self._report(edge))  # type: ignore[misc]
        self._at(TICK_S, self._tick)
        self.lead()

    def _edge(self, name: str) -> Edge:
        edge = Edge(name, Leases(lambda m: self._send(edge, m), lambda _: None, lambda: self.now_s))
        self._at(0.0, lambda: self._arrive(edge))
        return edge

    # time

    def _at(self, delay_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now_s + delay_s, next(self._ids), act))

    def run(self, duration_s: float) -> None:
        """Let time pass."""
        end_s = self.now_s + duration_s
        while self._events and self._events[0][0] <= end_s:
            self.now_s, _, act = heapq.heappop(self._events)
            act()
        self.now_s = end_s

    def admitted(self, since_s: float) -> int:
        """Return how many requests were let through since then."""
        return sum(at >= since_s for edge in self.edges for at in edge.admitted_s)

    # what happens

    def lead(self) -> None:
        """Let a controller begin that knows nothing; the edges find it one after the other."""
        self.stop()
        self._epoch += 1
        self.ledger = Ledger()
        for edge in self.edges:
            self.dial(edge, self.rng.uniform(0, 2.0))

    def stop(self) -> None:
        """Let the controller die."""
        self.ledger = None
        for edge in self.edges:
            edge.connection = 0
        self._connections.clear()

    def dial(self, edge: Edge, delay_s: float) -> None:
        """Connect an edge after a while."""
        self._at(delay_s, lambda: self._connect(edge))

    def cut(self, edge: Edge) -> None:
        """Cut an edge's connection; what is under way on it is lost."""
        connection, edge.connection = edge.connection, 0
        self._connections.pop(connection, None)
        if self.ledger is not None:
            self.ledger.leave(edge.name, self.now_s)

    # messages

    def _connect(self, edge: Edge) -> None:
        if self.ledger is None or edge.connection:
            return
        edge.connection = next(self._ids)
        self._connections[edge.connection] = edge
        used = {p.key: _parts(p) for p in edge.leases.connect()}
        ledger = self.ledger

        def joined() -> None:
            ledger.join(edge.name, edge.name, used, self.now_s)
            self._grant()

        self._carry(edge, joined)

    def _send(self, edge: Edge, message: Message) -> bool:
        ledger = self.ledger
        if not edge.connection or ledger is None:
            return False

        def heard() -> None:
            match message:
                case QuotaDemand(demands):
                    ledger.demand(edge.name, {p.key: _parts(p) for p in demands}, self.now_s)
                case QuotaAck(_, seq):
                    ledger.confirm(edge.name, seq)
            self._grant()

        self._carry(edge, heard)
        return True

    def _grant(self) -> None:
        if self.ledger is None:
            return
        for name, seq, parts in self.ledger.grants(self.now_s):
            edge = next(edge for edge in self.edges if edge.name == name)
            told = tuple(QuotaParts(key, *of_key) for key, of_key in parts.items())
            shares = QuotaShares(self._epoch, seq, told)
            self._carry(edge, lambda edge=edge, shares=shares: edge.leases.follow(shares))  # type: ignore[misc]

    def _carry(self, edge: Edge, act: Callable[[], None]) -> None:
        """Deliver after what was sent before it on this connection, unless that breaks."""
        connection = edge.connection

        def arrives() -> None:
            if connection and edge.connection == connection:
                act()

        # One delay a connection and instant keeps the order that TCP keeps.
        self._at(DELAY_S_MAX, arrives)

    # rounds

    def _report(self, edge: Edge) -> None:
        edge.leases.tidy({self.record.id}, self.now_s)
        edge.leases.report(self.now_s)
        self._at(REPORT_S, lambda: self._report(edge))

    def _tick(self) -> None:
        self._grant()
        self._at(TICK_S, self._tick)

    def _arrive(self, edge: Edge, is_request: bool = False) -> None:
        if is_request:
            try:
                edge.leases.take(self.record, self.now_s).release()
                edge.admitted_s.append(self.now_s)
            except QuotaExceeded:
                pass
        # Requests are independent: whoever looks anew, having seen none, disturbs nothing.
        pause_s = self.rng.expovariate(edge.rate_per_s) if edge.rate_per_s else LOOK_S
        self._at(min(pause_s, LOOK_S), lambda: self._arrive(edge, pause_s < LOOK_S))


def _parts(of_key: QuotaParts) -> Parts:
    return of_key.requests, of_key.rows, of_key.concurrent
