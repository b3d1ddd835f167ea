"""Runs copies of answered calls through a rollout's candidate, and compares the answers in place.

A call is marked by its edge, if it is part of the sample.  The worker that has answered it, and has
the candidate warm as well, runs the same inputs once more: after the reply is on its way, one copy
at a time, and only when nothing else waits, runs or loads in the whole worker and has not for about
as long as the copy takes.  So a caller finds a copy under way only where the pause before it was
longer than the copy.  What cannot run soon is dropped: a sample is not owed to anybody.
The caller has no part in this; what goes wrong here is counted.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from pool.arrays import BadTensor, to_array
from pool.copy_guard import DIED, CopyGuard
from pool.engines.base import Array, Tensors, reason_of
from pool.loaded import Loaded
from pool.queueing.engine_queue import EngineQueue
from pool.queueing.runner import Runner, ThreadRunner
from pool.queueing.ticket import ROWS_UNBOUNDED, Answer, Failed, Outcome, Ticket
from pool.rollouts.compare import ERROR_MAX, Comparison, compare
from pool.rollouts.shadow_view import worst_first
from pool.shadow_counts import Count, Found
from pool.wire import data
from pool.wire.control import ShadowExample, ShadowReport

KEPT_BYTES_MAX: Final = 16 << 20  # of inputs and answers, of all copies that wait or run together
# Of inputs in edges' arenas, besides one copy: what finds no place there costs the edge more.
ARENA_BYTES_MAX: Final = 2 << 20
KEPT_MAX: Final = 64
KEPT_S_MAX: Final = 1.0  # a copy that has waited so long is dropped
RUN_S_MAX: Final = 30.0  # one that may take longer is not begun
QUIET_S_MIN: Final = 0.001  # without a call before a copy runs: as long as that takes, but
QUIET_S_MAX: Final = 0.5
LOOK_S: Final = 0.005  # how often a worker that is busy is looked at again
PRIORITY: Final = 100  # the lowest
COUNTS_MAX: Final = 64  # pairs of versions that are counted
DETAIL_CHARS_MAX: Final = 1000  # well within what the wire takes, in any script


class Place(Protocol):
    """Where a version is in this worker; see `pool.slots.EngineSlot`."""

    state: str
    loaded: Loaded | None
    queue: EngineQueue | None


@dataclass(slots=True, eq=False)
class _Copy:
    """A call that was answered and is to be answered once more."""

    call: data.Call
    tensors: Sequence[data.TensorLike]
    outputs: Tensors  # the baseline's answer
    baseline: Loaded
    candidate: tuple[str, str]
    count: Count
    bytes: int
    arena_bytes: int  # of these, in an edge's arena
    kept_s: float


class Shadows:
    """The copies of one worker's calls.

    Args:
        slot_of: finds the place of a version that somebody has asked for before.
        is_idle: tells whether nothing waits, runs or loads in the worker.
        arrivals: how many calls have ever come.
        guard: remembers whose copy this process dies of; None: nobody does.
        runner: where answers are compared; a thread by default.
    """

    def __init__(
        self,
        slot_of: Callable[[tuple[str, str]], Place | None],
        is_idle: Callable[[], bool],
        arrivals: Callable[[], int],
        *,
        guard: CopyGuard | None = None,
        clock: Callable[[], float] = time.monotonic,
        runner: Runner | None = None,
    ) -> None:
        self._slot_of = slot_of
        self._is_idle = is_idle
        self._arrivals = arrivals
        self._guard = guard
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        # The whole mutable state.  What was found, and whether the controller is to hear of it:
        self._counts: dict[tuple[str, str, str], Count] = {}
        self._is_news = False
        # Who waits, who runs or is compared, and how many bytes they have together:
        self._waiting: deque[_Copy] = deque()
        self._running: _Copy | None = None
        self._bytes = 0
        self._arena_bytes = 0
        # When to look next, and since when, and since which arrival, nobody has called:
        self._timer: asyncio.TimerHandle | None = None
        self._quiet_since_s = 0.0
        self._quiet_arrivals = -1
        # Who compares, once somebody has to:
        self._runner = runner
        self._is_closed = False

    @property
    def bytes(self) -> int:
        """How many bytes of inputs and answers are kept."""
        return self._bytes

    def offer(
        self,
        call: data.Call,
        tensors: Sequence[data.TensorLike],
        answer: Answer,
        loaded: Loaded,
    ) -> None:
        """Take a marked call that was answered, if there is a use for it.

        Args:
            tensors: its inputs; referred to until the copy has run or is dropped.
            answer: what the caller gets; the same holds of its outputs.
            loaded: what has answered.
        """
        now_s = self._clock()
        outputs: Tensors = {}
        size_bytes = 0
        for mark in call.shadow:
            candidate = (mark.model, mark.version)
            count = self._count_of(mark, loaded, now_s)
            count.offered += 1
            self._is_news = True
            if self._guard is not None and candidate in self._guard.deadly:
                if count.failed:
                    count.dropped += 1
                else:  # so that it is seen
                    count.add(Found(Comparison(), DIED))
                continue
            slot = self._slot_of(candidate)
            if slot is None or slot.state != "warm":
                count.absent += 1
                count.dropped += 1
                continue
            if self._is_closed or len(self._waiting) >= KEPT_MAX:
                count.dropped += 1
                continue
            if not size_bytes:
                known, given = loaded.datatypes, answer.outputs
                outputs = {name: _own(given[name]) for name in given if name in known}
                size_bytes = _bytes_of(tensors, outputs)
            input_bytes = sum([len(tensor.data) for tensor in tensors]) if call.arena_at else 0
            if not self._has_room(size_bytes, input_bytes) or not count.pay(now_s):
                count.dropped += 1
                continue
            self._bytes += size_bytes
            self._arena_bytes += input_bytes
            sizes = (size_bytes, input_bytes)
            self._waiting.append(
                _Copy(call, tensors, outputs, loaded, candidate, count, *sizes, now_s)
            )
            count.run_s = count.run_s or answer.infer_s  # the candidate may take as long
            self._look_soon()

    def _has_room(self, size_bytes: int, arena_bytes: int) -> bool:
        held_bytes = self._arena_bytes
        return self._bytes + size_bytes <= KEPT_BYTES_MAX and (
            not arena_bytes or not held_bytes or held_bytes + arena_bytes <= ARENA_BYTES_MAX
        )

    def report(self) -> ShadowReport | None:
        """Return what was found, cumulative; None: nothing since the last report."""
        if not self._is_news:
            return None
        self._is_news = False
        return ShadowReport(tuple(count.told() for count in self._counts.values()))

    def tell_again(self) -> None:
        """Take note of a controller that may have heard nothing."""
        self._is_news = bool(self._counts)

    def close(self) -> None:
        """Begin nothing more."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            self._end(self._waiting.popleft(), None)
        if self._guard is not None:  # who is told to end does not die of it
            self._guard.end()
        if self._runner is not None and self._running is None:
            self._runner.close()

    def _count_of(self, mark: data.ShadowOf, loaded: Loaded, now_s: float) -> Count:
        name = (mark.rollout, mark.model, mark.version)
        count = self._counts.get(name)
        if count is None:
            baseline = f"{loaded.manifest.model}/{loaded.manifest.version}"
            candidate = f"{mark.model}/{mark.version}"
            count = Count(mark.rollout, baseline, candidate, mark.calls_per_s_max, now_s)
            self._counts[name] = count
            if len(self._counts) > COUNTS_MAX:
                del self._counts[next(iter(self._counts))]
        count.calls_per_s_max = mark.calls_per_s_max  # it may be another one by now
        return count

    # when

    def _look_soon(self, at_s: float = 0.0) -> None:
        """Look at `at_s`, or as soon as replies have left, unless that is due anyway."""
        if self._timer is None and self._running is None:
            left_s = max(at_s - self._clock(), QUIET_S_MIN)
            self._timer = self._loop.call_later(left_s, self._look)

    def _look(self) -> None:
        """Run the next copy if the worker has been quiet for long enough, or look again."""
        self._timer = None
        now_s = self._clock()
        while self._waiting and now_s - self._waiting[0].kept_s > KEPT_S_MAX:
            self._end(self._waiting.popleft(), None)
        if not self._waiting:
            return
        if not self._is_idle():
            self._quiet_arrivals = -1
            self._look_soon(now_s + LOOK_S)
            return
        arrivals = self._arrivals()
        if arrivals != self._quiet_arrivals:
            self._quiet_arrivals, self._quiet_since_s = arrivals, now_s
        pause_s = min(max(self._waiting[0].count.run_s, QUIET_S_MIN), QUIET_S_MAX)
        at_s = self._quiet_since_s + pause_s
        if now_s < at_s:
            self._look_soon(at_s)
        else:
            self._run(self._waiting.popleft(), now_s)

    # what

    def _run(self, copy: _Copy, now_s: float) -> None:
        self._running = copy
        slot = self._slot_of(copy.candidate)
        loaded = slot.loaded if slot is not None and slot.state == "warm" else None
        if slot is None or slot.queue is None or loaded is None or loaded.session.streams:
            self._end(copy, None)
            return
        try:
            inputs = {tensor.name: to_array(tensor) for tensor in copy.tensors}
        except BadTensor:  # cannot be: the baseline has answered
            self._end(copy, None)
            return
        if self._guard is not None:
            self._guard.begin(copy.candidate)
        call, tensors = copy.call, copy.tensors
        is_batched = loaded.manifest.rows_max > 1 and bool(tensors) and bool(tensors[0].shape)
        slot.queue.submit(
            Ticket(
                rows=max(1, tensors[0].shape[0]) if is_batched else 1,
                shape_key=tuple([(t.name, tuple(t.shape[1:])) for t in tensors]),
                arrived_s=now_s,
                deadline_s=now_s + RUN_S_MAX,
                inputs=inputs,
                on_settled=functools.partial(self._ran, copy, loaded),
                outputs=call.outputs,
                priority=PRIORITY,
                rows_max=call.rows_max or ROWS_UNBOUNDED,
                bytes=copy.bytes,
                on_device=copy.count.has_had,
            )
        )

    def _ran(self, copy: _Copy, loaded: Loaded, outcome: Outcome) -> None:
        if self._guard is not None:
            if isinstance(outcome, Failed) and outcome.status == 502:  # it has lost the device
                self._guard.blame()
            self._guard.end()
        if isinstance(outcome, Answer):
            copy.count.run_s = outcome.infer_s
        elif not isinstance(outcome, Failed):
            self._end(copy, None)  # it would have taken too long, or the engine is on its way out
            return
        if self._runner is None:
            self._runner = ThreadRunner("shadow", self._loop)
        self._runner.start(
            functools.partial(_judge, copy, loaded, outcome, copy.count.worst),
            lambda found, _: self._end(copy, found),
        )

    def _end(self, copy: _Copy, found: Found | None) -> None:
        """Count what was found, and let go of the copy; None: it did not run."""
        self._bytes -= copy.bytes
        self._arena_bytes -= copy.arena_bytes
        self._is_news = True
        if found is None:
            copy.count.dropped += 1
        else:
            copy.count.add(found)
        if copy is self._running:
            self._running = None
            if self._is_closed and self._runner is not None:
                self._runner.close()
        if self._waiting and not self._is_closed:
            self._look_soon()


