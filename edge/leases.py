"""The parts of keys' quotas that this edge process may use, and the requests held to them.

The controller leases parts by what each process was asked for lately.  While there is no
controller, the last lease goes on; where there never was one, every edge process that was last
known of has an equal part.  What a part allows is decided in `quota`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Container

from edge.errors import QuotaExceeded
from edge.quota import Meter, Refused
from pool.wire import control
from pool.wire.control import QuotaDemand, QuotaParts, QuotaShares
from registry_sync.documents import KeyRecord

ANY = ""  # the key whose parts hold for each that is not named
HURRY_S = 0.05  # a demand that has jumped is not told more often
WAIT_S_MAX = 120.0  # a client is not told to wait longer
JITTER = 0.25  # of the wait, so that not all who were refused come back at once
JITTER_S_MIN = 0.02

_TEXTS = {
    "requests_per_s": "this key may make {:g} requests a second (requests_per_s), which are used",
    "rows_per_s": "this key may send {:g} rows a second (rows_per_s), which are used",
    "concurrent": "this key may have {:g} calls under way (concurrent), which it has",
}


class Leases:
    """The meters of the keys that have a quota.

    Args:
        send: to the controller; tells whether there was one.
        count: adds one to the refusals by this limit.
        now: the clock of all calls.
    """

    def __init__(
        self,
        send: Callable[[control.Message], bool],
        count: Callable[[str], object],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send = send
        self._count = count
        self._now = now
        # The whole mutable state: meters by key id, parts by key id, and what was told last.
        self._meters: dict[str, Meter] = {}
        self._parts: dict[str, QuotaParts] = {}
        self._even = QuotaParts(ANY, 1.0, 1.0, 1.0)
        self._told_s = 0.0
        self._has_told = False
        self._is_heard = False  # by a controller that knows of leases

    def take(self, record: KeyRecord, now_s: float) -> Meter:
        """Begin a request of a key that has a quota; its meter's `release` ends it.

        Raises:
            QuotaExceeded: the key must wait.
        """
        meter = self._meters.get(record.id)
        quota = record.quota
        assert quota is not None
        if meter is None:
            meter = self._meters[record.id] = Meter(quota, self._parts_of(record.id), now_s)
        elif meter.quota is not quota:  # other documents
            if meter.quota != quota:
                meter.change(quota, meter.parts, now_s)
            else:
                meter.quota = quota
        refused = meter.take(now_s)
        if refused is not None:
            raise self._exceeded(meter, refused, now_s)
        return meter

    def _exceeded(self, meter: Meter, refused: Refused, now_s: float) -> QuotaExceeded:
        self._count(refused.limit)
        if now_s - self._told_s >= HURRY_S and meter.is_news(refused.limit):
            self.report(now_s)
        wait_s = refused.wait_s + max(refused.wait_s * JITTER, JITTER_S_MIN) * random.random()
        wait_s = min(wait_s, WAIT_S_MAX)
        return QuotaExceeded(
            f"{_TEXTS[refused.limit].format(refused.value)}; try again in {wait_s:.3g} s",
            retry_after_s=wait_s,
        )

    # what the controller says

    def connect(self) -> tuple[QuotaParts, ...]:
        """Return what is used now, for the registration that opens a connection."""
        self._is_heard = False
        return (self._parts.get(ANY, self._even), *(p for k, p in self._parts.items() if k != ANY))

    def follow(self, shares: QuotaShares) -> None:
        """Go by another lease, from now on, and say so."""
        self._parts = {parts.key: parts for parts in shares.parts}
        self._apply()
        self._send(control.QuotaAck(shares.epoch, shares.seq))
        if not self._is_heard:  # who leads may be another, who has not heard of any demand
            self._is_heard = True
            self.report(self._now())

    def expect(self, edges: int) -> None:
        """Take note of how many edge processes there are, for want of a lease."""
        if edges > 0:
            part = 1 / edges
            self._even = QuotaParts(ANY, part, part, part)
            if ANY not in self._parts:
                self._apply()

    def _apply(self) -> None:
        now_s = self._now()
        for key, meter in self._meters.items():
            parts = self._parts_of(key)
            if parts != meter.parts:
                meter.change(meter.quota, parts, now_s)

    def _parts_of(self, key: str) -> QuotaParts:
        return self._parts.get(key) or self._parts.get(ANY) or self._even

    # what it is told

    def report(self, now_s: float) -> None:
        """Tell the controller what was asked for lately."""
        self._told_s = now_s
        demands = [
            QuotaParts(key, *demand)
            for key, meter in self._meters.items()
            if any(demand := meter.demand(now_s))
        ]
        if self._is_heard and (demands or self._has_told):
            self._has_told = bool(demands)
            self._send(QuotaDemand(tuple(demands)))

    def tidy(self, keys: Container[str], now_s: float) -> None:
        """Forget the meters of keys that are gone, or have not been used for long."""
        for key, meter in list(self._meters.items()):
            if (key not in keys and not meter.under_way) or meter.is_idle(now_s):
                del self._meters[key]
