"""Puts together what a worker needs to look for better engines."""

from __future__ import annotations

from pathlib import Path

from pool.building import Bench
from pool.config import WorkerConfig
from pool.engines.base import PlanEngine
from pool.engines.probes import Devices
from pool.loading import Loader
from pool.plan_shelf import PlanShelf
from pool.upgrading import Upgrades
from pool.wire.handshake import Secrets
from pool.wire.link import ControlLink
from registry_sync.local_plans import LocalPlans


def make_upgrades(
    config: WorkerConfig,
    secrets: Secrets | None,
    plan_engines: tuple[PlanEngine, ...],
    loader: Loader,
    link: ControlLink,
) -> Upgrades:
    """Put together what a worker needs to look for better engines."""
    data = Path(config.data)
    bench = Bench(
        data=data,
        engines=config.engines,
        device=config.device,
        threads=config.threads,
        log_level=config.log_level,
    )
    plans = LocalPlans(data / "store" / "engines", config.plans_bytes_max)
    shelf = PlanShelf(
        plans,
        secrets,
        config.sync_socket,
        bench,
        loader.golden,
        loader.guard,
        loader.portable,
    )
    return Upgrades(
        Devices.of(plan_engines),
        shelf,
        loader.local,
        bring=loader.bring,
        portable=loader.portable,
        send=link.send,
        is_linked=lambda: link.is_up,
        alone_s=config.build_alone_s,
    )
