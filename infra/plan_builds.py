"""Building plans by a command: right here, in a builder process, and into the registry.

What is built is what a worker of the device class would ask for: the endpoints that name the
version have their say in it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from infra.stack import CannotStart, Node
from pool import building
from pool.building import Bench, BuildFailed
from pool.engines import choice
from pool.engines.base import CannotBuild, EngineError, PlanEngine, Probe
from pool.engines.choice import Option
from pool.engines.registry import find_plan_engines
from pool.wanted import wanted, wanted_of
from pool.wire.fleet_secret import VARIABLE, load_secrets
from pool.wire.handshake import Secrets
from registry_sync import catalog, endpoints
from registry_sync.builds import Wanted
from registry_sync.documents import BadDocument, Manifest
from registry_sync.local import LocalStore
from registry_sync.local_plans import BYTES_MAX_DEFAULT, LocalPlan, LocalPlans
from registry_sync.plan_store import bring_plan, put_plan
from registry_sync.plans import BadPlan, PlanMeta
from registry_sync.stores import NotFound, Store, StoreError
from registry_sync.sync import FetchError, fetch, fetch_golden, golden_path
from registry_sync.trust import Trust

# `built`: here, and it lies in the registry.  `there`: nothing had to be built.  `overtaken`: it
# was built here, but another builder's was in the registry first.
State = Literal["built", "there", "overtaken"]


@dataclass(frozen=True, slots=True)
class Made:
    """A plan that is in the registry now."""

    state: State
    option: Option
    plan: LocalPlan


class NotMade(Exception):
    """There is no plan; the text says why."""


def fleet_secrets(data: Path) -> Secrets:
    """Return the secrets under which plans are signed.

    Raises:
        CannotStart: this node has none.
        ValueError: it has one that does not fit.
    """
    found = load_secrets(data)
    if found is None:
        raise CannotStart(
            "a plan is signed with the fleet's secret, else nobody loads it, and there is none "
            f"here: set {VARIABLE}, or name a node's folder with --data"
        )
    return found


class Workshop:
    """This node as a place to build.

    Args:
        store: the registry.
        node: whose folders are used; a stack may be running on it.
        secrets: of the fleet.
    """

    def __init__(self, store: Store, node: Node, secrets: Secrets) -> None:
        stack = node.read_stack()
        bytes_max = BYTES_MAX_DEFAULT if stack is None else stack.plans_bytes_max
        self._store = store
        trust = Trust("" if stack is None else stack.require_signed)
        self._local = LocalStore(node.data / "store", trust)
        self._plans = LocalPlans(node.data / "store" / "engines", bytes_max)
        self._secrets = secrets
        self._keys = secrets.keys
        # Somebody waits for it: only what serves goes before.
        gives_way = stack is not None
        self._bench = Bench(data=node.data, gives_way=gives_way, log_level="warning")
        self._engines: tuple[PlanEngine, ...] = find_plan_engines((), self._bench.device)
        self._probes: Mapping[str, Probe] = {one.name: one.probe() for one in self._engines}

    def bring(self, model: str, version: str) -> Manifest:
        """Bring a version's files to this node.

        Raises:
            ValueError: there is no such version.
            FetchError, StoreError: see there.
        """
        try:
            return fetch(self._store, self._local, model, version)
        except NotFound as error:
            if error.key == catalog.manifest_key(model, version):
                raise ValueError(f"{model} version {version} is not published") from None
            raise

    def option(self, manifest: Manifest, device_class: str, engine: str) -> Option:
        """Return what is to be built for a device class.

        Args:
            engine: that is to build; empty: the first that can.

        Raises:
            CannotBuild: nothing here builds it.
        """
        folder = self._local.folder_of(manifest)
        spec = choice.spec_of(manifest, folder, wanted_here(self._store, manifest), device_class)
        return choice.option_for(self._engines, self._probes, spec, engine)

    def find(self, option: Option) -> LocalPlan | None:
        """Bring the plan from the registry, if it has one that may be loaded."""
        with contextlib.suppress(BadPlan):
            if bring_plan(self._store, self._plans, option.key, tuple(self._keys)) is not None:
                return self._plans.find(option.key, self._keys, option.spec.manifest.golden)
        return None

    def build(self, option: Option) -> PlanMeta:
        """Build the plan into this node's folder.

        Raises:
            BuildFailed: see there.
        """
        secret = self._secrets.current
        fetch_golden(self._store, self._local, option.spec.manifest)
        golden = golden_path(self._local, option.spec.manifest)
        return asyncio.run(building.build(self._bench, option, self._plans, secret, golden))

    def put(self, option: Option) -> Made:
        """Put what was built here into the registry, unless another is there.

        Raises:
            BadPlan: it has left this node.
            StoreError: see there.
        """
        day = datetime.now(UTC).date().isoformat()
        secret = self._secrets.current
        is_ours = put_plan(self._store, self._plans, option.key, secret.id, day)
        plan = self._plans.find(option.key, self._keys, option.spec.manifest.golden)
        if plan is None:
            raise BadPlan("it has left this node")
        return Made("built" if is_ours else "overtaken", option, plan)


def make(
    workshop: Workshop,
    manifest: Manifest,
    device_class: str,
    engine: str,
    act: Callable[[Callable[[], Made]], Made] = lambda put: put(),
) -> Made:
    """See that the registry has a plan, building it here if need be.

    Args:
        engine: that is to build; empty: the first that can.
        act: carries out what changes the registry.

    Raises:
        NotMade: see there.
    """
    try:
        option = workshop.option(manifest, device_class, engine)
        found = workshop.find(option)
        if found is not None:
            return Made("there", option, found)
        workshop.build(option)
        return act(lambda: workshop.put(option))
    except (CannotBuild, BuildFailed, BadPlan, EngineError) as error:
        raise NotMade(str(error)) from None
    except (StoreError, FetchError, OSError) as error:
        raise NotMade(f"{error}; what was built here is kept: try again") from error


def wanted_here(store: Store, manifest: Manifest) -> Wanted:
    """Return what the endpoints that name a version want of its engine, or else its manifest."""
    ref = (manifest.model, manifest.version)
    specs = []
    for name in endpoints.names(store):
        with contextlib.suppress(NotFound, BadDocument):
            spec, _ = endpoints.get_spec(store, name)
            if any((variant.model, variant.version) == ref for variant in spec.variants):
                specs.append(spec)
    return wanted(specs, {ref: manifest}).get(ref) or wanted_of(manifest)
