"""Runs `torch.export` archives with torch, on the CPU or in the lanes of a GPU.

Imports torch, so it is imported only when a model needs it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from torch.export.passes import move_to_device_pass

from pool.engines import torch_program
from pool.engines.base import NUMPY_DTYPES, Array, EngineError, Session, Tensors
from pool.engines.cuda_lanes import LANES, CudaSession
from pool.engines.rows import warmed
from pool.engines.torch_program import Run
from pool.engines.torch_types import TORCH_DTYPES, engine_error
from registry_sync.documents import Manifest, TensorSpec
from registry_sync.pt2_signature import Pt2Signature

_log = structlog.get_logger(__name__)


def load(folder: Path, manifest: Manifest, threads: int, device: str) -> Session:
    """Make an archive runnable; see `Engine.load`."""
    archive, signature = torch_program.find(folder, manifest)
    use_threads(threads)
    program = torch_program.read(archive)
    weights = torch_program.weights_bytes(program)
    if device != "cpu" and torch.cuda.is_available():
        return _on_gpu(program, signature, manifest, torch.device(device), weights)
    if device != "cpu":
        _log.warning("torch_without_gpu", device=device, reason="torch cannot use its driver")
    return TorchSession(
        torch_program.eager(program, signature),
        manifest,
        copies_inputs=signature.writes_inputs,
        memory_bytes=weights,
    )


def prepare(device: str) -> None:
    """Do in advance what the first archive costs a process more than others.

    torch imports most of itself when it reads an archive, whatever is in that; on a GPU its context
    is made by the first tensor there.
    """
    torch_program.import_all()
    if device != "cpu" and torch.cuda.is_available():
        torch.zeros(1, device=device)
        torch.cuda.synchronize(device)


def _on_gpu(
    program: torch.export.ExportedProgram,
    signature: Pt2Signature,
    manifest: Manifest,
    device: torch.device,
    weights_bytes: int,
) -> CudaSession:
    # An index out of range ends the whole process on a GPU, so whatever takes integers is tried
    # on the CPU.
    joins = None
    if manifest.rows_max > 1 and any(
        NUMPY_DTYPES[spec.datatype].kind in "iu" and spec.datatype != "BF16"
        for spec in manifest.inputs
    ):
        trial = TorchSession(torch_program.eager(program, signature), manifest)
        trial.warmup()
        joins = trial.batches
        trial.close()
    exact_float32()
    try:
        run = torch_program.eager(move_to_device_pass(program, device), signature)
        torch.cuda.synchronize(device)  # lanes have streams of their own
    except Exception as error:
        # torch raises many things here, out of memory first of all.
        torch.cuda.empty_cache()
        raise engine_error(error, device) from error
    return CudaSession(
        [run] * LANES,
        device=device,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        rows_max=manifest.rows_max,
        deterministic=manifest.deterministic,
        weights_bytes=weights_bytes,
        tails=tails_of(manifest),
        joins=joins,
        graphs=not torch_program.waits(program),
    )


def tails_of(manifest: Manifest) -> dict[str, tuple[int, ...]] | None:
    """Return the sizes that runs are recorded with where the manifest says them; else None."""
    axes = manifest.engine.axes if manifest.engine is not None else {}
    tails = {}
    for spec in manifest.inputs:
        sizes = list(spec.shape)
        for axis, size in enumerate(sizes[1:], 1):
            if size < 0:
                extents = axes.get(f"{spec.name}:{axis}")
                if extents is None:
                    return None
                sizes[axis] = extents.opt
        tails[spec.name] = tuple(sizes[1:])
    return tails


def use_threads(threads: int) -> None:
    """Set how many threads one run takes, in the whole process; 0: one for each core."""
    # Not torch's own default: a container may be confined to a part of the machine.
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))


def exact_float32() -> None:
    """Let no kernel of this process cut FP32 to TF32: who publishes FP32 is promised FP32."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False  # true by default, for convolutions


class TorchSession:
    """A model on the CPU; see `Session`.  BF16 tensors are `uint16` arrays with the raw bits."""

    streams = False
    lanes = 1

    def __init__(
        self,
        run: Run,
        manifest: Manifest,
        *,
        copies_inputs: bool = False,
        memory_bytes: int = 0,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        """Make a session; nothing runs before `warmup`.

        Args:
            copies_inputs: the model writes to what it gets.
            release: drops what `run` holds; called once by `close`.
        """
        self.inputs = manifest.inputs
        self.outputs = manifest.outputs
        self.memory_bytes = memory_bytes
        self._names = [spec.name for spec in manifest.outputs]
        self._datatypes = {spec.name: spec.datatype for spec in manifest.outputs}
        self._copies_inputs = copies_inputs
        self._may_batch = manifest.rows_max > 1
        self._deterministic = manifest.deterministic
        # The whole mutable state: what runs until `close`, and what `warmup` finds out.
        self._run: Run | None = run
        self._release: Callable[[], None] | None = release
        self.batches = self._may_batch and all(spec.shape[:1] == (-1,) for spec in manifest.outputs)

    def infer(self, tensors: Tensors, outputs: Sequence[str] = ()) -> Tensors:
        """Run once; see `Session.infer`."""
        run = self._run
        assert run is not None, "infer after close"
        given = {spec.name: self._tensor(spec, tensors[spec.name]) for spec in self.inputs}
        try:
            with torch.inference_mode():
                found = run(given)
                return {name: self._array(name, found[name]) for name in outputs or self._names}
        except Exception as error:
            # torch's exceptions have no base class of their own.
            raise engine_error(error, torch.device("cpu")) from error

    def _tensor(self, spec: TensorSpec, array: Array) -> torch.Tensor:
        if self._copies_inputs:
            array = array.copy()
        tensor = torch.from_numpy(_writable(array))
        return tensor.view(torch.bfloat16) if spec.datatype == "BF16" else tensor

    def _array(self, name: str, tensor: torch.Tensor) -> Array:
        datatype = self._datatypes[name]
        tensor = tensor.to(TORCH_DTYPES[datatype])
        if datatype == "BF16":
            tensor = tensor.view(torch.uint16)
        array: Array = tensor.numpy()
        return array

    def stream(self, tensors: Tensors) -> Iterator[Tensors]:
        """Give the one answer: these models have no others."""
        yield self.infer(tensors)

    def warmup(self) -> None:
        """Run with zeros, and find out whether rows can be joined and told apart again."""
        self.batches = warmed(
            self.infer,
            self.inputs,
            self.outputs,
            may_batch=self._may_batch,
            deterministic=self._deterministic,
            believed=self.batches,
        )

    def close(self) -> None:
        """Free the weights."""
        self._run = None
        if self._release is not None:
            self._release()
            self._release = None


class _Memory:
    """The memory of an array, for numpy to look at once more."""

    def __init__(self, array: Array) -> None:
        self.array = array  # keeps it alive
        place, _ = array.__array_interface__["data"]
        self.__array_interface__: dict[str, Any] = {
            **array.__array_interface__,
            "data": (place, False),
        }


def _writable(array: Array) -> Array:
    """Return the same memory as an array that torch takes without a copy and without a warning.

    torch knows no read-only tensors.  Nobody writes to it: a model that does gets copies.
    """
    if not array.dtype.isnative:
        raise EngineError(f"the input holds {array.dtype}, which is in another byte order")
    if not array.size or any(stride < 0 for stride in array.strides):
        return array.copy()
    return array if array.flags.writeable else np.asarray(_Memory(array))
