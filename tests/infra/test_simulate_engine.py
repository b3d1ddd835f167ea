"""The simulated world: what is cold, what waits, what it costs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from infra.simulate.engine import Load, Outcome, Version, World, run, run_all
from infra.simulate.ideal import ideal_s
from pool.scaling.policy import ScalingPolicy
from pool.scaling.signals import Decision, Limits, Signals


def _load(*calls: tuple[float, float]) -> Load:
    """Return calls of (arrival in s, exec in s)."""
    table = np.array(calls, dtype=np.float64).reshape(-1, 2)
    return Load("m", table[:, 0], table[:, 1])


class _Wants:
    """Wants what it is told, as a function of the signals, and remembers what it saw."""

    def __init__(self, replicas: Callable[[Signals], int], every_s: float = np.inf) -> None:
        self.seen: list[Signals] = []
        self._replicas = replicas
        self._every_s = every_s

    def observe(self, signals: Signals) -> None:
        self.seen.append(signals)

    def decide(self, limits: Limits, signals: Signals) -> Decision:
        until_s = signals.now_s + self._every_s
        return Decision(replicas=self._replicas(signals), reason="told", until_s=until_s)


def _keeps(replicas: int) -> _Wants:
    return _Wants(lambda signals: replicas)


def test_first_arrival_is_cold_and_the_next_is_not() -> None:
    found = run(_load((0, 1), (100, 1)), _keeps(1), World(end_s=200))
    assert (found.cold, found.wakes, found.on_time) == (1, 1, 1)


def test_call_that_arrives_while_the_replica_loads_is_cold_as_well() -> None:
    found = run(_load((0, 0.1), (2.9, 0.1), (3.1, 0.1)), _keeps(1), World(end_s=10))
    assert (found.cold, found.wakes) == (2, 1)


def test_idle_warm_time_is_waste_until_the_end() -> None:
    found = run(_load((10, 2)), _keeps(1), World(end_s=100, wake_s=3))
    assert found.waste_s == pytest.approx(100 - 13 - 2)
    assert (found.busy_s, found.loading_s) == (2, 3)
    assert found.gpu_s == pytest.approx(90)


def test_replica_that_is_not_wanted_goes_at_the_end_of_the_call() -> None:
    found = run(_load((10, 2), (50, 2)), _keeps(0), World(end_s=100))
    assert (found.cold, found.wakes) == (2, 2)
    assert found.waste_s == pytest.approx(0)


def test_wake_that_takes_no_time_is_cold_and_on_time() -> None:
    found = run(_load((0, 1), (0, 1)), _keeps(0), World(end_s=10, wake_s=0))
    assert (found.cold, found.on_time, found.loading_s) == (1, 2, 0)


def test_calls_queue_for_one_replica_in_order() -> None:
    calls = _load((0, 0), (10, 3), (10, 3), (10, 3))
    found = run(calls, _keeps(1), World(end_s=20, wake_s=0, slo_s=3))
    assert found.on_time == 3  # waits of 0, 3 and 6 s


def test_two_replicas_share_the_queue() -> None:
    calls = _load((0, 0), (10, 3), (10, 3), (10, 3))
    found = run(calls, _keeps(2), World(end_s=20, wake_s=0, slo_s=3))
    assert found.on_time == 4


def test_replica_that_goes_finishes_what_it_runs() -> None:
    # Two run at 10; from 10.5 on one is wanted, the other leaves at 14 and costs until then.
    policy = _Wants(lambda signals: 1 if signals.now_s > 10 else 2)
    calls = _load((0, 0), (10, 4), (10, 4))
    found = run(calls, policy, World(end_s=20, wake_s=0))
    assert found.waste_s == pytest.approx(20 + 14 - 8 - 0.0, abs=0.6)
    assert [signals.running for signals in policy.seen if signals.now_s == 10.5] == [2]


def test_loading_that_is_given_up_costs_until_then() -> None:
    policy = _Wants(lambda signals: 0 if signals.now_s >= 15 else 2, every_s=5)
    found = run(_load((10, 1)), policy, World(end_s=100, wake_s=30))
    # The call's own replica loads for 30 s; the second from 10.5 to 15.5.
    assert found.loading_s == pytest.approx(35)


def test_what_waits_keeps_a_replica_whatever_the_policy_says() -> None:
    found = run(_load((0, 1), (0.1, 1)), _keeps(0), World(end_s=100))
    assert (found.calls, found.wakes) == (2, 1)


def test_policy_is_asked_when_its_decision_is_over() -> None:
    policy = _Wants(lambda signals: 1 if 20 <= signals.now_s < 40 else 0, every_s=20)
    found = run(_load((0, 0.2), (30, 0.2)), policy, World(end_s=100, wake_s=0))
    assert found.cold == 1
    assert found.waste_s == pytest.approx(29.8)  # from 20.2 to 50.2, less a call


def test_policy_that_never_lets_go_of_the_clock_is_still_finite() -> None:
    policy = _Wants(lambda signals: 1, every_s=-1.0)
    assert run(_load((0, 1)), policy, World(end_s=1.5)).calls == 1


def test_end_of_a_call_is_seen_at_once() -> None:
    policy = _keeps(1)
    run(_load((0, 0), (10, 0.2), (20, 7)), policy, World(end_s=100, wake_s=0))
    assert [signals.now_s for signals in policy.seen] == pytest.approx([0, 10.2, 20.5, 27])
    assert policy.seen[-1].running == 0


def test_signals_say_what_one_replica_can_do_once_it_ran() -> None:
    policy = _keeps(1)
    run(_load((0, 0.25), (10, 0.25)), policy, World(end_s=20))
    assert [signals.calls_per_s for signals in policy.seen] == [0, 4, 4]


def test_speed_is_that_of_calls_that_have_ended() -> None:
    policy = _keeps(2)
    calls = _load((0, 3600), (10, 0.5), (20, 0.5), (5000, 0.5))
    run(calls, policy, World(end_s=6000, wake_s=0))
    seen = {signals.now_s: signals.calls_per_s for signals in policy.seen}
    assert seen == pytest.approx(
        {0.5: 0, 10.5: 2, 20.5: 2, 3600: 3 / 3601, 5000.5: 4 / 3601.5}, rel=1e-6
    )


def test_every_call_is_answered_even_behind_the_end() -> None:
    calls = _load(*((0, 10) for _ in range(50)))
    found = run(calls, _keeps(1), World(end_s=1))
    assert (found.calls, found.busy_s) == (50, 500)
    assert found.waste_s == pytest.approx(0, abs=1e-6)


def test_model_without_calls_costs_nothing() -> None:
    assert run(_load(), _keeps(1), World(end_s=100)) == Outcome()


def test_steps_of_a_run_do_not_change_it() -> None:
    rng = np.random.default_rng(5)
    arrivals_s = np.cumsum(rng.exponential(30, 300))
    load = Load("m", arrivals_s, rng.exponential(2, 300))
    world = World(end_s=float(arrivals_s[-1]) + 100, limits=Limits(idle_s=40))
    in_steps = Version(load, ScalingPolicy(), world)
    for until_s in np.arange(0, world.end_s, 7.0):
        in_steps.run_until(float(until_s))
    assert in_steps.finish() == run(load, ScalingPolicy(), world)


def test_models_run_beside_each_other_as_they_do_alone() -> None:
    rng = np.random.default_rng(6)
    loads = [Load(str(n), np.cumsum(rng.exponential(200, 50)), np.ones(50)) for n in range(4)]
    world = World(end_s=20_000, limits=Limits(idle_s=100))
    alone = [run(load, ScalingPolicy(), world) for load in loads]
    assert run_all(loads, lambda load, world: ScalingPolicy(), world) == alone


def test_time_to_the_letter_is_what_chance_says() -> None:
    """A Poisson stream with mean gap m and keep-alive k is cold with exp(-k / m)."""
    rng = np.random.default_rng(7)
    load = Load("m", np.cumsum(rng.exponential(100, 20_000)), np.zeros(20_000))
    found = run(load, ScalingPolicy(), World(end_s=2e6, wake_s=0, limits=Limits(idle_s=60)))
    assert found.cold / found.calls == pytest.approx(np.exp(-0.6), abs=0.01)
    assert found.waste_s / found.calls == pytest.approx(100 * (1 - np.exp(-0.6)), rel=0.02)


def test_ideal_is_whole_replicas_second_by_second() -> None:
    assert ideal_s(_load()) == 0
    assert ideal_s(_load((0.0, 0.1), (0.5, 0.1))) == 1
    assert ideal_s(_load((0.0, 0.6), (0.1, 0.6))) == 2
    assert ideal_s(_load((1000.0, 32.0))) == 32
    assert ideal_s(_load((1000.5, 32.0))) == 33
    assert ideal_s(_load((0.0, 3.0), (1.0, 1.0))) == 4


def test_ideal_is_the_same_however_thin_the_calls_are() -> None:
    rng = np.random.default_rng(8)
    arrivals_s, exec_s = np.sort(rng.uniform(0, 900, 400)), rng.exponential(2, 400)
    alone = np.array([100_000.0])
    thick = ideal_s(Load("m", arrivals_s, exec_s))
    thin = ideal_s(Load("m", np.append(arrivals_s, alone), np.append(exec_s, 0.5)))
    assert thin == thick + 1


def test_signals_say_how_long_ago_the_last_call_came() -> None:
    policy = _keeps(1)
    run(_load((0, 0), (10, 0.25), (20, 7)), policy, World(end_s=50, wake_s=0))
    assert [signals.idle_s for signals in policy.seen] == pytest.approx([0, 0.25, 0.5, 7])


def test_replica_that_leaves_counts_as_running_until_its_call_has_ended() -> None:
    policy = _Wants(lambda signals: 1 if signals.now_s > 10 else 2)
    calls = _load((0, 0), (10, 4), (10, 4), (12, 0.1))
    run(calls, policy, World(end_s=20, wake_s=0))
    seen = {signals.now_s: (signals.running, signals.warm) for signals in policy.seen}
    assert seen[12.5] == (2, 1)


def test_models_take_turns_so_that_nobody_is_ahead_by_more_than_one() -> None:
    calls = [Load(name, np.arange(0, 50_000, 500.0), np.ones(100)) for name in "ab"]
    looks_s: list[float] = []

    class Shared(_Wants):
        def observe(self, signals: Signals) -> None:
            looks_s.append(signals.now_s)

    run_all(calls, lambda load, world: Shared(lambda signals: 1), World(end_s=50_000), step_s=1000)
    assert all(later_s > before_s - 1100 for before_s, later_s in pairwise(looks_s))


def test_ideal_rounds_sums_of_fractions_no_replica_up() -> None:
    assert ideal_s(_load(*((0.0, 0.1) for _ in range(20)))) == 2
    assert ideal_s(_load((0.3, 0.1), *((0.5, 0.3) for _ in range(3)))) == 1
