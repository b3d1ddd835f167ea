"""Recorded arrivals: a CSV file with a column `t_s`, refused by line and name where it is wrong.

    t_s            seconds since any moment; never falls from row to row; 400 days at most
    model          optional; whose call it is (default: all of them one model's)
    exec_s         optional; for how long a replica is busy with the call
    output_tokens  optional (or `tokens`); times `token_s`, where `exec_s` is missing

Numbers are in ASCII digits, without `_`.  What is in further columns is ignored, `status` too: a
call that failed has arrived all the same.  A cell that is empty counts as missing.
"""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from infra.simulate.engine import Load

# Columns of a call's length in tokens, the first one that the file has.  Tokens that are read go
# through a replica together, those that are written one by one: these are what takes time.
TOKEN_COLUMNS: Final = ("output_tokens", "tokens")

ALL: Final = "all"  # the model of a trace that names none

# What is longer is a slip of units.
EXEC_S_MAX: Final = 30 * 86_400.0  # of a call
SPAN_S_MAX: Final = 400 * 86_400.0  # of all calls, as fast as they are played


class BadTrace(Exception):
    """The file is not a trace; the message says where and why."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a trace is taken."""

    exec_s: float = 0.1  # of a call of which the file says nothing
    token_s: float = 0.02
    time_scale: float = 1.0  # it is played so many times as fast; calls take as long as ever


def read_trace(path: Path, reading: Reading) -> list[Load]:
    """Return the calls of every model in the file, in order of the models' first calls.

    The earliest arrival is at 0.

    Raises:
        BadTrace: it cannot be read, or has no `t_s`, or a value that is none, or its calls span
            more than `SPAN_S_MAX`.
    """
    calls: dict[str, tuple[array[float], array[float]]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for model, arrived_s, exec_s in _rows(path, file, reading):
                columns = calls.get(model)
                if columns is None:
                    columns = calls[model] = (array("d"), array("d"))
                columns[0].append(arrived_s)
                columns[1].append(exec_s)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadTrace(f"{path}: cannot be read as CSV: {error}") from None
    if not calls:
        raise BadTrace(f"{path}: has no calls: a header and one row at least are needed")
    first_s = min(arrivals_s[0] for arrivals_s, _ in calls.values())
    last_s = max(arrivals_s[-1] for arrivals_s, _ in calls.values())
    _check_span(path, (last_s - first_s) / reading.time_scale, reading.time_scale)
    return [
        Load(model, (np.array(arrivals_s) - first_s) / reading.time_scale, np.array(exec_s))
        for model, (arrivals_s, exec_s) in calls.items()
    ]


def _check_span(path: Path, span_s: float, time_scale: float) -> None:
    if span_s > SPAN_S_MAX:
        scaled = "" if time_scale == 1 else f" at a time scale of {time_scale:g}"
        raise BadTrace(
            f"{path}: the calls span {span_s / 86_400:.4g} days{scaled}, more than"
            f" {SPAN_S_MAX / 86_400:.0f}: is t_s in seconds?"
        )


def _rows(path: Path, file: Iterable[str], reading: Reading) -> Iterator[tuple[str, float, float]]:
    """Yield model, arrival and length of every call."""
    lines = csv.reader(file)
    header = [name.strip() for name in next(lines, [])]
    if "t_s" not in header:
        there = ", ".join(filter(None, header)) or "nothing"
        raise BadTrace(f"{path}: line 1: no column t_s (seconds of arrival); there is: {there}")
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice is not None:
        raise BadTrace(f"{path}: line 1: column {twice} is there twice")
    at = {name: header.index(name) for name in header}
    t_s_at, model_at, exec_s_at = at["t_s"], at.get("model"), at.get("exec_s")
    tokens_name = next((name for name in TOKEN_COLUMNS if name in at), None)
    tokens_at = None if tokens_name is None else at[tokens_name]
    last_s = -math.inf
    next_number = lines.line_num + 1
    for cells in lines:
        number, next_number = next_number, lines.line_num + 1  # a quoted cell may have many lines
        if not cells:
            continue  # a blank line
        try:
            if len(cells) != len(header):
                raise ValueError(f"{len(cells)} cells under {len(header)} names")
            arrived_s = _number("t_s", cells[t_s_at])
            if arrived_s is None:
                raise ValueError("t_s is missing")
            if arrived_s < last_s:
                raise ValueError(f"t_s {arrived_s} is before {last_s}: sort the rows by t_s")
            last_s = arrived_s
            exec_s = None if exec_s_at is None else _length("exec_s", cells[exec_s_at])
            if exec_s is None and tokens_at is not None:
                tokens = _length(str(tokens_name), cells[tokens_at])
                exec_s = None if tokens is None else tokens * reading.token_s
            if exec_s is None:
                exec_s = reading.exec_s
            if exec_s > EXEC_S_MAX:
                raise ValueError(f"a call of {exec_s} s: more than {EXEC_S_MAX:.0f} s")
        except ValueError as error:
            raise BadTrace(f"{path}: line {number}: {error}") from None
        model = ALL if model_at is None else cells[model_at].strip()
        yield model or ALL, arrived_s, exec_s


def _number(name: str, cell: str) -> float | None:
    """Return the number in the cell, or None if it is empty."""
    if not cell.strip():
        return None
    try:
        value = float(cell) if cell.isascii() and "_" not in cell else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{name} {cell!r} is not a number")
    return value


def _length(name: str, cell: str) -> float | None:
    value = _number(name, cell)
    if value is not None and value < 0:
        raise ValueError(f"{name} {value} is negative")
    return value
