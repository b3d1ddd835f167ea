"""A session on a GPU: lanes of streams, buffers that are reused, a CUDA graph for each batch size.

What the model is, is a `Program` for each lane; torch and TensorRT bring their own.  Two lanes
compute at the same time while a third copies.  Imports torch, so it is imported only when a model
needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import Final

import numpy as np
import structlog
import torch

from pool.engines.base import NUMPY_DTYPES, Array, Tensors
from pool.engines.buckets import bucket_of, buckets
from pool.engines.cuda_lane import Lane, NotByRow, Program, Turns
from pool.engines.rows import Tails, can_join, run_zeros, small, zeros
from pool.engines.torch_types import engine_error
from registry_sync.documents import TensorSpec

LANES: Final = 3
COMPUTING_MAX: Final = 2  # of them: two fill the device where one batch does not; one copies

_log = structlog.get_logger(__name__)


class CudaSession:
    """A model on a GPU; see `Session`.

    Batches are padded to the next of `buckets(rows_max)` if their rows are independent, and each
    of these sizes is recorded as a CUDA graph beforehand.  Every other shape runs as it is: nothing
    is ever recorded in a request's way.
    """

    streams = False

    def __init__(
        self,
        programs: Sequence[Program],
        *,
        device: torch.device,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        rows_max: int,
        deterministic: bool,
        weights_bytes: int,
        tails: Tails | None = None,
        joins: bool | None = None,
        graphs: bool = True,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        """Make a session; nothing runs before `warmup`.

        Args:
            programs: one for each lane.
            device: with its index.
            rows_max: 1 for a model that is never batched.
            weights_bytes: on the device, for `memory_bytes`.
            tails: of each input, the sizes behind the first axis with which runs are recorded;
                None: those of the signature, and nothing is recorded if it leaves some open.
            joins: whether rows are independent, where that is known; None: found out by `warmup`.
            graphs: False: run launch by launch.
            release: drops what `programs` hold; called once by `close`.
        """
        self.inputs = inputs
        self.outputs = outputs
        self.lanes = len(programs)
        self._device = device
        self._rows_max = rows_max
        self._deterministic = deterministic
        self._weights_bytes = weights_bytes
        self._tails = tails
        self._joins = joins
        self._graphs = graphs
        self._names = [spec.name for spec in outputs]
        # The whole mutable state: the lanes until `close`, and what `warmup` finds out.
        turns = Turns(COMPUTING_MAX)
        self._lanes = [Lane(program, device, inputs, outputs, turns) for program in programs]
        self._free: SimpleQueue[Lane] = SimpleQueue()
        for lane in self._lanes:
            self._free.put(lane)
        self._release: Callable[[], None] | None = release
        self._recorded_bytes = 0
        self.batches = rows_max > 1 and all(spec.shape[:1] == (-1,) for spec in outputs)

    @property
    def memory_bytes(self) -> int:
        """An estimate: weights, what the recorded runs keep, staging buffers."""
        buffers = sum(lane.memory_bytes for lane in self._lanes)
        return self._weights_bytes + self._recorded_bytes + buffers

    @property
    def captured(self) -> int:
        """How many sizes of batch are recorded in every lane."""
        return min((lane.captured for lane in self._lanes), default=0)

    def infer(self, tensors: Tensors, outputs: Sequence[str] = ()) -> Tensors:
        """Run once; see `Session.infer`."""
        return self.infer_joint([tensors], outputs)

    def infer_joint(self, parts: Sequence[Tensors], outputs: Sequence[str] = ()) -> Tensors:
        """Run several calls as one, as if they had been joined along the first axis.

        Their rows go straight to where the device reads them.
        """
        wanted = list(outputs) or self._names
        rows = self._rows_of(parts) if self.batches else None
        if rows is None:
            return self._run([_joined(parts)], wanted, None, 0)
        if rows <= self._rows_max:
            try:
                return self._run(parts, wanted, rows, bucket_of(rows, self._rows_max))
            except NotByRow as error:
                # Then it must not have been padded either; the caller sees and judges it.
                self.batches = False
                _log.warning("rows_cannot_be_padded", reason=str(error))
                return self._run([_joined(parts)], wanted, None, 0)
        return self._in_turn(_joined(parts), wanted, rows)

    def _in_turn(self, tensors: Tensors, wanted: Sequence[str], rows: int) -> Tensors:
        """Run more rows than a batch has, one batch after the other."""
        answers = []
        for start in range(0, rows, self._rows_max):
            part = {name: one[start : start + self._rows_max] for name, one in tensors.items()}
            answers.append(self.infer_joint([part], wanted))
        return {name: np.concatenate([answer[name] for answer in answers]) for name in wanted}

    def _rows_of(self, parts: Sequence[Tensors]) -> int | None:
        """Return how many rows there are; None if inputs of one part differ in that."""
        rows = 0
        for part in parts:
            firsts = {part[spec.name].shape[:1] for spec in self.inputs}
            if len(firsts) != 1 or firsts == {()}:
                return None
            rows += firsts.pop()[0]
        return rows

    def _run(
        self, parts: Sequence[Tensors], wanted: Sequence[str], rows: int | None, bucket: int
    ) -> Tensors:
        lane = self._free.get()
        try:
            return lane.run(parts, wanted, rows, bucket)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            # What torch raises, whoever is to blame.
            raise engine_error(error, self._device) from error
        finally:
            self._free.put(lane)

    def stream(self, tensors: Tensors) -> Iterator[Tensors]:
        """Give the one answer: there are no others."""
        yield self.infer(tensors)

    def warmup(self) -> None:
        """Run with zeros, find out whether rows can be joined, and record the sizes of batch."""
        self._warm(lambda tensors: self._run([tensors], self._names, None, 0))
        if not self._graphs:
            return
        tails = self._tails or _tails_of(self.inputs)
        if tails is None:
            return
        before = torch.cuda.memory_reserved(self._device)
        sizes = reversed(buckets(self._rows_max)) if self.batches else [1]
        samples = [{spec.name: zeros(spec, rows, tails) for spec in self.inputs} for rows in sizes]
        try:
            for lane in self._lanes:
                for sample in samples:
                    lane.capture(sample)
        except torch.OutOfMemoryError as error:
            raise engine_error(error, self._device) from error
        except Exception as error:
            # Some models wait for the device in the middle; they run launch by launch.
            for lane in self._lanes:
                lane.forget()
            reason = engine_error(error, self._device)
            _log.warning("cuda_graphs_not_recorded", reason=str(reason))
        self._recorded_bytes = max(0, torch.cuda.memory_reserved(self._device) - before)

    def _warm(self, infer: Callable[[Tensors], Tensors]) -> None:
        if self._rows_max > 1 and self._joins is None:
            self.batches = can_join(
                infer,
                self.inputs,
                self.outputs,
                deterministic=self._deterministic,
                believed=self.batches,
                tails=self._tails,
                draw=lambda spec, dice: _harmless(spec, dice, self._tails),
            )
        else:
            self.batches = self._rows_max > 1 and bool(self._joins)
            run_zeros(infer, self.inputs, self._tails)

    def close(self) -> None:
        """Give back the lanes, what they recorded, and the weights."""
        for lane in self._lanes:
            lane.close()
        self._lanes.clear()
        self._free = SimpleQueue()  # whoever calls now waits forever: nobody may
        if self._release is not None:
            self._release()
            self._release = None
            torch.cuda.empty_cache()


def _joined(parts: Sequence[Tensors]) -> Tensors:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _tails_of(inputs: Sequence[TensorSpec]) -> dict[str, tuple[int, ...]] | None:
    if any(size < 0 for spec in inputs for size in spec.shape[1:]):
        return None
    return {spec.name: spec.shape[1:] for spec in inputs}


def _harmless(spec: TensorSpec, dice: np.random.Generator, tails: Tails | None) -> Array:
    """Return one row that no kernel takes for an index out of range: that ends the process."""
    if NUMPY_DTYPES[spec.datatype].kind == "f" or spec.datatype == "BF16":
        return small(spec, dice, tails)
    return zeros(spec, 1, tails)
