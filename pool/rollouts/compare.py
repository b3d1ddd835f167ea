"""How far a candidate's answer to a call is from the baseline's: a pure function of arrays.

Two versions of a model may well differ, so nothing is judged here: what differs is measured, and
named where a person would want to look.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np

from pool.engines.base import Array, Tensors
from pool.wire.histogram import ERROR_BOUNDS

ERROR_MAX: Final = 1e6  # also of what is infinite or no number where it should not be
SMALL_ROW: Final = 1e-3  # of an output's largest value: what is less is measured against this
TINY: Final = 1e-6  # below this a value is as good as zero in any precision
NAMES_SHOWN_MAX: Final = 5

_FLOATS: Final = {"FP16": np.float32, "FP32": np.float32, "FP64": np.float64, "BF16": np.float32}


class Comparison(msgspec.Struct, frozen=True):
    """What was found of one call."""

    unlike: str = ""  # other tensors, datatypes or shapes: nothing else was compared then
    rows: int = 0  # whose largest value has a place
    top1_off: int = 0  # of these, where it is elsewhere
    relative_error: float = 0.0  # at most `ERROR_MAX`
    detail: str = ""  # what differs most, for people; empty: nothing


def compare(
    want: Tensors,
    have: Tensors,
    want_types: Mapping[str, str],
    have_types: Mapping[str, str],
    *,
    is_batched: bool,
) -> Comparison:
    """Compare two answers to the same inputs.

    A distance is told in parts of the largest value of its row in the baseline's answer; of whole
    numbers, at least of 1.  Of texts and truth values an answer is right or wrong: 0 or 1.  Whose
    largest value has a place is the first output of floating point with two values in a row or
    more; one that is as large as the largest is as good.

    Args:
        want: the baseline's, by output name; any real shape.
        have: the candidate's.
        want_types: the baseline's declared datatypes in order; what is not declared is ignored,
            as it is in an answer.
        have_types: the candidate's.
        is_batched: whether the first axis counts rows; else an output is one row.

    Raises:
        ValueError, TypeError, AttributeError: an engine has answered what is no array.

    >>> one = {"y": np.array([[0.1, 0.9]], np.float32)}
    >>> other = {"y": np.array([[0.8, 0.2]], np.float32)}
    >>> found = compare(one, other, {"y": "FP32"}, {"y": "FP32"}, is_batched=True)
    >>> (found.top1_off, found.rows, round(found.relative_error, 2), found.detail)
    (1, 1, 0.78, 'output "y": the largest value of row 0 is at 0, not at 1')
    """
    names = [name for name in want_types if name in want]
    others = [name for name in have_types if name in have]
    if set(names) != set(others):
        return Comparison(f"outputs are {_shown(others)}, not {_shown(names)}")
    for name in names:
        if have_types[name] != want_types[name]:
            return Comparison(f'output "{name}" is {have_types[name]}, not {want_types[name]}')
        if have[name].shape != want[name].shape:
            shapes = (list(have[name].shape), list(want[name].shape))
            return Comparison(f'output "{name}" has shape {shapes[0]}, not {shapes[1]}')
    error, detail, rows, off = 0.0, "", 0, ""
    top1_off = 0
    for name in names:
        if not want[name].size:
            continue
        datatype = want_types[name]
        one, other = _rows(want[name], is_batched), _rows(have[name], is_batched)
        found = _error(one, other, datatype)
        if found > error:
            error, detail = found, f'output "{name}" is off by {found:.3g}'
        if datatype in _FLOATS and not rows and one.shape[1] > 1:
            rows, top1_off, off = _top1(name, _numbers(one, datatype), _numbers(other, datatype))
    return Comparison("", rows, top1_off, error, off or detail)


def bucket_of(error: float) -> int:
    """Return the place of a relative error among the counts by `ERROR_BOUNDS`."""
    return bisect.bisect_left(ERROR_BOUNDS, error)


def _shown(names: list[str]) -> str:
    more = ", …" if len(names) > NAMES_SHOWN_MAX else ""
    return ", ".join(f'"{name}"' for name in names[:NAMES_SHOWN_MAX]) + more if names else "none"


def _rows(tensor: Array, is_batched: bool) -> Array:
    return tensor.reshape(tensor.shape[0] if is_batched and tensor.ndim else 1, -1)


def _numbers(rows: Array, datatype: str) -> Array:
    """Return numbers to compute with; BF16 travels as raw bits."""
    if datatype == "BF16":
        return (rows.astype(np.uint32) << 16).view(np.float32)
    return rows.astype(_FLOATS.get(datatype, np.float64), copy=False)


def _error(want: Array, have: Array, datatype: str) -> float:
    if datatype in ("BOOL", "BYTES"):
        return float(bool((want != have).any()))
    is_float = datatype in _FLOATS
    one, other = _numbers(want, datatype), _numbers(have, datatype)
    finite = np.isfinite(one)
    if not _agree_where_not(finite, one, other):
        return ERROR_MAX
    row_max = np.where(finite, np.abs(one), 0).max(axis=1, keepdims=True)
    least = max(SMALL_ROW * float(row_max.max()), TINY) if is_float else 1.0
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf; and the largest from the least
        apart = np.where(finite, np.abs(other - one), 0) / np.maximum(row_max, least)
    return min(float(apart.max()), ERROR_MAX)


def _agree_where_not(finite: Array, want: Array, have: Array) -> bool:
    odd = ~finite
    return bool(
        np.array_equal(finite, np.isfinite(have))
        and np.array_equal(want[odd], have[odd], equal_nan=True)
    )


def _top1(name: str, want: Array, have: Array) -> tuple[int, int, str]:
    """Count the rows with a largest value, and those in which the other's is elsewhere."""
    has_place = ~np.isnan(want).any(axis=1)
    if not has_place.any():
        return 0, 0, ""
    choice = have.argmax(axis=1)
    chosen = np.take_along_axis(want, choice[:, None], axis=1)[:, 0]
    off = has_place & ~((chosen >= want.max(axis=1)) & ~np.isnan(have).any(axis=1))
    text = ""
    if off.any():
        row = int(off.argmax())
        place = f"at {int(choice[row])}, not at {int(want[row].argmax())}"
        if np.isnan(have[row]).any():
            place = "no number"
        text = f'output "{name}": the largest value of row {row} is {place}'
    return int(has_place.sum()), int(off.sum()), text
