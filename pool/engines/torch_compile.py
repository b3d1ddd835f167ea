"""Compiles `torch.export` archives with AOTInductor, and runs what came of it.

What is compiled is machine code for exactly this kind of device; whoever loads it trusts whoever
built it, which is what a plan's MAC is for.  Compiled code believes its inputs' shapes, so that
they are held against the archive here.  Imports torch.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch._inductor import aoti_compile_and_package
from torch._inductor.utils import fresh_cache
from torch.export.passes import move_to_device_pass
from torch.utils import _pytree as pytree

from pool.engines import torch_program
from pool.engines.base import (
    BuildSpec,
    Built,
    CannotBuild,
    EngineError,
    PlanRefused,
    Session,
    without_paths,
)
from pool.engines.cuda_lanes import CudaSession
from pool.engines.torch_session import TorchSession, exact_float32, tails_of, use_threads
from pool.engines.torch_types import engine_error
from registry_sync.pt2_signature import Pt2Signature

_MODEL: Final = "model"  # of the one that a package holds
TEXT_CHARS_MAX: Final = 4000  # a compiler says much
_SUFFIX: Final = ".pt2"  # torch writes packages under no other name

OPTIONS: Final[dict[str, Any]] = {
    # The compiler is there and this is the machine: to try out six sets of instructions, each
    # with a program of its own, takes longer than most models.
    "cpp.vec_isa_ok": True,
    # Headers compiled beforehand are for whoever compiles often.
    "aot_inductor.precompile_headers": False,
    # A library that was loaded once stays mapped (g++ makes some of its symbols unique), so that
    # weights inside it would never be given back.  They are in the artifact already.
    "aot_inductor.package_constants_in_so": False,
}


def build(spec: BuildSpec, plan: Path, caches: Path, device: str) -> Built:
    """Compile an archive; see `PlanEngine.build`."""
    try:
        archive, signature = torch_program.find(spec.folder, spec.manifest)
        _check_sizes(signature)
        program = torch_program.read(archive)
    except EngineError as error:
        raise CannotBuild(str(error)) from None
    exact_float32()
    caches.mkdir(parents=True, exist_ok=True)
    # torch keeps what it has compiled where it failed, and deletes it only where it did not.
    with tempfile.TemporaryDirectory(prefix="aoti-", dir=caches) as work:
        package = Path(work) / f"plan{_SUFFIX}"
        try:
            if device != "cpu":
                program = move_to_device_pass(program, device)
            program.example_inputs = _example(program, torch.device(device))
            with warnings.catch_warnings(), fresh_cache(dir=work):
                warnings.simplefilter("ignore")  # torch warns of torch
                aoti_compile_and_package(
                    program, package_path=str(package), inductor_configs=dict(OPTIONS)
                )
        except OSError:
            raise
        except Exception as error:
            # A compiler's message, an operator that cannot be lowered: torch has a class for each.
            raise CannotBuild(
                f"AOTInductor cannot compile it: {without_paths(str(error))[:TEXT_CHARS_MAX]}"
            ) from error
        with plan.open("xb") as target, package.open("rb") as source:
            shutil.copyfileobj(source, target, 1024 * 1024)
    return Built()


def load(spec: BuildSpec, plan: Path, caches: Path, device: str, threads: int) -> Session:
    """Load what `build` has written; see `PlanEngine.load_plan`."""
    use_threads(threads)
    is_on_gpu = device != "cpu"
    where = torch.device(device)
    if is_on_gpu:
        if not torch.cuda.is_available():
            raise PlanRefused("torch cannot use the GPU's driver")
        exact_float32()
    try:
        archive, signature = torch_program.find(spec.folder, spec.manifest)
        _check_sizes(signature)
        # Without the locks that keep a recording from running beside another run.
        loader = torch._C._aoti.AOTIModelPackageLoader(
            str(plan), _MODEL, is_on_gpu, 1, where.index if is_on_gpu else -1
        )
        program = torch_program.read(archive)
        memory_bytes = plan.stat().st_size + _give_weights(loader, program, where)
    except EngineError as error:
        raise PlanRefused(str(error)) from None
    except RuntimeError as error:
        text = engine_error(error, torch.device("cpu"))
        raise PlanRefused(f"torch cannot load it: {text}") from error
    run = _Compiled(loader, signature)
    if is_on_gpu:
        return CudaSession(
            [run],
            device=where,
            inputs=spec.manifest.inputs,
            outputs=spec.manifest.outputs,
            rows_max=spec.rows_max,
            deterministic=spec.manifest.deterministic,
            weights_bytes=memory_bytes,
            tails=tails_of(spec.manifest),
            graphs=not torch_program.waits(program),
            release=run.close,
        )
    return TorchSession(
        run,
        spec.manifest,
        copies_inputs=signature.writes_inputs,
        memory_bytes=memory_bytes,
        release=run.close,
    )


def _give_weights(loader: Any, program: torch.export.ExportedProgram, device: torch.device) -> int:
    """Hand compiled code the artifact's weights, which it copies; return their bytes.

    Not as `user_managed`, which would spare the copy: torch 2.13 never lets go of those.
    """
    there = {**program.state_dict, **program.constants}
    wanted = loader.get_constant_fqns()
    if missing := [name for name in wanted if name not in there]:
        raise PlanRefused(f"it wants a weight that the artifact does not have: {missing[0]:.200}")
    weights = {name: there[name].detach().to(device).contiguous() for name in wanted}
    if weights:
        loader.load_constants(weights, False, True)
    return sum(one.nbytes for one in weights.values())


class _Compiled:
    """A package as a `Run`, behind the checks that its code leaves out."""

    def __init__(self, loader: Any, signature: Pt2Signature) -> None:
        self._loader = loader
        self._signature = signature
        self._names = [name for name in signature.flat_inputs if isinstance(name, str)]

    def __call__(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        _check_shapes(self._signature, tensors)
        # Compiled for contiguous inputs; it would read past the end of others.
        given = [tensors[name].contiguous() for name in self._names]
        flat = self._loader.boxed_run(given)
        return torch_program.named_outputs(self._signature, flat)

    def close(self) -> None:
        self._loader = None


def _check_sizes(signature: Pt2Signature) -> None:
    """Refuse what `_check_shapes` could not check."""
    for name, sizes in signature.sizes.items():
        for size in sizes:
            if isinstance(size, str) and size not in signature.ranges:
                raise EngineError(
                    f'input "{name}" has an axis that is computed from another ({size:.80}); '
                    "AOTInductor is for axes that are open or fixed"
                )


def _check_shapes(signature: Pt2Signature, tensors: Mapping[str, torch.Tensor]) -> None:
    found: dict[str, int] = {}
    for name, sizes in signature.sizes.items():
        shape = tuple(tensors[name].shape)
        fits = len(shape) == len(sizes)
        for there, size in zip(shape, sizes, strict=False):
            if isinstance(size, int):
                fits = fits and there == size
                continue
            least, most = signature.ranges[size]
            # An export says 2 where it means any.
            fits = fits and there >= (least if least > 2 else 0) and (most is None or there <= most)
            fits = fits and found.setdefault(size, there) == there
        if not fits:
            wanted = ", ".join(map(str, sizes))
            raise EngineError(
                f'input "{name}" has the shape {list(shape)}, the model takes [{wanted}] with '
                f"{ {symbol: signature.ranges[symbol] for symbol in sizes if symbol in found} }"
            )


def _example(program: torch.export.ExportedProgram, device: torch.device) -> Any:
    """Return inputs of the sizes with which the model was exported."""
    names = set(program.graph_signature.user_inputs)
    flat = []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            value = node.meta["val"]
            if isinstance(value, torch.Tensor):
                shape = [one if isinstance(one, int) else one.node.hint for one in value.shape]
                value = torch.zeros(shape, dtype=value.dtype, device=device)
            flat.append(value)
    return pytree.tree_unflatten(flat, program.call_spec.in_spec)
