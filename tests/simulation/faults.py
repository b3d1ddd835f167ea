"""Carries out what a seed lets go wrong, and puts it right again."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from registry_sync import endpoints
from tests.simulation.fleet import Fleet
from tests.simulation.options import Fault, Options
from tests.simulation.processes import Process

HOUR_S: Final = 3600.0
SLOW_DELAY_S: Final = (0.005, 0.06)
SLOW_ANSWER_S: Final = (0.5, 2.0)


class Faults:
    """What goes wrong in a fleet, by the names of its processes."""

    def __init__(self, options: Options, fleet: Fleet) -> None:
        self._options = options
        self._fleet = fleet
        self._world = fleet.world
        self.stopped_s: dict[Process, list[tuple[float, float]]] = {}  # from when to when
        self.periods: list[tuple[str, float, float]] = []  # of what went wrong, and until when

    async def run(self) -> None:
        """Let everything go wrong at its time, and put it right after the last."""
        began_s = self._world.now_s
        tasks = []
        for fault in self._options.faults:
            await asyncio.sleep(began_s + fault.at_s - self._world.now_s)
            tasks.append(self._world.go(self._during(fault)))
        await asyncio.sleep(began_s + self._options.length_s - self._world.now_s)
        for task in tasks:
            if not task.done():
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._world.loop.network.heal()

    def is_calm(self, from_s: float, until_s: float, *kinds: str) -> bool:
        """Tell whether nothing that is named so went wrong meanwhile; without names: nothing."""
        return not any(
            begin_s <= until_s and end_s >= from_s
            for kind, begin_s, end_s in self.periods
            if not kinds or kind.startswith(kinds)
        )

    async def _during(self, fault: Fault) -> None:
        began_s = self._world.now_s
        try:
            await self._carry_out(fault)
        finally:
            self.periods.append((fault.kind, began_s, self._world.now_s))

    async def _carry_out(self, fault: Fault) -> None:
        what, _, whom = fault.kind.partition("_")
        match what:
            case "kill" | "end":
                process = self._one(whom, fault.which)
                if process is not None:
                    process.kill(signal.SIGKILL if what == "kill" else signal.SIGTERM)
            case "stop":
                await self._stop(self._one(whom, fault.which), fault.for_s)
            case "cut":
                await self._cut(whom, fault)
            case "reset":
                edge, worker = self._one("edge", fault.which), self._one("worker", fault.which)
                if edge is not None and worker is not None:
                    self._world.loop.network.reset(edge, worker)
            case "registry":
                await self._registry(whom, fault)
            case "slow":
                await self._slow(fault.for_s)
            case "clock":
                await self._clock(whom, fault)
            case "change":
                self._change_scale(fault.which)
            case _:
                raise AssertionError(f"nobody knows how to carry out {fault}")

    def _names(self, whom: str) -> Sequence[str]:
        options = self._options
        match whom:
            case "controller":
                return [f"c{at}" for at in range(options.controllers)]
            case "edge":
                return [f"e{at}" for at in range(options.edges)]
            case "sync":
                return options.syncs
        return options.workers

    def _one(self, whom: str, which: int) -> Process | None:
        names = self._names(whom)
        processes = self._world.loop.processes.values()
        living = [p for p in processes if p.state == "running" and p.name in names]
        return living[which % len(living)] if living else None

    async def _stop(self, process: Process | None, for_s: float) -> None:
        if process is None:
            return
        stopped_s = self._world.now_s
        process.kill(signal.SIGSTOP)
        try:
            await asyncio.sleep(for_s)
        finally:
            process.kill(signal.SIGCONT)
            self.stopped_s.setdefault(process, []).append((stopped_s, self._world.now_s))

    async def _cut(self, whom: str, fault: Fault) -> None:
        """Cut an edge off from a worker, or a controller from one of both, or from everybody."""
        network, which = self._world.loop.network, fault.which
        if whom == "controller":
            one, others = self._one(whom, which), list(self._world.loop.processes.values())
        elif whom == "worker":
            one, others = self._one(whom, which), [self._one("edge", which)]
        else:
            other = self._one(("edge", "worker")[which % 2], which)
            one, others = self._one("controller", which), [other]
        for other in others:
            if one is not None and other is not None:
                network.cut(one, other)
        await asyncio.sleep(fault.for_s)
        network.heal()

    async def _registry(self, how: str, fault: Fault) -> None:
        store = self._fleet.store
        one = self._one("controller", fault.which)
        names = {one.name} if how == "gone_for_one" and one is not None else set()
        before_s = store.answer_s
        try:
            if how == "slow":
                store.answer_s = SLOW_ANSWER_S
            elif names:
                store.away_for |= names
            else:
                store.is_away = True
            await asyncio.sleep(fault.for_s)
        finally:
            store.answer_s, store.is_away = before_s, False
            store.away_for -= names

    async def _slow(self, for_s: float) -> None:
        network = self._world.loop.network
        network.delay_s = SLOW_DELAY_S
        try:
            await asyncio.sleep(for_s)
        finally:
            network.delay_s = self._options.delay_s

    async def _clock(self, how: str, fault: Fault) -> None:
        step_s = HOUR_S * (fault.which - 2.5)
        if how == "steps":
            self._world.step_wall_clock(step_s)
            return
        for whom in ("controller", "edge", "worker"):
            process = self._one(whom, fault.which)
            if process is not None:
                process.wall_s = step_s

    def _change_scale(self, which: int) -> None:
        model = self._options.models[which % len(self._options.models)]
        store = self._fleet.store.behind
        spec, _ = endpoints.get_spec(store, model.name)
        most = spec.scale.replicas_max % 2 + 1
        least = min(model.replicas_min, most)
        scale = replace(spec.scale, replicas_min=least, replicas_max=most)
        endpoints.set_spec(store, replace(spec, scale=scale))
