"""What lies behind the memory: answers on disk, and answers that are a little too old.

A miss of the memory that leads its flight looks on disk first, for 20 ms at most and without a
worker, and only then is computed.  Where the endpoint's spec allows it, an answer that is no longer
fresh is served at once while one computation renews it (stale-while-revalidate), or instead of a
failure (stale-if-error).  Keys hold tenant, artifact and purge, so none of this crosses them.

Source: RFC 5861.  Its "error" is a 500, 502, 503 or 504, so a model's own 500 is covered as well;
it counts against the variant all the same, or a guard would not see a model that began to fail.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from edge import disk_frame
from edge.cache import AnswerCache
from edge.disk import Disk, stamp
from edge.disk_frame import Found
from edge.dispatching.calls import Answer, Call
from edge.errors import DeadlineExceeded, ModelFailed, Refusal, Unavailable, WorkerLost
from edge.flight import Flights, Run
from edge.snapshot import Endpoint
from pool.wire.data import TensorLike

TRUST_S = 10.0  # without a controller for so long, what was last known holds, as everywhere
REVALIDATIONS_MAX = 64  # under way at once; beyond them a stale answer stays one for longer

Kept = Sequence[TensorLike]
Lead = Callable[[], Call]
Refresh = Callable[[float], Lead]
"""From a deadline to what begins a computation of nobody's: one with a trace of its own."""

_COVERED = {ModelFailed.status, WorkerLost.status, Unavailable.status, DeadlineExceeded.status}


class Older(Answer, frozen=True, gc=False):
    """An answer that was not computed for who gets it."""

    left_s: float  # of its freshness; negative once it is stale
    detail: str
    covers_failure: bool = False  # of the model

    @property
    def cache_status(self) -> str:
        """The header's value, see RFC 9211."""
        return f"tidepool; hit; ttl={math.floor(self.left_s)}; detail={self.detail}"


@dataclass(slots=True)
class LevelCounters:
    """What became of stale answers since the process began."""

    stale: int = 0  # served while they are renewed
    stale_if_error: int = 0
    renewed: int = 0
    not_renewed: int = 0  # the computation failed
    put_off: int = 0  # too many under way


