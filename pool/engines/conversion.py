"""Converts an ONNX artifact to another precision, and proves it by running both graphs.

For the command that publishes; no worker needs it.  The original graph stays in the artifact, for
portable engines.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx
from msgspec.structs import replace

from pool.engines.base import BuildSpec, Engine, EngineError, Session
from pool.engines.trial import try_out
from pool.engines.widening import widen
from registry_sync.artifact import GRAPH, Source, find_file, graph_of
from registry_sync.documents import EngineWish, File, Manifest, Precision
from registry_sync.golden import BadGolden
from registry_sync.onnx_checks import BadModel
from registry_sync.onnx_precision import Converted, convert, element_types
from registry_sync.onnx_signature import read_signature
from registry_sync.plans import GateReport

INSIDE_BYTES_MAX: Final = 1 << 30  # of weights in the graph's own file; protobuf takes twice that
NAMES_SHOWN: Final = 5
ROWS_MAX: Final = 8  # of a run here; the gate tries full batches, on the device


class NotExact(BadModel):
    """The converted graph's answers are too far from the original's."""

    def __init__(self, precision: Precision, reason: str) -> None:
        super().__init__(
            f"in {precision} the answers are not good enough: {reason}; publish it without a "
            "precision, in another one, or with --gate-relative-error if that is good enough"
        )
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Proof:
    """A converted graph that was tried out."""

    sources: tuple[Source, ...]  # to be published besides
    said: tuple[str, ...]  # for who publishes, a line each


def convert_artifact(
    draft: Manifest, sources: Sequence[Source], folder: Path, golden: Source | None = None
) -> Proof:
    """Convert an artifact's graph to its manifest's precision and compare the two.

    A graph that lies where the converted one would is taken for that, and compared just so.

    The converted graph has to be valid, to have the same signature, and to answer like the original
    within the gate's limits, on the golden inputs or else on seeded ones.  That is found out on
    ONNX Runtime's CPU provider, with every value rounded as half precision stores it (see
    `widening`); an fp16 graph is run as it is, too.  How a GPU's own kernels round is not known
    here; the gate looks at that on the device.

    Args:
        draft: what is about to be published; its files need no digests yet.
        sources: of the artifact.
        folder: takes the converted graph, and is empty.
        golden: recorded inputs.

    Raises:
        BadModel: it cannot be converted, or must not be; the text holds what was measured.
        OSError: the graph cannot be written.
    """
    if draft.format != "onnx":
        raise BadModel(
            f"only onnx artifacts are converted to {draft.precision}, and this is {draft.format}; "
            "publish one that computes so"
        )
    by_path = {source.path: source for source in sources}
    name = graph_of(draft.precision)
    original = by_path[GRAPH].at
    if name in by_path:
        beside = {source.path: source.bytes for source in sources}
        reports = _tried(original, by_path[name].at, beside, draft, folder, golden)
        return Proof((), (f"{name} is there already, and taken as it is", *map(_figures, reports)))
    said: list[str] = []
    for careful in (False, True):
        converted = convert(
            onnx.load_model(str(original)), draft.precision, original.name, careful=careful
        )
        here = folder / ("careful" if careful else "quick")
        here.mkdir()
        _save(converted.model, here / name)
        new = [find_file(path) for path in sorted(here.iterdir())]
        for source in new:
            if source.path in by_path:
                raise BadModel(f"{source.path} would be in the way of {name}'s weights; rename it")
        beside = {source.path: source.bytes for source in (*sources, *new)}
        told = _told(converted, draft)
        del converted
        try:
            reports = _tried(original, here / name, beside, draft, folder, golden)
        except NotExact as error:
            if careful:
                raise
            said.append(f"converted once more, with care, as {error.reason}")
        else:
            return Proof(tuple(new), (*said, *told, *map(_figures, reports)))
    raise AssertionError("the second try returns or raises")


def _told(converted: Converted, draft: Manifest) -> tuple[str, ...]:
    of = len(converted.model.graph.node)
    said = [f"{converted.nodes} of {of} nodes compute in {draft.precision}"]
    if converted.heavy_kept:
        kept = ", ".join(f"{count} {op}" for op, count in converted.heavy_kept.items())
        said.append(f"in fp32 stay {kept}, which this opset has in no other precision")
    if converted.out_of_range:
        names = ", ".join(converted.out_of_range[:NAMES_SHOWN])
        names += ", …" if len(converted.out_of_range) > NAMES_SHOWN else ""
        said.append(f"in fp32 stays what needs {names}: too large or too small a number")
    return tuple(said)


def _save(model: Any, path: Path) -> None:
    bytes_ = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if bytes_ <= INSIDE_BYTES_MAX:
        onnx.save_model(model, str(path))
    else:
        weights = f"{path.name}.data"
        onnx.save_model(model, str(path), save_as_external_data=True, location=weights)


def _check_graph(made: Path, beside: Mapping[str, int], original: Path, draft: Manifest) -> None:
    found = read_signature(made, beside)
    if not found.deterministic:
        raise BadModel(
            f"{made.name}: draws random numbers, so that no two answers can be compared; publish "
            "it without a precision"
        )
    if (found.inputs, found.outputs) != (draft.inputs, draft.outputs):
        raise BadModel(f"{made.name}: its inputs and outputs are not those of {original.name}")
    try:
        onnx.checker.check_model(str(made), full_check=_is_fully_typed(original))
    except Exception as error:
        # The checker's and the inference's exceptions have no base class of their own.
        raise BadModel(f"{made.name}: the converted graph is not valid: {error}") from error


def _is_fully_typed(original: Path) -> bool:
    """Tell whether the strictest check passes a graph that nobody has touched."""
    try:
        onnx.checker.check_model(str(original), full_check=True)
    except Exception:
        # As above.
        return False
    return True


def _tried(
    original: Path,
    made: Path,
    beside: Mapping[str, int],
    draft: Manifest,
    folder: Path,
    golden: Source | None,
) -> list[GateReport]:
    """Check and run a converted graph; raises `BadModel`, also `NotExact`."""
    _check_graph(made, beside, original, draft)
    wide = folder / "wide.onnx"
    try:
        model = onnx.load_model(str(made))
        _save(widen(model, element_types(model, made.name)), wide)
        del model
        tried = [wide, made] if draft.precision == "fp16" else [wide]
        return [_passed(original, graph, draft, golden) for graph in tried]
    finally:
        for path in folder.glob(f"{wide.name}*"):
            path.unlink()


def _passed(original: Path, graph: Path, draft: Manifest, golden: Source | None) -> GateReport:
    # Late: who publishes without a precision waits for no framework.
    engine: Engine = importlib.import_module("pool.engines.onnxruntime_engine").OnnxRuntimeEngine()
    wish = replace(draft.engine or EngineWish(), precision=draft.precision)
    try:
        with ExitStack() as loaded:
            reference = _load(engine, original, draft)
            loaded.callback(reference.close)
            reference.warmup()  # finds out whether rows may share a run
            candidate = _load(engine, graph, draft)
            loaded.callback(candidate.close)
            report = try_out(
                reference,
                candidate,
                BuildSpec(draft, original.parent, wish, min(draft.rows_max, ROWS_MAX), "cpu"),
                None if golden is None else golden.at.read_bytes(),
                reference_name=f"{engine.name} {engine.probe().version}",
                device="cpu",
            )
    except (EngineError, BadGolden) as error:
        raise BadModel(f"in {draft.precision}: {error}") from error
    if report.verdict != "passed":
        raise NotExact(draft.precision, report.reason)
    return report


def _load(engine: Engine, graph: Path, draft: Manifest) -> Session:
    alone = File(graph.name, "0" * 64, graph.stat().st_size)
    return engine.load(graph.parent, replace(draft, files=(alone,)), 0)


def _figures(report: GateReport) -> str:
    parts = []
    for output in report.outputs:
        error, agreement = output.relative_error, output.top1_agreement
        parts.append(
            f'"{output.name}"'
            + ("" if error is None else f" off by at most {error:.2g} of its row's largest")
            + ("" if agreement is None else f", {agreement:.1%} of the rows choose the same")
        )
    return f"compared on {report.runs} {report.inputs} inputs: {'; '.join(parts)}"
