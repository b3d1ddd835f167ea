"""How many replicas of one version are wanted: demand, forecast and keep-alive put together."""

from __future__ import annotations

import math

import msgspec

from pool.scaling.autoscale import Autoscaler
from pool.scaling.budget import Budget
from pool.scaling.gaps import GapPool
from pool.scaling.keepalive import KeepAlive
from pool.scaling.kept import unpack
from pool.scaling.signals import Decision, Limits, Signals


class _Saved(msgspec.Struct, array_like=True):
    """What is kept of a version over a restart; times in it are relative."""

    keep_alive: bytes
    autoscaler: bytes
    budget: bytes


_saved_of = msgspec.msgpack.Decoder(_Saved)


class ScalingPolicy:
    """Decides for one version; `observe` and `decide` are called with times that never fall.

    The autoscaler says how many replicas the calls need, the keep-alive whether one is to be warm
    while there are none, and the forecast whether more will be needed by the time that they
    could be warm.  The highest of them wins; the endpoint's minimum, maximum and budget bound it.

    Args:
        pool: what versions tell one another of their idle gaps; without, each learns for itself.
    """

    def __init__(self, pool: GapPool | None = None) -> None:
        # The whole mutable state; the last are since when nothing is inside, when it was last in
        # use, and the calls seen by then.
        self._keep_alive = KeepAlive(pool)
        self._autoscaler = Autoscaler()
        self._budget = Budget()
        self._idle_since_s: float | None = None
        self._used_s = -math.inf
        self._arrived = -1  # nothing was seen yet

    def observe(self, signals: Signals) -> None:
        """Take note of what is seen: whenever that changed, and at least every second of use."""
        now_s, inside = signals.now_s, signals.waiting + signals.running
        is_first, has_come = self._arrived < 0, 0 <= self._arrived < signals.arrived
        self._arrived = signals.arrived
        came_s = max(self._used_s, now_s - signals.idle_s)  # the last call, if there was one
        if is_first and (inside or signals.arrived):
            self._keep_alive.began(came_s, 0.0)
        if self._idle_since_s is not None and (inside or has_come):
            came_s = max(came_s, self._idle_since_s)
            self._keep_alive.began(came_s, came_s - self._idle_since_s)
            self._idle_since_s = None
        if inside:
            self._used_s = now_s
        elif has_come or (is_first and signals.warm):
            self._used_s = came_s
        if not inside and self._idle_since_s is None:
            self._idle_since_s = came_s
            self._keep_alive.ended(came_s)
        self._autoscaler.observe(signals)
        self._budget.observe(now_s, signals.warm)

    def decide(self, limits: Limits, signals: Signals) -> Decision:
        """Return what is wanted now; changes nothing."""
        now_s, inside = signals.now_s, signals.waiting + signals.running
        in_use = inside > 0 or limits.is_awaited
        wanted = self._autoscaler.wanted(signals)
        is_warm, until_s = self._is_warm(limits, signals)
        terms: dict[str, float] = {}
        if in_use or is_warm:
            until_s = min(until_s, wanted.until_s)
            name = "demand" if inside else "awaited" if limits.is_awaited else "keep-alive"
            terms[name] = max(1, wanted.demand)
            terms["panic"] = wanted.panic
        if limits.replica_hours_per_day_max is not None:
            left_s, left_until_s = self._budget.left(now_s, limits.replica_hours_per_day_max)
            until_s = min(until_s, left_until_s)
            if not left_s:
                replicas = min(max(1, wanted.needed), limits.replicas_max) if in_use else 0
                return Decision(replicas=replicas, reason="budget", until_s=until_s, terms=terms)
        if limits.forecast == "act" and (in_use or is_warm or limits.idle_s is None):
            until_s = min(until_s, wanted.forecast_until_s)
            terms["forecast"] = wanted.forecast
        terms["schedule"] = int(limits.is_due)
        terms["minimum"] = limits.replicas_min
        if limits.replicas_kept:
            terms["rollout"] = limits.replicas_kept
        reason = max(terms, key=terms.__getitem__)
        replicas = int(terms[reason])
        if replicas > limits.replicas_max:
            replicas, reason = limits.replicas_max, "maximum"
        elif not replicas:
            reason = "idle"
        if limits.forecast != "off":
            terms.update(self._autoscaler.regret(signals))
        return Decision(replicas=replicas, reason=reason, until_s=until_s, terms=terms)

    def _is_warm(self, limits: Limits, signals: Signals) -> tuple[bool, float]:
        """Say whether one is to be warm although nothing is inside, and until when that holds."""
        if signals.waiting + signals.running or limits.is_awaited:
            return True, math.inf
        if limits.idle_s is None:
            return self._keep_alive.wants(signals.now_s, limits.cold_start_cost_s, signals.wake_s)
        until_s = self._used_s + limits.idle_s
        return (True, until_s) if signals.now_s < until_s else (False, math.inf)

    def save(self) -> bytes:
        """Return what was learned, to be kept; times in it are relative."""
        saved = _Saved(self._keep_alive.save(), self._autoscaler.save(), self._budget.save())
        return msgspec.msgpack.encode(saved)

    def restore(self, data: bytes, now_s: float) -> None:
        """Take over what a predecessor had learned; what is not readable is ignored.

        Args:
            data: what `save` returned.
            now_s: on this policy's clock, when the predecessor last observed something.
        """
        saved = unpack(data, _saved_of)
        if saved is None:
            return
        self._keep_alive.restore(saved.keep_alive)
        self._autoscaler.restore(saved.autoscaler, now_s)
        self._budget.restore(saved.budget, now_s)
