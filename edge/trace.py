"""What is known of one request on its way; for its headers, its counters and its log line.

Timestamps are taken once, where a phase ends and the next begins, and everybody reads the same.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from edge.arm_metrics import ABSENT
from edge.dispatching.calls import Answer, Call
from edge.errors import ClientGone, ModelFailed, Refusal, WorkerLost
from edge.quota import Meter
from edge.snapshot import ArmOf, Endpoint
from edge.watch import ArmWatch
from registry_sync.documents import KeyRecord
from registry_sync.tracing import TRACEPARENT, Span

Header = Callable[[str], str | None]

# One formatting of many numbers by `%` costs a third less than an f-string of as many fields.
_KNOWN = "auth;dur=%.3f, parse;dur=%.3f%s, respond;dur=%.3f, total;dur=%.3f"
_COMPUTED = (
    "auth;dur=%.3f, parse;dur=%.3f%s, queue;dur=%.3f, infer;dur=%.3f, respond;dur=%.3f, "
    "total;dur=%.3f"
)


class Trace(msgspec.Struct):
    """One request so far; times are seconds of the monotonic clock, `…_s` of a phase durations.

    A phase that has not happened has the duration 0.
    """

    request_id: str
    started_s: float
    header: Header | None = None  # looks up a request header
    route: str = ""  # method and template of the path
    endpoint: Endpoint | None = None
    arm: ArmOf | None = None
    record: KeyRecord | None = None  # of the key, once it was found good
    meter: Meter | None = None  # of the key's quota; ended with the request
    auth_s: float = 0.0
    parse_s: float = 0.0  # the body, from its last byte to being checked
    cache_s: float = 0.0  # the lookup
    respond_s: float = 0.0  # from the result to the rendered answer
    answered_s: float = 0.0  # when the result was there
    ended_s: float = 0.0  # when the answer was rendered
    cache_status: str = ""
    refusal: Refusal | None = None
    call: Call | None = None
    watch: ArmWatch | None = None  # of the arm, if a rollout's guards judge by this request
    unit: bytes | None = None  # whom it sticks to
    bytes_in: int = 0  # of the body, decompressed
    bytes_out: int = 0
    answer: Answer | None = None
    rows: int = 0
    dispatched: bool = False
    has_body: bool = False
    is_body_late: bool = False
    held_bytes: int = 0  # of the room for bodies
    body_due_s: float = 0.0  # of a body that comes in parts
    span: Span | None = None  # of the request, if its trace is sampled

    @property
    def owner(self) -> str:
        """Who answers for the room that its body takes."""
        return "" if self.record is None else self.record.tenant


def trace_context(traceparent: str | None) -> tuple[str, str]:
    """Return trace and span id of a W3C `traceparent`; empty if there is none that is valid."""
    match = TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if match is None or not match[1].strip("0") or not match[2].strip("0"):
        return "", ""
    return match[1], match[2]


def server_timing(trace: Trace) -> str:
    """Return the `Server-Timing` of a request that has ended: the phases that happened, in ms."""
    total_ms = (trace.ended_s - trace.started_s) * 1e3
    answer = trace.answer
    if answer is None:
        return f"auth;dur={trace.auth_s * 1e3:.3f}, total;dur={total_ms:.3f}"
    cache = f", cache;dur={trace.cache_s * 1e3:.3f}" if trace.cache_s else ""
    if not trace.dispatched:
        return _KNOWN % (
            trace.auth_s * 1e3,
            trace.parse_s * 1e3,
            cache,
            trace.respond_s * 1e3,
            total_ms,
        )
    return _COMPUTED % (
        trace.auth_s * 1e3,
        trace.parse_s * 1e3,
        cache,
        answer.queue_us / 1e3,
        answer.infer_us / 1e3,
        trace.respond_s * 1e3,
        total_ms,
    )


def count(trace: Trace, status: int) -> None:
    """Count a request that has ended in its arm's metrics."""
    assert trace.arm is not None
    arm = trace.arm.metrics
    total_s = trace.ended_s - trace.started_s
    arm.statuses[status] = arm.statuses.get(status, 0) + 1
    respond_s, queue_us, infer_us, batch_rows = ABSENT, ABSENT, ABSENT, -1
    if status == 200:
        arm.requests += 1
        arm.ok_s += total_s
        arm.last_s = trace.ended_s
        respond_s = trace.respond_s or ABSENT
        answer = trace.answer
        if not trace.dispatched:
            arm.hits += 1
            arm.hit_s += trace.cache_s
        elif answer is not None:
            queue_us, infer_us = answer.queue_us, answer.infer_us
            batch_rows = answer.batch_rows
    elif status == 500:
        arm.requests += 1
        arm.errors += 1
        arm.hits += not trace.dispatched
    arm.add(
        (
            total_s,
            trace.auth_s,
            trace.parse_s or ABSENT,
            trace.cache_s or ABSENT,
            respond_s,
            queue_us,
            infer_us,
            batch_rows,
            trace.rows,
        )
    )


def observe_spoilt(trace: Trace, now_s: float) -> None:
    """Tell a rollout's guards of a request that failed after the call: its answer was none.

    The call has been observed already, unless it was given up for what it had answered so far.
    """
    call, refusal = trace.call, trace.refusal
    if call is None or not call.future.done() or call.future.cancelled():
        return
    watch = call.judge
    if watch is None:
        return
    if refusal is not None and not isinstance(refusal, (ModelFailed, WorkerLost)):
        return  # our own bug
    error = call.future.exception()
    if error is None:
        watch.fail(trace.unit)
    elif isinstance(error, ClientGone) and call.sent:
        watch.observe(trace.unit, ModelFailed.status, now_s - call.sent_s, now_s)
