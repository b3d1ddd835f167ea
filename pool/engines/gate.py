"""Whether a built engine computes what its artifact says: which inputs are tried, what is compared.

A pure function of arrays; `trial` runs the engines.  Drawn inputs come from a seed, so that the
same plan gets the same verdict everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from pool.engines.base import NUMPY_DTYPES, Array, Tensors
from registry_sync.documents import AxisRange, GateLimits, Precision, TensorSpec
from registry_sync.plans import GateReport, OutputReport

RUNS: Final = 8  # of drawn inputs
SMALL_ROW: Final = 1e-3  # of an output's largest value: what is less is measured against this
TINY: Final = 1e-6  # below this a value is as good as zero in any precision
DISTRIBUTION_OFF_MAX: Final = 1e-2  # of a row's sum from 1, in half precision
# Sizes of axes that nobody gave a range, until the artifact takes one.
SIZES: Final = (8, 16, 4, 32, 2, 64, 1, 128, 3, 224, 7, 256, 5, 10, 100, 512)


class Limits(msgspec.Struct, frozen=True):
    """How far a built engine may be from the artifact's own outputs."""

    relative_error_max: float
    top1_agreement_min: float  # of rows
    tie: float  # of a row's largest value: what is closer, this precision cannot tell apart
    is_classifier: bool = False  # somebody said so


# A mantissa has 23, 10 or 7 bits; a network's hundred roundings lose some of them.
DEFAULTS: Final[Mapping[Precision, Limits]] = {
    "fp32": Limits(2e-3, 0.99, 2e-3),
    "fp16": Limits(2e-2, 0.99, 2e-2),
    "bf16": Limits(1e-1, 0.98, 1e-1),
}


def limits_of(gate: GateLimits | None, precision: Precision) -> Limits:
    """Return what the manifest allows, and by precision where it says nothing."""
    usual = DEFAULTS[precision]
    if gate is None:
        return usual
    error, agreement = gate.relative_error_max, gate.top1_agreement_min
    return Limits(
        usual.relative_error_max if error is None else error,
        usual.top1_agreement_min if agreement is None else agreement,
        usual.tie,
        is_classifier=agreement is not None,
    )


class Draw(msgspec.Struct, frozen=True):
    """One run's shape: rows along open first axes, and which end of the other axes' ranges."""

    rows: int
    end: int  # 0: the least, 1: what is tuned for, 2: the most
    seed: int


