"""An engine whose loads and runs take virtual time, and the ledger of everything that it ran."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from pool.engines.base import EngineError, Probe, Tensors
from registry_sync.documents import Manifest, TensorSpec
from tests.simulation.processes import current

X = (TensorSpec("x", "INT64", (-1,)),)
Y = (TensorSpec("y", "INT64", (-1,)),)


class Costs(msgspec.Struct, frozen=True):
    """What a model's file says: the time and the memory that it takes."""

    load_s: float = 0.3
    run_s: float = 0.004
    row_s: float = 0.001
    bytes: int = 1000
    fails: bool = False  # to load
    adds: int = 1  # to every value
    fails_each: int = 0  # it fails any run with a value that is a multiple of this; 0: none
    kills_each: int = 0  # its process dies of any run with a multiple of this; 0: of none
    journal: str = ""  # a file that is told when a replica is warm, and when it has gone


class Change(msgspec.Struct, frozen=True):
    """A line of a journal: how a replica stands from now on."""

    at_s: float  # monotonic, as everywhere on a machine
    model: str
    what: str  # warm | gone


def read_journal(path: Path) -> list[Change]:
    """Return every change, in order."""
    return [msgspec.json.decode(line, type=Change) for line in path.read_bytes().splitlines()]


@dataclass
class Run:
    """One run of the engine."""

    at_s: float
    worker: str
    model: str
    values: list[int]
    is_done: bool = False
    pid: int = 0  # of the worker's process


@dataclass
class Ledger:
    """Every load and run of a simulation; a call is known by its value, which is its own."""

    loads: list[tuple[float, str, str]] = field(default_factory=list)  # at_s, worker, model
    runs: list[Run] = field(default_factory=list)
    crowded: list[Run] = field(default_factory=list)  # began beside another run of their session

    def times_run(self) -> Counter[int]:
        """Return how often each value was run to the end."""
        return Counter(value for run in self.runs if run.is_done for value in run.values)


ledger = Ledger()  # of the simulation that runs; `new_ledger` begins another


def new_ledger() -> Ledger:
    """Begin a ledger."""
    ledger.loads.clear()
    ledger.runs.clear()
    ledger.crowded.clear()
    return ledger


class SimulatedSession:
    """Adds to every row of `x`, in its time."""

    inputs, outputs = X, Y
    streams, batches, lanes = False, True, 1

    def __init__(self, costs: Costs, model: str) -> None:
        self.costs = costs
        self.model = model
        self.memory_bytes = costs.bytes
        self._runs = 0  # under way
        self._note("warm")

    def infer(self, tensors: Tensors, outputs: Sequence[str] = ()) -> Tensors:
        """Run."""
        values = tensors["x"]
        run = Run(time.monotonic(), _here(), self.model, [int(value) for value in values])
        run.pid = os.getpid()
        ledger.runs.append(run)
        if self._runs >= self.lanes:
            ledger.crowded.append(run)
        self._runs += 1
        time.sleep(self.costs.run_s + self.costs.row_s * len(values))
        self._runs -= 1
        if self.costs.kills_each and not all(values % self.costs.kills_each):
            os._exit(9)
        if self.costs.fails_each and not all(values % self.costs.fails_each):
            raise EngineError("this input is too much for it")
        run.is_done = True
        return {"y": values + np.int64(self.costs.adds)}

    def stream(self, tensors: Tensors) -> Iterator[Tensors]:
        """Give the one answer."""
        yield self.infer(tensors)

    def warmup(self) -> None:
        """Nothing is cold."""

    def close(self) -> None:
        """Nothing is held."""
        self._note("gone")

    def _note(self, what: str) -> None:
        if self.costs.journal:
            change = Change(time.monotonic(), self.model, what)
            with open(self.costs.journal, "ab", buffering=0) as file:  # a line is one write
                file.write(msgspec.json.encode(change) + b"\n")


class SimulatedEngine:
    """Format "simulated"; named to workers as "tests.simulation.engine:SimulatedEngine"."""

    name = "simulated"
    formats = frozenset({"simulated"})

    def probe(self) -> Probe:
        """It always works."""
        return Probe(self.name, available=True, version="1", device="cpu", reason="")

    def load(self, folder: Path, manifest: Manifest, threads: int) -> SimulatedSession:
        """Load, in its time."""
        costs = msgspec.json.decode((folder / "costs.json").read_bytes(), type=Costs)
        ledger.loads.append((time.monotonic(), _here(), manifest.model))
        time.sleep(costs.load_s)
        if costs.fails:
            raise EngineError("this artifact cannot be loaded by anything")
        return SimulatedSession(costs, manifest.model)


def artifact(costs: Costs) -> dict[str, bytes]:
    """Return the files of a model that costs so much."""
    return {"costs.json": msgspec.json.encode(costs)}


def described(manifest: Manifest) -> Manifest:
    """Return a manifest as one of this engine."""
    return msgspec.structs.replace(manifest, format="simulated", inputs=X, outputs=Y)


def _here() -> str:
    process = current()
    return "" if process is None else process.name
