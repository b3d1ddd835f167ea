"""Rollouts in virtual time: whatever happens, one line of decisions, and nothing counted twice."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable

import pytest
from msgspec.structs import replace

from registry_sync.documents import EndpointState
from registry_sync.rollout_terms import Guard
from registry_sync.rollouts import RolloutRefused
from tests.simulation.engine import Costs
from tests.simulation.fleet import fleet_of
from tests.simulation.processes import current
from tests.simulation.rollouts import COSTS, GUARD, HOLD_S, NAME, Scene, kill_here
from tests.simulation.world import World, simulate, until

BAD = replace(COSTS, fails_each=5)
HOUR_S = 3600.0

Trouble = Callable[[Scene], Awaitable[None]]


def play(
    trouble: Trouble,
    ends: str = "promoted",
    *,
    seed: int = 0,
    candidate: Costs = COSTS,
    baseline: Costs = COSTS,
    hold_s: float = HOLD_S,
    guard: Guard = GUARD,
    by: tuple[str, ...] = (),
    controllers: tuple[str, ...] = ("c1",),
) -> None:
    """Roll version 2 out while there is trouble, and see that it ends so."""

    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            scene = Scene(fleet, by=by)
            scene.publish(baseline, candidate)
            await scene.up(controllers)
            scene.begin(hold_s=hold_s, guard=guard)
            await trouble(scene)
            await scene.ended(ends)
            if trouble is nothing:
                scene.check_undisturbed()

    simulate(main, seed=seed)


async def nothing(scene: Scene) -> None:
    """No trouble."""


def seeds(count: int) -> pytest.MarkDecorator:
    """Run with one seed, and with more of them in the slow run."""
    more = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, count)]
    return pytest.mark.parametrize("seed", [0, *more])


@seeds(3)
def test_good_candidate_is_promoted_step_by_step(seed: int) -> None:
    play(nothing, seed=seed, by=("header:x-user-id",))


@seeds(3)
def test_candidate_that_fails_a_fifth_of_its_calls_is_rolled_back(seed: int) -> None:
    play(nothing, "rolled_back", seed=seed, candidate=BAD)


# The controller ends at the worst of moments.


async def killed_then_aborted(scene: Scene) -> None:
    """Let another controller see the second segment, and then end it."""
    await until(lambda: scene.step == 2, 60.0, 0.1)
    scene.fleet.named("c1").kill()
    scene.fleet.controller("c1")
    await asyncio.sleep(12.0)
    scene.wish("abort")


def test_unit_that_failed_counts_once_in_a_rollout_also_for_the_next_controller() -> None:
    """Both arms fail as often, and units meet both of them, at both edges."""
    fails = replace(COSTS, fails_each=4)
    play(
        killed_then_aborted,
        "rolled_back",
        candidate=fails,
        baseline=fails,
        hold_s=12.0,
        guard=replace(GUARD, margin_points=100.0),
        by=("header:x-user-id",),
    )


def killed_at(count: int, *, is_written: bool, again: bool = True) -> Trouble:
    """Kill whoever makes the given decision, just before it is written or just after.

    Args:
        count: of the decisions before that one.
        is_written: it is, but nobody was told.
        again: start the controller again.
    """

    async def trouble(scene: Scene) -> None:
        left = count
        killed: list[float] = []

        def at_write(state: EndpointState, is_done: bool) -> None:
            nonlocal left
            if is_done is is_written and state.rollout is not None and not killed:
                left -= 1
                if left < 0:
                    killed.append(scene.now_s)
                    kill_here()

        scene.at_write = at_write
        await until(lambda: killed, 120.0, 0.1)
        await asyncio.sleep(1.0)
        if again:
            scene.fleet.controller("c1")

    return trouble


@pytest.mark.parametrize("is_written", [False, True])
@pytest.mark.parametrize(
    "count", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 1, 3, 4))]
)
def test_controller_killed_at_a_write_leaves_the_decision_to_the_next(
    count: int, is_written: bool
) -> None:
    play(killed_at(count, is_written=is_written), seed=count)


# Two controllers.


async def two_in_turn(scene: Scene) -> None:
    """Let a leader stand still until the other leads, and go on as if nothing were."""
    for name in ("c1", "c2"):
        await until(lambda: scene.step > 0, 60.0, 0.1)
        leader = scene.fleet.named(name)
        leader.kill(signal.SIGSTOP)
        await asyncio.sleep(25.0)  # longer than a lease
        leader.kill(signal.SIGCONT)
        await asyncio.sleep(2.0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_two_controllers_that_both_believe_to_lead_decide_once(seed: int) -> None:
    play(two_in_turn, seed=seed, controllers=("c1", "c2"))


async def slow_write(scene: Scene) -> None:
    """Hold a decision up on its way to the registry, until another controller has made its own."""
    held: list[str] = []

    def at_write(state: EndpointState, is_done: bool) -> None:
        process = current()
        if not is_done and state.step == 2 and not held and process is not None:
            held.append(process.name)
            process.kill(signal.SIGSTOP)
            time.sleep(0.001)

    scene.at_write = at_write
    await until(lambda: held, 60.0, 0.1)
    await until(lambda: scene.step == 2, 60.0, 0.1)
    scene.fleet.named(held[0]).kill(signal.SIGCONT)


def test_decision_that_was_on_its_way_for_long_changes_nothing_any_more() -> None:
    play(slow_write, controllers=("c1", "c2"))


async def killed_before_its_mark(scene: Scene) -> None:
    """Kill the second leader between a state and its mark; the first one leads again.

    That one knows the mark, and so believes that it knows the state.
    """
    first = scene.fleet.named("c1")
    await until(lambda: scene.step == 1, 60.0, 0.1)
    first.kill(signal.SIGSTOP)
    await until(lambda: scene.leader == "c2", 60.0, 0.1)
    first.kill(signal.SIGCONT)
    await killed_at(0, is_written=True, again=False)(scene)
    await until(lambda: scene.leader == "c1", 60.0, 0.1)


@pytest.mark.slow
def test_state_whose_mark_was_never_written_is_found_all_the_same() -> None:
    play(killed_before_its_mark, hold_s=40.0, controllers=("c1", "c2"))


# What else can be away, or wrong.


def registry_away(*steps: int) -> Trouble:
    """Let the registry be away at the beginning of these steps, for longer than their holds."""

    async def trouble(scene: Scene) -> None:
        for at_step in steps:
            await until(lambda at_step=at_step: scene.step >= at_step, 60.0, 0.1)
            scene.fleet.store.is_away = True
            before = scene.history[-1]
            await asyncio.sleep(3 * HOLD_S)
            assert scene.history[-1] is before
            scene.fleet.store.is_away = False

    return trouble


@pytest.mark.slow
def test_registry_that_is_away_holds_a_rollout_and_loses_nothing_of_it() -> None:
    play(registry_away(1, 2))


def test_candidate_is_rolled_back_once_the_registry_is_back() -> None:
    play(registry_away(1), "rolled_back", candidate=BAD)


async def clocks_apart(scene: Scene) -> None:
    async def wall_s() -> float:
        return time.time()

    shown_s = []
    for at, process in enumerate(scene.fleet.world.loop.processes.values()):
        process.wall_s = (-1) ** at * 3 * HOUR_S
        shown_s.append(await process.spawn(wall_s()))
    assert max(shown_s) - min(shown_s) > 5 * HOUR_S


def test_processes_whose_clocks_are_hours_apart_agree() -> None:
    play(clocks_apart, by=("header:x-user-id",))


async def edges_restart(scene: Scene) -> None:
    """Kill edges over and over; their successors of the same name begin at nothing."""
    for name in ("e0", "e1", "e0", "e0"):
        await asyncio.sleep(1.3)
        scene.fronts[name].process.kill()
        front = scene.front(name)
        await until(lambda front=front: front.is_up_for(NAME))


@seeds(3)
def test_edges_that_restart_count_nothing_twice(seed: int) -> None:
    play(edges_restart, seed=seed, by=("header:x-user-id",))


async def worker_dies(scene: Scene) -> None:
    for at_step in (1, 2):
        await until(lambda at_step=at_step: scene.step >= at_step, 60.0, 0.01)
        scene.fleet.named(f"w{at_step - 1}").kill()
        await asyncio.sleep(1.0)
        scene.fleet.worker(f"w{at_step - 1}", controller=None)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_worker_that_dies_at_a_step_rolls_nothing_back(seed: int) -> None:
    play(worker_dies, seed=seed)


async def edited(scene: Scene) -> None:
    for at_step in (0, 1, 2):
        await until(lambda at_step=at_step: scene.step >= at_step, 60.0, 0.1)
        scene.edit(deadline_ms=9000 + at_step)
        await asyncio.sleep(0.5)


def test_spec_that_is_edited_meanwhile_keeps_the_weights_and_goes_on() -> None:
    play(edited)


# Wishes that race with decisions.


def aborted_after(s: float) -> Trouble:
    async def trouble(scene: Scene) -> None:
        await asyncio.sleep(s)
        scene.wish("abort")

    return trouble


@pytest.mark.parametrize(
    "s", [HOLD_S + 0.6, *(pytest.param(0.7 * n, marks=pytest.mark.slow) for n in range(14))]
)
def test_abort_that_races_with_a_step_wins(s: float) -> None:
    play(aborted_after(s), "rolled_back", seed=int(10 * s))


async def aborted_at_a_write(scene: Scene) -> None:
    """Wish for the end just when a step has been decided, and is not yet written."""

    def at_write(state: EndpointState, is_done: bool) -> None:
        if not is_done and state.step == 2:
            scene.at_write = lambda state, is_done: None
            scene.wish("abort")

    scene.at_write = at_write


def test_abort_between_a_decision_and_its_write_wins() -> None:
    play(aborted_at_a_write, "rolled_back")


async def promoted_by_request(scene: Scene) -> None:
    await until(lambda: scene.step == 1, 60.0, 0.1)
    scene.wish("promote")


@pytest.mark.slow
def test_promotion_by_request_skips_the_steps() -> None:
    play(promoted_by_request)


async def paused_and_resumed(scene: Scene) -> None:
    await until(lambda: scene.step == 1, 60.0, 0.1)
    scene.wish("pause")
    await until(lambda: scene.phase == "paused", 10.0, 0.1)
    weights = scene.history[-1].state.weights
    await asyncio.sleep(2 * HOLD_S)
    assert (scene.phase, scene.step) == ("paused", 1)
    assert scene.history[-1].state.weights == weights
    scene.wish("run")


@pytest.mark.slow
def test_pause_keeps_the_weights() -> None:
    play(paused_and_resumed)


# All of it at once.


async def storm(scene: Scene) -> None:
    """Let things go wrong at random until the rollout has ended."""
    dice, fleet = scene.fleet.world.loop.dice, scene.fleet

    async def controller() -> None:
        name = dice.choice(("c1", "c2"))
        fleet.named(name).kill()
        await asyncio.sleep(dice.uniform(0.0, 3.0))
        fleet.controller(name)

    async def stop() -> None:
        process = fleet.named(dice.choice(("c1", "c2")))
        process.kill(signal.SIGSTOP)
        await asyncio.sleep(dice.uniform(0.5, 30.0))
        process.kill(signal.SIGCONT)

    async def edge() -> None:
        name = dice.choice(("e0", "e1"))
        scene.fronts[name].process.kill()
        scene.front(name)

    async def registry() -> None:
        fleet.store.is_away = True
        await asyncio.sleep(dice.uniform(0.5, 12.0))
        fleet.store.is_away = False

    async def clock() -> None:
        process = fleet.named(dice.choice(("c1", "c2", "e0", "e1")))
        process.wall_s = dice.choice((-1, 1)) * HOUR_S

    async def write() -> None:
        await killed_once(scene)

    async def worker() -> None:
        name = dice.choice(("w0", "w1"))
        fleet.named(name).kill()
        fleet.worker(name, controller=None)

    async def edit() -> None:
        scene.edit(deadline_ms=dice.randrange(5_000, 10_000))

    async def pause() -> None:
        with contextlib.suppress(RolloutRefused):  # it has just ended
            scene.wish("pause")
            await asyncio.sleep(dice.uniform(0.0, 5.0))
            scene.wish("run")

    async def cut() -> None:
        ends = (dice.choice(("c1", "c2")), dice.choice(("e0", "e1", "w0", "w1")))
        fleet.world.loop.network.cut(*map(fleet.named, ends))
        await asyncio.sleep(dice.uniform(0.5, 10.0))
        fleet.world.loop.network.heal()

    troubles = (controller, stop, edge, registry, clock, write, worker, edit, pause, cut)
    while scene.phase in ("", "running", "paused"):
        await asyncio.sleep(dice.expovariate(1 / 2.0))
        await dice.choice(troubles)()


async def killed_once(scene: Scene) -> None:
    """Kill whoever writes the next decision, before or after, if one is written soon."""
    is_written = scene.fleet.world.loop.dice.random() < 0.5
    killed: list[str] = []

    def at_write(state: EndpointState, is_done: bool) -> None:
        process = current()
        if is_done is is_written and not killed and process is not None:
            killed.append(process.name)
            kill_here()

    scene.at_write = at_write
    await asyncio.sleep(5.0)
    scene.at_write = lambda state, is_done: None
    if killed:
        scene.fleet.controller(killed[0])


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 16))]
)
def test_rollout_comes_to_its_right_end_whatever_happens(seed: int) -> None:
    is_bad = seed % 3 == 2
    play(
        storm,
        "rolled_back" if is_bad else "promoted",
        seed=seed,
        candidate=BAD if is_bad else COSTS,
        by=("header:x-user-id",) if seed % 2 else (),
        controllers=("c1", "c2"),
    )
