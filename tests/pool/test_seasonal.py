"""Seasonal look-ahead: what comes again is foreseen, what does not is not."""

from __future__ import annotations

import numpy as np

from pool.scaling.seasonal import BUCKET_S, PERIODS_S, Seasonal
from pool.scaling.signals import Signals

HOUR = 3600
WAKE_S = 30.0


def seen(now_s: float, arrived: int, wake_s: float = WAKE_S) -> Signals:
    return Signals(now_s=now_s, unix_s=0.0, arrived=arrived, calls_per_s=20.0, wake_s=wake_s)


def play(seasonal: Seasonal, rates: np.ndarray, begin_s: float = 0.0) -> list[int]:
    """Show so many calls in each bucket's seconds; return the forecasts, bucket by bucket."""
    arrived, wanted = 0, []
    for bucket, rate in enumerate(rates):
        now_s = begin_s + bucket * BUCKET_S
        wanted.append(seasonal.replicas(seen(now_s, arrived))[0])
        for second in range(int(BUCKET_S)):
            arrived += int(rate)
            seasonal.observe(seen(now_s + second + 0.5, arrived))
        seasonal.observe(seen(now_s + BUCKET_S, arrived))
    return wanted


def spikes(hours: int, height: float = 200.0) -> np.ndarray:
    """10 calls a second, and a spike of five minutes in the middle of every hour."""
    rates = np.full(int(hours * HOUR / BUCKET_S), 10.0)
    for hour in range(hours):
        begin = int((hour * HOUR + HOUR // 2) / BUCKET_S)
        rates[begin : begin + 60] = height
    return rates


def at(hour: float) -> int:
    return round(hour * HOUR / BUCKET_S)


def test_spike_is_foreseen_one_wake_ahead_once_its_period_has_proved_good() -> None:
    wanted = play(Seasonal(), spikes(4))
    assert max(wanted[: at(1.5)]) == 0
    assert wanted[at(3.5) - int(WAKE_S / BUCKET_S)] == 10
    assert wanted[at(3.5) + 40] == 10
    assert wanted[at(3.25)] == 0  # of the ordinary time before it, one will do


def test_what_comes_once_is_never_foreseen() -> None:
    draw = np.random.RandomState(3)
    rates = np.full(at(24), 10.0)
    for begin in draw.randint(0, at(24) - 60, 24):
        rates[begin : begin + 60] = 200.0
    wanted = np.array(play(Seasonal(), rates))
    assert np.mean(wanted > 1) < 0.02


def test_period_that_ends_is_given_up() -> None:
    seasonal = Seasonal()
    rates = np.concatenate([spikes(6), np.full(at(6), 10.0)])
    wanted = play(seasonal, rates)
    assert max(wanted[at(5) : at(6)]) == 10
    assert max(wanted[at(9) :]) <= 1


def test_one_replica_is_never_asked_for() -> None:
    assert set(play(Seasonal(), spikes(5, height=40.0))) == {0, 2}


def test_version_that_never_needed_a_second_replica_keeps_nothing() -> None:
    seasonal = Seasonal()
    play(seasonal, np.full(at(2), 15.0))
    assert seasonal.save() == b""
    assert seasonal.regret(20.0) == {}


def test_what_was_learned_outlives_a_restart() -> None:
    before, after = Seasonal(), Seasonal()
    play(before, spikes(4))
    data = before.save()
    assert len(data) < 4096
    after.restore(data, 1e6)
    begin_s = float(int(1e6 / BUCKET_S) * BUCKET_S)
    wanted = play(after, spikes(1), begin_s)
    assert 9 <= wanted[at(0.5) - int(WAKE_S / BUCKET_S)] <= 11


def test_unreadable_state_is_ignored() -> None:
    before = Seasonal()
    play(before, spikes(3))
    data = before.save()
    for broken in (b"", b"\x00" * 40, *(data[:length] for length in range(0, len(data), 7))):
        after = Seasonal()
        after.restore(broken, 50.0)
        assert after.replicas(seen(60.0, 0))[0] == 0
        after.observe(seen(60.0, 3))


def test_regret_says_what_was_spared_and_what_idled() -> None:
    seasonal = Seasonal()
    play(seasonal, spikes(8))
    regret = seasonal.regret(20.0)
    # Each of about five spikes would have found 190 calls a second late for one wake.
    assert 3 * 190 * WAKE_S < regret["forecast_spared_calls"] < 8 * 190 * WAKE_S
    assert 0 < regret["forecast_idle_replica_s"] < regret["forecast_spared_calls"]


def test_long_silence_costs_nothing_and_unlearns_nothing() -> None:
    seasonal = Seasonal()
    play(seasonal, spikes(4))
    now_s = 4.0 * HOUR
    seasonal.observe(seen(now_s + 8 * HOUR, 1_000_000))
    assert seasonal.replicas(seen(now_s + 8 * HOUR, 1_000_000))[0] == 0
    seasonal.observe(seen(now_s + 10 * PERIODS_S[-1], 1_000_001))
    assert seasonal.replicas(seen(now_s + 10 * PERIODS_S[-1], 1_000_001))[0] == 0