def draws(rows_max: int) -> Iterator[Draw]:
    """Yield the runs to try: single rows, full batches, and what has to be padded.

    >>> [draw.rows for draw in draws(8)]
    [1, 8, 3, 5, 1, 8, 3, 5]
    """
    rows = [n for n in dict.fromkeys((1, rows_max, 3, rows_max // 2 + 1)) if n <= rows_max]
    for number in range(RUNS):
        yield Draw(rows[number % len(rows)], (number + 1) % 3, seed=number)


def drawn(
    draw: Draw, attempt: int, inputs: Sequence[TensorSpec], axes: Mapping[str, AxisRange]
) -> Tensors:
    """Return random inputs within the signature.

    Args:
        draw: the run.
        attempt: 0, 1, …; another one gives other values, and other sizes to axes without a range.
        inputs: the signature.
        axes: ranges by "input:axis".
    """
    dice = np.random.default_rng([draw.seed, attempt])
    # An input may be an index into a table of unknown length, so small numbers come first; but
    # all inputs of a run alike, since one may be the other's mask.
    high = (2, 8, 100, 1000)[(draw.seed + attempt) % 4] if attempt < 8 else 2
    tensors = {}
    for spec in inputs:
        shape = [
            _size(spec, axis, size, draw, attempt, axes) for axis, size in enumerate(spec.shape)
        ]
        tensors[spec.name] = _random(spec.datatype, shape, high, dice)
    return tensors


def _size(
    spec: TensorSpec,
    axis: int,
    size: int,
    draw: Draw,
    attempt: int,
    axes: Mapping[str, AxisRange],
) -> int:
    if size >= 0:
        return size
    if axis == 0:
        return draw.rows
    within = axes.get(f"{spec.name}:{axis}")
    if within is not None:
        return (within.min, within.opt, within.max)[draw.end]
    return SIZES[attempt % len(SIZES)]


def _random(datatype: str, shape: Sequence[int], high: int, dice: np.random.Generator) -> Array:
    dtype = NUMPY_DTYPES[datatype]
    if datatype == "BF16":
        bits: Array = (dice.normal(size=shape).astype(np.float32).view(np.uint32) >> 16).astype(
            dtype
        )
        return bits
    if dtype.hasobject:
        strings = np.empty(shape, dtype=object)
        strings[...] = b"%d" % dice.integers(10)
        return strings
    if dtype.kind == "f":
        return dice.normal(size=shape).astype(dtype)
    return dice.integers(0, 2 if dtype.kind == "b" else min(high, 127), size=shape).astype(dtype)


def is_usable(answer: Tensors) -> bool:
    """Tell whether a reference's answer says anything: none of its values is NaN."""
    return not any(
        tensor.dtype.kind == "f" and np.isnan(tensor).any() for tensor in answer.values()
    )


def compare(
    expected: Sequence[Tensors],
    got: Sequence[Tensors],
    outputs: Sequence[TensorSpec],
    limits: Limits,
) -> tuple[tuple[OutputReport, ...], str]:
    """Compare two engines' answers to the same runs.

    Returns:
        What was found of each output, and in words what could not be compared.
    """
    reports, problems = [], []
    for spec in outputs:
        report, problem = _compare_output(
            spec, [one[spec.name] for one in expected], [one.get(spec.name) for one in got], limits
        )
        reports.append(report)
        problems += [problem] if problem else []
    return tuple(reports), "; ".join(problems)


def judge(outputs: Sequence[OutputReport], limits: Limits) -> str:
    """Say why an engine that was found so must not serve; empty: it may."""
    problems = []
    for output in outputs:
        error, agreement = output.relative_error, output.top1_agreement
        if error is None and agreement is None:
            problems.append(f'output "{output.name}" cannot be compared with the artifact\'s')
        if error is not None and not error <= limits.relative_error_max:
            problems.append(
                f'output "{output.name}" is off by {error:.3g} of the artifact\'s, '
                f"allowed are {limits.relative_error_max:g}"
            )
        if agreement is not None and not agreement >= limits.top1_agreement_min:
            problems.append(
                f'output "{output.name}" agrees in {agreement:.1%} of the rows, '
                f"wanted are {limits.top1_agreement_min:.1%}"
            )
    return "; ".join(problems)


def why_not(report: GateReport, limits: Limits) -> str:
    """Say why an engine with this report must not serve under these limits; empty: it may.

    A plan may be shared by versions whose manifests allow different errors, so what was measured
    counts, and not the verdict on the version for which it was built.
    """
    if report.verdict == "not_run":
        return report.reason or "nobody has compared it with the artifact yet"
    if not report.outputs or not report.runs:
        return report.reason or "nothing was compared"
    found = judge(report.outputs, limits)
    return f"{found}; {report.reason}" if found and report.reason not in found else found


def _compare_output(
    spec: TensorSpec, expected: Sequence[Array], got: Sequence[Array | None], limits: Limits
) -> tuple[OutputReport, str]:
    error_max, rows, agreeing = 0.0, 0, 0
    is_number = spec.datatype in ("FP16", "FP32", "FP64", "BF16")
    is_classifier = is_number and _is_classifier(spec, expected, limits)
    nothing = OutputReport(spec.name)
    for one, other in zip(expected, got, strict=True):
        if other is None:
            return nothing, f'the built engine has no output "{spec.name}"'
        if one.shape != other.shape:
            return nothing, (
                f'output "{spec.name}" has shape {list(other.shape)} where the artifact\'s has '
                f"{list(one.shape)}"
            )
        if not one.size:
            continue
        if not is_number:
            rows, agreeing = rows + len(_rows(one)), agreeing + _equal_rows(one, other)
            continue
        want, have = _rows(_numbers(spec, one)), _rows(_numbers(spec, other))
        if not _agree_on_infinities(want, have):
            return nothing, f'output "{spec.name}" is infinite or no number where it should not be'
        error_max = max(error_max, _relative_error(want, have))
        if is_classifier:
            rows, agreeing = rows + len(want), agreeing + _same_choices(want, have, limits.tie)
    agreement = round(agreeing / rows, 6) if rows else (None if is_number else 1.0)
    return OutputReport(spec.name, error_max if is_number else None, agreement), ""


def _relative_error(want: Array, have: Array) -> float:
    """Return the largest distance, each in parts of the largest value in its row."""
    finite = np.isfinite(want)
    sizes = np.where(finite, np.abs(want), 0.0)
    row_max = sizes.max(axis=1, keepdims=True)
    scale = np.maximum(row_max, max(SMALL_ROW * float(row_max.max()), TINY))
    with np.errstate(invalid="ignore"):  # inf - inf
        apart = np.where(finite, np.abs(have - want), 0.0)
    return float((apart / scale).max())


def _same_choices(want: Array, have: Array, tie: float) -> int:
    """Count the rows whose best column is the same, or as good as the best by its own row."""
    best = want.max(axis=1)
    chosen = np.take_along_axis(want, have.argmax(axis=1, keepdims=True), axis=1)[:, 0]
    return int((chosen >= best - tie * np.abs(want).max(axis=1)).sum())


def _is_classifier(spec: TensorSpec, expected: Sequence[Array], limits: Limits) -> bool:
    """Tell whether each row scores alternatives: somebody says so, or it is a distribution."""
    if any(one.ndim != 2 or one.shape[1] < 2 for one in expected):
        return False
    if limits.is_classifier:
        return True
    numbers = [_numbers(spec, one) for one in expected]
    return all(
        bool((one >= 0).all() and (np.abs(one.sum(axis=1) - 1) <= DISTRIBUTION_OFF_MAX).all())
        for one in numbers
    )


def _agree_on_infinities(want: Array, have: Array) -> bool:
    odd = ~np.isfinite(want)
    return bool(
        np.array_equal(odd, ~np.isfinite(have))
        and np.array_equal(want[odd], have[odd], equal_nan=True)
    )


def _rows(tensor: Array) -> Array:
    return tensor.reshape(tensor.shape[0] if tensor.ndim else 1, -1)


def _equal_rows(one: Array, other: Array) -> int:
    return int((_rows(one) == _rows(other)).all(axis=1).sum())


def _numbers(spec: TensorSpec, tensor: Array) -> Array:
    """Return any floating point tensor as float64; BF16 travels as raw bits."""
    if spec.datatype == "BF16":
        tensor = (tensor.astype(np.uint32) << 16).view(np.float32)
    return tensor.astype(np.float64)
