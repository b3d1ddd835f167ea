"""Whole fleets in virtual time: what calls see while processes stop, die, or cannot be reached."""

from __future__ import annotations

import asyncio

from tests.simulation.engine import Costs, ledger
from tests.simulation.fleet import fleet_of
from tests.simulation.world import World, simulate


def test_cold_endpoint_is_woken_by_its_calls_once() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("m", Costs(load_s=2.0), idle_s=5)
            fleet.controller()
            fleet.sync("n1")
            fleet.worker("w1")
            fleet.worker("w2")
            edges = [fleet.edge("e1"), fleet.edge("e2")]
            await fleet.ready(*edges, workers=2)
            tasks = [edge.ask("m") for edge in edges for _ in range(50)]
            done = await asyncio.gather(*tasks)
            assert {one.status for one in done} == {200}
            assert len(ledger.loads) == 1
            assert max(one.wait_s for one in done) < 3.0
            fleet.check()

    simulate(main)
