"""The made-up calls by their names; each is the same calls for good."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from infra.simulate import loads
from infra.simulate.apps684 import apps684
from infra.simulate.engine import Load


def _one(make: Callable[[], Load]) -> Callable[[], list[Load]]:
    return lambda: [make()]


GENERATORS: Final[Mapping[str, Callable[[], list[Load]]]] = {
    "poisson": _one(loads.poisson),
    "gamma-cv3": _one(partial(loads.gamma, 3.0)),
    "gamma-cv5": _one(partial(loads.gamma, 5.0)),
    "diurnal": _one(loads.diurnal),
    "bursty": _one(loads.bursty),
    "hourly": _one(loads.hourly),
    "sparse": _one(loads.sparse),
    "repeating": _one(loads.repeating),
    "apps-684": apps684,
}
