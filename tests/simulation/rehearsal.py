"""One trace, played to the shells at many times its speed and to the simulator; and the difference.

A model's policy sees the trace's time (`time_scale`); the machine's own times, a load or a run, are
as long as they are, and so that many times as long to the policy.  The simulator is told how long
they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from infra.simulate.engine import Load, Simulated, World, run_all
from infra.simulate.policies import FAMILIES
from pool.scaling.signals import Limits, Signals
from tests.simulation.engine import Change, Costs

SCALE = 100.0
ROUND_S = 0.5  # of the controller's heartbeats
TURN_S = 300.0  # of the trace, in which one model is simulated before the next has its turn
COSTS = Costs(load_s=0.05, run_s=0.002, row_s=0.0)


@dataclass(frozen=True)
class Trace:
    """Arrivals by model, in the trace's own time."""

    arrivals_s: Mapping[str, Sequence[float]]
    end_s: float

    @property
    def calls(self) -> int:
        """How many there are."""
        return sum(map(len, self.arrivals_s.values()))


def trace(seed: int, *, models: int, hours: float) -> Trace:
    """Make a trace of calls that come at random, minutes apart, and in small crowds."""
    dice = np.random.default_rng(seed)
    found = {}
    for index in range(models):
        mean_s = dice.uniform(300.0, 900.0)
        gaps_s = dice.exponential(mean_s, int(4 * hours * 3600 / mean_s) + 8)
        starts_s = np.cumsum(gaps_s)
        sizes = dice.geometric(0.6, len(starts_s))
        crowd_s = np.repeat(starts_s, sizes) + dice.uniform(0.0, 60.0, int(sizes.sum()))
        found[f"m{index}"] = sorted(float(at_s) for at_s in crowd_s if at_s < hours * 3600)
    return Trace(found, hours * 3600)


def habits(seed: int, *, hours: float, of_each: int = 1) -> Trace:
    """Make a trace of what a learned policy tells apart: clockwork, sittings, seldom, and always.

    No two calls of a model are so close that a controller, at this speed, sees them as one.  Nor
    does a call of a sitting come just before the minute after which the model would sleep: of that
    call a controller hears a heartbeat later, and who was first would be up to chance.
    """
    dice = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    for index in range(of_each):
        period_s = dice.uniform(2400.0, 3600.0)
        ticks_s = period_s * (np.arange(hours * 3600 / period_s) + 0.5)
        found[f"clockwork{index}"] = list(ticks_s + dice.uniform(-60.0, 60.0, len(ticks_s)))
        begin_s = np.arange(dice.uniform(600.0, 3600.0), hours * 3600 - 2400, 4 * 3600.0)
        found[f"sitting{index}"] = [
            float(at_s + 120 * call + dice.uniform(0.0, 10.0))
            for at_s in begin_s
            for call in range(12)
        ]
        for name, mean_s in (("seldom", 3 * 3600.0), ("always", 240.0)):
            gaps_s = 100.0 + dice.exponential(mean_s, int(4 * hours * 3600 / mean_s) + 8)
            found[f"{name}{index}"] = [float(t) for t in np.cumsum(gaps_s) if t < hours * 3600]
    arrivals_s = {model: sorted(map(float, times_s)) for model, times_s in found.items() if times_s}
    return Trace(arrivals_s, hours * 3600)


@dataclass(frozen=True)
class Row:
    """What a trace came to from each model's first call on; times are the trace's own.

    That first call is in nothing but `calls`: whether a new model is warm before it is called is
    up to whoever publishes it, of which the simulator knows nothing.
    """

    calls: int
    cold: int
    wakes: int
    warm_s: float  # replica-seconds

    @property
    def cold_share(self) -> float:
        """The part of the calls that found nothing warm."""
        return self.cold / self.calls

    def __add__(self, other: Row) -> Row:
        return Row(
            self.calls + other.calls,
            self.cold + other.cold,
            self.wakes + other.wakes,
            self.warm_s + other.warm_s,
        )


NONE = Row(0, 0, 0, 0.0)


def measured(
    sent_s: Mapping[str, Sequence[float]], changes: Sequence[Change], end_s: float
) -> tuple[Row, float]:
    """Return what was seen of the shells, and how long a wake took.

    Args:
        sent_s: when each model was called, on the machine's clock, in order.
        changes: of all replicas, in order.
        end_s: who is warm is counted until here, on the same clock.
    """
    total, wakes_s = NONE, []
    for model, times_s in sent_s.items():
        warm: list[tuple[float, float]] = []
        since_s: float | None = None
        for change in (one for one in changes if one.model == model):
            assert (change.what == "warm") is (since_s is None), "one replica at a time"
            if since_s is None:
                since_s = change.at_s
            else:
                warm.append((since_s, change.at_s))
                since_s = None
        if since_s is not None:
            warm.append((since_s, max(since_s, end_s)))
        cold_s = [at_s for at_s in times_s[1:] if not any(a <= at_s < b for a, b in warm)]
        before_s = [float("-inf"), *(gone_s for _, gone_s in warm)]
        for (warm_s, _), gone_s in zip(warm, before_s, strict=False):
            waited = [at_s for at_s in cold_s if gone_s <= at_s < warm_s]
            wakes_s += [warm_s - waited[0]] if waited else []
        up_s = sum(max(0.0, b - max(a, times_s[0])) for a, b in warm) * SCALE
        total += Row(len(times_s), len(cold_s), len(warm), up_s)
    return total, float(np.mean(wakes_s)) * SCALE if wakes_s else 0.0


def simulated(played: Trace, limits: Limits, wake_s: float) -> Row:
    """Return what the simulator makes of a trace, with the wake time that was measured."""
    world = World(end_s=played.end_s, wake_s=wake_s, round_s=ROUND_S * SCALE, limits=limits)
    run_s = (COSTS.run_s + COSTS.row_s) * SCALE
    loads = [
        Load(model, np.array(arrivals_s), np.full(len(arrivals_s), run_s))
        for model, arrivals_s in played.arrivals_s.items()
    ]
    family = FAMILIES["tidepool"]()

    def make(load: Load, world: World) -> Simulated:
        policy = family(load, world)
        # As in a stack, it is there before anybody calls.
        policy.observe(Signals(now_s=0.0, unix_s=world.start_unix_s, arrived=0))
        return policy

    total = NONE
    for found in run_all(loads, make, world, TURN_S):
        warm_s = found.busy_s + found.waste_s
        total += Row(found.calls, found.cold - 1, found.wakes, warm_s)
    return total


def difference(one: float, other: float) -> float:
    """Return by which part of it `one` misses `other`."""
    return abs(one - other) / max(other, 1e-9)
