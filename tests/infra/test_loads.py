"""The made-up arrivals stay the same for good, and are what their names say."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from infra.simulate import loads
from infra.simulate.engine import Load

FROZEN: list[tuple[Callable[[], Load], str, int, str]] = [
    (loads.diurnal, "diurnal", 4_373_870, "40f8512ff1a20989"),
    (loads.bursty, "bursty", 5_210_943, "6c3de395a45119b9"),
    (loads.hourly, "hourly", 2_785_461, "1b141ca3d910cfe6"),
    (loads.sparse, "sparse", 326_545, "cc84263b46cd70b9"),
    (loads.repeating, "repeating", 5_836_903, "ff921c1ea86d3df8"),
    (loads.poisson, "poisson", 1_079_375, "9dfafc9fc3c8df41"),
    (partial(loads.gamma, 3.0), "gamma-cv3", 1_080_000, "6bc6929ca64b89bb"),
    (partial(loads.gamma, 5.0), "gamma-cv5", 1_080_000, "84e64846d188d1bc"),
]


@pytest.mark.parametrize(("make", "name", "calls", "digest"), FROZEN)
def test_arrivals_are_frozen(make: Callable[[], Load], name: str, calls: int, digest: str) -> None:
    load = make()
    assert (load.model, len(load.arrivals_s)) == (name, calls)
    assert np.all(np.diff(load.arrivals_s) >= 0)
    milliseconds = np.rint(load.arrivals_s * 1000).astype("<i8")
    assert hashlib.sha256(milliseconds.tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("cv", [3.0, 5.0])
def test_gaps_of_gamma_vary_as_much_as_it_says(cv: float) -> None:
    gaps_s = np.diff(loads.gamma(cv).arrivals_s)
    assert np.std(gaps_s) / np.mean(gaps_s) == pytest.approx(cv, rel=0.05)
