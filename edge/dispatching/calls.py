"""One call to a worker, and how it ends: with an answer, or with a refusal for the caller.

Does not own how a worker is chosen (`dispatch`), nor how a call travels (`worker_conn`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from edge.errors import (
    BadRequest,
    DeadlineExceeded,
    ModelFailed,
    NotFound,
    Refusal,
    ShareExceeded,
    Unavailable,
    Unprocessable,
    WorkerLost,
    jittered,
)
from edge.watch import ArmWatch
from pool.wire import data
from pool.wire.data import Tensor

Ref = tuple[str, str]  # model, version


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What a worker computed.  `queue_us` and `infer_us` are the worker's own measurements."""

    outputs: Sequence[data.TensorLike]
    queue_us: int
    infer_us: int
    batch_rows: int


def refusal_of(reply: data.Reply) -> Refusal:
    """Return what a worker's refusal means to the caller."""
    match reply.status:
        case 400:
            return BadRequest(reply.detail)
        case 404:
            return NotFound(reply.detail)
        case 422:
            return Unprocessable(reply.detail)
        case 429:
            return ShareExceeded(reply.detail, retry_after_s=jittered(reply.retry_after_ms / 1000))
        case 503:
            return Unavailable(reply.detail, retry_after_s=jittered(reply.retry_after_ms / 1000))
        case 504:
            return DeadlineExceeded(reply.detail)
        case 500:
            return ModelFailed(reply.detail)
        case _:
            return WorkerLost(f"the worker answered {reply.status}")


class Carrier(Protocol):
    """The connection that a call was sent over."""

    @property
    def id(self) -> str:
        """Which worker is at its other end."""

    def forget(self, call: Call) -> None:
        """Drop a call that nobody waits for any more."""


class Sender(Protocol):
    """Who sends calls to workers."""

    def cancel(self, call: Call) -> None:
        """End a call that nobody waits for."""

    def is_starting(self, ref: Ref) -> bool:
        """Tell whether there are places without a process where `ref` may wake."""


class Call:
    """One call on its way; `future` ends with an Answer or a Refusal, exactly once."""

    __slots__ = (
        "alone",
        "conn",
        "deadline_s",
        "device_us",
        "digest",
        "fingerprint",
        "future",
        "gave_back",
        "has_begun",
        "has_parts",
        "hedge_share",
        "id",
        "inputs",
        "is_held",
        "is_helped",
        "is_only",
        "is_twin",
        "is_watched",
        "on_chunk",
        "on_held",
        "outputs",
        "pool",
        "priority",
        "ref",
        "request_id",
        "rests",
        "rows_max",
        "sent",
        "sent_s",
        "shadow",
        "share",
        "tenant",
        "traceparent",
        "twin",
        "unit",
        "watch",
    )

    def __init__(
        self,
        *,
        ref: Ref,
        digest: str,
        request_id: str,
        inputs: Sequence[data.TensorLike],
        outputs: tuple[str, ...],
        deadline_s: float,
        priority: int = 0,
        rows_max: int = 0,
        tenant: str = "",
        share: float = 1.0,
        hedge_share: float = 0.0,
        on_chunk: Callable[[Sequence[Tensor]], None] | None = None,
        on_held: Callable[[str, float], None] | None = None,
        device_us: dict[str, int] | None = None,
    ) -> None:
        self.ref = ref
        self.digest = digest
        self.request_id = request_id
        self.inputs = inputs
        self.outputs = outputs
        self.deadline_s = deadline_s
        self.priority = priority
        self.rows_max = rows_max
        self.tenant = tenant
        self.share = share
        self.hedge_share = hedge_share  # of such calls, that may go to a second replica as well
        self.on_chunk = on_chunk
        self.on_held = on_held  # hears what the load does that it waits for, and how long still
        self.device_us = device_us  # where what it costs is counted, by device; None: nowhere
        self.has_parts = False
        self.twin: Call | None = None  # the same for another replica: its second try
        self.is_twin = False
        self.rests = False  # nobody but the twin's worker has it
        self.alone = False  # it may have killed its worker: it is to share its run with nobody
        self.has_begun = False  # its worker said that this run begins
        self.is_only = False  # and that it does nothing else meanwhile
        self.fingerprint = b""  # once it was needed; see `quarantine`
        self.is_watched = False  # how it ends is held against other workers' calls
        self.is_held = False  # sent to a worker that was to load its engine first
        self.is_helped = False  # sent to a fallback worker, which says nothing of its arm
        self.future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.pool: Sender | None = None
        self.conn: Carrier | None = None
        self.id = 0
        self.sent = 0
        self.gave_back: tuple[Carrier, ...] = ()
        self.sent_s = 0.0
        self.shadow: tuple[data.ShadowOf, ...] = ()  # who answer it as well, for a comparison
        self.watch: ArmWatch | None = None  # of its arm; see `judge`
        self.unit: bytes | None = None  # whose it is then
        self.traceparent = ""  # of its span; empty: it is not traced

    @property
    def is_starting(self) -> bool:
        """Tell whether it waits for a process that is started for it."""
        return self.conn is None and self.pool is not None and self.pool.is_starting(self.ref)

    @property
    def judge(self) -> ArmWatch | None:
        """Who is told how it ends: nobody, where a fallback worker has it."""
        return None if self.is_helped else self.watch

    def cancel(self) -> None:
        """End the call because nobody waits for it any more."""
        if self.pool is not None:
            self.pool.cancel(self)

    def make_twin(self) -> Call:
        """Return the same call for another replica; nobody waits for it, and nobody counts it."""
        twin = Call(
            ref=self.ref,
            digest=self.digest,
            request_id=self.request_id,
            inputs=self.inputs,
            outputs=self.outputs,
            deadline_s=self.deadline_s,
            priority=self.priority,
            rows_max=self.rows_max,
            tenant=self.tenant,
            share=self.share,
            device_us=self.device_us,
        )
        twin.is_twin, twin.fingerprint = True, self.fingerprint
        twin.traceparent = self.traceparent
        return twin

    def succeed(self, answer: Answer) -> None:
        """End the call with its answer; it must not have ended."""
        self.future.set_result(answer)
        judge = self.judge
        if judge is not None:
            self.tell(judge, 200, answer.outputs)

    def fail(self, error: Refusal) -> None:
        """End the call with `error` unless it has ended."""
        if not self.future.done():
            self.future.set_exception(error)
            judge = self.judge
            if judge is not None and self.sent:
                self.tell(judge, error.status)

    def tell(self, watch: ArmWatch, status: int, outputs: Sequence[data.TensorLike] = ()) -> None:
        """Tell a rollout's guards how the call ended."""
        now_s = time.monotonic()
        watch.observe(self.unit, status, now_s - self.sent_s, now_s, outputs)
