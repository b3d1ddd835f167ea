"""Shadow traffic in whole fleets: a candidate that fails its copies, and workers that end."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from infra.client import ask
from pool.shadow import KEPT_MAX
from pool.wire.control import Answer
from registry_sync import rollout_orders
from registry_sync.rollout_terms import Shadow
from tests.simulation.engine import ledger
from tests.simulation.fleet import fleet_of
from tests.simulation.rollouts import COSTS, GUARD, NAME, Scene
from tests.simulation.world import World, simulate, until

RARE = 1e-6  # percent: the candidate has weight, so that the rollout goes on, and no caller


def begin(scene: Scene) -> None:
    """Wish for a rollout whose candidate gets copies alone."""
    rollout_orders.start(
        scene.fleet.store.behind,
        NAME,
        "2",
        steps=(RARE,),
        hold_s=3600.0,
        guard=GUARD,
        shadow=Shadow(1.0, 1000.0),
    )


async def shadow_of(scene: Scene) -> dict[str, Any]:
    """Return what the controller knows of the copies."""
    front = next(iter(scene.fronts.values()))
    folder = scene.fleet.folder / "asks"
    answer: Answer = await front.in_process(ask(scene.fleet.control(), folder, "rollout", NAME))
    assert answer.ok, answer.detail
    found: dict[str, Any] = msgspec.json.decode(answer.data)["shadow"] or {}
    return found


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))]
)
def test_copies_fail_and_workers_end_and_no_caller_notices(seed: int) -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            scene = Scene(fleet)
            scene.publish(COSTS, replace(COSTS, fails_each=5))
            await scene.up(("c1",))
            begin(scene)
            await until(lambda: scene.step == 1, 60.0, 0.1)
            await asyncio.sleep(5.0)
            before = await shadow_of(scene)
            fleet.named("w0").kill()
            fleet.worker("w0", controller=None)
            await asyncio.sleep(5.0)
            drained = fleet.named("w1")
            drained.kill(signal.SIGTERM)
            await until(lambda: drained.state == "dead", 30.0)
            fleet.worker("w1", controller=None)
            await asyncio.sleep(10.0)
            scene.traffic.cancel()
            await until(scene._is_quiet, 30.0)
            await asyncio.sleep(3.0)
            found = await shadow_of(scene)
            assert {told.status for told in scene.told} == {200}
            ended = found["dropped"] + found["failed"] + found["compared"]
            # Those that were waiting or under way at the worker that was killed have no end.
            assert 0 <= found["offered"] - ended <= KEPT_MAX
            assert found["compared"] > before["compared"] > 20
            assert found["failed"] > before["failed"] > 5
            assert (found["unlike"], found["error_max"]) == (0, 0.0)
            times = Counter(value for run in ledger.runs for value in run.values)
            assert max(times.values()) <= 3  # by both, and again where a worker was killed

    simulate(main, seed=seed)
