"""What this edge was told: documents and routes from the controller, kept over its absence.

Owns the connection to the controller, the current `Snapshot`, and the last good copies on disk from
which an edge boots while there is no controller.  Routes go on to `dispatch`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets as random_secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from edge.dispatching.dispatch import Pool
from edge.dispatching.quarantine import Row
from edge.leases import Leases
from edge.metrics import Metrics
from edge.snapshot import Ref, Snapshot, Version, compile_snapshot
from pool.wire import control
from pool.wire.control import Documents, Routes, VariantCount
from pool.wire.frames import WireError
from pool.wire.handshake import Secrets
from pool.wire.link import ControlLink
from registry_sync.trust import Trust

COUNTERS_S = 1.0
ANSWER_S_MAX = 5.0  # of a controller, for what it knows
POKE_S_MAX = 15.0  # for what it does first: it reads the registry and waits for edges
RESOLVE_S_MAX = 2.0
RESOLVES_MAX = 64  # under way at once; each may cost the controller a read of the registry
UNKNOWN_S = 2.0  # for so long a version that the registry does not have is not asked for again
UNKNOWN_MAX = 10_000

_log = structlog.get_logger()


class World:
    """The edge's knowledge of everything outside of it."""

    def __init__(
        self,
        *,
        edge_id: str,
        folder: Path,
        pool: Pool,
        find: Callable[[], Awaitable[str | None]],
        secrets: Secrets | None,
        metrics: Metrics,
        trust: Trust | None = None,
    ) -> None:
        self.metrics = metrics
        self.snapshot = Snapshot()
        self.has_routes = False
        self.has_documents = False
        self.has_heard = False  # documents of a live controller, and not only the copies on disk
        self._heard_s = time.monotonic()  # anything of a controller; at first, when we began
        self.is_pool_ready = False
        self.incarnation = random_secrets.token_hex(8)
        self._edge_id = edge_id
        self._pool = pool
        self._folder = folder
        self._documents: Documents | None = None
        self._trust = trust or Trust()
        self._trust_changes = self._trust.changes()
        self._routes: Routes | None = None
        self._has_reported = False  # to the controller of the day
        self._asked: dict[int, asyncio.Future[control.Answer]] = {}
        self._ask_ids = itertools.count(1)
        self._resolving: dict[Ref, asyncio.Future[control.Resolved]] = {}
        self._resolvers: dict[Ref, asyncio.Task[control.Resolved]] = {}
        self._unknown_until_s: dict[Ref, float] = {}
        self.link = ControlLink(find, secrets, self._register, self._on_message)
        self.leases = Leases(self.link.send, self._count_refusal)
        pool.suspects.on_news = self._tell_poison

    def boot(self) -> None:
        """Take over the last good copies, so that a start needs no controller."""
        documents = self._load("documents")
        routes = self._load("routes")
        if isinstance(documents, Documents):
            self._take_documents(documents, keep=False)
        if isinstance(routes, Routes):
            self._take_routes(routes, keep=False)

    async def run(self) -> None:
        """Follow the controller and report to it until cancelled."""
        link = asyncio.create_task(self.link.run())
        try:
            while True:
                await asyncio.wait([link], timeout=COUNTERS_S)
                if link.done():
                    link.result()  # it never ends but by a bug
                self._follow_trust()
                self.report()
        finally:
            link.cancel()

    def _follow_trust(self) -> None:
        """Where other keys are trusted now, go by the same documents anew."""
        changes = self._trust.changes()
        if changes != self._trust_changes and self._documents is not None:
            self._take_documents(self._documents, keep=False)
        self._trust_changes = changes

    def report(self) -> None:
        """Tell the controller what was counted so far."""
        for arm in self.metrics.arms.values():
            arm.sort()
        counts = tuple(
            VariantCount(
                *key,
                arm.requests,
                arm.errors,
                arm.hits,
                arm.failed,
                tuple(arm.request_s.counts),
                arm.model_failed,
            )
            for key, arm in self.metrics.arms.items()
        )
        self._has_reported = True
        in_flight, waiting = self.metrics.in_flight(), self._pool.waiting()
        away = self._pool.away()
        unserved = self._pool.unserved(), self._pool.unserved_age_s()
        self.link.send(
            control.Counters(self.incarnation, counts, in_flight, waiting, away, *unserved)
        )
        for endpoint in self.snapshot.endpoints.values():
            if endpoint.watch is not None:
                self.link.send(control.Evidence(self.incarnation, endpoint.watch.evidence()))
        now_s = time.monotonic()
        self._pool.suspects.tidy()
        self.leases.tidy(self.snapshot.keys, now_s)
        self.leases.report(now_s)

    async def ask(self, what: str, argument: str = "") -> control.Answer:
        """Ask the controller.

        Raises:
            ConnectionError: there is none, or it does not answer.
        """
        ask_id = next(self._ask_ids)
        future: asyncio.Future[control.Answer] = asyncio.get_running_loop().create_future()
        self._asked[ask_id] = future
        try:
            if not self.link.send(control.Ask(what, argument, ask_id)):
                raise ConnectionError("no controller can be reached")
            async with asyncio.timeout(POKE_S_MAX if what == "poke" else ANSWER_S_MAX):
                return await future
        except TimeoutError:
            raise ConnectionError("the controller does not answer") from None
        finally:
            del self._asked[ask_id]

    async def resolve(self, ref: Ref) -> Version | None:
        """Find a version that no endpoint names; None if it is not published.

        Raises:
            ConnectionError: nobody can say.
        """
        loop = asyncio.get_running_loop()
        if self._unknown_until_s.get(ref, 0.0) > loop.time():
            return None
        task = self._resolvers.get(ref)
        if task is None:
            if len(self._resolvers) >= RESOLVES_MAX:
                raise ConnectionError("too many unknown versions are asked for")
            task = self._resolvers[ref] = loop.create_task(self._resolve(ref))
            task.add_done_callback(lambda task: task.cancelled() or task.exception())
        # Not the task of whoever came first: one who leaves must not take the answer from others.
        found = await asyncio.shield(task)
        if found.detail:
            raise ConnectionError(found.detail)
        if not found.found:
            if len(self._unknown_until_s) >= UNKNOWN_MAX:
                self._unknown_until_s.clear()
            self._unknown_until_s[ref] = loop.time() + UNKNOWN_S
        return self.snapshot.versions.get(ref)

    async def _resolve(self, ref: Ref) -> control.Resolved:
        future: asyncio.Future[control.Resolved] = asyncio.get_running_loop().create_future()
        self._resolving[ref] = future
        try:
            if not self.link.send(control.Resolve(*ref)):
                raise ConnectionError("no controller can be reached")
            async with asyncio.timeout(RESOLVE_S_MAX):
                return await future
        except TimeoutError:
            raise ConnectionError("the controller does not answer") from None
        finally:
            del self._resolving[ref], self._resolvers[ref]

    def _register(self) -> control.Message:
        self._has_reported = False
        return control.RegisterEdge(
            *(control.WIRE, self._edge_id, self.incarnation, os.getpid(), self.leases.connect()),
            self._quarantined(),
            True,
        )

    def _quarantined(self) -> tuple[control.Quarantined, ...]:
        return tuple(
            control.Quarantined(row.fingerprint, *row.ref, int(row.left_s * 1000))
            for row in self._pool.suspects.rows()
        )

    def _tell_poison(self) -> None:
        self.link.send(control.Poison(self._quarantined()))

    def _count_refusal(self, limit: str) -> None:
        self.metrics.count("tidepool_quota_refusals", limit)

    @property
    def silence_s(self) -> float:
        """How long no controller has said anything: so old documents and routes may be."""
        return time.monotonic() - self._heard_s

    def _on_message(self, message: control.Message) -> None:
        self._heard_s = time.monotonic()
        match message:
            case Documents():
                self._take_documents(message, keep=True)
                self.has_heard = True
                self.link.send(control.Ack(message.epoch, message.seq))
            case Routes():
                self._take_routes(message, keep=True)
            case control.Quarantine(_, quarantined):
                self._pool.suspects.learn(
                    Row(q.fingerprint, (q.model, q.version), q.left_ms / 1000) for q in quarantined
                )
            case control.QuotaShares():
                self.leases.follow(message)
            case control.Resolved():
                future = self._resolving.get((message.model, message.version))
                if future is not None and not future.done():
                    future.set_result(message)
            case control.Answer():
                answered = self._asked.get(message.id)
                if answered is not None and not answered.done():
                    answered.set_result(message)
            case control.Welcome():
                if not self._has_reported:  # what this controller goes on counting from
                    self.report()
            case _:
                raise WireError(f"a controller does not send an edge {type(message).__name__}")

    def _take_documents(self, documents: Documents, *, keep: bool) -> None:
        self.snapshot = compile_snapshot(documents, self.snapshot, self.metrics, self._trust)
        self.metrics.rejected = len(self.snapshot.rejected)
        self.has_documents = True
        self._unknown_until_s.clear()
        self._documents = documents
        if keep:
            self._save("documents", documents)
        _log.info("documents", epoch=documents.epoch, seq=documents.seq)

    def _take_routes(self, routes: Routes, *, keep: bool) -> None:
        self._routes = routes
        self.has_routes = True
        self.is_pool_ready = routes.ready
        self._pool.update(routes)
        self.leases.expect(routes.edges)
        if keep:
            self._save("routes", routes)

    def _save(self, name: str, message: control.Message) -> None:
        """Keep a copy; a full disk costs the copy, not the service."""
        path = self._folder / f"{name}.last"
        partial = self._folder / f"{name}.{os.getpid()}.partial"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(control.pack(message))
            partial.chmod(0o600)
            partial.replace(path)
        except OSError as error:
            _log.warning("last_good_copy_failed", document=name, error=str(error))

    def _load(self, name: str) -> control.Message | None:
        path = self._folder / f"{name}.last"
        try:
            data = path.read_bytes()
            return control.decode(data)
        except FileNotFoundError:
            return None
        except (OSError, WireError, ValueError) as error:
            _log.warning("last_good_copy_unreadable", document=name, error=str(error))
            return None
