"""Runs a built engine beside the portable one and reports how far apart their answers are.

For a process of its own: two engines are loaded at once, and one of them is not to be trusted yet.
`gate` says which inputs are tried and judges what comes of it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np

from pool.engines import gate
from pool.engines.base import Array, BuildSpec, Session, Tensors, reason_of
from pool.engines.gate import Draw
from registry_sync.documents import TensorSpec
from registry_sync.golden import BadGolden, fitting_inputs, read_arrays
from registry_sync.plans import REASON_CHARS_MAX, GateReport, OutputReport

TRIES: Final = 32  # of drawn inputs for one run, until the artifact takes some
GOLDEN_RUNS_MAX: Final = 64
_WAY_OUT: Final = "; publish the model with another --golden"


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

    Raises:
        BadGolden: the recorded inputs are none of this model's, whatever the candidate is worth;
            the text says how, and the way out.
    """
    manifest = spec.manifest
    limits = gate.limits_of(manifest.gate, spec.wish.precision or manifest.precision)
    expected: list[Tensors] = []
    got: list[Tensors] = []
    problem = ""
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
        "" if golden is None else hashlib.sha256(golden).hexdigest(),
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
                f"the artifact itself fails on the golden inputs: {reason_of(error)}{_WAY_OUT}"
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
    """Read the inputs out of a golden npz, by their names; raises `BadGolden`."""
    try:
        return fitting_inputs(read_arrays(io.BytesIO(data)), inputs)
    except BadGolden as error:
        raise BadGolden(f"the golden file does not fit: {error}{_WAY_OUT}") from None


def _copied(answer: Mapping[str, Array]) -> Tensors:
    """Keep an answer: an engine may use its buffers again for the next one."""
    return {name: np.array(one) for name, one in answer.items()}
