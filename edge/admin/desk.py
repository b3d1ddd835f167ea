"""The admin port's way to the registry: in a few threads of its own, within a time.

Owns the store, which is opened by the first request that needs it, or before the first call where
opening it would hold up calls.  Documents are written by compare-and-swap from here, with no
controller; then the controller is asked to look.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Generic, TypeVar

import msgspec
import structlog

from edge.admin.problems import NO_ACCESS, Problem, of_error
from edge.errors import retry_headers
from pool.wire.control import Answer
from registry_sync import audit
from registry_sync.open import open_existing
from registry_sync.scale_advice import Fleet, fleet_of
from registry_sync.stores import Store, StoreError

THREADS = 8
WAITING_MAX = 64  # under way or waiting for a thread
WORK_S_MAX = 30.0
PREPARE_S_MAX = 2.0

T = TypeVar("T")
Moved = Callable[[T], tuple[str, str]]
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Changed(Generic[T]):
    """A change that was made."""

    result: T
    pending: str  # why not every edge goes by it yet; empty: all do
    is_recorded: bool  # in the audit trail


class _Poked(msgspec.Struct):
    """What a controller answers; a former release's has no `rejected`."""

    rejected: dict[str, str] = {}


_poked_of = msgspec.json.Decoder(_Poked)


class Desk:
    """Work on one registry.

    Args:
        url: of the registry; empty: this edge was told none.
        ask: asks the controller; raises ConnectionError if there is none.
    """

    def __init__(self, url: str, ask: Callable[[str], Awaitable[Answer]]) -> None:
        self._url = url
        self._ask = ask
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="admin")
        self._opening = threading.Lock()
        # The whole mutable state: the store, how much is under way, and records that got lost.
        self._store: Store | None = None
        self._under_way = 0
        self._notes: set[asyncio.Task[None]] = set()
        self.records_lost = 0

    async def prepare(self) -> None:
        """Open a store in S3 before there are calls.

        boto3 holds the interpreter for a third of a second while it is imported and reads its
        descriptions of AWS; later that would be in the way of calls.  A directory needs none of it.
        """
        if self._url.startswith("s3://"):
            # What is wrong with it is said to whoever asks for it; credentials may take seconds.
            with contextlib.suppress(StoreError, TimeoutError):
                async with asyncio.timeout(PREPARE_S_MAX):
                    await asyncio.to_thread(self._open)

    async def read(self, work: Callable[[Store], T]) -> T:
        """Run `work` on the registry and return its result.

        Raises:
            Problem: for whatever `registry_sync` raises, or because it took too long.
        """
        if not self._url:
            raise Problem(
                503, "registry-unusable", f"this edge was started without --registry; {NO_ACCESS}"
            )
        if self._under_way >= WAITING_MAX:
            raise Problem(
                *(503, "busy", f"{WAITING_MAX} admin requests are under way"), retry_headers(1.0)
            )
        future = self._submit(work)
        try:
            async with asyncio.timeout(WORK_S_MAX):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            what = f"the registry did not answer within {WORK_S_MAX:.0f} s"
            if future.cancelled():
                raise Problem(503, "busy", f"{what}; nothing was changed") from None
            raise Problem(
                503, "outcome-unknown", f"{what}; a change may still be made: read again"
            ) from None
        except Exception as error:
            problem = of_error(error)
            if problem is None:
                raise  # a bug
            raise problem from error

    async def change(
        self,
        actor: audit.Actor,
        what: str,
        target: str,
        act: Callable[[Store], T],
        moved: Moved[T] = lambda _: ("", ""),
    ) -> Changed[T]:
        """Make a change, record it, and let every edge take it over.

        Once begun it is carried out and recorded, also if whoever asked has left.

        Args:
            actor: who does it, and why.
            what: see `audit.Record`.
            target: see `audit.Record`.
            act: makes the change.
            moved: see `audit.carry_out`.

        Raises:
            Problem: as `read`.
        """
        done = await self.read(
            lambda store: audit.carry_out(store, actor, what, target, lambda: act(store), moved)
        )
        if done.lost is not None:
            self._say_lost(done.lost.error, msgspec.to_builtins(done.lost.record))
        document = f"endpoints/{target}.json" if what.startswith("endpoint.") else ""
        return Changed(done.result, await self._applied(document), done.lost is None)

    def note(self, actor: audit.Actor, what: str, target: str) -> None:
        """Record, in the background, what was done without changing a document.

        It needs no registry to be done, so that one which cannot be reached costs only the record.
        """
        task = asyncio.get_running_loop().create_task(self._note(actor, what, target))
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)

    async def _note(self, actor: audit.Actor, what: str, target: str) -> None:
        try:
            lost = await self.read(lambda store: audit.note(store, actor, what, target))
        except Problem as problem:
            self._say_lost(problem.detail, {"what": what, "target": target, **asdict(actor)})
        else:
            if lost is not None:
                self._say_lost(lost.error, msgspec.to_builtins(lost.record))

    def _say_lost(self, error: str, record: object) -> None:
        self.records_lost += 1
        _log.error("audit_record_lost", error=error, record=record)

    async def fleet(self) -> Fleet | None:
        """Return what the controller says of its workers; None if it cannot be asked."""
        try:
            found = await self._ask("status")
            return fleet_of(found.data)
        except (ConnectionError, msgspec.DecodeError):
            return None

    async def _applied(self, document: str) -> str:
        """Let the controller look now; return why not every edge has the change, if so.

        Args:
            document: the key of what was changed, if it may be refused.
        """
        try:
            answer = await self._ask("poke")
        except ConnectionError as error:
            return str(error)
        if not answer.ok or not answer.data:
            return answer.detail
        why = _poked_of.decode(answer.data).rejected.get(document)
        return f"the last good one serves on: {why}" if why else ""

    def _submit(self, work: Callable[[Store], T]) -> Future[T]:
        loop = asyncio.get_running_loop()
        future = self._threads.submit(lambda: work(self._open()))
        self._under_way += 1
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._ended))
        return future

    def _ended(self) -> None:
        self._under_way -= 1

    def _open(self) -> Store:
        with self._opening:
            if self._store is None:
                self._store = open_existing(self._url)
            return self._store