class Levels:
    """The way on from a miss of the memory."""

    def __init__(
        self,
        cache: AnswerCache[Kept],
        flights: Flights[Answer],
        disk: Disk | None,
        now: Callable[[], float],
        has_heard: Callable[[], bool],
    ) -> None:
        """Prepare.

        Args:
            cache: the memory.
            flights: of this process.
            disk: None: no answers on disk.
            now: the clock of `cache`.
            has_heard: whether a controller has told what holds now.  The disk outlives the
                process: until then it may know answers that were purged while no edge lived.
        """
        self.counters = LevelCounters()
        self.disk = disk
        self._cache = cache
        self._flights = flights
        self._now = now
        self._has_heard = has_heard
        self._trusts_s = now() + TRUST_S
        # The whole mutable state: the renewals under way, and whether new ones may begin.
        self._renewals: dict[bytes, asyncio.Task[None]] = {}
        self._is_draining = False

    def drain(self) -> None:
        """Begin no renewal any more: nobody waits for one, and the process is about to end."""
        self._is_draining = True

    async def answer(
        self,
        key: bytes,
        tenant: str,
        endpoint: Endpoint,
        deadline_s: float,
        lead: Lead,
        refresh: Refresh,
    ) -> Answer:
        """Return the answer to `key`, which the memory has not, or not fresh.

        Args:
            key: from `cache.cache_key`.
            tenant: whose it is.
            endpoint: says what is allowed.
            deadline_s: of this caller.
            lead: begins the computation if this caller leads.
            refresh: the same for a renewal.

        Returns:
            An `Older` one, or what was computed, maybe for somebody else.

        Raises:
            Refusal: as `flights.run`, and no stale answer may be given instead.
        """
        stale = self._stale(key, endpoint.stale_while_revalidate_s, "stale")
        if stale is None:
            try:
                answer = await self._flights.run(
                    key, deadline_s, lambda: self._look(key, tenant, endpoint, lead)
                )
            except Refusal as refusal:
                if refusal.status not in _COVERED:
                    raise
                stale = self._stale(key, endpoint.stale_if_error_s, "stale-if-error")
                if stale is None:
                    raise
                self.counters.stale_if_error += 1
                return replace(stale, covers_failure=isinstance(refusal, ModelFailed))
            if not (isinstance(answer, Older) and answer.left_s <= 0):
                return answer
            stale = answer  # from the disk
        self.counters.stale += 1
        self._renew(key, endpoint, refresh)
        return stale

    def keep(
        self, key: bytes, tenant: str, endpoint: Endpoint, outputs: Kept, size_bytes: int
    ) -> None:
        """Keep on disk what was just computed for an endpoint that wants it."""
        if self.disk is not None:
            ttl_s = endpoint.cache_ttl_s
            self.disk.keep(
                *(key, tenant, outputs, size_bytes),
                ttl_s=ttl_s,
                keep_s=ttl_s + endpoint.stale_s,
            )

    def _stale(self, key: bytes, window_s: float, detail: str) -> Older | None:
        if window_s <= 0:
            return None
        now_s = self._now()
        found = self._cache.find_stale(key, now_s)
        if found is None or now_s - found[1] > window_s:
            return None
        return Older(found[0], 0, 0, 0, found[1] - now_s, detail)

    def _look(self, key: bytes, tenant: str, endpoint: Endpoint, lead: Lead) -> Run[Answer]:
        if not endpoint.cache_disk or self.disk is None:
            return lead()
        if not self._has_heard() and self._now() < self._trusts_s:
            return lead()
        looking = self.disk.look(key, tenant)
        if looking is None:
            return lead()
        return _Look(looking, lambda found: self._take(key, endpoint, found), lead)

    def _take(self, key: bytes, endpoint: Endpoint, found: Found) -> Older | None:
        """Move an answer from the disk to the memory; return it if it may be served at once."""
        age_s = disk_frame.age_s(found.stored, stamp())
        if age_s is None:
            return None
        # The shorter of what held when it was stored and what holds now.
        left_s = min(found.ttl_s, endpoint.cache_ttl_s) - age_s
        now_s = self._now()
        self._cache.put(key, found.outputs, found.frame_bytes, now_s, left_s, endpoint.stale_s)
        if left_s > 0:
            return Older(found.outputs, 0, 0, 0, left_s, "disk")
        if -left_s <= endpoint.stale_while_revalidate_s:
            return Older(found.outputs, 0, 0, 0, left_s, "stale")
        return None

    def _renew(self, key: bytes, endpoint: Endpoint, refresh: Refresh) -> None:
        if self._is_draining or key in self._renewals or key in self._flights:
            return
        if len(self._renewals) >= REVALIDATIONS_MAX:
            self.counters.put_off += 1
            return
        deadline_s = self._now() + endpoint.deadline_s
        task = asyncio.get_running_loop().create_task(
            self._renewed(key, deadline_s, refresh(deadline_s))
        )
        self._renewals[key] = task
        task.add_done_callback(lambda _: self._renewals.pop(key, None))

    async def _renewed(self, key: bytes, deadline_s: float, lead: Lead) -> None:
        try:
            await self._flights.run(key, deadline_s, lead)
            self.counters.renewed += 1
        except Refusal:  # the stale answer stays; the next that asks for it tries again
            self.counters.not_renewed += 1


class _Look:
    """A look on disk, and the computation if that finds nothing: one run of a flight."""

    def __init__(
        self,
        looking: asyncio.Future[Found | None],
        take: Callable[[Found], Older | None],
        lead: Lead,
    ) -> None:
        self.future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._take = take
        self._lead = lead
        # The whole mutable state: the computation, once the disk is known not to have it.
        self._run: Run[Answer] | None = None
        looking.add_done_callback(self._looked)

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        if self._run is not None:
            self._run.cancel()
        if not self.future.done():
            self.future.cancel()

    def _looked(self, looking: asyncio.Future[Found | None]) -> None:
        if self.future.done():
            return
        try:
            found = looking.result()
            answer = None if found is None else self._take(found)
            if answer is not None:
                self.future.set_result(answer)
                return
            self._run = self._lead()
        except Exception as error:
            # Nobody else would tell those who wait.
            self.future.set_exception(error)
            return
        self._run.future.add_done_callback(self._computed)

    def _computed(self, computed: asyncio.Future[Answer]) -> None:
        if self.future.done():
            return
        if computed.cancelled():
            self.future.cancel()
        elif (error := computed.exception()) is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(computed.result())
