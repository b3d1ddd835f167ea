"""Who leads the fleet: one record in the store, kept by compare-and-swap.

    control/leader.json   {"epoch": 7, "url": "…", "holder": "<node>", "nonce": "…"}

The leader rewrites the record, with a new nonce, every `RENEW_S`. Whoever sees
its etag unchanged for `TAKEOVER_S` on their own monotonic clock may take over,
with a higher epoch. A leader counts from before the write that renewed it and
stops acting after `ACT_S`; an observer counts from after the read that showed
it. So with clocks that run alike to within (TAKEOVER_S - ACT_S) / TAKEOVER_S
there are never two that act, however slow the store or the processes are, and
without comparing the time of two machines. A leader that ends by itself writes
that it has resigned, after its last act: who sees that need not wait.

Deleting the record while a leader acts voids this for processes that never saw it.

`Leadership` decides and does no I/O; `step` carries out one decision. What a
leader does, and what the record's URL is for, is not known here.

Source: leases as in Gray and Cheriton (1989); waiting out an unchanged record
instead of comparing clocks is how Kubernetes' client-go elects leaders.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import TypeAlias

import msgspec
import structlog

from registry_sync.leader_record import LeaderRecord
from registry_sync.stores import Conflict, NotFound, Store, StoreError

LEADER_KEY = "control/leader.json"
RENEW_S = 5.0
TAKEOVER_S = 20.0  # four renewals missed
ACT_S = 15.0  # the difference to TAKEOVER_S is for clocks that drift and for work in hand
RETRY_S = 1.0  # after a write or a read that failed

_record_of = msgspec.json.Decoder(LeaderRecord)


class Seen(msgspec.Struct, frozen=True):
    """What a look at the store showed: no object (no etag), or one (unreadable: no record)."""

    etag: str | None
    record: LeaderRecord | None


class Claim(msgspec.Struct, frozen=True):
    """Become the leader by writing the record over this etag (None: create it)."""

    record: LeaderRecord
    etag: str | None


class Renew(msgspec.Struct, frozen=True):
    """Stay the leader by writing the record over this etag."""

    record: LeaderRecord
    etag: str


class Wait(msgspec.Struct, frozen=True):
    """Nothing to do before this time."""

    until_s: float


class StandDown(msgspec.Struct, frozen=True):
    """Stop acting as the leader now; then step again at once."""

    reason: str


Decision: TypeAlias = Claim | Renew | Wait | StandDown


class Reign(msgspec.Struct, frozen=True):
    """A leadership that is held."""

    epoch: int
    etag: str
    renewed_s: float  # when the last write that certainly landed was begun


class Leadership:
    """One process's part in the election; all times are on its own monotonic clock."""

    def __init__(self, node: str, url: str, *, predecessor_is_dead: bool = False) -> None:
        """Begin as an observer.

        Args:
            node: this node's id, stable over restarts.
            url: where this process can be reached if it becomes the leader.
            predecessor_is_dead: the caller knows that no earlier process of
                this node can still act (it reaped it, or holds a lock that the
                other held), so a record of this node may be taken over at once.
        """
        self._node = node
        self._url = url
        self._incarnation = uuid.uuid4().hex
        # The whole mutable state: what was seen last and since when, the highest epoch of all,
        # what is held, and whether a write's fate has to be looked up. `_inheritable` is the
        # etag of the dead predecessor's record.
        self._seen: Seen | None = None
        self._since_s = 0.0
        self._epoch_max = 0
        self._reign: Reign | None = None
        self._must_look = True
        self._predecessor_is_dead = predecessor_is_dead
        self._inheritable: str | None = None

    @property
    def reign(self) -> Reign | None:
        """What is held; acting needs `may_act` besides."""
        return self._reign

    @property
    def epoch_max(self) -> int:
        """The highest epoch seen so far; whoever claims a lower one is not the leader."""
        return self._epoch_max

    @property
    def must_look(self) -> bool:
        """Whether the next decision needs a look at the store (`observe`), or not (`decide`)."""
        return self._must_look or self._reign is None

    def may_act(self, now_s: float) -> bool:
        """Say whether this process may act as the leader at `now_s`.

        To be asked before every act, because it ends by itself: a leader that
        could not renew for `ACT_S` is none, even if it was frozen meanwhile.
        """
        reign = self._reign
        return reign is not None and now_s < reign.renewed_s + ACT_S

    def observe(self, seen: Seen, now_s: float) -> Decision:
        """Take in what the store showed, and choose the next step.

        Args:
            seen: the answer of a read.
            now_s: a time after that answer came.
        """
        self._must_look = False
        if self._seen is None and self._predecessor_is_dead:
            held_here = seen.record is not None and seen.record.holder == self._node
            self._inheritable = seen.etag if held_here else None
        if self._seen is None and seen.etag is None:
            # Nobody ever led, as far as anyone can tell: there is no one to wait for.
            self._since_s = now_s - TAKEOVER_S
        elif self._seen is None or self._seen.etag != seen.etag:
            self._since_s = now_s
        if seen.record is not None and seen.record.resigned:
            self._since_s = now_s - TAKEOVER_S
        self._seen = seen
        if seen.record is not None:
            self._epoch_max = max(self._epoch_max, seen.record.epoch)
        if self._reign is not None:
            if not self._is_ours(seen.record):
                return self._stand_down(f"the record is {_shown(seen)} now")
            # A renewal whose answer was lost has landed, or the last one known of still stands.
            # The time of the latter is kept: too early is safe.
            assert seen.etag is not None
            self._reign = Reign(self._reign.epoch, seen.etag, self._reign.renewed_s)
        return self.decide(now_s)

    def decide(self, now_s: float) -> Decision:
        """Choose the next step from what is known; `observe` must have been called once."""
        assert self._seen is not None, "nothing was observed yet"
        reign = self._reign
        if reign is not None:
            if now_s >= reign.renewed_s + ACT_S:
                return self._stand_down(f"no renewal for {now_s - reign.renewed_s:.1f} s")
            if now_s >= reign.renewed_s + RENEW_S:
                return Renew(self._record(reign.epoch), reign.etag)
            return Wait(reign.renewed_s + RENEW_S)
        if (
            now_s >= self._since_s + TAKEOVER_S
            # This process does not act, so its own record binds nobody.
            or self._is_ours(self._seen.record)
            # A record that changed since it was first seen was not a dead process's.
            or (self._seen.etag is not None and self._seen.etag == self._inheritable)
        ):
            return Claim(self._record(self._epoch_max + 1), self._seen.etag)
        return Wait(min(self._since_s + TAKEOVER_S, now_s + RENEW_S))

    def landed(self, write: Claim | Renew, etag: str, started_s: float) -> None:
        """Take in that a write succeeded; `started_s` is a time before it was sent."""
        self._reign = Reign(write.record.epoch, etag, started_s)
        self._seen = Seen(etag, write.record)
        self._epoch_max = max(self._epoch_max, write.record.epoch)

    def resign(self) -> Renew | None:
        """Stop acting, for good; return the record that lets another node follow at once."""
        reign, self._reign = self._reign, None
        if reign is None:
            return None
        record = msgspec.structs.replace(self._record(reign.epoch), resigned=True)
        return Renew(record, reign.etag)

    def failed(self) -> None:
        """Take in that a write was refused, or that its fate is unknown: the store has to say."""
        self._must_look = True

    def unreachable(self, now_s: float) -> Wait | StandDown:
        """Choose the next step when the store did not answer."""
        self._must_look = True
        if self._reign is not None and not self.may_act(now_s):
            return self._stand_down("the store cannot be reached")
        return Wait(now_s + RETRY_S)

    def _stand_down(self, reason: str) -> StandDown:
        assert self._reign is not None
        text = f"epoch {self._reign.epoch} ends: {reason}"
        self._reign = None
        self._must_look = True
        return StandDown(text)

    def _is_ours(self, record: LeaderRecord | None) -> bool:
        return record is not None and record.nonce.startswith(self._incarnation)

    def _record(self, epoch: int) -> LeaderRecord:
        nonce = f"{self._incarnation}-{uuid.uuid4().hex}"
        return LeaderRecord(epoch, self._url, self._node, nonce)


