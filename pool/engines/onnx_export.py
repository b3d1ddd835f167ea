"""Exports a `torch.export` archive to ONNX, and holds the result against the original.

For who wants to run such a model with ONNX Runtime or TensorRT.  Imports torch.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import onnx
import torch

from pool.engines import torch_program
from pool.engines.base import BuildSpec, EngineError, Session, reason_of, without_paths
from pool.engines.onnxruntime_engine import OnnxRuntimeEngine
from pool.engines.torch_engine import TorchEngine
from pool.engines.trial import try_out
from registry_sync.artifact import GRAPH, PT2
from registry_sync.documents import EngineWish, File, Manifest
from registry_sync.onnx_signature import BadModel, read_signature
from registry_sync.plans import GateReport
from registry_sync.pt2_signature import FORMAT, Pt2Signature, publish_archive

ROWS_TRIED: Final = 5  # of the largest batch that is compared
INSIDE_BYTES_MAX: Final = 1024**3  # of weights in the graph's own file, which ends at 2 GiB
REASON_CHARS_MAX: Final = 2000


class CannotExport(ValueError):
    """The model cannot be exported, or computes something else as ONNX; the text says why."""


def export(archive: Path, folder: Path) -> GateReport:
    """Write `model.onnx` to an empty folder, with its weights beside it if they are large.

    Args:
        archive: what `torch.export.save` wrote.

    Returns:
        How far its answers are from the original's, on random inputs.

    Raises:
        BadModel: see `pt2_signature.publish_archive`.
        CannotExport: torch cannot, or ONNX Runtime answers otherwise than torch.
    """
    with tempfile.TemporaryDirectory(prefix="tidepool-") as work:
        clean = Path(work) / PT2
        signature = publish_archive(archive, clean)
        _write(clean, signature, folder / GRAPH, archive.name)
        reference = _manifest(signature, FORMAT, Path(work))
        report = _compared(reference, Path(work), folder, signature)
    if report.verdict != "passed":
        raise CannotExport(
            f"{archive.name}: as ONNX it does not compute what torch computes: {report.reason}"
        )
    return report


def _write(clean: Path, signature: Pt2Signature, graph: Path, name: str) -> None:
    try:
        program = torch_program.read(clean)
        is_large = torch_program.weights_bytes(program) > INSIDE_BYTES_MAX
        with _quiet():
            torch.onnx.export(
                program,
                (),
                str(graph),
                dynamo=True,
                external_data=is_large,
                verbose=False,
                input_names=[one for one in signature.flat_inputs if isinstance(one, str)],
                output_names=[one for one in signature.flat_outputs if one is not None],
            )
    except EngineError as error:
        raise CannotExport(f"{name}: {error}") from None
    except ImportError as error:
        raise CannotExport(f"{name}: {error}; pip install 'tidepool[torch]'") from None
    except OSError:
        raise
    except Exception as error:
        # An operator without a translation, say; the exporter has a class for each stage.
        text = without_paths(str(error)).strip()[:REASON_CHARS_MAX]
        raise CannotExport(f"{name}: torch cannot export it to ONNX: {text}") from error
    _forget_origins(graph)


def _forget_origins(graph: Path) -> None:
    """Drop what the exporter says of where each node came from; weights beside it stay there."""
    model = onnx.load_model(str(graph), load_external_data=False)
    for body in (model.graph, *model.functions):
        del body.metadata_props[:]
        for node in body.node:
            del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        del value.metadata_props[:]
    onnx.save_model(model, str(graph))


def _compared(
    reference: Manifest, archive: Path, folder: Path, signature: Pt2Signature
) -> GateReport:
    candidate = _manifest(signature, "onnx", folder)
    beside = {one.path: one.bytes for one in candidate.files if one.path != GRAPH}
    found = read_signature(folder / GRAPH, beside)
    kept = [(spec.name, spec.datatype) for spec in (*found.inputs, *found.outputs)]
    if kept != [(spec.name, spec.datatype) for spec in (*signature.inputs, *signature.outputs)]:
        raise CannotExport(f"as ONNX it takes and gives other tensors: {kept}")
    spec = BuildSpec(reference, archive, EngineWish(precision="fp32"), reference.rows_max, "cpu")
    torch_engine = TorchEngine("cpu")
    with ExitStack() as sessions:
        try:
            one = _opened(sessions, torch_engine.load(archive, reference, 0))
            other = _opened(sessions, OnnxRuntimeEngine().load(folder, candidate, 0))
        except EngineError as error:
            raise CannotExport(f"what was exported cannot be run: {reason_of(error)}") from None
        return try_out(
            one,
            other,
            spec,
            None,
            reference_name=f"torch {torch_engine.probe().version}",
            device="cpu",
        )


def _opened(sessions: ExitStack, session: Session) -> Session:
    sessions.callback(session.close)
    session.warmup()
    return session


def _manifest(signature: Pt2Signature, format: str, folder: Path) -> Manifest:
    rows_max = min(ROWS_TRIED, signature.rows_max or ROWS_TRIED)
    return Manifest(
        model="export",
        version="1",
        created="",
        format=format,
        files=tuple(
            File(one.name, "0" * 64, one.stat().st_size) for one in sorted(folder.iterdir())
        ),
        inputs=signature.inputs,
        outputs=signature.outputs,
        rows_max=rows_max if signature.has_batch_axis else 1,
        deterministic=signature.deterministic,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Let the exporter neither warn of itself nor of packages that it would also know."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


__all__ = ["BadModel", "CannotExport", "export"]
