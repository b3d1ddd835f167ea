"""The RSGI application: a fast path for calls, Starlette for everything else.

Owns noticing that a client has left or sends too slowly, and turning a `Refusal` into an answer.
The request's way itself is `infer.Service`.
"""

from __future__ import annotations

import asyncio
import functools
import re
import time
from typing import Any, Protocol

import msgspec
import structlog
from starlette.applications import Starlette

from edge import bridge
from edge.body_render import render_error_event, render_event
from edge.body_request import InferRequest
from edge.config import BODIES_BYTES_MAX
from edge.dispatching.calls import Call
from edge.encoding import ENCODINGS, inflate, inflated_bytes_max
from edge.errors import (
    BadRequest,
    BodyTooSlow,
    ClientGone,
    Forbidden,
    ModelFailed,
    QuotaExceeded,
    Refusal,
    Unauthorized,
    Unavailable,
    jittered,
)
from edge.infer import Service, Target
from edge.noted import Noted
from edge.progress import Waits, first_parts
from edge.receive import Room, pass_over, receive
from edge.stream import STREAM_BYTES_MAX, Part, Parts
from edge.trace import Trace
from registry_sync.memory import give_back

INFLATED_HERE_BYTES = 16 << 10  # a larger one is decompressed in a thread
NOTICE_S = 0.02  # a client that leaves is looked for once its request is this old
TIDY_S = 2.0  # between two looks for memory that can be given back
PATHS_MAX = 1024  # remembered; then all are read anew

# Said before a body is read, and only then.
REFUSED_UNREAD = (Unauthorized, Forbidden, QuotaExceeded)

_CALL = re.compile(
    r"/v2/models/([^/]{1,200})(?:/versions/([^/]{1,40}))?/(infer|generate|generate_stream)"
)
_JSON = ("content-type", "application/json")
_SSE = [
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-store"),
    ("x-accel-buffering", "no"),
]
_log = structlog.get_logger()


class Headers(Protocol):
    def get(self, key: str, default: Any = None) -> Any: ...
    def items(self) -> list[tuple[str, str]]: ...


class Scope(Protocol):
    """What granian says of a request."""

    proto: str
    method: str
    path: str
    query_string: str
    client: str
    server: str
    scheme: str
    http_version: str

    @property
    def headers(self) -> Headers: ...


