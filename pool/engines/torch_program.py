"""A checked `torch.export` archive as something that takes and gives tensors by name.

Imports torch, so it is imported only when a model needs it.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import torch
from torch.utils import _pytree as pytree

from pool.engines.base import EngineError
from pool.engines.torch_types import engine_error
from registry_sync.artifact import PT2
from registry_sync.documents import Manifest, TensorSpec
from registry_sync.onnx_signature import BadModel
from registry_sync.pt2_signature import Constant, Pt2Signature, read_published

# Takes every input and gives every output of the signature.
Run = Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]

_LOGGER: Final = "torch.export"
_UNBACKED: Final = ("u", "zu")  # what the names of such symbols begin with
_WAITING: Final = frozenset(
    {"cond", "while_loop", "aten.item.default", "aten._local_scalar_dense.default"}
)


def find(folder: Path, manifest: Manifest) -> tuple[Path, Pt2Signature]:
    """Return the archive of an artifact, checked, and what it says of itself.

    Raises:
        EngineError: there is none, it must not be loaded, or the manifest promises another model.
    """
    archives = [file.path for file in manifest.files if file.path.endswith(".pt2")]
    name = PT2 if PT2 in archives else "".join(archives[:1])
    if not name or (name != PT2 and len(archives) != 1):
        found = ", ".join(archives) or "none"
        raise EngineError(f"expected {PT2} at the top of the artifact, found {found}")
    try:
        signature = read_published(folder / name)
    except BadModel as error:
        raise EngineError(str(error)) from None
    _check_tensors("input", signature.inputs, manifest.inputs)
    _check_tensors("output", signature.outputs, manifest.outputs)
    return folder / name, signature


def read(archive: Path) -> torch.export.ExportedProgram:
    """Load an archive that `find` has checked.

    Raises:
        EngineError: torch cannot; the text says what it said.
    """
    with _heard() as said:
        try:
            return torch.export.load(str(archive))
        except Exception as error:
            # Whatever torch trips over in an archive; what it was stands in its log, if anywhere.
            reason = said[-1] if said else error
            text = engine_error(reason, torch.device("cpu"))
            raise EngineError(f"torch cannot load {archive.name}: {text}") from error


def import_all() -> None:
    """Import what reading an archive takes, which is most of torch: else the first one pays."""
    with suppress(ImportError):  # its name is torch's own affair; without it nothing is gained
        importlib.import_module("torch.export.pt2_archive._package")


def weights_bytes(program: torch.export.ExportedProgram) -> int:
    """Return how many bytes the weights and constants have."""
    tensors = [*program.state_dict.values(), *program.constants.values()]
    return sum(one.nbytes for one in tensors if isinstance(one, torch.Tensor))


def waits(program: torch.export.ExportedProgram) -> bool:
    """Tell whether a run waits for its device in the middle, so that it cannot be recorded.

    It does where a size or a branch depends on values: torch calls such sizes unbacked.
    """
    if any(str(symbol).startswith(_UNBACKED) for symbol in program.range_constraints):
        return True
    return any(str(node.target) in _WAITING for node in program.graph.nodes)


def eager(program: torch.export.ExportedProgram, signature: Pt2Signature) -> Run:
    """Return what runs a program operator by operator."""
    # Guards are Python out of the archive; none are left in a published one.
    module = program.module(check_guards=False)
    in_spec = program.call_spec.in_spec

    def run(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        args, kwargs = pytree.tree_unflatten(flat_inputs(signature, tensors), in_spec)
        return named_outputs(signature, pytree.tree_leaves(module(*args, **kwargs)))

    return run


def flat_inputs(signature: Pt2Signature, tensors: Mapping[str, torch.Tensor]) -> list[Any]:
    """Return inputs in the order of the call, with the constants that the export wants."""
    return [
        one.value if isinstance(one, Constant) else tensors[one] for one in signature.flat_inputs
    ]


def named_outputs(signature: Pt2Signature, flat: Sequence[Any]) -> dict[str, torch.Tensor]:
    """Return outputs by name, without those that are no tensors."""
    return {
        name: value
        for name, value in zip(signature.flat_outputs, flat, strict=True)
        if name is not None
    }


def _check_tensors(kind: str, found: Sequence[TensorSpec], promised: Sequence[TensorSpec]) -> None:
    datatypes = {spec.name: spec.datatype for spec in found}
    for spec in promised:
        if datatypes.get(spec.name) != spec.datatype:
            there = ", ".join(f"{name} {datatype}" for name, datatype in datatypes.items())
            raise EngineError(
                f'the manifest names the {kind} "{spec.name}" {spec.datatype}, the model has: '
                f"{there or 'none'}; publish the model again"
            )
    if kind == "input" and (extra := datatypes.keys() - {spec.name for spec in promised}):
        raise EngineError(
            f'the model wants an input "{min(extra)}" that the manifest does not name; '
            "publish the model again"
        )


class _Listener(logging.Handler):
    def __init__(self, said: list[BaseException]) -> None:
        super().__init__()
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self._said.append(record.exc_info[1])


@contextmanager
def _heard() -> Iterator[list[Any]]:
    """Collect the exceptions that torch logs instead of raising them, and print none."""
    said: list[Any] = []
    listener = _Listener(said)
    logger = logging.getLogger(_LOGGER)
    propagates = logger.propagate
    logger.addHandler(listener)
    logger.propagate = False
    try:
        yield said
    finally:
        logger.propagate = propagates
        logger.removeHandler(listener)