def step(
    store: Store, leadership: Leadership, clock: Callable[[], float] = time.monotonic
) -> Wait | StandDown:
    """Look if need be, write if that is the decision, and say when to step again.

    Blocks for as long as the store takes; `may_act` holds meanwhile, and may be
    asked from another thread.
    """
    log = structlog.get_logger()
    try:
        if leadership.must_look:
            decision = leadership.observe(look(store), clock())
        else:
            decision = leadership.decide(clock())
        if isinstance(decision, Wait | StandDown):
            return decision
        started_s = clock()
        etag = _write(store, decision)
        leadership.landed(decision, etag, started_s)
        return Wait(started_s + RENEW_S)
    except Conflict:
        leadership.failed()
        return Wait(clock())
    except StoreError as error:
        # Also what will not pass (no access): the reign lapses by the clock, and nobody
        # who does not look at this process's log would profit from its end.
        log.warning("leadership: the store failed", key=LEADER_KEY, error=str(error))
        return leadership.unreachable(clock())


def resign(store: Store, leadership: Leadership) -> None:
    """Give up the leadership, if it is held; no `step` may be under way, and none may follow.

    Blocks for as long as the store takes.  A write that fails costs others the usual wait.
    """
    write = leadership.resign()
    if write is None:
        return
    try:
        _write(store, write)
    except StoreError as error:
        structlog.get_logger().info("resignation_not_written", reason=str(error))


def look(store: Store) -> Seen:
    """Read the record; raises `StoreError` other than `NotFound`."""
    try:
        found = store.get(LEADER_KEY)
    except NotFound:
        return Seen(None, None)
    try:
        return Seen(found.etag, _record_of.decode(found.data))
    except msgspec.DecodeError:
        return Seen(found.etag, None)


def _write(store: Store, write: Claim | Renew) -> str:
    data = msgspec.json.encode(write.record)
    if write.etag is None:
        return store.put_new(LEADER_KEY, data)
    return store.put_if(LEADER_KEY, data, write.etag)


def _shown(seen: Seen) -> str:
    if seen.record is None:
        return "gone" if seen.etag is None else "unreadable"
    return f"epoch {seen.record.epoch} of {seen.record.holder}"
