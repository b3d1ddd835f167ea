"""One stream of a GPU with its program, its buffers and what was recorded of it.

Rows are copied into pinned memory, from there to the device, through the program, and back, all in
the stream's order.  Imports torch, so it is imported only when a model needs it.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from pool.engines.base import NUMPY_DTYPES, Array, EngineError, Tensors
from pool.engines.torch_types import TORCH_DTYPES
from registry_sync.documents import TensorSpec

WARM_RUNS: Final = 2  # before a recording: libraries choose and load their kernels in the first

DeviceTensors = Mapping[str, torch.Tensor]

# Enqueues one run on the current stream and returns without waiting for it.  It gets every input
# and gives every output by name; tensors on the device, the inputs contiguous.  With the same
# tensors it must do the same: its launches may be recorded once and replayed.  Memory that it
# needs comes from torch's allocator.  Each lane has its own, called by one thread at a time.
Program = Callable[[DeviceTensors], DeviceTensors]


class NotByRow(Exception):
    """An output has not a row for each row of the padded batch."""


@dataclass(frozen=True, slots=True)
class _Captured:
    """A recorded run: fill `inputs`, replay, read `outputs`, always at the same addresses."""

    graph: torch.cuda.CUDAGraph
    inputs: DeviceTensors
    outputs: DeviceTensors


class _Buffer:
    """Memory that is reused, and replaced when more is needed."""

    def __init__(self, make: Callable[[int], torch.Tensor]) -> None:
        self._make = make
        self._memory: torch.Tensor | None = None

    def bytes(self, count: int) -> torch.Tensor:
        """Return the first `count` bytes; what was there before may be gone."""
        if self._memory is None or self._memory.numel() < count:
            self._memory = None  # the old goes before the new comes
            # Somewhat larger ones come next, as a rule; making one takes milliseconds.
            self._memory = self._make(1 << max(count - 1, 0).bit_length())
        return self._memory[:count]

    @property
    def size(self) -> int:
        return 0 if self._memory is None else self._memory.numel()


class Turns:
    """Lets at most `count` runs of a session compute at the same time; the others copy meanwhile.

    Runs that compute together end together: then all of them copy, and the device idles.  Who
    waits, waits on the device, so no thread is woken for it.  For any threads.
    """

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        # The whole mutable state: until where the last runs compute, the oldest first.
        self._ends: deque[torch.cuda.Event] = deque(maxlen=count)

    @contextlib.contextmanager
    def take(self, stream: torch.cuda.Stream) -> Iterator[None]:
        """What is enqueued on `stream` meanwhile computes once its turn has come."""
        with self._lock:
            if len(self._ends) == self._ends.maxlen:
                stream.wait_event(self._ends[0])
            yield
            end = torch.cuda.Event()  # type: ignore[no-untyped-call]
            end.record(stream)
            self._ends.append(end)


class Lane:
    """A stream with its program and its buffers; used by one thread at a time."""

    def __init__(
        self,
        program: Program,
        device: torch.device,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        turns: Turns,
    ) -> None:
        self._program = program
        self._turns = turns
        self._device = device
        self._inputs = inputs
        self._outputs = {spec.name: spec for spec in outputs}
        # The whole mutable state: a stream, an event, buffers, what was recorded.
        self._stream = _take_stream(device)
        # The thread sleeps until then: the loop needs the core.
        self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._host_in = {spec.name: _Buffer(_pinned) for spec in inputs}
        self._host_out = {spec.name: _Buffer(_pinned) for spec in outputs}
        self._fixed = {spec.name: _Buffer(self._on_device) for spec in inputs}
        self._captured: dict[tuple[tuple[int, ...], ...], _Captured] = {}

    @property
    def memory_bytes(self) -> int:
        """Pinned memory of the host, and buffers on the device."""
        buffers = (*self._host_in.values(), *self._host_out.values(), *self._fixed.values())
        return sum(buffer.size for buffer in buffers)

    @property
    def captured(self) -> int:
        """How many sizes of batch were recorded."""
        return len(self._captured)

    def run(
        self, parts: Sequence[Tensors], wanted: Sequence[str], rows: int | None, bucket: int
    ) -> Tensors:
        """Run parts joined along the first axis.

        Args:
            parts: every input in each; one part alone may have any shapes.
            wanted: the outputs' names.
            rows: of all parts together; the batch is padded to `bucket` and the answer cut back.
                None: nothing is padded nor cut.

        Raises:
            NotByRow: an output cannot be cut back.
        """
        shapes = self._shapes(parts, None if rows is None else bucket)
        with self._here():
            captured = self._captured.get(tuple(shapes.values()))
            if captured is None:
                inputs: DeviceTensors = {
                    spec.name: torch.empty(
                        shapes[spec.name], dtype=TORCH_DTYPES[spec.datatype], device=self._device
                    )
                    for spec in self._inputs
                }
                self._fill(inputs, parts)
                with self._turns.take(self._stream):
                    outputs = self._program(inputs)
            else:
                self._fill(captured.inputs, parts)
                with self._turns.take(self._stream):
                    captured.graph.replay()
                outputs = captured.outputs
            answer = []
            for name in wanted:
                output = outputs[name]
                if rows is not None:
                    if output.shape[:1] != (bucket,):
                        raise NotByRow(f'output "{name}" has the shape {list(output.shape)}')
                    output = output[:rows]
                answer.append((name, tuple(output.shape), self._fetch(name, output)))
            self._done.record(self._stream)
            self._done.synchronize()
            return {name: self._own(name, shape, host) for name, shape, host in answer}

    def capture(self, tensors: Tensors) -> None:
        """Record a run with inputs of these shapes; the largest come first.

        Raises:
            RuntimeError: it cannot be recorded.  The lane is as before.
        """
        shapes = self._shapes([tensors], None)
        with self._here():
            inputs = {}
            for spec in self._inputs:
                dtype = TORCH_DTYPES[spec.datatype]
                count = math.prod(shapes[spec.name]) * dtype.itemsize
                memory = self._fixed[spec.name].bytes(count)
                inputs[spec.name] = memory.view(dtype).view(shapes[spec.name])
            self._fill(inputs, [tensors])
            for _ in range(WARM_RUNS):
                self._program(inputs)
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            # Other threads go on allocating and waiting meanwhile; it is none of ours.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                outputs = dict(self._program(inputs))
            except BaseException:
                self._give_up(graph)
                raise
            graph.capture_end()
            graph.replay()
            self._stream.synchronize()
        self._captured[tuple(shapes.values())] = _Captured(graph, inputs, outputs)

    def _give_up(self, graph: torch.cuda.CUDAGraph) -> None:
        """End a recording that failed."""
        with contextlib.suppress(RuntimeError):  # it is invalid, and says so once more
            graph.capture_end()
        # Then torch has not told its allocator, which would refuse to give anything back as long
        # as it believes that somebody records.
        with contextlib.suppress(RuntimeError, AttributeError):
            torch._C._cuda_endAllocateToPool(self._device.index, self._pool)

    def close(self) -> None:
        """Drop everything; the stream is for the next lane."""
        self.forget()
        _give_back_stream(self._device, self._stream)
        for buffers in (self._host_in, self._host_out, self._fixed):
            buffers.clear()

    def forget(self) -> None:
        """Drop what was recorded."""
        for captured in self._captured.values():
            captured.graph.reset()
        self._captured.clear()

    @contextlib.contextmanager
    def _here(self) -> Iterator[None]:
        with (
            torch.inference_mode(),
            torch.cuda.device(self._device),
            torch.cuda.stream(self._stream),
        ):
            yield

    def _on_device(self, count: int) -> torch.Tensor:
        return torch.empty(count, dtype=torch.uint8, device=self._device)

    def _shapes(self, parts: Sequence[Tensors], rows: int | None) -> dict[str, tuple[int, ...]]:
        shapes = {}
        for spec in self._inputs:
            shape = parts[0][spec.name].shape
            if rows is not None:
                shape = (rows, *shape[1:])
                if any(part[spec.name].shape[1:] != shape[1:] for part in parts):
                    raise EngineError(f'input "{spec.name}": the rows have different shapes')
            shapes[spec.name] = shape
        return shapes

    def _fill(self, inputs: DeviceTensors, parts: Sequence[Tensors]) -> None:
        """Copy the parts, one behind the other, and repeat the last row to the end."""
        for spec in self._inputs:
            there = inputs[spec.name]
            if not there.numel():
                continue
            staged = self._host_in[spec.name].bytes(there.nbytes)
            view = _as_array(staged, spec.datatype, tuple(there.shape))
            start = 0
            for part in parts:
                tensor = part[spec.name]
                if tensor.shape == view.shape:
                    np.copyto(view, tensor, casting="equiv")
                    start = len(view) if view.shape else 0
                else:
                    end = start + len(tensor)
                    np.copyto(view[start:end], tensor, casting="equiv")
                    start = end
            if view.shape and start < len(view):
                # Not zeros: a row that the model takes, wherever that makes a difference.
                view[start:] = view[start - 1] if start else 0
            there.view(-1).view(torch.uint8).copy_(staged, non_blocking=True)

    def _fetch(self, name: str, output: torch.Tensor) -> torch.Tensor:
        """Enqueue the copy of an output, in its declared datatype, to the host."""
        output = output.to(TORCH_DTYPES[self._outputs[name].datatype]).contiguous()
        host = self._host_out[name].bytes(output.nbytes)
        if output.numel():
            host.copy_(output.view(-1).view(torch.uint8), non_blocking=True)
        return host

    def _own(self, name: str, shape: tuple[int, ...], host: torch.Tensor) -> Array:
        """Return what was fetched, out of the buffer that the next run will write over."""
        return _as_array(host, self._outputs[name].datatype, shape).copy()


# cuBLAS keeps some megabytes of the device for every stream that it has seen, for good, so that
# streams are used again.
_streams: dict[torch.device, list[torch.cuda.Stream]] = {}


def _take_stream(device: torch.device) -> torch.cuda.Stream:
    try:
        return _streams[device].pop()
    except (KeyError, IndexError):
        return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _give_back_stream(device: torch.device, stream: torch.cuda.Stream) -> None:
    _streams.setdefault(device, []).append(stream)


def _pinned(count: int) -> torch.Tensor:
    return torch.empty(count, dtype=torch.uint8, pin_memory=True)


def _as_array(memory: torch.Tensor, datatype: str, shape: tuple[int, ...]) -> Array:
    array: Array = memory.numpy().view(NUMPY_DTYPES[datatype]).reshape(shape)
    return array
