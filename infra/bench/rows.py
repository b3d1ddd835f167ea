"""What the bench measures and what it promises: a table of values.

A row is a set of sides measured in turn; a figure compares two of them.  The limits
are the product's promises; a figure that is only an aim is told and never fails.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Metric = Literal["cpu_us_per_request", "p50_ms"]

MLP = "tidepool mlp"  # every feature on; each body is new, so the cache misses
MLP_HIT = "tidepool mlp hit"  # the same endpoint, one body again and again
IMAGE = "tidepool image"  # 602 KB a request, endpoint without cache
MAGIKA = "tidepool magika"
FASTAPI_MLP = "fastapi mlp"
FASTAPI_IMAGE = "fastapi image"
HELLO = "hello"
POST = "granian post"  # a call's request and answer, and nothing between them
IMAGE_JSON = "tidepool image json"  # the same numbers as JSON
PYDANTIC_IMAGE = "fastapi pydantic image"
PYTRITON_MLP = "pytriton mlp"


@dataclass(frozen=True)
class Comparison:
    """A figure: one side's metric over another's."""

    name: str
    over: str
    under: str
    metric: Metric
    limit: float
    promised: bool = True


@dataclass(frozen=True)
class Row:
    """Sides that are measured in turn, under the same load."""

    name: str
    sides: tuple[str, ...]
    clients: int
    comparisons: tuple[Comparison, ...]
    of_more_peers: bool = False  # only where these are asked for


ROWS = (
    Row(
        "mlp-64",
        (MLP, FASTAPI_MLP, HELLO, POST),
        64,
        (
            Comparison("mlp-64/fastapi", MLP, FASTAPI_MLP, "cpu_us_per_request", 0.75),
            Comparison("mlp-64/hello", MLP, HELLO, "cpu_us_per_request", 5.0),
            Comparison("mlp-64/granian-post", MLP, POST, "cpu_us_per_request", 3.0, False),
        ),
    ),
    Row(
        "mlp-1",
        (MLP, FASTAPI_MLP),
        1,
        (Comparison("mlp-1-p50/fastapi", MLP, FASTAPI_MLP, "p50_ms", 2.5),),
    ),
    Row(
        "image-1",
        (IMAGE, FASTAPI_IMAGE),
        1,
        (Comparison("image-1/fastapi", IMAGE, FASTAPI_IMAGE, "cpu_us_per_request", 2.2),),
    ),
    Row(
        "image-8",
        (IMAGE, FASTAPI_IMAGE),
        8,
        (Comparison("image-8/fastapi", IMAGE, FASTAPI_IMAGE, "cpu_us_per_request", 1.75),),
    ),
    Row(
        "cache",
        (MLP_HIT, MLP, HELLO),
        64,
        (
            Comparison("cache-hit/miss", MLP_HIT, MLP, "cpu_us_per_request", 0.6),
            Comparison("cache-hit/hello", MLP_HIT, HELLO, "cpu_us_per_request", 2.5, False),
        ),
    ),
    Row(
        "image-json-1",
        (IMAGE_JSON, PYDANTIC_IMAGE),
        1,
        (
            Comparison(
                "image-json-1/pydantic", IMAGE_JSON, PYDANTIC_IMAGE, "cpu_us_per_request", 0.4
            ),
        ),
        of_more_peers=True,
    ),
    Row(
        "mlp-64-pytriton",
        (MLP, PYTRITON_MLP),
        64,
        (Comparison("mlp-64/pytriton", MLP, PYTRITON_MLP, "cpu_us_per_request", 0.5, False),),
        of_more_peers=True,
    ),
)

MAGIKA_ROW, MAGIKA_CLIENTS, MAGIKA_LIMIT = "magika-8", 8, 1.08
HOP_ROW = "hop"
HOP_LIMITS_US = {64: 20.0, 602_112: 170.0}  # CPU of both ends, by the body's bytes
IDLE_ROW, IDLE_MB_MAX, READY_S_MAX = "idle", 180.0, 3.0

NAMES = (IDLE_ROW, *(row.name for row in ROWS), MAGIKA_ROW, HOP_ROW)


@dataclass(frozen=True)
class Spread:
    """One figure over the rounds of a bench."""

    of_minima: float
    low: float
    median: float
    high: float


def ratio(over: Sequence[float], under: Sequence[float]) -> Spread:
    """Compare two sides that were measured in the same rounds.

    The figure is the ratio of the two minima: other work on the machine only ever adds
    to a sample, so a side's least sample is its least disturbed.  The ratios of the
    single rounds tell how far to trust it.

    Args:
        over: one value a round, at least one.
        under: the other side's values of the same rounds.

    >>> ratio([3.0, 2.0, 8.0], [2.0, 2.0, 4.0])
    Spread(of_minima=1.0, low=1.0, median=1.5, high=2.0)
    """
    if not over or len(over) != len(under):
        raise ValueError(f"{len(over)} and {len(under)} values are no rounds of one row")
    rounds = [a / b for a, b in zip(over, under, strict=True)]
    return Spread(min(over) / min(under), min(rounds), statistics.median(rounds), max(rounds))


def alone(values: Sequence[float]) -> Spread:
    """Sum up a figure that is no ratio: its least value, and the spread."""
    return Spread(min(values), min(values), statistics.median(values), max(values))


def bare_us_per_row(batches: dict[int, int], run_us: dict[int, float]) -> float:
    """Return what bare onnxruntime would have used for one row of a window of batches.

    Args:
        batches: how many batches of each size the server ran; at least one.
        run_us: the CPU time of one run of bare onnxruntime at each of these sizes.

    >>> bare_us_per_row({1: 2, 4: 1}, {1: 100.0, 4: 280.0})
    80.0
    """
    rows = sum(size * count for size, count in batches.items())
    return sum(run_us[size] * count for size, count in batches.items()) / rows
