"""Whether the rows of a batch can be told apart again: found out by trying, for any engine.

A signature cannot say that: -1 may also be the number of objects found, and rows may depend on one
another.  A model that takes none of the inputs tried is believed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from pool.engines.base import NUMPY_DTYPES, Array, Tensors
from registry_sync.documents import TensorSpec

INDEPENDENCE_TRIES: Final = 16  # random inputs, until some are valid for the model

Infer = Callable[[Tensors], Tensors]
Tails = Mapping[str, tuple[int, ...]]  # of each input, the sizes behind the first axis
Draw = Callable[[TensorSpec, np.random.Generator], Array]


def can_join(
    infer: Infer,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    deterministic: bool,
    believed: bool = True,
    tails: Tails | None = None,
    draw: Draw | None = None,
) -> bool:
    """Tell whether calls can be joined along the first axis, and their answers cut apart.

    Args:
        infer: runs the model on exactly these tensors; raises what it does not take.
        inputs: of the model.
        outputs: of the model.
        deterministic: the same inputs give the same answers, so that rows can be compared.
        believed: what to go by if the model takes no zeros.
        tails: sizes for axes behind the first that the signature leaves open; else they get 1.
        draw: makes one row of an input; small random values by default.
    """
    one = _firsts_of_zeros(infer, inputs, 1, tails)
    joins = believed
    if one is not None:
        joins = one == {1} and _firsts_of_zeros(infer, inputs, 2, tails) == {2}
    if not (joins and deterministic):
        return joins
    drawn = draw or (lambda spec, dice: small(spec, dice, tails))
    return _are_independent(infer, inputs, {spec.name: spec for spec in outputs}, drawn)


def warmed(
    infer: Infer,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    may_batch: bool,
    deterministic: bool,
    believed: bool,
) -> bool:
    """Pay for the first run, and tell whether calls can be joined; see `can_join`.

    Args:
        may_batch: whether the manifest lets them be; else it stays at what is believed.
    """
    if may_batch:
        return can_join(infer, inputs, outputs, deterministic=deterministic, believed=believed)
    run_zeros(infer, inputs)
    return believed


def run_zeros(infer: Infer, inputs: Sequence[TensorSpec], tails: Tails | None = None) -> bool:
    """Pay for a first run of one row; tell whether the model takes zeros."""
    return _firsts_of_zeros(infer, inputs, 1, tails) is not None


def _firsts_of_zeros(
    infer: Infer, inputs: Sequence[TensorSpec], rows: int, tails: Tails | None
) -> set[int] | None:
    """Run zeros; return the outputs' first axes (0 for a scalar), None if that fails."""
    try:
        answer = infer({spec.name: zeros(spec, rows, tails) for spec in inputs})
    except Exception:
        # Zeros may be no valid input of this model, which is no reason not to serve it.
        return None
    return {output.shape[0] if output.shape else 0 for output in answer.values()}


def _are_independent(
    infer: Infer, inputs: Sequence[TensorSpec], outputs: Mapping[str, TensorSpec], draw: Draw
) -> bool:
    """Compare two rows run together with the same rows run alone, on a few random inputs."""
    dice = np.random.default_rng(0)
    for _ in range(INDEPENDENCE_TRIES):
        rows = [{spec.name: draw(spec, dice) for spec in inputs} for _ in range(2)]
        try:
            alone = [infer(row) for row in rows]
        except Exception:
            # An index out of range, say: these are no valid inputs of this model.
            continue
        joint = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        try:
            together = infer(joint)
        except Exception:
            return False  # what each row may do, both together may not
        for name, output in together.items():
            apart = np.concatenate([answer[name] for answer in alone])
            is_bfloat16 = name in outputs and outputs[name].datatype == "BF16"
            if output.shape != apart.shape or not _agree(output, apart, is_bfloat16):
                return False
        return True
    return True


def small(spec: TensorSpec, dice: np.random.Generator, tails: Tails | None = None) -> Array:
    """Return one row of small random values; axes of any size get 1, or what `tails` says."""
    shape = _sizes(spec, 1, tails)
    dtype = NUMPY_DTYPES[spec.datatype]
    if dtype.hasobject:
        strings = np.empty(shape, dtype=object)
        strings[...] = b"%d" % dice.integers(10)
        return strings
    if spec.datatype == "BF16":
        return to_bfloat16(dice.normal(size=shape).astype(np.float32))
    if dtype.kind == "f":
        return dice.normal(size=shape).astype(dtype)
    # An input may be an index, for which only small numbers are valid.
    high = 2 if dtype.kind == "b" else 1 << dice.integers(0, 7)
    return dice.integers(0, high, size=shape).astype(dtype)


def zeros(spec: TensorSpec, rows: int, tails: Tails | None = None) -> Array:
    """Return zeros; open axes get 1, or what `tails` says, and a fixed first one stays."""
    sizes = _sizes(spec, rows, tails)
    if spec.datatype == "BYTES":
        return np.full(sizes, b"", dtype=object)
    return np.zeros(sizes, NUMPY_DTYPES[spec.datatype])


def to_bfloat16(values: Array) -> Array:
    """Return the raw bits of FP32 values as BF16, cut off."""
    return (np.asarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def from_bfloat16(bits: Array) -> Array:
    """Return raw bits of BF16 as FP32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _sizes(spec: TensorSpec, rows: int, tails: Tails | None) -> list[int]:
    sizes = [1 if size < 0 else size for size in spec.shape]
    if tails is not None and sizes:
        sizes[1:] = tails[spec.name]
    if spec.shape[:1] == (-1,):
        sizes[0] = rows
    return sizes


def _agree(one: Array, other: Array, is_bfloat16: bool) -> bool:
    """Whether two outputs are the same but for the rounding of another batch size."""
    if is_bfloat16:
        one, other = from_bfloat16(one), from_bfloat16(other)
        return bool(np.allclose(one, other, rtol=5e-2, atol=2e-2, equal_nan=True))
    if one.dtype.kind != "f":
        return bool(np.array_equal(one, other))
    return bool(np.allclose(one, other, rtol=1e-2, atol=1e-3, equal_nan=True))
