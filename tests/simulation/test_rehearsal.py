"""The shells do what the simulator says: the same trace, at a hundred times its speed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pool.scaling.signals import Limits
from tests.simulation.documents import put_endpoint, put_model
from tests.simulation.engine import read_journal
from tests.simulation.fleet import ENGINE, Edge, Fleet, fleet_of
from tests.simulation.rehearsal import (
    COSTS,
    SCALE,
    Row,
    Trace,
    difference,
    habits,
    measured,
    simulated,
    trace,
)
from tests.simulation.world import World, simulate, until
from tests.support.stack import Stack

PART_MAX = 0.10  # the figure


def limits_of(idle_s: object) -> Limits:
    """Return what the simulator's policy is allowed, as the endpoints' documents have it."""
    return Limits(replicas_max=1, idle_s=None if idle_s == "auto" else float(str(idle_s)))


async def play(fleet: Fleet, edge: Edge, played: Trace) -> dict[str, list[float]]:
    """Call every model at its times; return when that was."""
    begin_s = fleet.world.now_s
    sent_s: dict[str, list[float]] = {model: [] for model in played.arrivals_s}
    tasks = []
    calls = sorted((at_s, model) for model, times in played.arrivals_s.items() for at_s in times)
    for at_s, model in calls:
        await asyncio.sleep(max(0.0, begin_s + at_s / SCALE - fleet.world.now_s))
        sent_s[model].append(fleet.world.now_s)
        tasks.append(edge.ask(model))
    done = await asyncio.gather(*tasks)
    assert {one.status for one in done} == {200}
    await asyncio.sleep(max(0.0, begin_s + played.end_s / SCALE - fleet.world.now_s))
    return sent_s


def shells(played: Trace, seed: int, **scale: Any) -> tuple[Row, float]:
    """Play a trace to real shells in virtual time."""

    async def main(world: World) -> tuple[Row, float]:
        with fleet_of(world) as fleet:
            journal = fleet.folder / "journal"
            costs = msgspec.structs.replace(COSTS, journal=str(journal))
            for model in played.arrivals_s:
                fleet.put(model, costs, replicas_max=1, **scale)
            fleet.controller(time_scale=SCALE)
            fleet.sync("n1")
            fleet.worker("w1")
            edge = fleet.edge()
            await fleet.ready(edge, workers=1)
            await until(lambda: all(map(edge.knows, played.arrivals_s)))
            sent_s = await play(fleet, edge, played)
            fleet.check()
            return measured(sent_s, read_journal(journal), world.now_s)

    return simulate(main, seed=seed)


def compare(seen: Row, said: Row, wake_s: float, *, calls_off_max: int = 0) -> None:
    """Check the figure; where there are few cold calls, so many may be off all the same."""
    cold, warm = difference(seen.cold_share, said.cold_share), difference(seen.warm_s, said.warm_s)
    print(f"\nseen {seen}\nsaid {said}\nwake {wake_s:.1f} s: cold {cold:.1%}, warm {warm:.1%} off")
    assert seen.calls == said.calls
    assert said.cold > 5, "nothing is compared"
    assert cold <= PART_MAX or abs(seen.cold - said.cold) <= calls_off_max
    assert warm <= PART_MAX


def test_shells_sleep_after_an_idle_time_as_the_simulator_says() -> None:
    played = trace(7, models=6, hours=3.0)
    seen, wake_s = shells(played, 7, idle_s=600)
    compare(seen, simulated(played, limits_of(600), wake_s), wake_s)


def test_shells_learn_when_to_sleep_as_the_simulator_says() -> None:
    played = habits(8, hours=8.0, of_each=2)
    seen, wake_s = shells(played, 8, idle_s="auto")
    compare(seen, simulated(played, limits_of("auto"), wake_s), wake_s, calls_off_max=2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_shells_learn_for_a_day_when_to_sleep_as_the_simulator_says(seed: int) -> None:
    played = habits(seed, hours=24.0, of_each=6)
    seen, wake_s = shells(played, seed, idle_s="auto")
    compare(seen, simulated(played, limits_of("auto"), wake_s), wake_s)


def real_stack(played: Trace, stack: Stack, journal: Path, **scale: Any) -> tuple[Row, float]:
    """Play a trace to a real `tidepool up`, over HTTP."""
    costs = msgspec.structs.replace(COSTS, journal=str(journal))
    for model in played.arrivals_s:
        put_model(stack.store, model, costs)
        put_endpoint(stack.store, model, replicas_max=1, **scale)
    stack.poke()
    calls = sorted((at_s, model) for model, times in played.arrivals_s.items() for at_s in times)
    sent_s: dict[str, list[float]] = {model: [] for model in played.arrivals_s}
    begin_s = time.monotonic()

    def call(model: str) -> int:
        return stack.infer(model, {"x": ("INT64", [1], [1])}).status

    with ThreadPoolExecutor(32) as threads:
        answers = []
        for at_s, model in calls:
            time.sleep(max(0.0, begin_s + at_s / SCALE - time.monotonic()))
            sent_s[model].append(time.monotonic())
            answers.append(threads.submit(call, model))
        assert {answer.result() for answer in answers} == {200}
    time.sleep(max(0.0, begin_s + played.end_s / SCALE - time.monotonic()))
    return measured(sent_s, read_journal(journal), begin_s + played.end_s / SCALE)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_real_stacks_do_what_the_simulator_says(
    start_stack: Callable[..., Stack], tmp_path: Path
) -> None:
    """Both at once, in stacks of their own: endpoints of one learn from each other."""
    played = {600: trace(7, models=8, hours=3.0), "auto": habits(3, hours=5.0, of_each=10)}

    def seen_of(idle_s: object) -> tuple[Row, float]:
        return real_stack(played[idle_s], stacks[idle_s], tmp_path / f"{idle_s}", idle_s=idle_s)

    arguments = ["--time-scale", str(SCALE)]
    stacks = {
        idle_s: start_stack(f"stack-{idle_s}", engines=[ENGINE], arguments=arguments)
        for idle_s in played
    }
    with ThreadPoolExecutor(len(played)) as threads:
        seen = dict(zip(played, threads.map(seen_of, played), strict=True))
    for idle_s, (row, wake_s) in seen.items():
        said = simulated(played[idle_s], limits_of(idle_s), wake_s)
        compare(row, said, wake_s, calls_off_max=2 if idle_s == "auto" else 0)
