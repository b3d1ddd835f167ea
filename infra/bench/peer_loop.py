"""Peer: onnxruntime alone, in a loop, at given batch sizes.

`python -m infra.bench.peer_loop PLAN`, PLAN being JSON, prints a JSON object that
maps each batch size to the CPU time of one run in microseconds, all threads included.
"""

from __future__ import annotations

import sys
import time

import msgspec
import numpy as np
import onnxruntime

from infra.bench.processes import die_with_parent
from infra.bench.sessions import session_options

RUNS_MIN = 3
TENSORS = 8  # different inputs in turn, as a server gets them


class Plan(msgspec.Struct, frozen=True):
    """What to run."""

    model: str
    rows_path: str  # .npy, rows of the model's only input, at least as many as a batch
    batches: tuple[int, ...]
    seconds: float  # for each batch size
    threads: int
    spinning: bool


def cpu_us(plan: Plan) -> dict[int, float]:
    """Return the CPU time of one run for each batch size; other rows in every run."""
    session = onnxruntime.InferenceSession(
        plan.model,
        session_options(threads=plan.threads, spinning=plan.spinning),
        providers=["CPUExecutionProvider"],
    )
    name = session.get_inputs()[0].name
    rows = np.load(plan.rows_path, allow_pickle=False)
    costs = {}
    for batch in plan.batches:
        tensors = [
            rows.take(range(start, start + batch), axis=0, mode="wrap")
            for start in range(0, TENSORS * batch, batch)
        ]
        session.run(None, {name: tensors[0]})
        runs, until_s, before_ns = 0, time.monotonic() + plan.seconds, time.process_time_ns()
        while runs < RUNS_MIN or time.monotonic() < until_s:
            session.run(None, {name: tensors[runs % TENSORS]})
            runs += 1
        costs[batch] = (time.process_time_ns() - before_ns) / 1e3 / runs
    return costs


def main() -> None:
    die_with_parent()
    costs = cpu_us(msgspec.json.decode(sys.argv[1], type=Plan))
    sys.stdout.write(msgspec.json.encode(costs).decode() + "\n")


if __name__ == "__main__":
    main()
