"""Runs a built engine beside the portable one and reports how far apart their answers are.

For a process of its own: two engines are loaded at once, and one of them is not to be trusted yet.
`gate` says which inputs are tried and judges what comes of it.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np

from pool.engines import gate
from pool.engines.base import NUMPY_DTYPES, Array, BuildSpec, Session, Tensors, reason_of
from pool.engines.gate import Draw
from registry_sync.documents import TensorSpec
from registry_sync.plans import REASON_CHARS_MAX, GateReport, OutputReport

TRIES: Final = 32  # of drawn inputs for one run, until the artifact takes some
GOLDEN_RUNS_MAX: Final = 64


class BadGolden(ValueError):
    """The recorded inputs do not fit the signature; the text says how, and the way out."""


def try_out(
    reference: Session,
    candidate: Session,
    spec: BuildSpec,
    golden: bytes | None,
    *,
    reference_name: str,
    device: str,
) -> GateReport:
    """Compare two loaded engines on the golden inputs, or else on drawn ones.

    Args:
        reference: runs the artifact as it is.
        candidate: was built from it.
        golden: the manifest's recorded inputs, an npz; None: there are none.
        reference_name: of the reference's engine, with its version.
        device: the class of the device that runs the candidate.

    Returns:
        A verdict, never "not_run".
    """
    manifest = spec.manifest
    limits = gate.limits_of(manifest.gate, spec.wish.precision or manifest.precision)
    expected: list[Tensors] = []
    got: list[Tensors] = []
    problem = ""
    try:
        runs = _drawn(reference, spec) if golden is None else _golden(reference, spec, golden)
        for inputs, answer in runs:
            expected.append(_copied(answer))
            try:
                got.append(_copied(candidate.infer(inputs)))
            except Exception as error:
                # An engine may raise anything; whatever it was, it must not serve.
                shapes = ", ".join(f'"{name}" {list(one.shape)}' for name, one in inputs.items())
                problem = f"the built engine fails on {shapes}: {reason_of(error)}"
                break
    except BadGolden as error:
        problem = str(error)
    if not expected and not problem:
        problem = (
            f"none of {gate.RUNS * TRIES} random inputs is one that this model takes; publish it "
            "with --golden, recorded inputs"
        )
    outputs: tuple[OutputReport, ...] = ()
    reason = problem
    if not problem:
        outputs, odd = gate.compare(expected, got, manifest.outputs, limits)
        reason = odd or gate.judge(outputs, limits)
    return GateReport(
        "failed" if reason else "passed",
        reason[:REASON_CHARS_MAX],
        "none" if not expected else "random" if golden is None else "golden",
        len(expected),
        outputs,
        reference_name,
        device,
    )


def _drawn(reference: Session, spec: BuildSpec) -> Iterator[tuple[Tensors, Tensors]]:
    """Yield drawn inputs that the artifact takes, each with its answer."""
    rows_max = spec.rows_max if reference.batches else 1
    for draw in gate.draws(rows_max):
        found = _first_taken(reference, draw, spec)
        if found is not None:
            yield found


def _first_taken(reference: Session, draw: Draw, spec: BuildSpec) -> tuple[Tensors, Tensors] | None:
    second_best = None
    for attempt in range(TRIES):
        inputs = gate.drawn(draw, attempt, spec.manifest.inputs, spec.wish.axes)
        try:
            answer = reference.infer(inputs)
        except Exception:
            # An index out of range, say: these are no valid inputs of this model.
            continue
        if gate.is_usable(answer):
            return inputs, answer
        second_best = second_best or (inputs, answer)
    return second_best


def _golden(reference: Session, spec: BuildSpec, data: bytes) -> Iterator[tuple[Tensors, Tensors]]:
    """Yield the recorded inputs, no more rows at once than an engine takes, with their answers."""
    tensors = read_golden(data, spec.manifest.inputs)
    for inputs in _parts(tensors, spec, reference.batches):
        try:
            yield inputs, reference.infer(inputs)
        except Exception as error:
            # As above, but somebody has vouched for these.
            raise BadGolden(
                f"the artifact itself fails on the golden inputs: {reason_of(error)}"
            ) from error


def _parts(tensors: Tensors, spec: BuildSpec, batches: bool) -> Iterator[Tensors]:
    is_open = batches and all(one.shape[:1] == (-1,) for one in spec.manifest.inputs)
    rows = {one.shape[0] if one.ndim else 0 for one in tensors.values()}
    if not is_open or len(rows) != 1:
        yield tensors
        return
    step = spec.rows_max
    for start in range(0, min(max(rows), step * GOLDEN_RUNS_MAX), step):
        yield {name: one[start : start + step] for name, one in tensors.items()}


def read_golden(data: bytes, inputs: tuple[TensorSpec, ...]) -> Tensors:
    """Read the inputs out of a golden npz, by their names.

    Raises:
        BadGolden: see there.
    """
    found: dict[str, Array] = {}
    again = "; publish the model with another --golden"
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            for spec in inputs:
                if spec.name not in arrays:
                    raise BadGolden(f'the golden file has no "{spec.name}"{again}')
                found[spec.name] = _as_declared(arrays[spec.name], spec, again)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        if isinstance(error, BadGolden):
            raise
        raise BadGolden(f"the golden file cannot be read: {error}{again}") from None
    return found


def _as_declared(array: Array, spec: TensorSpec, again: str) -> Array:
    dtype = NUMPY_DTYPES[spec.datatype]
    fits = array.ndim == len(spec.shape) and all(
        size in (-1, found) for size, found in zip(spec.shape, array.shape, strict=True)
    )
    if not fits:
        raise BadGolden(
            f'golden "{spec.name}" has shape {list(array.shape)}, the signature says '
            f"{list(spec.shape)}{again}"
        )
    if dtype.hasobject and array.dtype.kind in "SU":
        strings = np.empty(array.size, dtype=object)
        strings[:] = [one if isinstance(one, bytes) else str(one).encode() for one in array.ravel()]
        return strings.reshape(array.shape)
    if array.dtype != dtype:
        raise BadGolden(
            f'golden "{spec.name}" is {array.dtype}, the signature says {spec.datatype}{again}'
        )
    return array


def _copied(answer: Mapping[str, Array]) -> Tensors:
    """Keep an answer: an engine may use its buffers again for the next one."""
    return {name: np.array(one) for name, one in answer.items()}
