"""Other autoscalers, as far as replicas go: Knative's KPA and Ray Serve's, with their defaults.

Both go by concurrency: the calls that run or wait, averaged over a window.  Where calls take a
second or more that is what they get here.  Of calls that are over sooner, a queue of a second is
dozens for every replica, and to the letter both ask for up to 130 times what is needed as soon as
one burst finds too few; there it is the work that arrives (Knative's `rps` metric), which serves
them better in all measures but the calls on time.  A replica is meant to be busy for 70 % of the
time.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from pool.scaling.signals import Decision, Limits, Signals

TARGET: Final = 0.7  # of a replica's time
SHORT_CALLS_PER_S: Final = 1.0  # with more, a replica's calls are short


class _Demand:
    """How many replicas the calls keep busy, over windows of the recent past."""

    def __init__(self, kept_s: float) -> None:
        self._kept_s = kept_s
        # The whole mutable state: the calls that came until a look; for how long how many were
        # inside (from, to, calls); the last look.
        self._came: deque[tuple[float, int]] = deque()
        self._inside: deque[tuple[float, float, int]] = deque()
        self._arrived = 0
        self._seen_s = 0.0
        self._seen_inside = 0

    def observe(self, signals: Signals) -> None:
        """Take note of the calls that came, and of those inside until the next look."""
        now_s = signals.now_s
        if signals.arrived > self._arrived:
            self._came.append((now_s, signals.arrived - self._arrived))
            self._arrived = signals.arrived
        if self._seen_inside:
            self._inside.append((self._seen_s, now_s, self._seen_inside))
        self._seen_s, self._seen_inside = now_s, signals.waiting + signals.running
        while self._came and self._came[0][0] <= now_s - self._kept_s:
            self._came.popleft()
        while self._inside and self._inside[0][1] <= now_s - self._kept_s:
            self._inside.popleft()

    def mean(self, now_s: float, window_s: float, calls_per_s: float) -> float:
        """Return the busy replicas over the last `window_s`.

        Of short calls those that they would keep busy, were none to wait; otherwise the calls
        inside.
        """
        begin_s, total_s = now_s - window_s, 0.0
        if calls_per_s > SHORT_CALLS_PER_S:
            for seen_s, calls in reversed(self._came):
                if seen_s <= begin_s:
                    break
                total_s += calls / calls_per_s
        else:
            for from_s, to_s, calls in reversed(self._inside):
                if to_s <= begin_s:
                    break
                total_s += calls * (to_s - max(from_s, begin_s))
        return total_s / window_s

    def falls_s(self) -> float:
        """Return when the mean over all that is kept falls next, if no call comes."""
        first_s = math.inf
        if self._came:
            first_s = self._came[0][0]
        if self._inside:
            first_s = min(first_s, self._inside[0][1])
        return first_s + self._kept_s


class Kpa:
    """Knative's pod autoscaler with its defaults (config-autoscaler).

    Source:
        knative/serving, pkg/autoscaler/scaling/autoscaler.go: a stable window of 60 s, a panic
        window of a tenth of it, panic at twice of what is ready, one pod kept for 30 s more.
    """

    TICK_S: Final = 2.0
    STABLE_S: Final = 60.0
    PANIC_S: Final = 6.0
    PANIC_THRESHOLD: Final = 2.0
    UP_MAX: Final = 1000.0  # times what is ready, in one tick
    DOWN_MAX: Final = 2.0
    GRACE_S: Final = 30.0  # of the last pod, once a whole stable window saw no call

    def __init__(self) -> None:
        self._demand = _Demand(self.STABLE_S)
        self._tick_s = -math.inf
        self._used_s = -math.inf
        self._arrived = 0
        self._panic_s = -math.inf  # when it was last called for
        self._panic_pods = 0
        self._wanted = 0

    def observe(self, signals: Signals) -> None:
        """Take note of what is seen; every tick, think anew."""
        now_s = signals.now_s
        if signals.waiting or signals.running or signals.arrived > self._arrived:
            self._used_s = now_s
        self._arrived = signals.arrived
        self._demand.observe(signals)
        if now_s >= self._tick_s + self.TICK_S:
            self._tick_s = now_s
            self._wanted = self._think(signals)
        if signals.waiting:
            self._wanted = max(1, self._wanted)  # the activator scales from zero at once

    def decide(self, limits: Limits, signals: Signals) -> Decision:
        """Return what the last tick said."""
        wanted = min(max(self._wanted, limits.replicas_min), limits.replicas_max)
        if signals.waiting or signals.running or wanted > 1:
            until_s = self._tick_s + self.TICK_S
        elif wanted:
            until_s = self._used_s + self.STABLE_S + self.GRACE_S
        else:
            until_s = math.inf
        return Decision(replicas=wanted, reason="kpa", until_s=until_s)

    def _think(self, signals: Signals) -> int:
        now_s, rate, ready = signals.now_s, signals.calls_per_s, max(1, signals.warm)
        lowest, highest = math.floor(ready / self.DOWN_MAX), math.ceil(self.UP_MAX * ready)
        stable, panic = (
            min(max(math.ceil(self._demand.mean(now_s, window_s, rate) / TARGET), lowest), highest)
            for window_s in (self.STABLE_S, self.PANIC_S)
        )
        if panic / ready >= self.PANIC_THRESHOLD:
            self._panic_s = now_s
        if now_s < self._panic_s + self.STABLE_S:
            self._panic_pods = max(self._panic_pods, stable, panic)
            return self._panic_pods
        self._panic_pods = 0
        if stable == 0 and now_s < self._used_s + self.STABLE_S + self.GRACE_S:
            return 1
        return stable


class Ray:
    """Ray Serve's autoscaler with its defaults.

    Source:
        ray-project/ray, python/ray/serve/autoscaling_policy.py: the load
        averaged over 30 s; up after 30 s of wanting more, down after 600 s of wanting fewer.
    """

    TICK_S: Final = 2.0
    LOOK_BACK_S: Final = 30.0
    UP_S: Final = 30.0
    DOWN_S: Final = 600.0

    def __init__(self) -> None:
        self._demand = _Demand(self.LOOK_BACK_S)
        self._tick_s = -math.inf
        self._arrived = 0
        self._up_s: float | None = None  # since when more are wanted
        self._down_s: float | None = None
        self._wanted = 0

    def observe(self, signals: Signals) -> None:
        """Take note of what is seen; every tick, think anew."""
        now_s = signals.now_s
        self._demand.observe(signals)
        if self._wanted == 0:
            if signals.arrived > self._arrived:
                self._wanted = 1
                self._up_s = self._down_s = None
        elif now_s >= self._tick_s + self.TICK_S:
            self._tick_s = now_s
            self._think(now_s, signals.calls_per_s)
        self._arrived = signals.arrived

    def decide(self, limits: Limits, signals: Signals) -> Decision:
        """Return what the last tick said."""
        wanted = min(max(self._wanted, limits.replicas_min), limits.replicas_max)
        is_idle = not (signals.waiting or signals.running) and wanted <= 1 and self._up_s is None
        if not is_idle or self._down_s is None:
            until_s = self._tick_s + self.TICK_S if wanted else math.inf
            if is_idle:
                # Every tick until then says the same.
                until_s = max(until_s, self._demand.falls_s())
        else:
            until_s = self._down_s + self.DOWN_S
        return Decision(replicas=wanted, reason="ray", until_s=until_s)

    def _think(self, now_s: float, rate: float) -> None:
        desired = math.ceil(self._demand.mean(now_s, self.LOOK_BACK_S, rate) / TARGET)
        self._up_s = _since(self._up_s, now_s) if desired > self._wanted else None
        self._down_s = _since(self._down_s, now_s) if desired < self._wanted else None
        is_up = self._up_s is not None and now_s >= self._up_s + self.UP_S
        is_down = self._down_s is not None and now_s >= self._down_s + self.DOWN_S
        if is_up or is_down:
            self._wanted = desired
            self._up_s = self._down_s = None


def _since(since_s: float | None, now_s: float) -> float:
    return now_s if since_s is None else since_s
