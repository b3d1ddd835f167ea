"""Plans as one worker sees them: found on the node or in the registry, tried out, loaded, refused.

Whatever must not or cannot be loaded is refused here, with its reason, and counted.  Which plans
are looked for, and what follows, is `upgrading`'s to decide.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
import structlog

from pool import building
from pool.building import Bench, BuildFailed
from pool.engines import gate
from pool.engines.choice import Option
from pool.engines.covering import covering
from pool.engines.local_caches import caches_of
from pool.load_guard import LoadGuard
from pool.loaded import CannotLoad, Loaded, load_session
from pool.phases import TURN, enter
from pool.wire.handshake import Secrets
from registry_sync.builds import is_batched
from registry_sync.client import (
    SyncError,
    fetch_plan_via,
    put_gate_via,
    put_plan_via,
    use_plan_via,
)
from registry_sync.documents import Manifest
from registry_sync.local_plans import LocalPlan, LocalPlans
from registry_sync.plans import BadPlan, GateRecord, signed_gate

_log = structlog.get_logger()


class Ready(msgspec.Struct, frozen=True):
    """A plan is here, its numbers agree, and it may be loaded."""

    plan: LocalPlan


class Missing(msgspec.Struct, frozen=True):
    """There is no plan, or only one that must be built anew; then `reason` says why."""

    reason: str = ""


class Refused(msgspec.Struct, frozen=True):
    """There is a plan, and this worker must not or cannot load it."""

    reason: str
    is_final: bool = False  # it will not get better on this device


class Unknown(msgspec.Struct, frozen=True):
    """The registry cannot be asked now."""

    reason: str


Found = Ready | Missing | Refused | Unknown


class PlanShelf:
    """The plans that one worker can reach.

    Args:
        plans: the node's.
        secrets: of the fleet; None: nobody could vouch for a plan, so that there are none.
        sync_socket: of the node's sync process.
        bench: for trying plans out.
        golden: returns the file with a version's recorded inputs, bringing it; None: there are
            none.
        guard: keeps the worker from dying of the same plan again and again.
        portable: loads a version as it is, for sizes that a plan was not built for; blocks.
    """

    def __init__(
        self,
        plans: LocalPlans,
        secrets: Secrets | None,
        sync_socket: str,
        bench: Bench,
        golden: Callable[[Manifest], Awaitable[Path | None]],
        guard: LoadGuard,
        portable: Callable[[Manifest, str], Loaded],
    ) -> None:
        self.plans = plans
        self.secrets = secrets
        self.bench = bench
        self.golden = golden
        self._guard = guard
        self._portable = portable
        self._sync_socket = sync_socket
        # The whole mutable state: how many plans were refused, whose use has been noted, and the
        # right to try one out.
        self.refused = 0
        self._noted: set[str] = set()
        self._trying = asyncio.Lock()

    def best_here(
        self, options: Sequence[Option], on_refused: Callable[[Option, str], None]
    ) -> Loaded | None:
        """Load the first option whose plan is on this node and may be; blocks.

        Nothing is asked, built or tried out: somebody waits for this.

        Args:
            on_refused: called for each that this device or library does not load.
        """
        for option in options:
            try:
                plan = self.plans.find(option.key, self._keys, option.spec.manifest.golden)
                if plan is not None and not self._why_not(option, plan):
                    return self.load(option, plan)
            except CannotLoad as error:
                self.refuse(option, str(error))
                on_refused(option, str(error))
            except (BadPlan, OSError) as error:
                self.refuse(option, str(error))
        return None

    def load(self, option: Option, plan: LocalPlan) -> Loaded:
        """Make a plan runnable; blocks.  Raises `CannotLoad`."""
        caches = caches_of(self.bench.data)
        manifest = option.spec.manifest
        # The portable engine may have the same name, and is not to blame for the plan.
        what = f"a plan of {option.engine.name}"
        enter(TURN)
        with self._guard.loading(manifest.model, manifest.version, what):
            session = load_session(
                lambda: option.engine.load_plan(option.spec, option.identity, plan.plan, caches)
            )
        datatypes = {spec.name: spec.datatype for spec in session.outputs}
        whole = covering(
            session,
            option.identity.profiles,
            lambda: self._portable(manifest, "auto").session,
            counts_rows=is_batched(manifest),
        )
        return Loaded(
            manifest, manifest.digest, whole, option.engine.name, datatypes, option.identity
        )

    @property
    def _keys(self) -> dict[str, bytes]:
        """The fleet's secrets of this moment, by id."""
        return {} if self.secrets is None else self.secrets.keys

    async def get(self, option: Option, *, ask: bool) -> Found:
        """Find the plan of an option, and have it tried out if nobody has done so.

        Args:
            ask: the registry as well, which costs calls.
        """
        try:
            plan = await self._find(option, ask=ask)
        except BadPlan as error:
            self.refuse(option, str(error))
            return Missing(f"the plan that was there must not be used: {error}")
        except SyncError as error:
            return Unknown(str(error))
        except OSError as error:
            return Unknown(f"this node's plans cannot be read: {error.strerror or error}")
        if plan is None:
            return Missing()
        if plan.gate.verdict == "not_run":
            try:
                plan = await self._tried(option, plan)
            except BuildFailed as error:
                self.refuse(option, str(error))
                return Refused(str(error))
            except SyncError as error:
                return Unknown(f"the golden inputs cannot be had: {error}")
            except (BadPlan, OSError) as error:
                return Unknown(f"the plan has left this node: {error}")
        why = self._why_not(option, plan)
        if why:
            self.refuse(option, why)
            return Refused(why, is_final=True)
        return Ready(plan)

    async def is_in_registry(self, option: Option) -> bool:
        """Tell whether a plan lies in the registry that this fleet vouches for.

        It then is on this node as well.  A registry that cannot be asked has none.
        """
        try:
            found = await fetch_plan_via(self._sync_socket, option.key, tuple(self._keys))
            return found is not None and await self._find_here(option) is not None
        except BadPlan as error:
            self.refuse(option, str(error))
        except (SyncError, OSError) as error:
            _log.info("registry_not_asked", key=option.key, error=str(error))
        return False

    async def put(self, key: str, secret_id: str) -> bool:
        """Put this node's plan into the registry; see `put_plan_via`."""
        return await put_plan_via(self._sync_socket, key, secret_id)

    async def note_use(self, loaded: Loaded) -> None:
        """Have it noted that a plan is in use, and that it is in the registry, once a process.

        Its builder may have died, or the registry been out of reach, before it could be put there.
        """
        identity = loaded.identity
        if identity is None or identity.key in self._noted:
            return
        key = identity.key
        self._noted.add(key)
        try:
            await use_plan_via(self._sync_socket, key)
            for secret_id in self._keys:
                with contextlib.suppress(BadPlan):
                    await self.put(key, secret_id)
        except SyncError as error:
            self._noted.discard(key)
            _log.info("plan_use_not_noted", key=key, error=str(error))

    def refuse(self, option: Option, reason: str) -> None:
        """Count a plan that must not or cannot be loaded here."""
        self.refused += 1
        manifest = option.spec.manifest
        _log.warning(
            "plan_refused",
            key=option.key,
            model=manifest.model,
            version=manifest.version,
            engine=option.engine.name,
            device_class=option.spec.device_class,
            reason=reason,
        )

    async def _find(self, option: Option, *, ask: bool) -> LocalPlan | None:
        bad: BadPlan | None = None
        plan: LocalPlan | None = None
        try:
            plan = await self._find_here(option)
        except BadPlan as error:
            bad = error
        # The registry may also have the verdict of a plan that is here.
        if ask and (plan is None or plan.gate.verdict == "not_run"):
            try:
                found = await fetch_plan_via(self._sync_socket, option.key, tuple(self._keys))
            except SyncError:
                if plan is None and bad is None:
                    raise
                found = None
            except BadPlan:
                if plan is None:
                    raise
                found = None
            if found is not None:
                if bad is not None:
                    self.refuse(option, str(bad))
                return await self._find_here(option)
        if plan is None and bad is not None:
            raise bad
        return plan

    async def _find_here(self, option: Option) -> LocalPlan | None:
        golden = option.spec.manifest.golden
        return await asyncio.to_thread(self.plans.find, option.key, self._keys, golden)

    async def _tried(self, option: Option, plan: LocalPlan) -> LocalPlan:
        """Return the plan with its verdict; the registry is told of one on drawn inputs."""
        async with self._trying:
            again = await self._find_here(option)  # another slot may have done it meanwhile
            if again is None:
                raise BadPlan("evicted")
            if again.gate.verdict != "not_run":
                return again
            golden = await self.golden(option.spec.manifest)
            report = await building.try_out(self.bench, option, again, golden)
            secret_key = self._keys.get(again.secret_id)
            if secret_key is None:
                raise BadPlan("the secret that vouches for it has been retired")
            record = signed_gate(
                GateRecord(key=option.key, plan_sha256=again.meta.plan_sha256, report=report),
                secret_key,
            )
            await asyncio.to_thread(self.plans.put_gate, option.key, again.secret_id, record)
        if not report.golden:
            with contextlib.suppress(SyncError, BadPlan):
                await put_gate_via(self._sync_socket, option.key, again.secret_id)
        _log.info("plan_tried_out", key=option.key, verdict=report.verdict, reason=report.reason)
        return LocalPlan(again.key, again.secret_id, again.meta, again.plan, report)

    def _why_not(self, option: Option, plan: LocalPlan) -> str:
        manifest = option.spec.manifest
        return gate.why_not(plan.gate, gate.limits_of(manifest.gate, option.identity.precision))
