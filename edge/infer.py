"""A request's way through the edge: key, endpoint, body, variant, cache, dispatch, answer.

`Service.infer` is the way; every collaborator is a field of one object built in `main`.  Knows no
server: it gets a header lookup and a way to read the body, and returns status, headers and body.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import math
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from edge.access_log import AccessLog
from edge.admin.desk import Desk
from edge.auth import Auth, allow
from edge.body import InferRequest, parse_infer, render_infer
from edge.body_generate import parse_generate
from edge.body_msgpack import parse_msgpack, render_msgpack
from edge.body_signature import Signature
from edge.cache import AnswerCache, cache_key
from edge.choosing import choose
from edge.classification import classified
from edge.content import answers_msgpack, is_msgpack, refuse_msgpack
from edge.disk import Disk
from edge.dispatching.calls import Answer, Call
from edge.dispatching.dispatch import Pool
from edge.encoding import ENCODINGS, encoded
from edge.errors import (
    BadRequest,
    ModelFailed,
    NotFound,
    Unavailable,
    Unprocessable,
    Unsupported,
    WorkerLost,
    jittered,
    quote,
)
from edge.exposure import ExposureLog
from edge.flight import Flights
from edge.levels import Levels, Older
from edge.metrics import Metrics
from edge.readers import READ_HERE_BYTES, Readers, is_long
from edge.snapshot import ArmOf, Endpoint, Snapshot, of_version
from edge.spans import Spans
from edge.trace import (
    Header,
    Trace,
    count,
    observe_spoilt,
    server_timing,
    trace_context,
)
from edge.world import World
from pool.wire.data import Tensor, TensorLike
from registry_sync.documents import PRIORITY_DEFAULT, KeyRecord
from registry_sync.names import BadName, check_name, check_version

ReadBody = Callable[[], Awaitable[bytes]]
Reply = tuple[int, list[tuple[str, str]], bytes]
Kept = Sequence[TensorLike]

TENSOR_BYTES_EXTRA = 200  # what a cached tensor costs besides its bytes
CONTENT_ENCODINGS = ENCODINGS | {"", "identity"}
SPOILT = (ModelFailed.status, WorkerLost.status)


@dataclass(frozen=True, slots=True)
class Target:
    """What the path names: an endpoint, or a model and its version."""

    name: str
    version: str | None = None
    route: str = ""  # method and template of the path that named it


class Service:
    """The edge's collaborators, and the way through them."""

    def __init__(
        self,
        *,
        world: World,
        pool: Pool,
        auth: Auth,
        cache: AnswerCache[Kept],
        flights: Flights[Answer],
        metrics: Metrics,
        access: AccessLog | None = None,
        disk: Disk | None = None,
        desk: Desk | None = None,
        exposures: ExposureLog | None = None,
        spans: Spans | None = None,
    ) -> None:
        self.world = world
        self.pool = pool
        self.auth = auth
        self.cache = cache
        self.flights = flights
        self.metrics = metrics
        self.access = access
        self.desk = desk
        self.exposures = exposures
        self._spans = spans
        self._readers = Readers()
        self._now = time.monotonic
        self.levels = Levels(cache, flights, disk, self._now, lambda: world.has_heard)
        self._id_prefix = secrets.token_hex(5)
        self._ids = itertools.count(1)

    def begin(self, header: Header, route: str = "") -> Trace:
        """Start the trace of a request."""
        trace = Trace(self.request_id(header), self._now(), header, route)
        if self._spans is not None:
            self._spans.begin(trace, header)
        return trace

    def request_id(self, header: Header) -> str:
        """Return the id that a request brings, that of its W3C trace and span, or a new one."""
        given = header("x-request-id")
        if given is None or not (0 < len(given) <= 128 and given.isascii() and given.isprintable()):
            traceparent = header("traceparent")
            if traceparent is not None:
                trace_id, span_id = trace_context(traceparent)
                if trace_id:
                    return f"{trace_id}-{span_id}"
            given = f"{self._id_prefix}-{next(self._ids):x}"
        return given

    async def infer(
        self,
        trace: Trace,
        target: Target,
        header: Header,
        read_body: ReadBody,
    ) -> Reply:
        """Answer `POST /v2/models/…/infer`; raises `Refusal`."""
        record, endpoint = await self._admit(trace, self.world.snapshot, target, header)
        is_packed = is_msgpack(header("content-type"))
        packs = answers_msgpack(header("accept"), is_packed)
        body = await read_body()
        trace.bytes_in = len(body)
        read_s = self._now()
        arm = choose(trace, endpoint, record, header, self.exposures)
        signature = arm.version.signature
        header_length = header("inference-header-content-length")
        read = functools.partial(parse_msgpack, binary=packs) if is_packed else parse_infer
        if len(body) > READ_HERE_BYTES and is_long(body, header_length, is_packed=is_packed):
            request = await self._readers.read(read, body, header_length, signature)
        else:
            request = read(body, header_length, signature)
        deadline_s = self._accept(trace, endpoint, request, header)
        now_s = self._now()
        trace.parse_s = now_s - read_s
        answer = await self._answer(
            trace, record, endpoint, arm, request, header, deadline_s, now_s
        )
        trace.answered_s = self._now()
        outputs = answer.outputs
        if request.classes:
            outputs = await classified(request, outputs, arm.version)
        render = render_msgpack if packs else render_infer
        content, headers = render(request, target.name, arm.version.ref[1], outputs)
        accepted = header("accept-encoding")
        if accepted is not None:
            content, more = await encoded(content, accepted)
            headers += more
        headers += self.headers(trace)
        return 200, headers, content

    async def stream(
        self,
        trace: Trace,
        target: Target,
        header: Header,
        read_body: ReadBody,
        on_chunk: Callable[[Sequence[Tensor]], None],
        on_held: Callable[[str, float], None] | None = None,
    ) -> tuple[InferRequest, Call]:
        """Begin `POST /v2/models/…/generate_stream`; the call's future ends the stream.

        Args:
            on_held: told every half second what a load does that the call waits for.
        """
        record, endpoint = await self._admit(trace, self.world.snapshot, target, header)
        refuse_msgpack(header("content-type"))
        body = await read_body()
        trace.bytes_in = len(body)
        read_s = self._now()
        arm = choose(trace, endpoint, record, header, self.exposures)
        signature = arm.version.signature
        if len(body) > READ_HERE_BYTES:
            request = await self._readers.read(_parse_generate, body, None, signature)
        else:
            request = parse_generate(body, signature)
        deadline_s = self._accept(trace, endpoint, request, header)
        trace.parse_s = self._now() - read_s
        trace.cache_status = "tidepool; fwd=bypass; detail=stream"
        call = self._call(trace, arm, request, deadline_s, on_chunk, on_held)
        self.pool.start(call)
        return request, call

    async def find(self, snapshot: Snapshot, target: Target) -> Endpoint:
        """Return what `target` names.

        Raises:
            NotFound: nothing does.
            Unavailable: nobody can say whether there is such a version.
        """
        if target.version is None:
            endpoint = snapshot.endpoints.get(target.name)
            if endpoint is None:
                raise NotFound(f"Request for unknown model: {target.name!r} is not found")
            return endpoint
        ref = (target.name, target.version)
        version = snapshot.versions.get(ref)
        if version is None:
            try:
                check_name("model", target.name)
                check_version(target.version)
                version = await self.world.resolve(ref)
            except BadName:
                version = None
            except ConnectionError:
                raise Unavailable(
                    f"whether version {target.version!r} of {target.name!r} exists cannot be told "
                    "while no controller can be reached",
                    retry_after_s=jittered(1.0),
                ) from None
        if version is None:
            raise NotFound(
                f"Request for unknown model: {target.name!r} version {target.version!r} "
                "is not found"
            )
        return of_version(version, self.metrics)

    def headers(self, trace: Trace) -> list[tuple[str, str]]:
        """Return the headers that every answer carries."""
        headers = [("x-request-id", trace.request_id)]
        if trace.arm is not None:
            headers.append(("x-tidepool-variant", trace.arm.name or trace.arm.version.ref[1]))
        if trace.cache_status:
            headers.append(("cache-status", trace.cache_status))
        trace.ended_s = now_s = self._now()
        if trace.answered_s:
            trace.respond_s = now_s - trace.answered_s
        headers.append(("server-timing", server_timing(trace)))
        return headers

    def end(self, trace: Trace, status: int) -> None:
        """Count a request that has ended, and note it in the access log."""
        self.count(trace, status)
        if self.access is not None:
            self.access.note(trace, status)

    def count(self, trace: Trace, status: int) -> None:
        """Count a request that has ended."""
        if not trace.ended_s:
            trace.ended_s = self._now()
        if trace.watch is not None and status in SPOILT:
            observe_spoilt(trace, trace.ended_s)
        if self._spans is not None:
            self._spans.end(trace, status)
        if trace.arm is None:
            self.metrics.count("tidepool_requests", "", "", "", str(status))
        else:
            count(trace, status)

    # the steps

    async def _admit(
        self, trace: Trace, snapshot: Snapshot, target: Target, header: Header
    ) -> tuple[KeyRecord, Endpoint]:
        record = trace.record = self.auth.check(snapshot, header)
        allow(record, target.name)
        if record.quota is not None:
            trace.meter = self.world.leases.take(record, trace.started_s)
        trace.auth_s = self._now() - trace.started_s
        endpoint = await self.find(snapshot, target)
        trace.endpoint = endpoint
        encoding = header("content-encoding")
        if encoding is not None and encoding.lower() not in CONTENT_ENCODINGS:
            raise Unsupported(
                f"Content-Encoding {quote(encoding)} is not supported; use gzip or deflate",
                headers=(("accept-encoding", "gzip, deflate"),),
            )
        return record, endpoint

    def _accept(
        self, trace: Trace, endpoint: Endpoint, request: InferRequest, header: Header
    ) -> float:
        """Hold a request to the endpoint's own bounds; return when its answer must be there.

        The deadline is the least of the three limits.
        """
        trace.rows = request.rows
        if trace.meter is not None:
            trace.meter.take_rows(request.rows, self._now())
        if request.rows > endpoint.rows_max:
            raise Unprocessable(
                f"{request.rows} rows for {endpoint.name!r}, whose batches have at most "
                f"{endpoint.rows_max}; send them in several requests",
                code="rows",
            )
        left_s = endpoint.deadline_s
        if request.timeout_us:
            left_s = min(left_s, request.timeout_us / 1e6)
        given = header("x-request-timeout-seconds")
        if given is not None:
            try:
                wanted_s = math.nan if "_" in given else float(given)
            except ValueError:
                wanted_s = math.nan
            if not 0 < wanted_s < math.inf:
                raise BadRequest("x-request-timeout-seconds must be a number of seconds above 0")
            left_s = min(left_s, wanted_s)
        return trace.started_s + left_s

    async def _answer(
        self,
        trace: Trace,
        record: KeyRecord,
        endpoint: Endpoint,
        arm: ArmOf,
        request: InferRequest,
        header: Header,
        deadline_s: float,
        now_s: float,
    ) -> Answer:
        """Return the answer out of the cache, a flight of its twin, or the pool."""
        why = self._bypass(endpoint, arm, header)
        if why == "off" or why == "no-store":
            trace.cache_status = f"tidepool; fwd=bypass; detail={why}"
            return await self._compute(trace, self._call(trace, arm, request, deadline_s))
        key = cache_key(record.tenant, arm.version.digest, arm.precision, arm.purged, request)
        hit = None
        if why is None:
            hit = self.cache.find(key, now_s, endpoint.cache_ttl_s)
            trace.cache_s = self._now() - now_s
        if hit is not None:
            outputs, until_s = hit
            trace.cache_status = f"tidepool; hit; ttl={int(until_s - now_s)}"
            trace.answer = Answer(outputs, 0, 0, 0)
            return trace.answer
        if why == "no-cache":
            trace.cache_status = "tidepool; fwd=request; detail=no-cache"
            answer = await self._compute(trace, self._call(trace, arm, request, deadline_s))
            self._store(key, record.tenant, endpoint, answer)
            return answer
        trace.cache_status = "tidepool; fwd=uri-miss"

        def lead(trace: Trace = trace, deadline_s: float = deadline_s) -> Call:
            if endpoint.has_levels:
                trace.cache_s = self._now() - now_s
            call = self._call(trace, arm, request, deadline_s)
            # Kept where the run lands: the caller that began it may have left by then.
            call.future.add_done_callback(
                lambda done: self._keep(key, record.tenant, endpoint, done)
            )
            self.pool.start(call)
            return call

        if not endpoint.has_levels:
            answer = trace.answer = await self.flights.run(key, deadline_s, lead)
        else:

            def refresh(until_s: float) -> Callable[[], Call]:
                own = Trace(trace.request_id, now_s, endpoint=endpoint, arm=arm, record=record)
                own.watch, own.unit = trace.watch, trace.unit
                return functools.partial(lead, own, until_s)

            answer = trace.answer = await self.levels.answer(
                key, record.tenant, endpoint, deadline_s, lead, refresh
            )
            if isinstance(answer, Older):
                trace.cache_status = answer.cache_status
                trace.cache_s = trace.cache_s if trace.dispatched else self._now() - now_s
                arm.metrics.errors += answer.covers_failure
                return answer
        if not trace.dispatched:
            trace.cache_status = "tidepool; fwd=uri-miss; collapsed"
        return answer

    def _bypass(
        self, endpoint: Endpoint, arm: ArmOf, header: Header
    ) -> Literal["off", "no-store", "no-cache"] | None:
        if endpoint.cache_ttl_s <= 0 or not arm.version.caches:
            return "off"
        wish = header("cache-control")
        if wish is None:
            return None
        words = {word.strip() for word in wish.lower().split(",")}
        if "no-store" in words:
            return "no-store"
        return "no-cache" if "no-cache" in words or "max-age=0" in words else None

    def _call(
        self,
        trace: Trace,
        arm: ArmOf,
        request: InferRequest,
        deadline_s: float,
        on_chunk: Callable[[Sequence[Tensor]], None] | None = None,
        on_held: Callable[[str, float], None] | None = None,
    ) -> Call:
        trace.dispatched = True
        route = self.pool.route(arm.version.ref)
        arm.metrics.cold_calls += route is None or not route.warm
        record = trace.record
        trace.call = call = Call(
            ref=arm.version.ref,
            digest=arm.version.digest,
            request_id=trace.request_id,
            inputs=request.inputs,
            outputs=request.outputs,
            deadline_s=deadline_s,
            priority=request.priority if record is None else capped(request.priority, record),
            rows_max=trace.endpoint.rows_max if trace.endpoint is not None else 0,
            tenant="" if record is None else record.tenant,
            share=1.0 if record is None else record.share,
            hedge_share=trace.endpoint.hedge_share if trace.endpoint is not None else 0.0,
            on_chunk=on_chunk,
            on_held=on_held,
            device_us=arm.metrics.device_us,
        )
        if arm.shadow is not None and on_chunk is None:
            call.shadow = arm.shadow.draw(random.random())
        call.watch, call.unit = trace.watch, trace.unit
        if self._spans is not None:
            self._spans.call(trace, call)
        return call

    async def _compute(self, trace: Trace, call: Call) -> Answer:
        self.pool.start(call)
        try:
            trace.answer = await call.future
        except asyncio.CancelledError:
            self.pool.cancel(call)
            raise
        return trace.answer

    def _keep(
        self, key: bytes, tenant: str, endpoint: Endpoint, done: asyncio.Future[Answer]
    ) -> None:
        if not done.cancelled() and done.exception() is None:
            self._store(key, tenant, endpoint, done.result())

    def _store(self, key: bytes, tenant: str, endpoint: Endpoint, answer: Answer) -> None:
        now_s = self._now()
        ttl_s = endpoint.cache_ttl_s
        size_bytes = sum(len(output.data) + TENSOR_BYTES_EXTRA for output in answer.outputs)
        outputs = [_own(output) for output in answer.outputs]
        self.cache.put(key, outputs, size_bytes, now_s, ttl_s, endpoint.stale_s)
        if endpoint.cache_disk:
            self.levels.keep(key, tenant, endpoint, outputs, size_bytes)


def capped(priority: int, record: KeyRecord) -> int:
    """Return the priority of a call, 0 being the default: no higher than its key may have."""
    highest = record.priority
    return priority if highest == 1 else max(priority or PRIORITY_DEFAULT, highest)


def _parse_generate(body: bytes, _: str | None, signature: Signature) -> InferRequest:
    return parse_generate(body, signature)


def _own(tensor: TensorLike) -> TensorLike:
    """Copy a small tensor out of the frame that it came in, which its view would keep alive."""
    if type(tensor.data) is memoryview:
        return Tensor(tensor.name, tensor.datatype, tuple(tensor.shape), bytes(tensor.data))
    return tensor
