"""Whole lives drawn from seeds: whatever happens, what must hold does, and it all comes right.

`python -m tests.simulation --seeds N [--from S]` lets more of them live; `--seed S` shows one.
"""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import warnings

import pytest

from tests.simulation.broken import BROKEN
from tests.simulation.life import live
from tests.simulation.options import drawn
from tests.support.stack import REPOSITORY

QUICK = 50
ALL = 500
BLOCK = 50
REPLAYED = 6  # a seed with two nodes, a rollout, and several things that go wrong


@pytest.mark.parametrize("seed", range(QUICK))
def test_life_of_a_seed_holds(seed: int) -> None:
    live(seed)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(QUICK, ALL, BLOCK))
def test_lives_of_many_more_seeds_hold(first: int) -> None:
    for seed in range(first, first + BLOCK):
        live(seed)


def test_same_seed_gives_the_same_life_to_the_last_byte() -> None:
    assert drawn(REPLAYED) == drawn(REPLAYED)
    assert live(REPLAYED).digest == live(REPLAYED).digest
    assert live(REPLAYED + 1).digest != live(REPLAYED).digest


@pytest.mark.slow
def test_same_seed_gives_the_same_life_to_other_processes() -> None:
    """Also where strings have other hashes, and objects other addresses."""
    code = f"from tests.simulation.life import live; print(live({REPLAYED}).digest)"
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            timeout=120,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", BROKEN)
def test_some_seed_finds_code_that_is_broken_on_purpose(name: str) -> None:
    """Only an invariant of the kind that was broken counts, not whatever else goes wrong then."""
    broken, said = BROKEN[name]
    found = None
    with warnings.catch_warnings():
        # A life that ends in the middle leaves open what it had: no other test is to hear of it.
        warnings.simplefilter("ignore", ResourceWarning)
        with broken():
            for seed in range(ALL):
                try:
                    live(seed)
                except AssertionError as error:
                    if re.search(said, str(error)):
                        found = f"{name}: seed {seed}: {error}"
                        break
        for _ in range(3):
            gc.collect()
    assert found is not None, f"none of {ALL} seeds has found it"
    print(found)