class App:
    """One edge process as granian sees it."""

    def __init__(
        self,
        service: Service,
        rest: Starlette,
        body_bytes_max: int,
        body_read_s_max: float,
        bodies_bytes_max: int = BODIES_BYTES_MAX,
    ) -> None:
        self._service = service
        self._room = Room(bodies_bytes_max)
        behind = bridge.Bridge(
            rest, body_bytes_max, self._refuse_rest, self._room, body_read_s_max, service.request_id
        )
        self._rest = Noted(behind, rest.routes, service.request_id, service.access)
        self._body_bytes_max = body_bytes_max
        self._body_read_s_max = body_read_s_max
        self._loop = asyncio.get_running_loop()
        # The whole mutable state: the requests under way, and what was made of the last paths.
        self._under_way: dict[asyncio.Task[Any], tuple[Trace, Any]] = {}
        self._calls: dict[str, tuple[Target, str]] = {}

    @property
    def in_flight(self) -> int:
        """How many calls are under way."""
        return len(self._under_way)

    def pending(self) -> dict[tuple[str, str, str], int]:
        """Return how many calls workers have not answered, by endpoint, variant and version."""
        found: dict[tuple[str, str, str], int] = {}
        for trace, _ in self._under_way.values():
            if trace.dispatched and trace.answer is None and trace.arm and trace.endpoint:
                arm = (trace.endpoint.name, trace.arm.name, trace.arm.version.ref[1])
                found[arm] = found.get(arm, 0) + 1
        return found

    async def __rsgi__(self, scope: Scope, proto: Any) -> None:
        path = scope.path
        if scope.method == "POST" and path.startswith("/v2/models/"):
            call = self._calls.get(path) or self._read_path(path)
            if call is not None:
                target, what = call
                if what == "infer":
                    await self._infer(scope, proto, target)
                else:
                    await self._generate(scope, proto, target, what == "generate_stream")
                return
        if scope.proto != "http":
            proto.close(403)
            return
        await self._rest.__rsgi__(scope, proto)

    def _read_path(self, path: str) -> tuple[Target, str] | None:
        match = _CALL.fullmatch(path)
        if match is None:
            return None  # not remembered: it may be of any length
        below = "{model}" if match[2] is None else "{model}/versions/{version}"
        route = f"POST /v2/models/{below}/{match[3]}"
        call = Target(match[1], match[2], route), match[3]
        if len(self._calls) >= PATHS_MAX:
            self._calls.clear()
        self._calls[path] = call
        return call

    async def _infer(self, scope: Scope, proto: Any, target: Target) -> None:
        service = self._service
        header = scope.headers.get
        trace = service.begin(header, target.route)
        task = asyncio.current_task(self._loop)
        assert task is not None
        self._under_way[task] = (trace, proto)
        try:
            try:
                status, headers, body = await service.infer(
                    trace, target, header, lambda: self._body(trace, header, proto)
                )
            except REFUSED_UNREAD:
                await pass_over(proto, header)
                raise
        except Refusal as refusal:
            status, headers, body = self._refused(trace, refusal)
        except asyncio.CancelledError:
            if not trace.is_body_late:
                service.end(trace, ClientGone.status)
                return
            status, headers, body = self._too_slow(trace)
        except Exception:
            # Our own bug must end as an answer, and in the log with all that is known.
            _log.exception("bug", request_id=trace.request_id)
            status, headers, body = self._refused(trace, Refusal("internal error"))
        finally:
            del self._under_way[task]
            self._room.give_back(trace, trace.held_bytes)
            if trace.meter is not None:
                trace.meter.release()
        proto.response_bytes(status, headers, body)
        trace.bytes_out = len(body)
        service.end(trace, status)

    async def _generate(self, scope: Scope, proto: Any, target: Target, is_stream: bool) -> None:
        service = self._service
        header = scope.headers.get
        trace = service.begin(header, target.route)
        parts, waits = Parts(), Waits()
        call: Call | None = None
        task = asyncio.current_task(self._loop)
        assert task is not None
        self._under_way[task] = (trace, proto)
        status = 200
        try:
            try:
                request, call = await service.stream(
                    trace,
                    target,
                    header,
                    lambda: self._body(trace, header, proto),
                    parts.put,
                    waits.hear if is_stream else None,
                )
            except REFUSED_UNREAD:
                await pass_over(proto, header)
                raise
            call.future.add_done_callback(lambda _: parts.end())
            fast = Unavailable(
                "the model answers faster than can be sent", retry_after_s=jittered(1.0)
            )
            parts.on_overfull = functools.partial(service.pool.cancel, call, fast)
            if is_stream:
                status = await self._send_events(proto, trace, target, request, call, parts, waits)
            else:
                await self._send_last(proto, trace, target, request, call, parts)
        except Refusal as refusal:
            status, headers, body = self._refused(trace, refusal)
            proto.response_bytes(status, headers, body)
        except asyncio.CancelledError:
            status = ClientGone.status
            if trace.is_body_late:
                status, headers, body = self._too_slow(trace)
                proto.response_bytes(status, headers, body)
        except Exception:
            # Our own bug must end as an answer, and in the log with all that is known.
            _log.exception("bug", request_id=trace.request_id)
            status, headers, body = self._refused(trace, Refusal("internal error"))
            proto.response_bytes(status, headers, body)
        finally:
            del self._under_way[task]
            self._room.give_back(trace, trace.held_bytes)
            if trace.meter is not None:
                trace.meter.release()
            if call is not None and not call.future.done():
                service.pool.cancel(call)
            if is_stream:
                trace.ended_s = 0.0  # so far, when its first part was sent
            service.end(trace, status)

    async def _send_events(
        self,
        proto: Any,
        trace: Trace,
        target: Target,
        request: InferRequest,
        call: Call,
        parts: Parts,
        waits: Waits,
    ) -> int:
        """Send each part as an event; a failure before anything is sent is an ordinary refusal."""
        assert trace.arm is not None
        version = trace.arm.version.ref[1]

        def begin() -> Any:
            return proto.response_stream(200, [*_SSE, *self._service.headers(trace)])

        sent_bytes = 0
        transport: Any = None
        try:
            taken, transport = await first_parts(parts, call, waits, begin)
            taken = taken or _only_part(call)
            if transport is None:
                if not taken and (early := call.future.exception()) is not None:
                    raise early
                transport = begin()
            while taken:
                events = [render_event(request, target.name, version, part) for part in taken]
                trace.bytes_out = sent_bytes = sent_bytes + sum(map(len, events))
                if sent_bytes > STREAM_BYTES_MAX:
                    raise ModelFailed(f"the stream is longer than {STREAM_BYTES_MAX} bytes")
                await transport.send_bytes(b"".join(events))
                taken = await parts.take()
            error = call.future.exception()
            if error is not None:
                text = error.text if isinstance(error, Refusal) else "internal error"
                await transport.send_bytes(render_error_event(text))
                return error.status if isinstance(error, Refusal) else 500
            trace.answer = call.future.result()
            return 200
        except Refusal as refusal:  # an output that has no JSON form, or
            if transport is None:  # an ordinary answer
                raise
            await transport.send_bytes(render_error_event(refusal.text))
            return refusal.status
        except RuntimeError:  # granian: the connection is closed
            return ClientGone.status

    async def _send_last(
        self,
        proto: Any,
        trace: Trace,
        target: Target,
        request: InferRequest,
        call: Call,
        parts: Parts,
    ) -> None:
        """Answer `generate` with the one part that a stream consists of."""
        assert trace.arm is not None
        found: list[Part] = []
        while taken := await parts.take():
            found += taken
            if len(found) > 1:
                raise BadRequest("this model answers in several parts: use generate_stream")
        answer = call.future.result()
        trace.answer = answer
        trace.answered_s = time.monotonic()
        event = render_event(
            request, target.name, trace.arm.version.ref[1], found[0] if found else answer.outputs
        )
        body = event.removeprefix(b"data: ").rstrip(b"\n")
        trace.bytes_out = len(body)
        proto.response_bytes(200, [_JSON, *self._service.headers(trace)], body)

    def refuse(self, refusal: Refusal, header: Any) -> tuple[int, list[tuple[str, str]], bytes]:
        """Answer, and count, a request that is refused before anybody knows what it asks for."""
        trace = self._service.begin(header)
        reply = self._refused(trace, refusal)
        self._service.end(trace, refusal.status)
        return reply

    def _refuse_rest(
        self, refusal: Refusal, header: Any
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """As `refuse`, where `Noted` writes the line."""
        trace = self._service.begin(header)
        reply = self._refused(trace, refusal)
        self._service.count(trace, refusal.status)
        return reply

    def _too_slow(self, trace: Trace) -> tuple[int, list[tuple[str, str]], bytes]:
        return self._refused(trace, BodyTooSlow(f"no body within {self._body_read_s_max} s"))

    def _refused(self, trace: Trace, refusal: Refusal) -> tuple[int, list[tuple[str, str]], bytes]:
        status = refusal.status
        # Its traceback, and that of what it was made of, hold the frames that it passed, with the
        # body in them, and these hold the trace: a cycle of many MB, for which the collector would
        # come late.
        refusal.__traceback__ = refusal.__context__ = refusal.__cause__ = None
        trace.refusal = refusal
        headers = [_JSON, *refusal.headers, *self._service.headers(trace)]
        return status, headers, msgspec.json.encode({"error": refusal.text})

    async def _body(self, trace: Trace, header: Any, proto: Any) -> bytes:
        """Read the body whole, within its bounds before and after decompression."""
        body = await receive(
            proto, header, self._body_bytes_max, self._room, trace, self._body_read_s_max
        )
        trace.has_body = True
        encoding = (header("content-encoding") or "").lower()
        if encoding not in ENCODINGS:
            return body
        bytes_max = inflated_bytes_max(len(body), self._body_bytes_max)
        self._room.take(trace, bytes_max)
        if len(body) <= INFLATED_HERE_BYTES:
            found = inflate(body, encoding, bytes_max)
        else:
            found = await asyncio.to_thread(inflate, body, encoding, bytes_max)
        self._room.give_back(trace, bytes_max - len(found))
        return found

    async def watch_forever(self) -> None:
        """Cancel the requests whose client has left, or whose body takes too long.

        Only requests that are not answered at once are looked at, so that the others cost nothing.
        """
        watched: dict[asyncio.Task[Any], asyncio.Task[None]] = {}
        tidied_s = 0.0
        while True:
            await asyncio.sleep(NOTICE_S)
            now_s = time.monotonic()
            if now_s - tidied_s > TIDY_S and self._room.wants_tidying():
                tidied_s = now_s
                self._loop.run_in_executor(None, give_back)
            self._look_around(watched, now_s)

    def _look_around(
        self, watched: dict[asyncio.Task[Any], asyncio.Task[None]], now_s: float
    ) -> None:
        # A function of its own: what its variables hold at the end must go.  A protocol that is
        # held keeps the connection of a client open that has not sent its body.
        for task, (trace, proto) in list(self._under_way.items()):
            if not trace.has_body:
                due_s = trace.body_due_s or trace.started_s + self._body_read_s_max
                if now_s >= due_s and not trace.is_body_late:
                    trace.is_body_late = True
                    task.cancel()
            elif now_s - trace.started_s >= NOTICE_S and task not in watched:
                watched[task] = self._loop.create_task(_cancel_with_client(task, proto))
        for task in [task for task in watched if task not in self._under_way]:
            watched.pop(task).cancel()


def _only_part(call: Call) -> list[Part]:
    """Return what a model has answered that does not stream; nothing if it has failed."""
    outputs = call.future.result().outputs if call.future.exception() is None else ()
    return [outputs] if outputs else []


async def _cancel_with_client(task: asyncio.Task[Any], proto: Any) -> None:
    await proto.client_disconnect()
    task.cancel()
