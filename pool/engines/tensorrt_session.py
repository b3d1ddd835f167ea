"""Runs TensorRT plans on a GPU, on the lanes of `cuda_lanes`.

A captured CUDA graph holds the state of the execution context with which it was recorded, and
changing that afterwards is undefined.  So each lane has a context of its own for every batch
bucket, whose shapes are set once, and one more for every other shape.  They share one piece of
memory for intermediate values, since a lane runs one batch at a time.

Not verified: no device was there on which this has run.  Every name is checked against
`tensorrt_rtx` and the runtime of TensorRT 11.4, and the contract's tests run it under
``pytest -m gpu``.  Imports torch, so it is imported when a plan is loaded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pool.engines.base import DeviceLost, EngineError, PlanRefused
from pool.engines.cuda_lane import DeviceTensors
from pool.engines.cuda_lanes import LANES, CudaSession
from pool.engines.rtx_runtime import RtxRuntime
from pool.engines.tensorrt_log import Said, hear
from pool.engines.tensorrt_plan import deserialized
from pool.engines.tensorrt_profiles import (
    RTX,
    TENSORRT_DTYPES,
    Profile,
    is_fixed,
    profile_for,
)
from pool.engines.torch_types import TORCH_DTYPES, engine_error
from registry_sync.builds import is_batched
from registry_sync.documents import Manifest, TensorSpec
from registry_sync.plans import PlanIdentity

Shapes = dict[str, tuple[int, ...]]
MakeContext = Callable[[bool], Any]  # True: for shapes that stay; gives None if that fails


class TensorRtSession(CudaSession):
    """A loaded plan; see `CudaSession`."""

    def __init__(self, programs: Sequence[Program], keep: Callable[[], None], **given: Any) -> None:
        """Make a session.

        Args:
            programs: one for each lane.
            keep: writes what was compiled while warming up.
            given: the rest of what `CudaSession` takes.
        """
        super().__init__(programs, **given)
        self._keep = keep

    def warmup(self) -> None:
        """Run and record; see `CudaSession.warmup`."""
        super().warmup()
        self._keep()

    def close(self) -> None:
        """Give back contexts, memory, engine; see `CudaSession.close`."""
        self._keep = _nothing
        super().close()


class Program:
    """The execution contexts of one lane."""

    def __init__(
        self,
        runtime: Any,
        engine: Any,
        make: MakeContext,
        profiles: Sequence[Profile],
        outputs: Sequence[TensorSpec],
        *,
        device: torch.device,
        fixes: bool,
    ) -> None:
        """Make the context for any shape; the others come with their first run.

        Args:
            runtime: that of the engine, which it must outlive.
            engine: an `ICudaEngine`.
            make: makes a context without memory.
            profiles: as the plan has them.
            outputs: of the manifest.
            fixes: whether full buckets have a context of their own.

        Raises:
            EngineError: there is no memory for it.
        """
        self._made_by: Any = (runtime, engine)
        self._make: MakeContext = make
        self._profiles = profiles
        self._outputs = outputs
        self._device = device
        self._fixes = fixes
        self._said = Said()  # what comes of this lane's calls
        hear(self._said)
        # The whole mutable state: memory for intermediate values, the contexts, and what the one
        # for any shape was last told.
        bytes_max = engine.device_memory_size_v2
        self._memory = torch.empty(max(bytes_max, 1), dtype=torch.uint8, device=device)
        self._any = self._new_context(stays=False)
        self._told: tuple[int, Shapes] = (0, {})
        self._fixed: dict[int, Any] = {}

    def __call__(self, inputs: DeviceTensors) -> DeviceTensors:
        """Enqueue a run on the current stream."""
        hear(self._said)
        shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
        context = self.context_for(shapes)
        for name, tensor in inputs.items():
            self._bind(context, name, tensor)
        outputs = {}
        for spec in self._outputs:
            shape = self.shape_of(context, spec)
            dtype = TORCH_DTYPES[spec.datatype]
            outputs[spec.name] = torch.empty(shape, dtype=dtype, device=self._device)
            self._bind(context, spec.name, outputs[spec.name])
        if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise self._error("the run cannot be enqueued")
        return outputs

    def context_for(self, shapes: Shapes) -> Any:
        """Return a context that has been told these shapes of the inputs.

        Raises:
            EngineError: the plan does not hold for them, or there is no memory.
        """
        index, is_full = profile_for(self._profiles, shapes)
        if not (self._fixes and is_full):
            context, told = self._any, self._told
            self._told = (-1, {})  # until all is said
            self._tell(context, index, shapes, told)
            self._told = (index, shapes)
            return context
        if index not in self._fixed:
            context = self._new_context(stays=True)
            self._tell(context, index, shapes, (0, {}))
            self._fixed[index] = context
        return self._fixed[index]

    def shape_of(self, context: Any, spec: TensorSpec) -> tuple[int, ...]:
        """Return the shape of an output, as it follows from the inputs'.

        Raises:
            EngineError: it depends on values.
        """
        try:
            shape = tuple(context.get_tensor_shape(spec.name))
        except ValueError:  # the number of axes is unknown as well
            shape = (-1,)
        if any(size < 0 for size in shape):
            raise EngineError(
                f'the size of output "{spec.name}" depends on values, for which the TensorRT '
                "engine has no way"
            )
        return shape

    def close(self) -> None:
        """Drop the contexts and their memory, and then the engine."""
        self._fixed.clear()
        self._any = None
        del self._make, self._memory
        self._made_by = None

    def _new_context(self, *, stays: bool) -> Any:
        context = self._make(stays)
        if context is None:
            raise self._error("an execution context cannot be made")
        context.set_device_memory(self._memory.data_ptr(), self._memory.numel())
        return context

    def _tell(self, context: Any, index: int, shapes: Shapes, told: tuple[int, Shapes]) -> None:
        before, known = told
        if index != before:
            # Changes to the context are ordered by the stream, on which its runs are too.
            stream = torch.cuda.current_stream().cuda_stream
            if not context.set_optimization_profile_async(index, stream):
                raise self._error(f"profile {index} cannot be chosen")
            known = {}
        for name, shape in shapes.items():
            if known.get(name) != shape and not context.set_input_shape(name, shape):
                raise self._error(f'input "{name}" cannot have the shape {list(shape)}')

    def _bind(self, context: Any, name: str, tensor: torch.Tensor) -> None:
        # A tensor without elements has no address, and TensorRT wants one.
        address = tensor.data_ptr() or self._memory.data_ptr()
        if not context.set_tensor_address(name, address):
            raise self._error(f'"{name}" cannot be bound')

    def _error(self, what: str) -> EngineError:
        text = f"TensorRT: {what}: {self._said.take_reason()}"
        if torch.cuda.is_current_stream_capturing():
            return EngineError(text)
        return engine_error(RuntimeError(" ".join(text.split())), self._device)


def open_session(
    trt: Any, manifest: Manifest, identity: PlanIdentity, plan: Path, device: str, caches: Path
) -> TensorRtSession:
    """Load a plan.

    Args:
        trt: the framework's module.
        identity: of the plan.
        device: "cuda:0", …

    Raises:
        PlanRefused: it cannot be loaded here; what was taken for it is given back.
        DeviceLost: loading it has broken the device for this process.
    """
    place = torch.device(device if device.startswith("cuda") else "cuda:0")
    has_cuda = torch.cuda.is_available()
    try:
        with torch.cuda.device(place) if has_cuda else contextlib.nullcontext():
            return _opened(trt, manifest, identity, plan, place, caches)
    except (EngineError, RuntimeError) as error:
        problem = engine_error(error, place) if has_cuda else error
        is_lost, reason = isinstance(problem, DeviceLost), str(problem)
        del problem
    # Only here, where nobody refers any more to what was caught: its traceback holds the engine.
    if is_lost:
        raise DeviceLost(reason)
    if has_cuda:
        torch.cuda.empty_cache()
    raise PlanRefused(reason)


def _opened(
    trt: Any,
    manifest: Manifest,
    identity: PlanIdentity,
    plan: Path,
    place: torch.device,
    caches: Path,
) -> TensorRtSession:
    runtime, engine = deserialized(trt, plan, Said())
    if not torch.cuda.is_available():
        raise PlanRefused("TensorRT finds a GPU and torch none: install torch with CUDA")
    _check_device(place, identity)
    _check_tensors(trt, engine, manifest)
    make, keep = _maker(trt, engine, identity, caches)
    # Sizes behind the first axis that stay open have no graph: there are too many of them.
    fixes = is_fixed(identity.profiles, batched=is_batched(manifest))
    programs = [
        Program(
            runtime,
            engine,
            make,
            identity.profiles,
            manifest.outputs,
            device=place,
            fixes=fixes,
        )
        for _ in range(LANES)
    ]
    first = identity.profiles[0]
    context = programs[0].context_for({name: shape.min for name, shape in first.items()})
    for spec in manifest.outputs:
        programs[0].shape_of(context, spec)

    def release() -> None:
        for program in programs:
            program.close()

    return TensorRtSession(
        programs,
        keep,
        device=place,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        rows_max=_rows_max(manifest, identity),
        deterministic=manifest.deterministic,
        weights_bytes=plan.stat().st_size + LANES * engine.device_memory_size_v2,
        tails={name: shape.opt[1:] for name, shape in first.items()},
        graphs=fixes,
        release=release,
    )


def _nothing() -> None: ...


def _check_device(place: torch.device, identity: PlanIdentity) -> None:
    major, minor = torch.cuda.get_device_capability(place)
    if identity.device != f"sm_{major}{minor}":
        raise PlanRefused(f"the plan is for {identity.device}, and {place} is sm_{major}{minor}")


def _check_tensors(trt: Any, engine: Any, manifest: Manifest) -> None:
    """Refuse what would be read from or written to memory of another size or in another place."""
    specs = {spec.name: spec for spec in (*manifest.inputs, *manifest.outputs)}
    names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    if names != specs.keys():
        raise PlanRefused(
            f"the plan has {', '.join(sorted(names))}, the manifest {', '.join(sorted(specs))}"
        )
    for name, spec in specs.items():
        if engine.get_tensor_dtype(name) != getattr(trt.DataType, TENSORRT_DTYPES[spec.datatype]):
            raise PlanRefused(f'"{name}" is not {spec.datatype} in the plan')
        if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise PlanRefused(f'"{name}" is a shape, which TensorRT wants in the host\'s memory')


def _maker(
    trt: Any, engine: Any, identity: PlanIdentity, caches: Path
) -> tuple[MakeContext, Callable[[], None]]:
    if trt.__name__ == RTX:
        name = f"{identity.engine}-{identity.runtime}-{identity.key[:32]}.runtime"
        rtx = RtxRuntime(trt, engine, caches / name)
        return lambda stays: rtx.context(eager=stays), rtx.keep
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    return lambda _stays: engine.create_execution_context(strategy), _nothing


def _rows_max(manifest: Manifest, identity: PlanIdentity) -> int:
    """Return the most rows that the plan takes, which an older wish may have made fewer."""
    if not is_batched(manifest):
        return 1
    return identity.profiles[-1][manifest.inputs[0].name].max[0]
