"""Runs the bench: starts the peers, measures the rows in turn, sums them up."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra import demo_files, demo_model
from infra.bench import calls, cpu, load, models, peers, rows
from infra.bench.calls import BadTarget, Call, Target
from infra.bench.report import Figure, Measured, Report, figure, machine
from infra.bench.rows import Comparison, Row
from infra.bench.stack import Stack

WARM_S = 1.0
LOOP_S = 1.0
METRICS = {"cpu_us_per_request": "µs", "p50_ms": "ms"}
TOLERANCE = 1e-4  # two engines' float32 sums of the same net


class Unsupported(Exception):
    """The bench cannot measure on this machine."""


@dataclass(frozen=True)
class BenchConfig:
    """What to measure, how long, and against whom.

    Without `open_stack` only the peers run; without `hop` that row is left out.  The
    two `engine_` fields are the onnxruntime options of our own engine, and every peer
    runs with the same: what is compared is the way to the model, not a choice of
    threads.  A user who keeps onnxruntime's default has threads that spin, which
    costs FastAPI with the 602 KB model 2.2 to 2.4 times the CPU measured here.
    """

    rounds: int = 5
    duration_s: float = 2.0  # of one sample
    only: tuple[str, ...] = ()  # names of `rows.NAMES`; empty: all
    open_stack: Callable[[], AbstractContextManager[Stack]] | None = None
    hop: Callable[[int], float] | None = None  # body bytes → CPU µs of one round trip
    more_peers: bool = False  # FastAPI with pydantic, and pytriton where there is one
    pytriton: str = ""  # an interpreter that has it
    engine_threads: int = 0
    engine_spinning: bool = False
    progress: Callable[[str], None] = field(default=lambda _: None)

    def __post_init__(self) -> None:
        unknown = set(self.only) - set(rows.NAMES)
        if unknown:
            raise ValueError(f"no such row: {sorted(unknown)}; there are {', '.join(rows.NAMES)}")
        if self.rounds < 1 or self.duration_s <= 0:
            raise ValueError(f"{self.rounds} rounds of {self.duration_s} s measure nothing")

    def wants(self, row: str) -> bool:
        if self.only:
            return row in self.only
        return self.more_peers or not any(r.name == row and r.of_more_peers for r in rows.ROWS)


@dataclass(frozen=True)
class Side:
    """One server under one load."""

    call: Call
    pids: Callable[[], Sequence[int]]


def run(config: BenchConfig) -> Report:
    """Measure what `config` asks for.

    Raises:
        Unsupported: this is no Linux machine.
        BadTarget: a server answers wrongly.
        LoadFailed, ProcessGone, StartFailed: a sample could not be taken.
        DemoUnavailable: the row magika-8 is wanted and the package is missing.
    """
    if sys.platform != "linux":
        raise Unsupported(f"the bench reads CPU time from Linux's /proc; this is {sys.platform}")
    return _Bench(config).run()


class _Bench:
    def __init__(self, config: BenchConfig) -> None:
        self._config = config
        # The whole mutable state: what has been measured so far.
        self._figures: list[Figure] = []
        self._samples: list[Measured] = []
        self._skipped: list[str] = []

    def run(self) -> Report:
        config = self._config
        with ExitStack() as open_:
            folder = Path(open_.enter_context(tempfile.TemporaryDirectory(prefix="tidepool-bench")))
            mlp, image = folder / "mlp.onnx", folder / "image.onnx"
            models.write_mlp(mlp)
            models.write_image(image)
            stack = open_.enter_context(config.open_stack()) if config.open_stack else None
            if stack is None:
                self._skipped.append("every figure of Tidepool: no stack was given")
            else:
                stack.publish("bench-mlp", mlp, cache=True)
                stack.publish("bench-image", image, cache=False)
                self._idle(stack)
            if any(config.wants(row.name) for row in rows.ROWS):
                self._load_rows(_sides(config, open_, stack, mlp, image))
            if stack is not None and config.wants(rows.MAGIKA_ROW):
                self._magika(stack)
        self._hop()
        return Report(
            machine(),
            config.rounds,
            config.duration_s,
            tuple(self._figures),
            tuple(self._samples),
            tuple(self._skipped),
        )

    def _idle(self, stack: Stack) -> None:
        if not self._config.wants(rows.IDLE_ROW):
            return
        megabytes = rows.alone([cpu.pss_bytes(stack.tier_pids()) / 1e6])
        ready = rows.alone([stack.ready_s])
        self._figures += [
            figure(
                "idle-memory",
                megabytes,
                rows.IDLE_MB_MAX,
                unit="MB",
                ours=megabytes.of_minima,
                sample_unit="MB",
            ),
            figure(
                "ready", ready, rows.READY_S_MAX, unit="s", ours=ready.of_minima, sample_unit="s"
            ),
        ]

    def _load_rows(self, sides: Mapping[str, Side]) -> None:
        for row in rows.ROWS:
            if not self._config.wants(row.name):
                continue
            present = [name for name in row.sides if name in sides]
            if missing := set(row.sides) - set(present):
                self._skipped.append(f"{row.name}: without {', '.join(sorted(missing))}")
            for name in present:
                load.measure(
                    sides[name].call,
                    clients=row.clients,
                    duration_s=WARM_S,
                    pids=sides[name].pids,
                )
            for turn in range(self._config.rounds):
                for name in present:
                    self._sample(row.name, name, sides[name], row.clients, turn)
            self._figures += [
                self._compare(row, comparison)
                for comparison in row.comparisons
                if comparison.over in present and comparison.under in present
            ]

    def _sample(self, row: str, name: str, side: Side, clients: int, turn: int) -> load.Sample:
        sample = load.measure(
            side.call, clients=clients, duration_s=self._config.duration_s, pids=side.pids
        )
        self._samples.append(Measured(row, name, clients, turn, sample))
        self._config.progress(
            f"{row} round {turn + 1}: {name} {sample.cpu_us_per_request:.1f} µs of CPU, "
            f"p50 {sample.p50_ms:.2f} ms, {sample.rps:.0f} requests/s"
        )
        return sample

    def _compare(self, row: Row, comparison: Comparison) -> Figure:
        taken = {
            side: [m.sample for m in self._samples if (m.row, m.side) == (row.name, side)]
            for side in (comparison.over, comparison.under)
        }
        values = {
            side: [getattr(sample, comparison.metric) for sample in samples]
            for side, samples in taken.items()
        }
        over, under = values[comparison.over], values[comparison.under]
        errors = sum(sample.errors for samples in taken.values() for sample in samples)
        return figure(
            comparison.name,
            rows.ratio(over, under),
            comparison.limit,
            promised=comparison.promised,
            ours=min(over),
            theirs=min(under),
            sample_unit=METRICS[comparison.metric],
            note=f"{errors} errors" if errors else "",
        )

    def _magika(self, stack: Stack) -> None:
        model = demo_model.model_path()
        tensor = np.stack([demo_model.features(path) for path in demo_files.choose()])
        stack.publish("bench-magika", model, cache=False)
        call = calls.oip_call(
            stack.target, "bench-magika", demo_model.INPUT, tensor[:1], varied=True
        )
        calls.probe(call)
        side = Side(call, stack.target.pids)
        ours, bare, errors = [], [], 0
        for turn in range(self._config.rounds):
            before = Counter(stack.batches("bench-magika"))
            sample = self._sample(rows.MAGIKA_ROW, rows.MAGIKA, side, rows.MAGIKA_CLIENTS, turn)
            ran = dict(Counter(stack.batches("bench-magika")) - before)
            if not ran:
                raise BadTarget(f"{stack.target.name} counted no batch of bench-magika")
            run_us = peers.bare_loop_us(
                model,
                tensor,
                sorted(ran),
                seconds=LOOP_S,
                threads=self._config.engine_threads,
                spinning=self._config.engine_spinning,
            )
            ours.append(sample.cpu_us_per_request)
            bare.append(rows.bare_us_per_row(ran, run_us))
            errors += sample.errors
        self._figures.append(
            figure(
                "magika-8/onnxruntime",
                rows.ratio(ours, bare),
                rows.MAGIKA_LIMIT,
                ours=min(ours),
                theirs=min(bare),
                sample_unit="µs",
                note=f"{errors} errors" if errors else "",
            )
        )

    def _hop(self) -> None:
        if not self._config.wants(rows.HOP_ROW):
            return
        if self._config.hop is None:
            self._skipped.append("hop: nothing to measure it with was given")
            return
        for body_bytes, limit in rows.HOP_LIMITS_US.items():
            values = [self._config.hop(body_bytes) for _ in range(self._config.rounds)]
            self._figures.append(
                figure(
                    f"hop-{body_bytes}-bytes",
                    rows.alone(values),
                    limit,
                    unit="µs",
                    ours=min(values),
                    sample_unit="µs",
                )
            )


def _sides(
    config: BenchConfig, open_: ExitStack, stack: Stack | None, mlp: Path, image: Path
) -> dict[str, Side]:
    """Start the peers and describe every side's load; each is probed once."""
    dice = np.random.default_rng(3)
    small = dice.normal(size=(1, *models.MLP_SHAPE)).astype(np.float32)
    large = dice.normal(size=(1, *models.IMAGE_SHAPE)).astype(np.float32)
    threads, spinning = config.engine_threads, config.engine_spinning
    fast_mlp = open_.enter_context(peers.fastapi(mlp, threads=threads, spinning=spinning))
    fast_image = open_.enter_context(peers.fastapi(image, threads=threads, spinning=spinning))
    floor = open_.enter_context(peers.hello())
    found = {
        rows.FASTAPI_MLP: (fast_mlp, calls.raw_call(fast_mlp, "/infer", small, varied=True)),
        rows.FASTAPI_IMAGE: (fast_image, calls.raw_call(fast_image, "/infer", large, varied=False)),
        rows.HELLO: (floor, Call(f"{floor.base_url}/", method="GET")),
        rows.POST: (floor, calls.oip_call(floor, "m", models.INPUT, small, varied=True)),
    }
    if stack is not None:
        ours = stack.target
        found |= {
            rows.MLP: (ours, _ours(ours, "bench-mlp", small, varied=True)),
            rows.MLP_HIT: (ours, _ours(ours, "bench-mlp", small, varied=False)),
            rows.IMAGE: (ours, _ours(ours, "bench-image", large, varied=False)),
        }
        _check_same(found[rows.MLP][1], found[rows.FASTAPI_MLP][1])
        _check_same(found[rows.IMAGE][1], found[rows.FASTAPI_IMAGE][1])
        if config.wants("image-json-1"):
            slow = open_.enter_context(peers.pydantic(image, threads=threads, spinning=spinning))
            path = "/v2/models/bench-image/infer"
            found |= {
                rows.IMAGE_JSON: (ours, calls.json_call(ours, path, models.INPUT, large)),
                rows.PYDANTIC_IMAGE: (slow, calls.json_call(slow, "/infer", models.INPUT, large)),
            }
            _check_same(found[rows.IMAGE_JSON][1], found[rows.PYDANTIC_IMAGE][1])
        if config.wants("mlp-64-pytriton") and config.pytriton:
            triton = open_.enter_context(peers.pytriton(config.pytriton, mlp))
            found[rows.PYTRITON_MLP] = (triton, _ours(triton, "bench", small, varied=True))
            _check_same(found[rows.MLP][1], found[rows.PYTRITON_MLP][1])
        # The calls above have stored the unvaried body: from now on it must hit.
        status = calls.probe(found[rows.MLP_HIT][1]).headers.get("cache-status", "")
        if "hit" not in status:
            raise BadTarget(f"the same call again is no cache hit: Cache-Status: {status!r}")
    for target, call in found.values():
        calls.probe(call)
        cpu.read(target.pids())
    return {name: Side(call, target.pids) for name, (target, call) in found.items()}


def _ours(target: Target, endpoint: str, array: NDArray[Any], *, varied: bool) -> Call:
    return calls.oip_call(target, endpoint, models.INPUT, array, varied=varied)


def _check_same(ours: Call, theirs: Call) -> None:
    """Refuse to measure a server that answers something else than its peer."""
    a, b = calls.tensor_of(calls.probe(ours)), calls.tensor_of(calls.probe(theirs))
    if a.shape != b.shape or not np.allclose(a, b, atol=TOLERANCE):
        raise BadTarget(f"{ours.url} answers {a[:4]}…, {theirs.url} answers {b[:4]}…")
