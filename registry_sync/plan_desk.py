"""What a sync process does when it is asked about plans; blocking, for its threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime

import structlog

from registry_sync import plan_store
from registry_sync.local_plans import LocalPlans
from registry_sync.messages import FetchPlan, PutGate, PutPlan, Reply, UsePlan
from registry_sync.plans import BadPlan
from registry_sync.stores import Store

_MARKED_MAX = 10_000  # keys remembered as marked today; a node that loads more asks again

_log = structlog.get_logger()

PlanRequest = FetchPlan | PutPlan | PutGate | UsePlan


class PlanDesk:
    """Carries requests about plans out, between one registry and one local folder."""

    def __init__(
        self, registry: Callable[[], Store], local: LocalPlans, stop: threading.Event
    ) -> None:
        self._registry = registry
        self._local = local
        self._stop = stop
        # The whole mutable state: the keys that were marked as used, and on which day.
        self._marked: set[str] = set()
        self._marked_day = ""

    def answer(self, request: PlanRequest) -> Reply:
        """Do what is asked; safe to call from several threads.

        Raises:
            BadName, FetchError, StoreError, OSError: as `plan_store`'s functions.
        """
        try:
            match request:
                case FetchPlan(key, secret_ids):
                    found = plan_store.bring_plan(
                        self._registry(), self._local, key, secret_ids, self._stop
                    )
                    return Reply(ok=True, secret_id=found or "")
                case PutPlan(key, secret_id):
                    is_ours = plan_store.put_plan(
                        self._registry(), self._local, key, secret_id, _today(), stop=self._stop
                    )
                    _log.info("plan put", key=key, secret_id=secret_id, is_ours=is_ours)
                    return Reply(ok=True, is_ours=is_ours)
                case PutGate(key, secret_id):
                    plan_store.put_gate(self._registry(), self._local, key, secret_id)
                case UsePlan(key):
                    self._mark(key)
        except BadPlan as error:
            _log.warning("plan refused", key=request.key, error=str(error))
            return Reply(ok=False, error=str(error), is_bad_plan=True)
        return Reply(ok=True)

    def _mark(self, key: str) -> None:
        day = _today()
        if day != self._marked_day or len(self._marked) >= _MARKED_MAX:
            self._marked, self._marked_day = set(), day
        if key not in self._marked:
            plan_store.mark_used(self._registry(), key, day)
            self._marked.add(key)


def _today() -> str:
    return datetime.now(UTC).date().isoformat()
