"""The bench of a GPU: what it measures, tried out on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def bench(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "infra.bench.gpu", *options],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_without_the_device_it_says_so() -> None:
    done = bench("--device", "cuda:99")
    assert done.returncode == 1
    assert 'bench: there is no device "cuda:99" here' in done.stderr


@pytest.mark.slow
def test_it_compares_a_served_model_with_its_bare_loop(tmp_path: Path) -> None:
    options = ("--device", "cpu", "--small", "--rows", "4", "--clients", "8")
    done = bench(*options, "--rounds", "2", "--seconds", "1", "--json", str(tmp_path / "f"))
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "f").read_text())
    assert figures["ratio"] > 0
    assert [round(one["batch"]) for one in figures["rounds"]] == [4, 4]
    assert {"load", "warm up", "an answer, warm"} <= figures["cold"].keys()