def _judge(
    copy: _Copy, loaded: Loaded, outcome: Answer | Failed, worst: tuple[ShadowExample, ...]
) -> Found:
    """Compare; in a thread, since it takes as long as the answers are large.

    Args:
        worst: the examples that are kept already.
    """
    comparison, failure = Comparison(), ""
    if isinstance(outcome, Failed):
        failure = outcome.detail[:DETAIL_CHARS_MAX]
        kind, error, detail = "failed", ERROR_MAX, failure
    else:
        try:
            comparison = compare(
                copy.outputs,
                outcome.outputs,
                copy.baseline.datatypes,
                loaded.datatypes,
                is_batched=copy.baseline.manifest.rows_max > 1,
            )
        except Exception as reason:
            # An engine may answer anything.
            comparison = Comparison(f"it cannot be compared: {reason_of(reason)}")
        kind = "unlike" if comparison.unlike else "top1" if comparison.top1_off else "values"
        error = ERROR_MAX if comparison.unlike else comparison.relative_error
        detail = comparison.unlike or comparison.detail
    if not detail:
        return Found(comparison, failure)
    example = ShadowExample(copy.call.request_id, "", error, detail[:DETAIL_CHARS_MAX], kind)
    if example not in worst_first((*worst, example)):
        return Found(comparison, failure)
    named = msgspec.structs.replace(example, inputs=input_digest(copy.tensors))
    return Found(comparison, failure, named)


def input_digest(tensors: Sequence[data.TensorLike]) -> str:
    """Name inputs by what they are: SHA-256 in hex, over the tensors by name.

    Of each, name, datatype and shape as a line of JSON, and then its bytes as on the wire.
    """
    hasher = hashlib.sha256()
    for tensor in sorted(tensors, key=lambda one: one.name):
        head = (tensor.name, tensor.datatype, tuple(tensor.shape))
        hasher.update(msgspec.json.encode(head) + b"\n")
        hasher.update(tensor.data)
    return hasher.hexdigest()


def _own(array: Array) -> Array:
    """Return an array without the rest of the batch that it was cut from."""
    base = array.base
    is_part = isinstance(base, type(array)) and base.nbytes > 2 * array.nbytes
    return array.copy() if is_part else array


def _bytes_of(tensors: Sequence[data.TensorLike], outputs: Tensors) -> int:
    size_bytes = 1  # nothing at all is not free either
    for tensor in tensors:
        size_bytes += len(tensor.data)
    for array in outputs.values():
        size_bytes += array.nbytes
        if array.dtype.hasobject:
            size_bytes += sum(map(len, array.flat))
    return size_bytes
